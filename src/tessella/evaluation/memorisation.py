"""Does a model paint, or does it copy? Painted pictures beside their nearest training pictures.

    painted ─ features ─▶ distance to every training picture ─▶ the nearest, copy rate

Protocol of the copy rate: the distance is Euclidean between features. Each of some real pictures
has a nearest training picture too, twins left out: training pictures with the very same pixels,
such as itself. A painted picture counts as a copy if its nearest training picture is closer than
the first percentile of these distances: as close as only one real picture in a hundred comes to
another one. Training pictures are read batch by batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessella.data.cache import CaptionedImages
from tessella.evaluation.distributions import compute_distances
from tessella.evaluation.eval_images import ChosenImages, draw_indices, read_images
from tessella.evaluation.features import FeatureExtractor
from tessella.images import Pixels
from tessella.model.pipeline import TextToImage
from tessella.sheets import make_sheet

COPY_PERCENTILE = 1
"""Of the distances of real pictures; closer is a copy."""

_BATCH = 64
_SHEET_COLUMNS = 8
_SHOWN_SIZE_PX = 128


@dataclass(frozen=True)
class NearestPictures:
    """The nearest training picture of each of some painted ones."""

    pixels: Pixels  # (B, S, S, 3)
    captions: Sequence[str]  # B, the first of each
    distances: npt.NDArray[np.float64]  # (B,) between features


@dataclass(frozen=True)
class Pair:
    """A painted picture and its nearest training picture."""

    painted: Pixels  # (S, S, 3)
    prompt: str
    nearest: Pixels  # (S, S, 3)
    caption: str
    distance: float


@dataclass(frozen=True)
class Copies:
    """How many painted pictures are as good as in the training data."""

    rate: float  # share of the painted pictures that count as copies
    threshold: float  # the distance below which one does
    num_training: int  # training pictures that were looked at
    nearest: NearestPictures  # of each painted picture


@dataclass(frozen=True)
class LossGap:
    """The objective's loss on both sides of the split."""

    train: float  # mean over training images
    held_out: float  # mean over as many others
    num_images: int  # of each side


def measure_copies(
    painted: Tensor,
    real: Tensor,
    real_pixels: Pixels,
    training: CaptionedImages,
    extractor: FeatureExtractor,
    *,
    max_training: int,
) -> Copies:
    """Finds the nearest training picture of each painted one, and counts copies.

    Args:
        painted: (B, F) features of what was painted.
        real: (R, F) features of pictures that were not, R >= 1.
        real_pixels: (R, S, S, 3) these.
        training: what the model learned from, not empty; of these pictures' size.
        extractor: what the features come from.
        max_training: if there are more training pictures, so many are drawn.
    """
    indices = draw_indices(len(training), max_training)
    wanted = torch.cat([painted, real])
    least = torch.full((len(wanted),), torch.inf, dtype=wanted.dtype)
    nearest = torch.zeros(len(wanted), dtype=torch.int64)
    real_hashes = _hash(real_pixels)
    for start in range(0, len(indices), _BATCH):
        chosen = indices[start : start + _BATCH]
        pixels = training.pixels(chosen)
        distances = compute_distances(wanted, extractor.extract(pixels))
        twins = torch.from_numpy(real_hashes[:, None] == _hash(pixels))
        distances[len(painted) :].masked_fill_(twins, torch.inf)
        found = distances.min(1)
        closer = found.values < least
        least[closer] = found.values[closer]
        nearest[closer] = torch.from_numpy(chosen)[found.indices[closer]]
    ours, theirs = least[: len(painted)].numpy(), least[len(painted) :].numpy()
    # A real picture whose twins are all that there is has no other.
    others = theirs[np.isfinite(theirs)]
    threshold = float(np.percentile(others, COPY_PERCENTILE)) if len(others) else 0.0
    beside = read_images(training, nearest[: len(painted)].tolist(), "nearest")
    return Copies(
        rate=float((ours < threshold).mean()),
        threshold=threshold,
        num_training=len(indices),
        nearest=NearestPictures(beside.pixels, beside.captions, ours),
    )


def make_pairs_sheet(pairs: Sequence[Pair]) -> Pixels:
    """Lays out each painted picture with its nearest training picture on its right.

    Args:
        pairs: at least one.
    """
    pictures = [picture for pair in pairs for picture in (pair.painted, pair.nearest)]
    labels = [
        text for pair in pairs for text in (pair.prompt, f"{pair.distance:.4g}: {pair.caption}")
    ]
    scale = max(1, _SHOWN_SIZE_PX // len(pictures[0]))
    return make_sheet(np.stack(pictures), _SHEET_COLUMNS, labels, scale)


def measure_loss_gap(
    model: TextToImage, held_out: ChosenImages, training: CaptionedImages, *, max_images: int
) -> LossGap | None:
    """Computes the objective's loss on images that a model learned from and on others.

    Each image counts with its first caption, none is dropped; captions that are too long for the
    model are left out. Both sides have equally many images and see the same random numbers.

    Args:
        model: trained.
        held_out: images that it did not learn from.
        training: those that it did.
        max_images: of each side; drawn if there are more.

    Returns:
        None if on one side no caption is short enough.
    """
    drawn = draw_indices(len(training), max_images).tolist()
    learned = read_images(training, drawn, "training").draw_readable(model, max_images)
    others = held_out.draw_readable(model, max_images)
    count = min(len(learned.captions), len(others.captions))
    if not count:
        return None
    train, held = (
        _compute_loss(model, side.select(draw_indices(len(side.captions), count).tolist()))
        for side in (learned, others)
    )
    return LossGap(train, held, count)


@torch.inference_mode()
def _compute_loss(model: TextToImage, images: ChosenImages) -> float:
    """Computes the mean loss over images, with random numbers that are the same at each call."""
    total = 0.0
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        for start in range(0, len(images.captions), _BATCH):
            rows = slice(start, start + _BATCH)
            text = model.sampler.encode_text(images.captions[rows])
            codes = model.encode_images(images.pixels[rows])
            scored = model.objective(text, codes)
            total += float(scored.loss) * len(codes)
    return total / len(images.captions)


def _hash(pixels: Pixels) -> npt.NDArray[np.uint64]:
    """Gives each picture a number (B,) that only its twins share."""
    digests = (hashlib.blake2b(picture.tobytes(), digest_size=8).digest() for picture in pixels)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
