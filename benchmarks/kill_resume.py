"""Whether a run survives `kill -9` at any moment, and ends in the same weights.

Why: the founding report lost its only run because the machine crashed while it was saving.

Theory: every step is a function of the state and of (seed, rank, images seen), and a checkpoint
is either complete or absent. So a run that is killed any number of times ends, bit for bit, in the
same weights as one that was never killed. Pictures that are read again out of shards
(`data.cache=codes`) have to come in the same order, through the same shuffle.

Output contract: a line for each kill; the last line of stdout is the record, one JSON object:
`kills`, `kills_by_phase` (while pictures are read, of stage 1, while codes are computed, of stage
2), `kills_while_saving` (the dead process left a half-written checkpoint), `resumed` (how often the
same command continued without an error), `identical` (whether the weights are), `left_behind`
(temporary files after the end) and the hashes of the weights. Exit status 1 unless all runs
resumed, all weights are identical and nothing is left behind.

With `--small` the runs take a second ([fault_runs.py](fault_runs.py)), and each kill comes before
something that the process does to files, so that every moment between two of them is as likely.

    python benchmarks/kill_resume.py --kills 20
    python benchmarks/kill_resume.py --kills 100 --small
    python benchmarks/kill_resume.py --kills 20 --set retrieval.neighbors=2
    python benchmarks/kill_resume.py --kills 20 --shards 40 --set data.cache=codes
"""

import argparse
import hashlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fault_errors import kill
from fault_injection import ANY, Injector
from fault_runs import (
    draw_data,
    fit_words,
    hash_model,
    list_files,
    list_passing,
    list_temporary,
    workplace,
)
from fault_runs import (
    run as run_small,
)
from harness import RESULTS, environment, print_record, write_result
from tessella.data.scenes import canonical_caption, draw_scene, sample_scene

WEIGHTS = ("model/tokenizer.safetensors", "model/transformer.safetensors")
_MOST_BEFORE_KILL = 300  # things done to files; a small run does some 500
EXAMPLES = ("model/examples.safetensors", "model/examples.jsonl")  # if it looks pictures up
# What a run does one after another, and up to which fraction of the kills fall into it.
PHASES = {"data": 0.2, "tokenizer": 0.6, "codes": 0.7, "transformer": 1.0}
PER_SHARD = 100


def main() -> None:
    """Trains once undisturbed and once under kills; compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="many kills of runs of a second")
    parser.add_argument("--images", type=int, default=16_000, help="of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--shards", type=int, help=f"tars of {PER_SHARD} scenes instead of scenes")
    parser.add_argument("--set", action="append", default=[], help="a setting, name=value")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.images = 2, 4_000
    results = hunt_small(options) if options.small else hunt(options)
    record = write_result(
        "-".join(
            ["kill-resume", *(re.sub(r"[^a-z0-9]+", "-", word) for word in options.set)]
            + ["small"] * options.small
        ),
        results,
        config={
            "images": options.images,
            "shards": options.shards,
            "seed": options.seed,
            "set": options.set,
        },
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)
    if not results["identical"] or results["left_behind"]:
        raise SystemExit(1)


def hunt(options: argparse.Namespace) -> dict[str, Any]:
    """Kills one run again and again."""
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        data = "scenes:500"
        if options.shards:
            data = str(write_shards(Path(folder) / "tars", options.shards))
        options.data = data
        peaceful, hunted = Path(folder) / "peaceful", Path(folder) / "hunted"
        began = time.monotonic()
        finish(peaceful, options)
        print(f"uninterrupted: {time.monotonic() - began:.0f} s", flush=True)
        phases, saving = Counter[str](), 0
        for number in range(options.kills):
            target = next(p for p, end in PHASES.items() if (number + 0.5) / options.kills < end)
            phase, is_saving = kill_in(target, hunted, options, moments, aimed=number % 2 == 0)
            phases[phase] += 1
            saving += is_saving
            print(f"kill {number + 1}, {phase}: {progress(hunted)}, half-written: {is_saving}")
        finish(hunted, options)
        left_behind = list_passing(hunted)
        hashes = {
            name: [
                hashlib.sha256((run / name).read_bytes()).hexdigest()[:16]
                for run in (peaceful, hunted)
            ]
            for name in (*WEIGHTS, *EXAMPLES)
            if name in WEIGHTS or (peaceful / name).exists()
        }
    return {
        "kills": options.kills,
        "kills_by_phase": {phase: phases[phase] for phase in PHASES},
        "kills_while_saving": saving,
        "resumed": options.kills,
        "identical": all(first == second for first, second in hashes.values()),
        "left_behind": left_behind,
        "hashes": hashes,
    }


def hunt_small(options: argparse.Namespace) -> dict[str, Any]:
    """Kills small runs until there were enough kills."""
    moments = random.Random(options.seed)
    kills = runs = saving = 0
    identical, left_behind = True, list[str]()
    with workplace() as place:
        data, peaceful = draw_data(place / "data", 12), place / "peaceful"
        run_small(fit_words(data, peaceful))
        expected = hash_model(peaceful / "model")
        while kills < options.kills:
            hunted = place / f"hunted-{runs}"
            while True:
                injector = Injector(hunted, ANY, moments.randint(1, _MOST_BEFORE_KILL), act=kill)
                ended = run_small(fit_words(data, hunted), injector.install)
                if ended.status != -signal.SIGKILL:
                    break
                kills += 1
                saving += bool(list_temporary(hunted))
            if ended.status:
                raise SystemExit(ended.err)
            runs += 1
            identical &= hash_model(hunted / "model") == expected
            left_behind += list_passing(hunted)
            left_behind += sorted(list_files(hunted) - list_files(peaceful))
            print(f"run {runs}: {kills} kills, identical: {identical}, left: {left_behind}")
            shutil.rmtree(hunted)
    return {
        "kills": kills,
        "kills_while_saving": saving,
        "runs": runs,
        "resumed": kills,
        "identical": identical,
        "left_behind": left_behind,
        "hashes": expected,
    }


def start(run: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Begins or resumes the run, in its own process group."""
    images = options.images
    settings = {
        "data.image_size": 32,
        "tokenizer.widths": "[16, 32]",
        "transformer.width": 32,
        "transformer.depth": 2,
        "transformer.dropout": 0.1,
        "tokenizer.quantizer.codebook_size": 64,
        "tokenizer.quantizer.revive_after_images": 256,
        "tokenizer_training.images": images,
        "transformer_training.images": images,
        "tokenizer_training.save_every_seconds": 0.5,
        "transformer_training.save_every_seconds": 0.5,
    }
    command = [sys.executable, "-m", "tessella", "fit", options.data, "--out", str(run)]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    for word in options.set:
        command += ["--set", word]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=(run.parent / f"{run.name}.err").open("ab"),
        start_new_session=True,
    )


