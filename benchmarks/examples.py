"""What looking examples up costs: building the index, a lookup, a training step, painting, adding.

Why: a model that looks pictures up keeps them outside of its weights. That is worth having only if
a million of them are found in the time that nobody notices, and if looking at three costs little
beside the picture itself.

Theory: building reads every word once; the arithmetic is a few operations a posting, so that
splitting and stemming bound it: some 5 µs a word. Postings are 8 bytes, codes 2 bytes a position.
A lookup reads the postings of the prompt's words and compares 2,000 captions at most, however many
there are: it is bounded by a few binary searches a word in each of them (under a millisecond), cold
by some tens of reads from the disk. Examples are embedded once and give keys and values to every
layer, without running through the layers: with k examples beside N positions a step adds the
projections of k·N rows, 2 of a layer's 12 matrix products a row, and attention to k·N rows more.

Output contract: a line a measurement; the last line of stdout is the record, one JSON object.
`index`: for each kind of captions (`zipf`: words by Zipf's law; `labels`: "label, style", as emoji
have them) at a quarter of N and at N `build_seconds`, `write_seconds`, `peak_mib` (of a fresh
process; `idle_mib` is what it takes before), `file_mib`, and `lookup_ms`: `warm` over all prompts
(with `p95`; `warm_cpu` does not count other programs) and `cold`, each with the files dropped from
the disk's cache and opened anew, which `open` counts by itself. Bar: 5 ms a prompt.
`step` and `painting`: seconds with k = 3 and k = 0, and their ratio round by round, for `tiny` and
a transformer of width 192 and depth 4. Bars: 1.4 and 1.2. Painting is 16 pictures, lookup and
decoder included.
`adding`: seconds of `tessella examples add` of 1,000 drawn pictures, or null where there is no such
command. Bar: 60 s.

    python benchmarks/examples.py
    python benchmarks/examples.py --parts index --captions 1000000
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_cache import draw, read_peak_kib
from tessella.retrieval import ExampleMemory
from tessella.retrieval.examples import EXAMPLES_FILE, ROWS_FILE, ExampleRow

NEIGHBORS = 3
GRID = (8, 8)
CODEBOOK_SIZE = 512
PICTURES = 16
PARTS = ("index", "step", "painting", "adding")
KINDS = ("zipf", "labels")
VOCABULARY = 30_000
STYLES = ("3d", "flat", "line", "pixel", "sketch")


class Captions(Sequence[ExampleRow]):
    """Captions that are made when they are read: only the index takes memory.

    Args:
        kind: `zipf` (4 to 14 words by Zipf's law) or `labels` (two words and one of five styles).
        count: how many.
        seed: of the words that are drawn; the vocabulary is always the same.
    """

    def __init__(self, kind: str, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._kind = kind
        self._vocabulary = make_words(VOCABULARY)
        if kind == "zipf":
            lengths = rng.integers(4, 15, count)
            weights = 1 / np.arange(1, VOCABULARY + 1)
        else:
            lengths = np.full(count, 2)
            weights = np.ones(5_000)
        self._ends = np.cumsum(lengths)
        levels = np.cumsum(weights) / weights.sum()
        self._words = np.empty(int(self._ends[-1]), np.int32)
        # A part at a time: the random numbers of all would take twice the memory.
        for part in np.array_split(self._words, 64):
            part[:] = np.searchsorted(levels, rng.random(len(part)))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ExampleRow:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        words = [self._vocabulary[word] for word in self._words[start : self._ends[index]].tolist()]
        caption = " ".join(words)
        if self._kind == "labels":
            caption += f", {STYLES[index % len(STYLES)]}"
        return ExampleRow(f"pictures/{index:07}.png", [caption])


def make_words(count: int) -> list[str]:
    """Makes words of two to four syllables, all different."""
    rng = np.random.default_rng(7)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choice(syllables, rng.integers(2, 5)))] = None
    return list(words)


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--captions", type=int, default=1_000_000, help="N; a quarter of it too")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--pictures", type=int, default=1_000, help="to add")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    parser.add_argument("--once", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        kind, folder = options.once
        print(json.dumps(build_once(kind, options.captions, options.prompts, Path(folder))))
        return
    if options.quick:
        options.captions, options.prompts, options.pictures = 8_000, 50, 40
        options.rounds = 2

    # Not at the top: it imports torch, which takes more memory than a small index.
    import torch

    from harness import RESULTS, environment, print_record, write_result

    torch.set_num_threads(options.threads)
    measure = {
        "index": measure_index,
        "step": measure_step,
        "painting": measure_painting,
        "adding": measure_adding,
    }
    results = {part: measure[part](options) for part in options.parts}
    config = {name: value for name, value in vars(options).items() if name != "once"}
    record = write_result(
        "examples",
        results,
        config=config | {"neighbors": NEIGHBORS, "grid": GRID, "codebook_size": CODEBOOK_SIZE},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


# Building and looking up.


def measure_index(options: argparse.Namespace) -> dict[str, Any]:
    """Builds and reads an index of each kind of captions at two sizes, in fresh processes."""
    results: dict[str, Any] = {}
    for kind in options.kinds:
        results[kind] = {}
        for count in (options.captions // 4, options.captions):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--once", kind, folder]
                command += ["--captions", str(count), "--prompts", str(options.prompts)]
                paths = os.pathsep.join(filter(None, sys.path))
                answer = subprocess.run(
                    command,
                    check=True,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"PYTHONPATH": paths},
                )
            results[kind][str(count)] = made = json.loads(answer.stdout)
            warm, cold = made["lookup_ms"]["warm"], made["lookup_ms"]["cold"]
            print(
                f"{count:,} captions ({kind}): built in {made['build_seconds']:.0f} s, "
                f"{made['peak_mib']:.0f} MiB ({made['idle_mib']:.0f} idle), files "
                f"{made['file_mib']:.0f} MiB; a lookup {warm['median']:.2f} ms (95 %: "
                f"{warm['p95']:.2f}), cold {cold['median']:.2f} (95 %: {cold['p95']:.2f})",
                flush=True,
            )
    return results


def build_once(kind: str, count: int, num_prompts: int, folder: Path) -> dict[str, Any]:
    """Builds, writes and reads a memory; measures its time and memory."""
    rows = Captions(kind, count)
    codes = np.random.default_rng(0).integers(
        CODEBOOK_SIZE, size=(count, 1, *GRID), dtype=np.uint16
    )
    idle = read_peak_kib()
    start, cpu_start = time.perf_counter(), time.process_time()
    memory = ExampleMemory.build(codes, rows, "0" * 64)
    built, peak = time.perf_counter(), read_peak_kib()
    cpu_seconds = time.process_time() - cpu_start
    memory.write(folder)
    written = time.perf_counter()
    results = {
        "build_seconds": built - start,
        "build_cpu_seconds": cpu_seconds,
        "write_seconds": written - built,
        "idle_mib": idle / 1024,
        "peak_mib": peak / 1024,
        "peak_with_writing_mib": read_peak_kib() / 1024,
        "file_mib": sum(path.stat().st_size for path in folder.iterdir()) / 2**20,
        "words": len(memory.index.words),
        "postings": len(memory.index.captions),
    }
    del memory, codes, rows
    prompts = [row.captions[0] for row in Captions(kind, num_prompts, seed=1)]
    return results | {"lookup_ms": measure_lookup(folder, prompts)}


def measure_lookup(folder: Path, prompts: Sequence[str]) -> dict[str, Any]:
    """Looks prompts up that no picture has, in a memory that is mapped."""
    opening, cold = [], []
    for prompt in prompts[: max(10, len(prompts) // 10)]:
        drop_from_cache(folder)
        start = time.perf_counter()
        memory = open_memory(folder)
        opened = time.perf_counter()
        memory.find(prompt, NEIGHBORS)
        opening.append(opened - start)
        cold.append(time.perf_counter() - opened)
        del memory  # pages that are mapped stay in the cache
    memory, warm, cpu = open_memory(folder), [], []
    for prompt in [*prompts, *prompts]:  # the first time is for warming up
        start, cpu_start = time.perf_counter(), time.thread_time()
        found = memory.find(prompt, NEIGHBORS)
        warm.append(time.perf_counter() - start)
        cpu.append(time.thread_time() - cpu_start)
        if len(found) < NEIGHBORS:
            raise SystemExit(f"Too few examples for `{prompt}`: {len(found)}.")
    return {
        "open": summarize(opening),
        "cold": summarize(cold),
        "warm": summarize(warm[len(prompts) :]),
        "warm_cpu": summarize(cpu[len(prompts) :]),
    }


def open_memory(folder: Path) -> ExampleMemory:
    """Maps the memory."""
    memory = ExampleMemory.open(folder)
    if memory is None:
        raise SystemExit(f"There is no memory in {folder}.")
    return memory


def drop_from_cache(folder: Path) -> None:
    """Asks the system to read the files from the disk again."""
    for name in (EXAMPLES_FILE, ROWS_FILE):
        descriptor = os.open(folder / name, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def summarize(seconds: Sequence[float]) -> dict[str, float]:
    """Describes times in milliseconds."""
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    values = {"median": cuts[9], "p95": cuts[18], "min": min(seconds), "max": max(seconds)}
    return {name: 1000 * value for name, value in values.items()} | {"repeats": len(seconds)}


# What looking at three costs.


def list_sizes(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Lists the transformers that are measured."""
    from tessella.transformer import TransformerSettings
    from transformer import QUICK_SETTINGS

    if options.quick:
        yield "quick", QUICK_SETTINGS
        return
    yield "tiny", TransformerSettings()
    yield "width_192", TransformerSettings(width=192, depth=4)


def compare_neighbors(
    name: str, contestants: dict[str, Callable[[], object]], options: argparse.Namespace
) -> dict[str, Any]:
    """Times both in turn."""
    from harness import Spread
    from transformer import compare, time_rounds

    seconds = time_rounds(contestants, options.rounds, "cpu")
    ratio = compare(seconds[f"k{NEIGHBORS}"], seconds["k0"])
    print(
        f"{name}: {ratio.median:.2f} (from {ratio.min:.2f} to {ratio.max:.2f}) of "
        f"{statistics.median(seconds['k0']):.3f} s",
        flush=True,
    )
    spreads = {each: Spread.of(times, 1) for each, times in seconds.items()}
    return {"seconds": spreads, "ratio": ratio}


def measure_step(options: argparse.Namespace) -> dict[str, Any]:
    """Measures a training step on the same batch with and without examples."""
    import torch

    from transformer_training import Step

    batch = 4 if options.quick else 64
    results = {}
    for name, settings in list_sizes(options):
        contestants: dict[str, Callable[[], object]] = {
            f"k{count}": Step(settings, GRID, batch, torch.device("cpu"), neighbors=count)
            for count in (0, NEIGHBORS)
        }
        results[name] = compare_neighbors(f"step, {name}", contestants, options)
    return results


def create_model(settings: Any, captions: Sequence[ExampleRow]) -> Any:
    """Creates an untrained model of the preset `tiny` with a memory."""
    import torch

    from tessella.model.folder import ModelConfig
    from tessella.model.pipeline import TextToImage
    from tessella.text import TextSettings, TextTokenizer

    torch.manual_seed(0)
    text = TextTokenizer.train([row.captions[0] for row in captions], TextSettings())
    config = ModelConfig(transformer=settings, neighbors=NEIGHBORS)
    model = TextToImage.create(config, text)
    num_codes, size, _ = model.tokenizer.codebook.shape
    rng = np.random.default_rng(0)
    shape = (len(captions), num_codes, *config.grid)
    codes = rng.integers(size, size=shape, dtype=np.uint16)
    for network in (model.tokenizer, model.transformer):
        network.eval().requires_grad_(False)
    memory = ExampleMemory.build(codes, captions, model.tokenizer.hash_encoder())
    return model.with_parts(memory=memory)


def measure_painting(options: argparse.Namespace) -> dict[str, Any]:
    """Measures 16 pictures of 16 prompts, looked up and decoded, with guidance and without."""
    from tessella.model.request import enumerate_requests

    captions = Captions("zipf", 2_000)
    prompts = [row.captions[0] for row in Captions("zipf", PICTURES, seed=1)]
    results: dict[str, Any] = {}
    for name, size in list_sizes(options):
        model = create_model(size, captions)
        for guidance_scale in (1.0, 3.0):
            contestants: dict[str, Callable[[], object]] = {}
            for count in (0, NEIGHBORS):
                settings = model.config.generation.replace(
                    neighbors=count, guidance_scale=guidance_scale
                )
                contestants[f"k{count}"] = functools.partial(
                    model.generate_images, enumerate_requests(prompts), settings
                )
            key = name if guidance_scale == 1 else f"{name}_guided"
            results[key] = compare_neighbors(f"painting, {key}", contestants, options)
    return results


def measure_adding(options: argparse.Namespace) -> dict[str, Any] | None:
    """Times `tessella examples add` from the shell on, once; None where it does not exist."""
    from PIL import Image

    tessella = [sys.executable, "-m", "tessella"]
    asked = subprocess.run([*tessella, "examples", "add", "--help"], capture_output=True)
    if asked.returncode:
        print("adding: this tessella has no `examples add`", flush=True)
        return None
    sizes = dict(list_sizes(options))
    model = create_model(next(iter(sizes.values())), Captions("zipf", 2_000))
    with tempfile.TemporaryDirectory() as name:
        folder, pictures = Path(name) / "model", Path(name) / "pictures"
        sample = np.asarray(Image.new("RGB", (64, 64)))
        model.save(folder, card="# A card\n", metrics={}, samples=sample)
        pictures.mkdir()
        rows = Captions("labels", options.pictures, seed=2)
        for number, (suffix, content) in enumerate(draw(options.pictures)):
            (pictures / f"{number:05}.{suffix}").write_bytes(content)
            (pictures / f"{number:05}.txt").write_text(rows[number].captions[0])
        start = time.perf_counter()
        command = [*tessella, "examples", "add", str(folder), str(pictures)]
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(done.stderr)
        added = len(open_memory(folder)) - len(model.memory)
    print(f"adding: {added:,} of {options.pictures:,} pictures in {seconds:.1f} s", flush=True)
    return {"seconds": seconds, "pictures": options.pictures, "added": added}


if __name__ == "__main__":
    main()
