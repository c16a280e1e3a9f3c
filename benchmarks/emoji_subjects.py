r"""Does an emoji model compose: can it paint a subject in a style that it never saw it in?

Why: each held-out picture is a pair of subject and style that no training picture has, while the
subject occurs in other styles, and the style with other subjects. A model that has only memorised
paints the right subject in a wrong style, or the other way round.

Theory: a picture is classified as the real picture that is nearest by features of SqueezeNet or
EfficientNet-Lite0, among the real pictures of all held-out subjects in all styles. A random choice
is right once in as many times as there are subjects, or styles. The bound is the image tokenizer:
the class of the held-out pictures' own reconstructions. A painted picture that is closer to a
training picture than the first percentile of the held-out ones are
(`tessella.evaluation.memorisation`) is a copy.

Output contract: the last line of stdout is the record, one JSON object: for painted and
reconstructed pictures the fraction with the right subject (in any style), the right style and both,
each with its 95 % interval (Wilson); chance beside them; the copy rate. SHEET has the pictures,
each with the nearest real picture on its right. `--quick` draws one-object scenes instead: subjects
are colour and shape, styles are backgrounds; without its weights SqueezeNet is then untrained.

    python benchmarks/emoji_subjects.py --model runs/stickers --heldout heldout.tar \
        --train a.tar b.tar --sheet subjects.png
"""

import argparse
import io
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tessella
from harness import RESULTS, environment, print_record, write_result
from scenes_accuracy import describe
from tessella.data.addresses import LocalFile
from tessella.data.cache import CaptionedImages
from tessella.data.prepare import prepare
from tessella.data.records import Record
from tessella.data.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    Scene,
    SceneObject,
    canonical_caption,
    draw_scene,
)
from tessella.data.settings import DataSettings
from tessella.data.shards import shard_records
from tessella.errors import ConfigError
from tessella.evaluation.distributions import compute_distances
from tessella.evaluation.eval_images import EvalImages, read_images
from tessella.evaluation.features import FeatureExtractor, choose_features, create_extractor
from tessella.evaluation.memorisation import measure_copies
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.images import Pixels, save_png
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.sheets import make_sheet

SHEET_COLUMNS = 8
SHEET_PICTURES = 32


@dataclass(frozen=True)
class Kind:
    """What a picture shows, by its JSON."""

    subject: str  # `base`: the emoji without its skin tone
    style: str
    has_tone: bool


