"""Does a model paint, or does it copy? Generated pictures beside their nearest training pictures.

    generated ─ features ─▶ distance to every training picture ─▶ the nearest, copy rate

Protocol of the copy rate: the distance is Euclidean between features. A generated picture counts
as a copy if its nearest training picture is closer than the first percentile of the distances
that real pictures have to theirs: as close as only one real picture in a hundred comes to another
one. Twins of a real picture, training pictures with the very same pixels, are left out.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessella.data.cache import CaptionedImages
from tessella.evaluation.distributions import compute_distances
from tessella.evaluation.eval_images import EvalImages, draw_indices, read_images
from tessella.evaluation.features import FeatureExtractor
from tessella.evaluation.lookup import ExampleLookup
from tessella.evaluation.metric import Metric
from tessella.images import Pixels
from tessella.model.pipeline import TextToImage
from tessella.retrieval import Example
from tessella.sheets import make_labelled_sheet

COPY_PERCENTILE = 1
"""Of the distances of real pictures; closer is a copy."""

MAX_PAIRS = 32
"""That are shown, of each kind."""

_BATCH = 64
_SHEET_COLUMNS = 8
_SHOWN_SIZE_PX = 128


@dataclass(frozen=True)
class Pair:
    """A generated picture and the training picture, or the example, that is nearest to it."""

    generated: Pixels  # (S, S, 3)
    prompt: str
    nearest: Pixels  # (S, S, 3); an example as it is decoded
    caption: str  # of the nearest
    distance: float  # by features; of an example by pixels
    example: str | None = None  # its name; None: it is a training picture
    limit: float | None = None  # nearer is a copy; None: that is not known

    def describe(self) -> dict[str, Any]:
        """Returns it as plain values, without the pictures."""
        return {
            "prompt": self.prompt,
            "caption": self.caption,
            "distance": self.distance,
            "limit": self.limit,
            "is_copy": None if self.limit is None else self.distance < self.limit,
            "example": self.example,
        }


@dataclass(frozen=True)
class Copies:
    """How many generated pictures are as good as in the training data."""

    rate: float  # fraction of the generated pictures that count as copies
    threshold: float  # the distance below which one does
    num_training: int  # training pictures that were searched
    nearest: EvalImages  # (B) the nearest training picture of each generated one
    distances: npt.NDArray[np.float64]  # (B,) to it

    def list_pairs(self, pixels: Pixels, prompts: Sequence[str]) -> list[Pair]:
        """Lists the generated pictures that are nearest to a training picture, nearest first."""
        nearest, order = self.nearest, self.distances.argsort(kind="stable")[:MAX_PAIRS].tolist()
        return [
            Pair(
                pixels[i],
                prompts[i],
                nearest.pixels[i],
                nearest.captions[i],
                distance,
                limit=self.threshold,
            )
            for i, distance in zip(order, self.distances[order].tolist(), strict=True)
        ]


def measure_copies(
    generated: Tensor,
    real: Tensor,
    real_pixels: Pixels,
    training: CaptionedImages,
    extractor: FeatureExtractor,
    *,
    max_training: int,
) -> Copies:
    """Finds the nearest training picture of each generated one, and counts copies.

    Args:
        generated: (B, F) features of generated pictures.
        real: (R, F) features of real pictures, R >= 1.
        real_pixels: (R, S, S, 3) these.
        training: what the model learned from, not empty; of these pictures' size. Read batch by
            batch.
        extractor: computes the features.
        max_training: if there are more training pictures, this many are drawn.
    """
    indices = draw_indices(len(training), max_training)
    queries = torch.cat([generated, real])
    distances = torch.full((len(queries),), torch.inf, dtype=queries.dtype)
    nearest = torch.zeros(len(queries), dtype=torch.int64)
    real_hashes = _hash(real_pixels)
    for start in range(0, len(indices), _BATCH):
        batch = indices[start : start + _BATCH]
        pixels = training.pixels(batch)
        to_batch = compute_distances(queries, extractor.extract(pixels))
        twins = torch.from_numpy(real_hashes[:, None] == _hash(pixels))
        to_batch[len(generated) :].masked_fill_(twins, torch.inf)
        best = to_batch.min(1)
        is_closer = best.values < distances
        distances[is_closer] = best.values[is_closer]
        nearest[is_closer] = torch.from_numpy(batch)[best.indices[is_closer]]
    of_generated, of_real = distances.tensor_split([len(generated)])
    # The nearest picture of a real one is infinitely far where all are its twins.
    finite = of_real[of_real.isfinite()].numpy()
    threshold = float(np.percentile(finite, COPY_PERCENTILE)) if len(finite) else 0.0
    return Copies(
        rate=float((of_generated < threshold).double().mean()),
        threshold=threshold,
        num_training=len(indices),
        nearest=read_images(training, nearest[: len(generated)].tolist(), "nearest"),
        distances=of_generated.numpy(),
    )


def make_pairs_sheet(pairs: Sequence[Pair]) -> Pixels:
    """Lays out each generated picture with what is nearest to it on its right.

    Args:
        pairs: at least one.
    """
    pictures = [picture for pair in pairs for picture in (pair.generated, pair.nearest)]
    labels = [
        text
        for pair in pairs
        for text in (
            pair.prompt,
            f"{'example, ' * (pair.example is not None)}{pair.distance:.4g}: {pair.caption}",
        )
    ]
    return make_labelled_sheet(pictures, labels, _SHEET_COLUMNS, _SHOWN_SIZE_PX)


def measure_loss_gap(
    model: TextToImage,
    held_out: EvalImages,
    training: CaptionedImages,
    *,
    max_images: int,
    lookup: ExampleLookup | None = None,
) -> dict[str, Metric] | None:
    """Computes the objective's loss on images that a model learned from and on others.

    Each image counts with its first caption, none is dropped; captions that are too long for the
    model are left out. Both sides have equally many images and see the same random numbers. A model
    that looks things up does so as in painting, but no image is its own example.

    Args:
        model: trained.
        held_out: images that it did not learn from.
        training: those that it did.
        max_images: of each side; drawn if there are more.
        lookup: finds examples; None if the model has none.

    Returns:
        `loss_train`, `loss_held_out` and `loss_gap`, and with examples
        `without_examples_loss_held_out`; None if on one side no caption is short enough.
    """
    drawn = draw_indices(len(training), max_images).tolist()
    learned = read_images(training, drawn, "training").draw_readable(model, max_images)
    others = held_out.draw_readable(model, max_images)
    count = min(len(learned.captions), len(others.captions))
    if not count:
        return None
    learned, others = (
        side.select(draw_indices(len(side.captions), count).tolist()) for side in (learned, others)
    )
    protocol = f"loss of {model.objective.name}, first captions, mean over {count}"
    of_train, of_held_out = (
        f"{protocol} training images",
        f"{protocol} of {held_out.description}",
    )
    train = _compute_loss(model, learned, _look_up(lookup, learned, learned=True))
    other = _compute_loss(model, others, _look_up(lookup, others))
    beside = f"; {lookup.describe()}" if lookup else ""
    metrics = {
        "loss_train": Metric(train, f"{of_train}{beside}{' or a near copy' if lookup else ''}"),
        "loss_held_out": Metric(other, f"{of_held_out}{beside}"),
        "loss_gap": Metric(other - train, "loss_held_out minus loss_train"),
    }
    if lookup is not None:
        plain = Metric(_compute_loss(model, others), f"{of_held_out}; without examples")
        metrics["without_examples_loss_held_out"] = plain
    return metrics


def _look_up(
    lookup: ExampleLookup | None, images: EvalImages, *, learned: bool = False
) -> Sequence[tuple[Example, ...]] | None:
    """Finds the examples of images; None if there is nothing to look them up in."""
    if lookup is None:
        return None
    return lookup.find(images.captions, lookup.encode(images.pixels), learned=learned)


@torch.inference_mode()
def _compute_loss(
    model: TextToImage,
    images: EvalImages,
    examples: Sequence[tuple[Example, ...]] | None = None,
) -> float:
    """Computes the mean loss over images, with random numbers that are the same at each call."""
    total = 0.0
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        for start in range(0, len(images.captions), _BATCH):
            rows = slice(start, start + _BATCH)
            text = model.sampler.encode_text(images.captions[rows])
            codes = model.encode_images(images.pixels[rows])
            batch: tuple[Any, ...] = (text, codes)
            if examples is not None:
                batch += (model.sampler.encode_examples(examples[rows]),)
            total += float(model.objective(*batch).loss) * len(codes)
    return total / len(images.captions)


def _hash(pixels: Pixels) -> npt.NDArray[np.uint64]:
    """Gives each picture a number (B,) that only its twins share."""
    digests = (hashlib.blake2b(picture.tobytes(), digest_size=8).digest() for picture in pixels)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
