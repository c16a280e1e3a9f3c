r"""What do examples beside the prompt give an emoji model, in the same minutes?

Why: a small network that must keep a thousand subjects in its weights learns for hours what the
folder already shows. Here the same recipe is trained with examples and without, for equally long,
on five sets of emoji, and paints (a) pairs of subject and style that no training picture has, and
(b) subjects that it was never trained on, whose other styles are added to its memory afterwards.
`--model` measures one that was trained before.

Theory: a picture is classified as the real picture that is nearest by a network's features: for
(a) among all pictures of the held-out subjects, for (b) among all pictures of the five sets. The
bound is the image tokenizer: the class of the reconstructions. A painted picture counts as a copy
if it is nearer, in pixels, to the recompression of its subject in another style than that is to its
own original; the same rate among the real held-out pictures stands beside it, for some sets share
their drawings.

Output contract: the last line of stdout is the record, one JSON object: for each number of examples
the images seen and minutes of both stages, the held-out loss, and for (a) and (b) the fractions
with the right subject, style and both with their 95 % intervals (Wilson), and the copies. OUT has
the runs, which the same command resumes, and sheets: the examples, the painted picture, the true
one. `--quick` draws one-object scenes instead and trains for seconds.

    python benchmarks/emoji_examples.py --train 3d.tar flat.tar glossy.tar noto.tar blob.tar \
        --heldout heldout.tar --out runs/examples --seed 0
"""

import argparse
import contextlib
import functools
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import tessella
from emoji_subjects import (
    Gallery,
    Kind,
    choose_gallery,
    compare,
    draw_shards,
    load_extractor,
    read_kinds,
)
from harness import RESULTS, environment, print_record, write_result
from scenes_accuracy import describe
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.evaluation.distributions import compute_distances
from tessella.evaluation.eval_images import EvalImages
from tessella.evaluation.features import FeatureExtractor, choose_features
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.files import write_json
from tessella.images import Pixels, save_png
from tessella.model.pipeline import TextToImage
from tessella.model.request import GeneratedImages, ImageRequest
from tessella.retrieval import ExampleMemory
from tessella.retrieval.examples import ExampleRow
from tessella.sheets import make_sheet

TONES = 5
NEW_SUBJECTS = 12  # one subject in so many is kept out of training, if no held-out pair has it
SHEET_PICTURES = 24
PAINTING = {"temperature": 0.3, "guidance_scale": 3.0}

DETAILS = (
    "tokenizer_training.loss.perceptual.layers={conv1=0.05,layer1=0.05,layer2=0.05,layer3=0.05}",
    "tokenizer_training.optimizer.muon_learning_rate=0.01",
    "tokenizer_training.optimizer.adamw_learning_rate=0.0015",
    "tokenizer_training.decay_fraction=0.8",
)
TRANSFORMER = (
    "tokenizer_training.images=0",
    "data.split_by=base",
    "data.validation_fraction=0.03",
    "transformer.width=192",
    "transformer.heads=6",
    "transformer.dropout=0.1",
    "transformer_training.evaluate_every_images=24000",
    "transformer_training.first_caption_fraction=0.75",  # prompts are labels, not keywords
    "transformer_training.flips=true",
    "transformer_training.batch_size=16",
)
QUICK_IMAGES = 320


@dataclass(frozen=True)
class Shards:
    """The tars of a run."""

    learned: list[str]
    new: list[str]  # subjects that are never trained on


