"""The codes of all images, encoded once by the finished tokenizer: stage 2 trains on them.

One memory-mapped file for each side of the split, 2 bytes a position, with a note of what it was
made from. Mirrored images and crops are further passes, after the one of the images as they are.
Each image is read once, for all passes. Some thousand are a unit: a kill costs no more than one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tessella.data.cache import CaptionedImages
from tessella.files import cached
from tessella.images import to_float
from tessella.tokenizer import VQAutoencoder
from tessella.training.unit_array import ArrayUnit, cached_in_units

_BATCH = 64
_UNIT = 4096  # images, at most; whole batches
_SMALLEST_CROP = 0.8  # of the image's side

N = TypeVar("N", bound=np.generic)

Codes = npt.NDArray[np.uint16]
"""(passes, N, M, h, w); the first pass has the images as they are."""


Progress = Callable[[int, int], object]
"""Called with how many are done and how many there are."""


@torch.inference_mode()
def prepare_codes(
    images: CaptionedImages,
    tokenizer: VQAutoencoder,
    path: Path,
    *,
    device: torch.device,
    flips: bool = False,
    crops: int = 0,
    progress: Progress = lambda done, total: None,
    known: Path | None = None,
) -> Codes:
    """Encodes images into a file of codes, unless it is there already.

    Args:
        images: one side of the data.
        tokenizer: trained, in eval mode, on `device`.
        path: the `.npy` file; a `.json` beside it notes what it was made from.
        device: where to encode.
        flips: whether each image and crop is also encoded mirrored left to right.
        crops: random squares of each image that are encoded too, each in a pass.
        progress: told the encodings.
        known: the same side's file of another run: what it has of these images is copied.

    Returns:
        (passes, N, M, h, w) uint16, memory-mapped, read only.

    Raises:
        CheckpointError: the file cannot be written.
    """
    passes = (1 + crops) * (2 if flips else 1)
    side = images.image_size // tokenizer.settings.downsampling

    def encode(codes: Codes, unit: ArrayUnit) -> None:
        for start in range(unit.start, unit.end, _BATCH):
            end = min(start + _BATCH, unit.end)
            image = to_float(torch.from_numpy(images.pixels(np.arange(start, end))).to(device))
            views = [image]
            views += [_crop(image, np.random.default_rng([n, start])) for n in range(crops)]
            if flips:
                views += [view.flip(-1) for view in views]
            for number, view in enumerate(views):
                made = tokenizer.encode(view).cpu().numpy().astype(np.uint16)
                codes[number, start - unit.start : end - unit.start] = made
            progress(end * passes, len(images) * passes)

    weights = tokenizer.hash_encoder()
    made_from = {
        "images": images.fingerprint,
        "tokenizer": weights,
        "passes": {"flips": flips, "crops": crops},
    }
    num_codes = tokenizer.settings.quantizer.codes_per_position
    shape = (passes, len(images), num_codes, side, side)
    units = _cut(images, weights, flips=flips, crops=crops)
    what = "the codes of the images"
    return cached_in_units(path, made_from, np.uint16, shape, units, encode, what=what, known=known)


def _cut(images: CaptionedImages, tokenizer: str, *, flips: bool, crops: int) -> list[ArrayUnit]:
    """Cuts images into units of some thousand, where units of the data end."""
    ends: list[int] = []
    start = 0
    for data_end in images.unit_ends.tolist() if len(images) else ():
        ends += range(start + _UNIT, data_end, _UNIT)
        start = ends[-1] if ends else 0
        if data_end - start >= _UNIT // 4 or data_end == len(images):
            ends.append(data_end)
            start = data_end
    units = []
    for start, end in zip([0, *ends], ends, strict=False):
        # A crop depends on the place of the image among all, the rest on the image alone.
        facts = [tokenizer, flips, crops, start if crops else None, images.hash_pixels(start, end)]
        key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
        if start < end:
            units.append(ArrayUnit(key, start, end))
    return units


def find_mirrored(
    passes: npt.NDArray[np.int64], num_passes: int, *, flips: bool
) -> npt.NDArray[np.bool_]:
    """Finds which passes (B,) of codes are mirrored: with flips, the second half of all."""
    first_mirrored = num_passes // 2 if flips else num_passes
    return passes >= first_mirrored


def cached_array(
    path: Path,
    made_from: Mapping[str, Any],
    dtype: type[N],
    shape: tuple[int, ...],
    fill: Callable[[npt.NDArray[N]], None],
    *,
    what: str,
) -> npt.NDArray[N]:
    """Computes an array into a file, unless it is there already; memory-maps it, read only.

    Args:
        path: the `.npy` file; a `.json` beside it notes what it was made from.
        made_from: plain JSON values that identify everything the array depends on.
        dtype: of the array.
        shape: of the array.
        fill: computes it into the memory-mapped array that it is given.
        what: what the file is, for the message.

    Raises:
        CheckpointError: the file cannot be written.
    """

    def build(temporary: Path) -> None:
        array = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
        fill(array)
        array.flush()

    cached(path, made_from, build, what=what)
    array: npt.NDArray[N] = np.load(path, mmap_mode="r")
    return array


def _crop(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Cuts a random square out of each image (B, 3, S, S) and enlarges it to S×S."""
    size = image.shape[-1]
    crops = []
    for one in image:
        side = int(rng.integers(round(_SMALLEST_CROP * size), size + 1))
        top, left = rng.integers(0, size - side + 1, size=2)
        square = one[None, :, top : top + side, left : left + side]
        crops.append(functional.interpolate(square, (size, size), mode="bicubic"))
    return torch.cat(crops).clamp(-1, 1)
