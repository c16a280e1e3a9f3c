"""The codes of all images, encoded once by the finished tokenizer: stage 2 trains on them.

One memory-mapped file for each side of the split, 2 bytes a position, with a note of what it was
made from. Mirrored images and crops are further passes, after the one of the images as they are.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.data.cache import CaptionedImages
from tessella.files import cached
from tessella.images import to_float
from tessella.tokenizer import ImageTokenizer

_BATCH = 64
_SMALLEST_CROP = 0.8  # of the image's side

Codes = npt.NDArray[np.uint16]
"""(passes, N, h, w); the first pass has the images as they are."""


@dataclass(frozen=True)
class Passes:
    """The ways in which each image is encoded, besides as it is."""

    flips: bool = False  # mirrored left to right, as are the crops
    crops: int = 0  # random squares of it, each a pass

    @property
    def count(self) -> int:
        """Number of passes, including the one of the images as they are."""
        return (1 + self.crops) * (2 if self.flips else 1)


@torch.inference_mode()
def prepare_codes(
    images: CaptionedImages,
    tokenizer: ImageTokenizer,
    path: Path,
    *,
    device: torch.device,
    passes: Passes = Passes(),
    progress: Callable[[int, int], None] | None = None,
) -> Codes:
    """Encodes images into a file of codes, unless it is there already.

    Args:
        images: one side of the data.
        tokenizer: trained, in eval mode, on `device`.
        path: the `.npy` file; a `.json` beside it notes what it was made from.
        device: where to encode.
        passes: the ways in which each image is encoded.
        progress: called with the number of encodings done and of all.

    Returns:
        (passes, N, h, w) uint16, memory-mapped, read only.

    Raises:
        CheckpointError: the file cannot be written.
    """
    made_from = {
        "images": images.fingerprint,
        "tokenizer": hash_weights(tokenizer),
        "passes": asdict(passes),
    }

    def encode(temporary: Path) -> None:
        _encode(images, tokenizer, passes, temporary, device, progress)

    cached(path, made_from, encode, what="the codes of the images")
    codes: Codes = np.load(path, mmap_mode="r")
    return codes


def hash_weights(network: nn.Module) -> str:
    """Computes the SHA-256 of all weights, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encode(
    images: CaptionedImages,
    tokenizer: ImageTokenizer,
    passes: Passes,
    path: Path,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> None:
    side = images.image_size // tokenizer.settings.downsampling
    shape = (passes.count, len(images), side, side)
    if not len(images):
        with path.open("wb") as file:
            np.save(file, np.empty(shape, dtype=np.uint16))
        return
    codes = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=shape)
    for start in range(0, len(images), _BATCH):
        end = min(start + _BATCH, len(images))
        image = to_float(torch.from_numpy(images.pixels(np.arange(start, end))).to(device))
        views = [image]
        views += [_crop(image, np.random.default_rng([n, start])) for n in range(passes.crops)]
        if passes.flips:
            views += [view.flip(-1) for view in views]
        for number, view in enumerate(views):
            codes[number, start:end] = tokenizer.encode(view).cpu().numpy().astype(np.uint16)
        if progress is not None:
            progress(end * passes.count, len(images) * passes.count)
    codes.flush()


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