@dataclass(frozen=True)
class Test:
    """What is painted, and what it is compared with."""

    heldout: Gallery  # pairs that were never trained on, of subjects that were
    new: Gallery  # subjects that were never trained on
    rows: Sequence[ExampleRow]  # of the pictures of the new subjects, tones included
    new_pixels: Pixels  # theirs
    new_kinds: Sequence[Kind]  # theirs
    gallery: Gallery  # all real pictures, without tones
    extractor: FeatureExtractor

    @classmethod
    def read(cls, options: argparse.Namespace, shards: Shards) -> "Test":
        """Reads the pictures at the size that the models paint."""
        settings = DataSettings(image_size=options.image_size, validation_fraction=0.0)
        held = prepare([options.heldout], settings, options.out / "cache/heldout").train
        new = prepare(shards.new, settings, options.out / "cache/new").train
        learned = prepare(shards.learned, settings, options.out / "cache/learned").train
        kinds = read_kinds([options.heldout, *shards.new, *shards.learned])
        galleries = [choose_gallery(images, kinds, None) for images in (held, new, learned)]
        images = EvalImages(
            np.concatenate([one.images.pixels for one in galleries]),
            [caption for one in galleries for caption in one.images.captions],
            "without a skin tone",
        )
        return cls(
            galleries[0],
            galleries[1],
            [ExampleRow(new.name(n), new.captions(n)) for n in range(len(new))],
            new.pixels(np.arange(len(new))),
            [kinds[new.captions(n)[0]] for n in range(len(new))],
            Gallery(images, [kind for one in galleries for kind in one.kinds]),
            load_extractor(options.features, torch.device("cpu"), options.quick),
        )

    def measure(self, model: TextToImage, folder: Path) -> dict[str, Any]:
        """Paints both kinds of prompts, and classifies the pictures; sheets go to the folder."""
        settings = model.config.generation.replace(**PAINTING)
        prompts = self.heldout.images.captions
        requests = [ImageRequest(prompt, seed) for seed, prompt in enumerate(prompts)]
        painted = model.generate_images(requests, settings)
        self.save_sheet(folder / "held-out.png", model, painted, self.heldout)
        subjects = {kind.subject for kind in self.heldout.kinds}
        results = {
            "heldout": self.classify(painted.pixels, self.heldout.kinds, subjects),
            "copies": self.measure_copies(model, painted.pixels),
        }
        if model.memory is not None:
            model, requests = self.add_new(model)
            painted = model.generate_images(requests, settings)
            self.save_sheet(folder / "new.png", model, painted, self.new)
            results["new"] = self.classify(painted.pixels, self.new.kinds, None)
        return results

    def bound(self, model: TextToImage) -> dict[str, Any]:
        """Classifies what the image tokenizer keeps of the held-out pictures."""
        kept = evaluate_reconstructions(model.tokenizer, self.heldout.images.pixels).pixels
        subjects = {kind.subject for kind in self.heldout.kinds}
        return self.classify(kept, self.heldout.kinds, subjects)

    def classify(
        self, pixels: Pixels, expected: Sequence[Kind], subjects: set[str] | None
    ) -> dict[str, object]:
        """Compares the nearest real pictures of some subjects, None for all, with the prompts."""
        kinds = self.gallery.kinds
        rows = [n for n, kind in enumerate(kinds) if not subjects or kind.subject in subjects]
        distances = compute_distances(self.extractor.extract(pixels), self.features[rows])
        return compare(expected, [kinds[rows[at]] for at in distances.argmin(1).tolist()])

    @functools.cached_property
    def features(self) -> Tensor:
        """Those of the gallery."""
        return self.extractor.extract(self.gallery.images.pixels)

    def add_new(self, model: TextToImage) -> tuple[TextToImage, list[ImageRequest]]:
        """Adds the new subjects to a model's memory; no picture may look at itself."""
        memory = model.memory
        assert memory is not None
        codes = model.encode_images(self.new_pixels).cpu().numpy().astype(np.uint16)
        rows = [*(memory.rows[n] for n in range(len(memory))), *self.rows]
        joined = ExampleMemory.build(np.concatenate([memory.codes, codes]), rows, "")
        model = model.with_parts(memory=joined)
        requests = []
        for seed, (prompt, kind) in enumerate(
            zip(self.new.images.captions, self.new.kinds, strict=True)
        ):
            same = [
                len(memory) + n
                for n, other in enumerate(self.new_kinds)
                if (other.subject, other.style) == (kind.subject, kind.style)
            ]
            looked_at = model.examples.find(prompt, excluded=same)
            requests.append(ImageRequest(prompt, seed, examples=looked_at))
        return model, requests

    def measure_copies(self, model: TextToImage, painted: Pixels) -> dict[str, object]:
        """Counts pictures that are nearer to another style's recompression than its original is."""
        known = self.gallery
        decoded = evaluate_reconstructions(model.tokenizer, known.images.pixels).pixels
        by_subject: dict[str, list[int]] = {}
        for number, kind in enumerate(known.kinds):
            by_subject.setdefault(kind.subject, []).append(number)
        rates: dict[str, list[bool]] = {"painted": [], "real": []}
        distances, copied = [], []
        for number, kind in enumerate(self.heldout.kinds):
            others = [n for n in by_subject[kind.subject] if known.kinds[n].style != kind.style]
            own = measure_mse(decoded[others], known.images.pixels[others])
            for name, picture in (("painted", painted), ("real", self.heldout.images.pixels)):
                to_others = measure_mse(decoded[others], picture[number])
                nearest = int(to_others.argmin())
                rates[name].append(bool(to_others[nearest] < own[nearest]))
            if rates["painted"][-1]:
                copied.append(self.heldout.images.captions[number])
            distances.append(float(measure_mse(decoded[number], painted[number])))
        return {
            **{name: describe(float(np.mean(each)), len(each)) for name, each in rates.items()},
            "median_distance_to_the_true_picture": float(np.median(distances)),
            "copied": copied,
        }

    def save_sheet(
        self, path: Path, model: TextToImage, painted: GeneratedImages, expected: Gallery
    ) -> None:
        """Lays out what was looked at, what was painted and what is real, row by row."""
        pictures, labels = [], []
        blank = np.full_like(painted.pixels[0], 255)
        for number in range(0, len(painted.pixels), -(-len(painted.pixels) // SHEET_PICTURES)):
            looked_at = painted.examples[number]
            for example in looked_at:
                pictures.append(
                    model.decode_codes(torch.from_numpy(example.codes.astype(int))[None])[0]
                )
                labels.append(example.caption)
            missing = model.config.neighbors - len(looked_at)
            pictures += [blank] * missing + [painted.pixels[number]]
            pictures.append(expected.images.pixels[number])
            labels += [""] * missing + [expected.images.captions[number], "real"]
        save_png(path, make_sheet(np.stack(pictures), model.config.neighbors + 2, labels, 2))


def main() -> None:
    """Trains, measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="+", metavar="TAR")
    parser.add_argument("--heldout", metavar="TAR")
    parser.add_argument("--out", type=Path, default=Path("runs/examples"))
    parser.add_argument("--neighbors", type=int, nargs="+", default=[3, 0])
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[64_000, 92_000],
        help="of stage 2, for each number of neighbors: equally long",
    )
    parser.add_argument(
        "--tokenizer-images",
        type=int,
        nargs=2,
        default=[80_000, 24_000],
        help="by pixels alone, then with features too",
    )
    parser.add_argument("--codes-per-position", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="of all stages"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="measures this one, which never saw the new subjects")
    parser.add_argument("--features", default=choose_features(), help="NETWORK-LAYER")
    parser.add_argument("--quick", action="store_true", help="draws its own; stores nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.out = Path(folder)
            options.heldout, options.train = draw_shards(options.out)
        elif not (options.train and options.heldout):
            parser.error("--heldout and --train are needed, or --quick")
        results = measure_model(options) if options.model else measure(options)
    size = "" if options.image_size == 64 else f"-{options.image_size}px"
    what = "model" if options.model else f"seed{options.seed}"
    record = write_result(
        f"emoji-examples-codes{options.codes_per_position}{size}-{what}",
        results,
        config={
            "seed": options.seed,
            "codes_per_position": options.codes_per_position,
            "image_size": options.image_size,
            "settings": options.set,
            "painting": PAINTING,
            "model": options.model,
            "train": len(options.train),
        },
        where=environment(torch.device("cpu")),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains the image tokenizer, then the transformer with each number of neighbors."""
    shards = split_shards(options.train, options.heldout, options.out / "data", quick=options.quick)
    quantizer = (
        f"data.image_size={options.image_size}",
        "tokenizer.quantizer.codebook_size=512",
        f"tokenizer.quantizer.codes_per_position={options.codes_per_position}",
    )
    codes, details = (options.out / f"seed{options.seed}-{name}" for name in ("codes", "details"))
    counts = [QUICK_IMAGES] * 2 if options.quick else options.tokenizer_images
    lengths = [f"tokenizer_training.images={count}" for count in counts]
    # On all skin tones: a tokenizer needs pictures, not subjects.
    seconds = fit(codes, options, options.train, "fit-tokenizer", *quantizer, lengths[0])
    perceptual = () if options.quick else DETAILS
    init = f"tokenizer_training.init_from={codes}"
    seconds += fit(
        details,
        options,
        options.train,
        "fit-tokenizer",
        *quantizer,
        *perceptual,
        init,
        lengths[1],
    )
    test = Test.read(options, shards)
    results: dict[str, Any] = {"tokenizer_minutes": seconds / 60}
    for count, images in zip(options.neighbors, options.images, strict=True):
        run = options.out / f"seed{options.seed}-k{count}"
        images = QUICK_IMAGES if options.quick else images
        seconds = fit(
            run,
            options,
            shards.learned,
            "fit",
            *quantizer,
            *TRANSFORMER,
            f"tokenizer_training.init_from={details}",
            f"retrieval.neighbors={count}",
            f"transformer_training.images={images}",
        )
        model = tessella.load(run / "model")
        results["bound"] = test.bound(model)
        results[f"k{count}"] = {
            "images": images,
            "minutes": seconds / 60,
            "loss_held_out": read_loss(run),
            **test.measure(model, run),
        }
    return results


def measure_model(options: argparse.Namespace) -> dict[str, Any]:
    """Measures a model that was trained before."""
    shards = split_shards(options.train, options.heldout, options.out / "data", quick=options.quick)
    test, model = Test.read(options, shards), tessella.load(options.model)
    return {
        "bound": test.bound(model),
        f"k{model.config.neighbors}": test.measure(model, options.out),
    }


def fit(
    out: Path, options: argparse.Namespace, data: Sequence[str], command: str, *settings: str
) -> float:
    """Runs a command of training, or resumes it; returns the seconds that it took."""
    settings = (*settings, *options.set)
    arguments = [argument for each in settings for argument in ("--set", each)]
    note = out.with_suffix(".seconds.json")
    began = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, "-m", "tessella", command, *data, "--out", str(out)),
            *("--seed", str(options.seed), *arguments),
        ],
        check=True,
        stdout=sys.stderr,
    )
    if not note.exists():  # of a resumed run: since it was resumed
        write_json(note, time.monotonic() - began)
    return float(json.loads(note.read_text()))


