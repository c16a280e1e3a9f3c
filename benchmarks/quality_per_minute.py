r"""How good are pictures after the same minutes of the same core, beside what others would train?

Why: steps a second and images seen say nothing of pictures. Here ours, with examples beside the
prompt and without, and four peers learn from the same pictures for the same processor seconds, from
nothing, both stages, and paint the same held-out prompts. What is not fair, and to whom, stands in
docs/explanation/quality-per-minute.md.

Theory: a contender's minutes are processor minutes of one thread, so that a busy machine changes
little; what trains in two stages gives the first 0.4 of them, as `fit --minutes` does. Encoding
the pictures to codes and finding examples counts, reading the data and painting do not: the
processor seconds of a picture stand beside. [quality_peers.py](quality_peers.py) has the peers,
[quality_ours.py](quality_ours.py) ours, [quality_judge.py](quality_judge.py) says how pictures are
judged. Peers paint in two ways, as published and gentler; both are measured.

Output contract: a line a contender; the last line of stdout is the record, one JSON object: for
each contender what its stages did, weights, processor seconds of a picture, and by the features of
each network fractions with the right subject, style and both with 95 % intervals (Wilson), FID, KID
and copies, of what it painted in each way and, for two stages, of what its image tokenizer keeps.
Each contender is a result file of its own (quality-DATA-CONTENDER-MINUTES-minutes), so that they
can be run one by one; `--table` puts files together. OUT keeps weights and pictures: the same
command goes on with the stages that are missing, and judges again. OUT/sheet.png shows the same
prompts by all contenders that have painted there. `--quick` draws one-object scenes and trains for
seconds.

    python benchmarks/quality_per_minute.py --minutes 30 --name emoji --heldout emoji-heldout.tar \
        --train emoji-3d.tar emoji-flat.tar emoji-glossy.tar emoji-noto.tar emoji-blob.tar
    python benchmarks/quality_per_minute.py --minutes 30 --name clothing --train clothing.tar
    python benchmarks/quality_per_minute.py --table benchmarks/results/quality-emoji-*.json

Without --heldout a tenth of the pictures is held out, and a picture's kind is its first caption.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from emoji_examples import split_shards
from emoji_subjects import draw_shards
from harness import RESULTS, environment, print_record, write_result
from quality_judge import MAX_PROMPTS, Judge, load_extractors
from quality_ours import TOKENIZER_FRACTION, Ours
from quality_peers import PEERS, Generator
from quality_tokenizers import Tokenizer
from quality_training import (
    Material,
    Training,
    count_parameters,
    in_batches,
    learn,
    learn_once,
)
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.files import write_json
from tessella.images import Pixels, save_png, to_float, to_uint8
from tessella.sheets import make_sheet
from tessella.text import TextSettings, TextTokenizer

OURS = {"tessella": 0, "tessella-examples": 3}  # examples beside the prompt
CONTENDERS = (*OURS, *PEERS)
SHOWN = 8
QUICK_SECONDS = 2.0
QUICK_STEPS, QUICK_PROMPTS = 2, 16
QUICK_CHANGES = {"transformer.width": 32, "transformer.heads": 2, "transformer.depth": 2}


class Contender(Protocol):
    """What is compared."""

    @property
    def paintings(self) -> Mapping[str, Mapping[str, float]]:
        """The ways to paint that are measured, by name."""

    def train(self) -> dict[str, Any]:
        """Trains, or finds it trained; returns what the stages did."""

    def count_parameters(self) -> dict[str, int]:
        """Counts the weights of each network."""

    def paint(self, prompts: Sequence[str], painting: Mapping[str, float]) -> Pixels:
        """Paints a picture a prompt."""

    def reconstruct(self, pixels: Pixels) -> Pixels | None:
        """Returns what its image tokenizer keeps of pictures; None: it has none."""


class PeerContender:
    """A peer with its weights.

    Args:
        name: one of `PEERS`.
        material: what it learns from.
        options: minutes, precision, seed and rates.
    """

    def __init__(self, name: str, material: Material, options: argparse.Namespace) -> None:
        self.peer = PEERS[name]
        self.paintings = {
            way: {**painting, "steps": QUICK_STEPS}
            if options.quick and "steps" in painting
            else painting
            for way, painting in self.peer.paintings.items()
        }
        self._material, self._options = material, options
        self._folder: Path = options.out / name
        torch.manual_seed(options.seed)
        self.tokenizer: Tokenizer | None = self.peer.tokenizer and self.peer.tokenizer()
        self.generator: Generator = self.peer.generator(material.text.vocabulary_size)

    def train(self) -> dict[str, Any]:
        """Trains both stages, or the one; what is left after the codes is the second's."""
        seconds = 60 * self._options.minutes
        facts: dict[str, Any] = {"codes_seconds": 0.0, "seconds": 0.0}
        if self.tokenizer is not None:
            facts["tokenizer"] = vars(self._train_tokenizer(TOKENIZER_FRACTION * seconds))
            facts["codes_seconds"] = self._encode_all()
            facts["seconds"] = facts["tokenizer"]["seconds"] + facts["codes_seconds"]
        # Of quick seconds nothing may be left.
        facts["generator"] = vars(self._train_generator(max(seconds - facts["seconds"], 1.0)))
        facts["seconds"] += facts["generator"]["seconds"]
        return facts

    def count_parameters(self) -> dict[str, int]:
        """Counts the weights of both networks."""
        counts = {"tokenizer": self.tokenizer, "generator": self.generator}
        return {name: count_parameters(network) for name, network in counts.items() if network}

    @torch.inference_mode()
    def paint(self, prompts: Sequence[str], painting: Mapping[str, float]) -> Pixels:
        """Paints a picture a prompt."""
        torch.manual_seed(self._options.seed)

        def make(rows: Sequence[str]) -> Tensor:
            text = self._material.encode([*rows, *[""] * len(rows)])
            made = self.generator.paint(text, painting)
            return made if self.tokenizer is None else self.tokenizer.decode(made)

        return to_uint8(in_batches(make, prompts))

    @torch.inference_mode()
    def reconstruct(self, pixels: Pixels) -> Pixels | None:
        """Returns what the image tokenizer keeps of pictures."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return None

        def make(rows: Pixels) -> Tensor:
            return tokenizer.decode(tokenizer.encode(to_float(rows)))

        return to_uint8(in_batches(make, pixels))

    def _train_tokenizer(self, seconds: float) -> Training:
        optimizer = self.peer.tokenizer_optimizer
        assert self.tokenizer is not None
        assert optimizer is not None
        rate = self._options.tokenizer_learning_rate or optimizer.learning_rate
        chosen = replace(optimizer, learning_rate=rate)

        def compute_loss(network: Tokenizer, start: int, progress: float) -> Tensor:
            indices = self._material.order(start, chosen.batch_size)
            return network.compute_loss(self._material.read(indices), progress)

        self.tokenizer, training = learn_once(
            self._folder / "tokenizer.safetensors",
            self.tokenizer,
            lambda network: learn(network, compute_loss, chosen, seconds=seconds, **self._how),
        )
        return training

    def _train_generator(self, seconds: float) -> Training:
        optimizer, material = self.peer.generator_optimizer, self._material
        rate = self._options.learning_rate or optimizer.learning_rate
        chosen = replace(optimizer, learning_rate=rate)
        codes = None if self.tokenizer is None else torch.from_numpy(np.load(self._codes))

        def compute_loss(network: Generator, start: int, progress: float) -> Tensor:
            indices = material.order(start, chosen.batch_size)
            captions = material.draw_captions(indices, start)
            target = material.read(indices) if codes is None else codes[indices]
            return network.compute_loss(material.encode(captions), target)

        self.generator, training = learn_once(
            self._folder / "generator.safetensors",
            self.generator,
            lambda network: learn(network, compute_loss, chosen, seconds=seconds, **self._how),
        )
        return training

    @torch.inference_mode()
    def _encode_all(self) -> float:
        """Encodes the pictures, or finds them encoded; returns the processor seconds."""
        material, tokenizer = self._material, self.tokenizer
        assert tokenizer is not None
        note = self._codes.with_suffix(".json")
        if not note.exists():
            began = time.process_time()
            codes = in_batches(
                lambda rows: tokenizer.encode(material.read(rows)), np.arange(len(material.images))
            )
            np.save(self._codes, codes.numpy())
            write_json(note, time.process_time() - began)
        return float(json.loads(note.read_text(encoding="utf-8")))

    @property
    def _codes(self) -> Path:
        return self._folder / "codes.npy"

    @property
    def _how(self) -> dict[str, Any]:
        return {"precision": self._options.precision, "seed": self._options.seed}


@dataclass(frozen=True)
class Arena:
    """What all contenders share."""

    sources: list[str]
    settings: Mapping[str, Any]  # of the data, as `tessella.fit` takes them
    material: Material
    judge: Judge

    @classmethod
    def create(cls, options: argparse.Namespace) -> "Arena":
        """Reads the data once, for the peers and for judging; ours reads it by itself."""
        folder, sources = options.out / "data", list(options.train)
        split: dict[str, Any] = {"validation_fraction": 0.1}
        if options.heldout:
            sources = split_shards(sources, options.heldout, folder, quick=options.quick).learned
            split = {"validation_fraction": 0.03, "split_by": "base"}
        data = prepare(sources, DataSettings(**split), folder / "cache")
        extractors = load_extractors(folder / "features", quick=options.quick)
        if options.heldout:
            all_of_it = DataSettings(validation_fraction=0.0)
            held = prepare([options.heldout], all_of_it, folder / "heldout").train
            shards = [options.heldout, *sources]
            count = QUICK_PROMPTS if options.quick else MAX_PROMPTS
            judge = Judge.of_emoji(held, data.train, shards, extractors, count)
        else:
            judge = Judge.of_captions(data.validation, data.train, extractors)
        text = TextTokenizer.train(data.train.all_captions(), TextSettings())
        settings = {f"data.{name}": value for name, value in split.items()}
        settings["precision"] = options.precision
        return cls(sources, settings, Material(data.train, text, options.seed), judge)

    def enter(self, name: str, options: argparse.Namespace) -> Contender:
        """Creates a contender that has learned nothing."""
        if name in PEERS:
            return PeerContender(name, self.material, options)
        changes = QUICK_CHANGES if options.quick else {}
        folder, seconds = options.out / name, 60 * options.minutes
        how = folder, seconds, options.seed, changes
        return Ours(self.sources, self.settings, OURS[name], *how)


def main() -> None:
    """Trains, measures, stores and prints the results; or joins stored ones."""
    options = parse()
    if options.table:
        print(make_table([json.loads(path.read_bytes()) for path in options.table]))
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.out, options.minutes = options.out or Path(scratch), QUICK_SECONDS / 60
            options.out.mkdir(parents=True, exist_ok=True)
            options.heldout, options.train = draw_shards(options.out, ", drawn")
        options.out = options.out or Path(
            f"runs/quality/{options.name}-{options.minutes:g}-minutes"
        )
        arena = Arena.create(options)
        records = {name: run(name, arena, options) for name in options.contenders}
        save_sheet(arena.judge, options.out)
    print(make_table(list(records.values())))
    results = {name: record["results"] for name, record in records.items()}
    where = environment("cpu")
    config = {"minutes": options.minutes}
    print_record(
        write_result(f"quality-{options.name}", results, config=config, where=where, folder=None)
    )


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="+", metavar="TAR")
    parser.add_argument("--heldout", metavar="TAR", help="pairs of subject and style: emoji")
    parser.add_argument("--name", default="emoji", help="of the data, in the result files' names")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--minutes", type=float, default=3.0, help="of the processor, for each")
    parser.add_argument("--out", type=Path, help="default: runs/quality/NAME-MINUTES-minutes")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, help="of the peers' second stage")
    parser.add_argument("--tokenizer-learning-rate", type=float, help="of the peers' first stage")
    parser.add_argument("--table", nargs="+", type=Path, metavar="RESULT.json", help="joins these")
    parser.add_argument("--quick", action="store_true", help="draws its own; stores nothing")
    options = parser.parse_args()
    if not (options.quick or options.table or options.train):
        parser.error("--train is needed, or --table, or --quick")
    return options


def run(name: str, arena: Arena, options: argparse.Namespace) -> dict[str, Any]:
    """Trains, paints and judges one contender; returns its record, which is stored."""
    config = describe(name, options)
    check_folder(options.out / name, config)
    contender, judge = arena.enter(name, options), arena.judge
    training = contender.train()
    results: dict[str, Any] = {
        "parameters": contender.count_parameters(),
        "training": training,
        "prompts": len(judge.prompts),
        "training_pictures": len(judge.training),
        "real": judge.real,
    }
    kept = contender.reconstruct(judge.heldout.images.pixels)
    if kept is not None:
        results["tokenizer"] = judge.measure_kept(kept)
    results["painted"] = {}
    for way, painting in contender.paintings.items():
        began = time.process_time()
        pixels = contender.paint(judge.prompts, painting)
        seconds = (time.process_time() - began) / len(pixels)
        np.save(options.out / name / f"{way}.npy", pixels)
        results["painted"][way] = {
            "painting": dict(painting),
            "seconds_per_picture": seconds,
            **judge.measure(pixels),
        }
    print(f"{name}: {training['seconds']:.0f} processor seconds", flush=True)
    seed = f"-seed{options.seed}" if options.seed else ""
    return write_result(
        f"quality-{options.name}-{name}-{options.minutes:g}-minutes{seed}".replace(".", "-"),
        results,
        config=config,
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )


def describe(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Says what a contender was given."""
    is_peer = name in PEERS
    return {
        "contender": name,
        "minutes": options.minutes,
        "precision": options.precision,
        "seed": options.seed,
        "learning_rate": options.learning_rate if is_peer else None,
        "tokenizer_learning_rate": options.tokenizer_learning_rate if is_peer else None,
        "heldout": options.heldout and Path(options.heldout).name,
        "train": [Path(shard).name for shard in options.train],
    }