@dataclass(frozen=True)
class Gallery:
    """Pictures and what they show."""

    images: EvalImages
    kinds: Sequence[Kind]


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder, run or bundled name")
    parser.add_argument("--heldout", metavar="TAR")
    parser.add_argument("--train", nargs="+", metavar="TAR", help="what the model learned from")
    parser.add_argument("--features", default=choose_features(), help="NETWORK-LAYER")
    parser.add_argument("--max-training", type=int, default=100_000, help="pictures searched")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png")
    parser.add_argument("--name", default="emoji-subjects", help="of the result files")
    parser.add_argument("--quick", action="store_true", help="draws its own; stores nothing")
    options = parser.parse_args()
    if not (options.quick or (options.heldout and options.train)):
        parser.error("--heldout and --train are needed, or --quick")
    model = tessella.load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.heldout, options.train = draw_shards(Path(folder))
        results = measure(model, options, Path(folder))
    record = write_result(
        options.name,
        results,
        config={
            "model": Path(options.model).name,
            "features": options.features,
            "max_training": options.max_training,
            "heldout": Path(options.heldout).name,
            "train": [Path(shard).name for shard in options.train],
        },
        where=environment(model.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure(model: TextToImage, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Paints every held-out pair of subject and style, and classifies the pictures."""
    size = model.config.image_size
    extractor = load_extractor(options.features, model.device, options.quick)
    settings = DataSettings(image_size=size, validation_fraction=0.0)
    held = prepare([options.heldout], settings, folder / "heldout").train
    training = prepare(options.train, settings, folder / "train").train
    heldout = choose_gallery(held, read_kinds([options.heldout]), None)
    subjects = {kind.subject for kind in heldout.kinds}
    seen = choose_gallery(training, read_kinds(options.train), subjects)
    real = np.concatenate([heldout.images.pixels, seen.images.pixels])
    kinds = [*heldout.kinds, *seen.kinds]
    captions = [*heldout.images.captions, *seen.images.captions]

    prompts = heldout.images.captions
    painted = model.generate_images(enumerate_requests(prompts)).pixels
    kept = evaluate_reconstructions(model.tokenizer, heldout.images.pixels).pixels
    features = {name: extractor.extract(p) for name, p in (("painted", painted), ("kept", kept))}
    of_real = extractor.extract(real)
    nearest = {name: compute_distances(each, of_real).argmin(1) for name, each in features.items()}
    copies = measure_copies(
        features["painted"],
        of_real[: len(prompts)],
        heldout.images.pixels,
        training,
        extractor,
        max_training=options.max_training,
    )
    if options.sheet:
        shown = nearest["painted"][:SHEET_PICTURES].tolist()
        pairs = [pixels for i, at in enumerate(shown) for pixels in (painted[i], real[at])]
        labels = [text for i, at in enumerate(shown) for text in (prompts[i], captions[at])]
        scale = max(1, 128 // size)
        save_png(options.sheet, make_sheet(np.stack(pairs), SHEET_COLUMNS, labels, scale))
    return {
        "prompts": len(prompts),
        "real_pictures": len(real),
        "painted": compare(heldout.kinds, [kinds[at] for at in nearest["painted"].tolist()]),
        "reconstructed": compare(heldout.kinds, [kinds[at] for at in nearest["kept"].tolist()]),
        "chance": {
            "subject": fraction(a.subject == b.subject for a in heldout.kinds for b in kinds),
            "style": fraction(a.style == b.style for a in heldout.kinds for b in kinds),
        },
        "copies": {
            "rate": describe(copies.rate, len(prompts)),
            "threshold": copies.threshold,
            "training_pictures": copies.num_training,
        },
    }


def compare(expected: Sequence[Kind], nearest: Sequence[Kind]) -> dict[str, object]:
    """Compares the kinds of the prompts with those of the nearest real pictures."""
    subject = [a.subject == b.subject for a, b in zip(expected, nearest, strict=True)]
    style = [a.style == b.style for a, b in zip(expected, nearest, strict=True)]
    both = [a and b for a, b in zip(subject, style, strict=True)]
    right = {"right_subject": subject, "right_style": style, "both": both}
    return {name: describe(fraction(iter(each)), len(each)) for name, each in right.items()}


def fraction(right: Iterator[bool]) -> float:
    """Returns the fraction of true values."""
    return float(np.mean(list(right)))


def load_extractor(name: str | None, device: torch.device, quick: bool) -> FeatureExtractor:
    """Loads the features; a quick run takes an untrained network where weights are missing."""
    name = name or choose_features() or "squeezenet-fire9"
    try:
        return create_extractor(name, device=device)
    except ConfigError:
        if not quick:
            raise
        network = SqueezeNet().eval().requires_grad_(False)
        return FeatureExtractor(f"untrained {name}", network, name.partition("-")[2], device)


def read_kinds(shards: Sequence[str]) -> dict[str, Kind]:
    """Reads what each picture of some tars shows, by its first caption."""
    kinds = {}
    for shard in shards:
        # The reader gives one field of the JSON at a time; only headers and captions are read.
        base, style, tone = (
            [
                record
                for record in shard_records(LocalFile(Path(shard), shard), field, Counter())
                if isinstance(record, Record)
            ]
            for field in ("base", "style", "tone")
        )
        for one, other, third in zip(base, style, tone, strict=True):
            kinds[one.captions[0]] = Kind(str(one.group), str(other.group), third.group is not None)
    return kinds


def choose_gallery(
    images: CaptionedImages, kinds: dict[str, Kind], subjects: set[str] | None
) -> Gallery:
    """Chooses the pictures of some subjects, None for all, without a skin tone."""
    indices = []
    for index in range(len(images)):
        kind = kinds[images.captions(index)[0]]
        if not kind.has_tone and (subjects is None or kind.subject in subjects):
            indices.append(index)
    selected = read_images(images, indices, "without a skin tone")
    return Gallery(selected, [kinds[caption] for caption in selected.captions])


def draw_shards(folder: Path, ending: str = "") -> tuple[str, list[str]]:
    """Draws one-object scenes into two tars like those of the emoji.

    Every subject has one of its four styles held out.

    Args:
        folder: where they are written.
        ending: of each caption; with one the pictures are no longer read as scenes.
    """
    heldout, train = folder / "heldout.tar", folder / "train.tar"
    with tarfile.open(heldout, "w") as out, tarfile.open(train, "w") as rest:
        for number, color in enumerate(COLORS):
            for row, shape in enumerate(SHAPES):
                for column, background in enumerate(BACKGROUNDS):
                    scene = Scene(
                        background, (SceneObject(shape, color, "large", 0.5, 0.5),), "single"
                    )
                    fields = {"base": f"{color} {shape}", "style": background, "tone": None}
                    tar = out if (number + row) % len(BACKGROUNDS) == column else rest
                    add_sample(tar, scene, canonical_caption(scene) + ending, fields)
    return str(heldout), [str(train)]


def add_sample(
    tar: tarfile.TarFile, scene: Scene, caption: str, fields: dict[str, str | None]
) -> None:
    """Writes a picture, its caption and its JSON."""
    pixels: Pixels = draw_scene(scene)
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, format="PNG")
    contents = {
        "png": picture.getvalue(),
        "txt": caption.encode(),
        "json": json.dumps(fields).encode(),
    }
    for suffix, content in contents.items():
        member = tarfile.TarInfo(f"{caption.replace(' ', '-')}.{suffix}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