def split_shards(train: Sequence[str], heldout: str, folder: Path, *, quick: bool) -> Shards:
    """Writes tars of what is learned and of new subjects, with one skin tone of each."""
    # Of drawn scenes every subject has a pair held out: there the new ones are among them.
    taken = set() if quick else {kind.subject for kind in read_kinds([heldout]).values()}
    folder.mkdir(parents=True, exist_ok=True)
    shards = Shards([], [])
    for shard in train:
        paths = [folder / f"{kind}-{Path(shard).name}" for kind in ("learned", "new")]
        with tarfile.open(shard) as source, contextlib.ExitStack() as stack:
            learned, new = (stack.enter_context(tarfile.open(path, "w")) for path in paths)
            samples: dict[str, dict[str, bytes]] = {}
            for member in source:
                if member.isfile() and (file := source.extractfile(member)):
                    stem, suffix = member.name.rsplit(".", 1)
                    samples.setdefault(stem, {})[suffix] = file.read()
            for stem, parts in sorted(samples.items()):
                fields = json.loads(parts["json"])
                draw = zlib.crc32(fields["base"].encode())
                if fields["tone"] not in (None, 1 + draw % TONES):
                    continue
                is_new = fields["base"] not in taken and draw % NEW_SUBJECTS == 0
                for suffix, content in parts.items():
                    entry = tarfile.TarInfo(f"{stem}.{suffix}")
                    entry.size = len(content)
                    (new if is_new else learned).addfile(entry, io.BytesIO(content))
        shards.learned.append(str(paths[0]))
        shards.new.append(str(paths[1]))
    return shards


def read_loss(run: Path) -> float:
    """Reads the held-out loss that a run ended with."""
    metrics = json.loads((run / "model/metrics.json").read_text())
    return float(metrics["loss_held_out"]["value"])


def measure_mse(pictures: Pixels, others: Pixels) -> npt.NDArray[np.float64]:
    """Computes the mean squared difference of pictures (..., H, W, 3) in [-1, 1]: (...)."""
    difference = (pictures.astype(np.float64) - others) / 127.5
    distances: npt.NDArray[np.float64] = np.square(difference).mean((-1, -2, -3))
    return distances


if __name__ == "__main__":
    main()