def check_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Notes what a folder's weights were given, and refuses those that were given something else.

    Raises:
        SystemExit: they were.
    """
    path = folder / "config.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != config:
        raise SystemExit(
            f"Other minutes, data or settings lie in `{folder}`: choose another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, config)


def make_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Joins records into a table in Markdown, a row for each way of painting.

    Numbers stand for the first network whose features were used; a record has those of all.
    """
    rows = []
    for record in records:
        results, config = record["results"], record["config"]
        kept = results.get("tokenizer", {}).get("psnr")
        for way, painted in results["painted"].items():
            features = next(name for name in results["real"])
            measured = painted[features]
            shares = {
                key.replace("right_", ""): f"{value['share']:.0%}"
                for key, value in measured.items()
                if isinstance(value, Mapping)
            }
            rows.append(
                {
                    "contender": f"{config['contender']}, {way}",
                    "minutes": f"{config['minutes']:g}",
                    "weights, M": f"{sum(results['parameters'].values()) / 1e6:.1f}",
                    "tokenizer, dB": "" if kept is None else f"{kept:.1f}",
                    **shares,
                    "FID": f"{measured['fid']:.4g}",
                    "KID": f"{measured['kid']:.4g}",
                    "ms a picture": f"{1000 * painted['seconds_per_picture']:.0f}",
                }
            )
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save_sheet(judge: Judge, folder: Path) -> None:
    """Lays out the same prompts by all contenders that have painted in a folder."""
    shown = np.linspace(0, len(judge.prompts) - 1, SHOWN).astype(int)
    pictures = [judge.heldout.images.pixels[shown]]
    labels = [judge.prompts[at] for at in shown]
    for name in CONTENDERS:
        for path in sorted((folder / name).glob("*.npy")):
            if path.stem == "codes":
                continue
            pictures.append(np.load(path)[shown])
            labels += [f"{name}, {path.stem}", *[""] * (SHOWN - 1)]
    save_png(folder / "sheet.png", make_sheet(np.concatenate(pictures), SHOWN, labels, 2))


if __name__ == "__main__":
    main()
