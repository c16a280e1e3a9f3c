"""Codes of all images, encoded once by the finished tokenizer: what stage 2 reads.

One memory-mapped file a side of the split, 2 bytes a place, with a note from what it was made.
Mirrored pictures and crops are passes of their own, behind the pictures as they are.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.data.cache import CaptionedImages
from tessella.files import new_file, write_json
from tessella.images import to_float
from tessella.tokenizer import ImageTokenizer

_BATCH = 64
_SMALLEST_CROP = 0.8  # of the picture's side

Codes = npt.NDArray[np.uint16]
"""(passes, N, h, w); the first pass has the pictures as they are."""


@dataclass(frozen=True)
class Passes:
    """In which ways each picture is encoded beside as it is."""

    flips: bool = False  # mirrored left to right, the crops too
    crops: int = 0  # random squares of it, each a pass

    @property
    def count(self) -> int:
        """Number of passes, that of the pictures as they are included."""
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
    """Encodes images into a file of codes, or uses the file that is there.

    Args:
        images: one side of the data.
        tokenizer: trained, in eval mode, on `device`.
        path: the `.npy` file; beside it a `.json` says from what it was made.
        device: where to encode.
        passes: the ways in which each image is encoded.
        progress: called with encodings done and their number.

    Returns:
        (passes, N, h, w) uint16, memory-mapped, read only.

    Raises:
        CheckpointError: the file cannot be written.
    """
    note = path.with_suffix(".json")
    made_from = {
        "images": images.fingerprint,
        "tokenizer": hash_weights(tokenizer),
        "passes": asdict(passes),
    }
    if not (path.exists() and read_note(note) == made_from):
        note.unlink(missing_ok=True)
        with new_file(path, what="the codes of the images") as building:
            _encode(images, tokenizer, passes, building, device, progress)
        write_json(note, made_from)
    codes: Codes = np.load(path, mmap_mode="r")
    return codes


def read_note(note: Path) -> object:
    """Returns what the note says; nothing if there is none that can be read."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


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
        chosen = np.arange(start, min(start + _BATCH, len(images)))
        image = to_float(torch.from_numpy(images.pixels(chosen)).to(device))
        seen = [image]
        seen += [_crop(image, np.random.default_rng([n, start])) for n in range(passes.crops)]
        if passes.flips:
            seen += [picture.flip(-1) for picture in seen]
        for number, picture in enumerate(seen):
            codes[number, chosen] = tokenizer.encode(picture).cpu().numpy().astype(np.uint16)
        if progress is not None:
            progress((int(chosen[-1]) + 1) * passes.count, len(images) * passes.count)
    codes.flush()


def _crop(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Cuts a random square out of each picture (B, 3, S, S) and enlarges it to its size."""
    size = image.shape[-1]
    cropped = []
    for picture in image:
        side = int(rng.integers(round(_SMALLEST_CROP * size), size + 1))
        top, left = rng.integers(0, size - side + 1, size=2)
        square = picture[None, :, top : top + side, left : left + side]
        cropped.append(functional.interpolate(square, (size, size), mode="bicubic"))
    return torch.cat(cropped).clamp(-1, 1)
