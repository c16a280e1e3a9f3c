"""Codes of all images, encoded once by the finished tokenizer: what stage 2 reads.

One memory-mapped file a side of the split, 2 bytes a place, with a note from what it was made.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tessella.data.cache import CaptionedImages
from tessella.files import new_file, write_json
from tessella.images import to_float
from tessella.tokenizer import ImageTokenizer

_BATCH = 64

Codes = npt.NDArray[np.uint16]


@torch.inference_mode()
def prepare_codes(
    images: CaptionedImages,
    tokenizer: ImageTokenizer,
    path: Path,
    *,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Codes:
    """Encodes images into a file of codes, or uses the file that is there.

    Args:
        images: one side of the data.
        tokenizer: trained, in eval mode, on `device`.
        path: the `.npy` file; beside it a `.json` says from what it was made.
        device: where to encode.
        progress: called with images done and their number.

    Returns:
        (N, h, w) uint16, memory-mapped, read only.

    Raises:
        CheckpointError: the file cannot be written.
    """
    note = path.with_suffix(".json")
    made_from = {"images": images.fingerprint, "tokenizer": _hash_weights(tokenizer)}
    if not (path.exists() and _read_note(note) == made_from):
        note.unlink(missing_ok=True)
        with new_file(path, what="the codes of the images") as building:
            _encode(images, tokenizer, building, device, progress)
        write_json(note, made_from)
    codes: Codes = np.load(path, mmap_mode="r")
    return codes


def _read_note(note: Path) -> object:
    """Returns what the note says; nothing if there is none that can be read."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _hash_weights(tokenizer: ImageTokenizer) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encode(
    images: CaptionedImages,
    tokenizer: ImageTokenizer,
    path: Path,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> None:
    side = images.image_size // tokenizer.settings.downsampling
    shape = (len(images), side, side)
    if not len(images):
        with path.open("wb") as file:
            np.save(file, np.empty(shape, dtype=np.uint16))
        return
    codes = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=shape)
    for start in range(0, len(images), _BATCH):
        chosen = np.arange(start, min(start + _BATCH, len(images)))
        pixels = torch.from_numpy(images.pixels(chosen)).to(device)
        codes[chosen] = tokenizer.encode(to_float(pixels)).cpu().numpy().astype(np.uint16)
        if progress is not None:
            progress(int(chosen[-1]) + 1, len(images))
    codes.flush()