def finish(run: Path, options: argparse.Namespace) -> None:
    """Lets the run finish."""
    process = start(run, options)
    if process.wait() != 0:
        raise SystemExit((run.parent / f"{run.name}.err").read_text())


def kill_in(
    target: str, run: Path, options: argparse.Namespace, moments: random.Random, *, aimed: bool
) -> tuple[str, bool]:
    """Resumes a run, and kills it in a phase, or later.

    Args:
        target: the phase.
        run: its folder.
        options: of the command line.
        moments: draws when.
        aimed: in a stage, wait for a checkpoint that is being written.

    Returns:
        The phase that it died in, and whether it left a half-written checkpoint.
    """
    process = start(run, options)
    before, order = progress(run), list(PHASES)
    while process.poll() is None and (
        progress(run) == before or order.index(find_phase(run)) < order.index(target)
    ):
        time.sleep(0.005)
    if find_phase(run) in ("data", "codes"):  # they take no longer than a moment
        time.sleep(moments.uniform(0.0, 0.1))
    else:
        time.sleep(moments.uniform(0.0, 1.0))
        while aimed and process.poll() is None and not half_written(run):
            time.sleep(0.0005)
    if process.poll() is not None:
        raise SystemExit(
            f"The run ended by itself: {process.returncode}; more --images.\n"
            + (run.parent / f"{run.name}.err").read_text()[-2000:]
        )
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return find_phase(run), half_written(run)


def progress(run: Path) -> list[str]:
    """Names the newest checkpoint of each stage, and counts the units before them."""
    newest = [
        f"units {len(list((run / '.data.units').glob('*.json.gz')))}",
        f"codes {sum(len(path.read_bytes()) for path in (run / 'codes').glob('.*.jsonl'))}",
    ]
    for stage in ("tokenizer", "transformer"):
        names = [path.name for path in (run / stage / "checkpoints").glob("checkpoint-*")]
        newest.append(f"{stage} {max(names, default='-')}")
    return newest


def find_phase(run: Path) -> str:
    """Names what a run is doing, or what it was doing when it died."""
    if not (run / "data").exists():
        return "data"
    if not (run / "codes").exists():
        return "tokenizer"
    return "transformer" if (run / "transformer").exists() else "codes"


def write_shards(folder: Path, count: int) -> Path:
    """Writes scenes into tars, as WebDataset's writer does; returns the folder."""
    folder.mkdir()
    for shard in range(count):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                scene = sample_scene(np.random.default_rng([0, number]))
                stream = io.BytesIO()
                Image.fromarray(draw_scene(scene, 32)).save(stream, "PNG")
                files = {"png": stream.getvalue(), "txt": canonical_caption(scene).encode()}
                for suffix, content in files.items():
                    member = tarfile.TarInfo(f"{number:06}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def half_written(run: Path) -> bool:
    """Whether there is a checkpoint under a temporary name."""
    return any(
        any(run.glob(f"{stage}/checkpoints/.tmp-*")) for stage in ("tokenizer", "transformer")
    )


if __name__ == "__main__":
    main()
