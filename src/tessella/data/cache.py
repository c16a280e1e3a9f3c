"""Cache: square pixels and captions on the disk, read through memory maps.

    pixels.bin       (N, S, S, 3) uint8
    captions.bin     all captions one after another, UTF-8
    ends.bin         (M,) uint64: where each caption ends in captions.bin
    counts.bin       (N,) uint64: number of captions up to and including each image
    names.bin        the name of every image, one after another, UTF-8
    name_ends.bin    (N,) uint64: where each name ends in names.bin
    train.bin, validation.bin   int64: which of the N images are on that side
    skipped.jsonl    the files that were skipped, and why
    manifest.json    written last; without it nothing here is used

However large N is, a process holds only the pictures that it asks for.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessella.data.decode import DIGEST_BYTES
from tessella.data.records import Skipped
from tessella.images import Pixels
from tessella.untrusted import parse_json

CACHE_FORMAT = "tessella-cache/2"
MANIFEST = "manifest.json"
SKIPPED = "skipped.jsonl"
SIDES = ("train", "validation")


class CaptionedImages:
    """One side of the split: pictures with their captions, in a fixed order.

    It may be pickled to another process: only the folder's name and manifest
    travel.
    """

    def __init__(self, folder: Path, side: str, manifest: Mapping[str, Any]) -> None:
        """Opens one side of a cache.

        Args:
            folder: the cache.
            side: train or validation.
            manifest: of the cache, from `read_manifest`.
        """
        self._arguments = folder, side, manifest
        self.image_size: int = manifest["identity"]["settings"]["image_size"]
        """Side of the pictures, in pixels."""
        self.fingerprint: str = manifest["fingerprints"][side]
        """Hash of all pixels and captions of this side."""
        self._rows = _map(folder / f"{side}.bin", np.dtype("<i8"))
        size = self.image_size
        self._pixels = _map(folder / "pixels.bin", np.dtype("u1")).reshape(-1, size, size, 3)
        self._store = CaptionStore(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as the constructor's arguments: a memory map would travel as a whole."""
        return type(self), self._arguments

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self._rows)

    def pixels(self, indices: npt.ArrayLike) -> Pixels:
        """Copies pictures out of the cache.

        Args:
            indices: (B,) integers in [0, len), in any order.

        Returns:
            (B, S, S, 3) uint8.

        Raises:
            IndexError: an index is out of range.
        """
        rows = self._rows[np.asarray(indices, dtype=np.int64).reshape(-1)]
        return np.ascontiguousarray(self._pixels[rows])

    def captions(self, index: int) -> list[str]:
        """Returns the captions of one picture, at least one.

        Args:
            index: in [0, len).

        Raises:
            IndexError: the index is out of range.
        """
        return self._store.of(int(self._rows[index]))

    def name(self, index: int) -> str:
        """Returns the name of one picture: where it came from, as the user wrote it.

        Args:
            index: in [0, len).

        Raises:
            IndexError: the index is out of range.
        """
        return self._store.name(int(self._rows[index]))

    def all_captions(self) -> Iterator[str]:
        """Reads every caption of every picture, in order."""
        for row in self._rows:
            yield from self._store.of(int(row))


class CaptionStore:
    """Reads the captions and the name of any of the N images by its row."""

    def __init__(self, folder: Path) -> None:
        """Opens the captions of a finished or half-built cache."""
        self._text = _map(folder / "captions.bin", np.dtype("u1"))
        self._ends = _map(folder / "ends.bin", np.dtype("<u8"))
        self._counts = _map(folder / "counts.bin", np.dtype("<u8"))
        self._names = _map(folder / "names.bin", np.dtype("u1"))
        self._name_ends = _map(folder / "name_ends.bin", np.dtype("<u8"))

    def name(self, row: int) -> str:
        """Returns the name of one image."""
        start = int(self._name_ends[row - 1]) if row else 0
        return self._names[start : int(self._name_ends[row])].tobytes().decode()

    def of(self, row: int) -> list[str]:
        """Returns the captions of one image."""
        first = int(self._counts[row - 1]) if row else 0
        last = int(self._counts[row])
        start = int(self._ends[first - 1]) if first else 0
        captions = []
        for end in self._ends[first:last].tolist():
            captions.append(self._text[start:end].tobytes().decode())
            start = end
        return captions


def _map(path: Path, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """Maps a file as a flat array; an empty file, which cannot be mapped, is an empty array."""
    if not path.stat().st_size:
        return np.zeros(0, dtype=kind)
    # As a plain array: every slice of a memmap carries its overhead along.
    return np.asarray(np.memmap(path, dtype=kind, mode="r"))


class CacheWriter(contextlib.ExitStack):
    """Writes a cache from front to back; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Starts the files in an existing, empty folder."""
        super().__init__()
        arrays = ("pixels.bin", "captions.bin", "ends.bin", "counts.bin", "names.bin")
        names = (*arrays, "name_ends.bin", SKIPPED)
        self._files = {
            name: self.enter_context((folder / name).open("wb", buffering=1 << 20))
            for name in names
        }
        self._end = 0  # of the last caption, in bytes
        self._name_end = 0
        self.num_images = 0
        self.num_captions = 0
        self.num_skipped: Counter[str] = Counter()  # by kind

    def add(self, pixels: bytes, captions: Sequence[str], name: str) -> None:
        """Adds a picture.

        Args:
            pixels: (S, S, 3) uint8.
            captions: of the picture.
            name: of the picture.
        """
        self._files["pixels.bin"].write(pixels)
        for caption in captions:
            self._end += self._files["captions.bin"].write(caption.encode())
            self._files["ends.bin"].write(self._end.to_bytes(8, "little"))
        self.num_captions += len(captions)
        self.num_images += 1
        self._files["counts.bin"].write(self.num_captions.to_bytes(8, "little"))
        # A file name that is not UTF-8 keeps its odd bytes as escapes.
        self._name_end += self._files["names.bin"].write(name.encode(errors="backslashreplace"))
        self._files["name_ends.bin"].write(self._name_end.to_bytes(8, "little"))

    def skip(self, skipped: Skipped) -> None:
        """Notes a file that is skipped."""
        # A file name that is not UTF-8 keeps its odd bytes as JSON's own escapes.
        line = json.dumps(asdict(skipped), ensure_ascii=False) + "\n"
        self._files[SKIPPED].write(line.encode(errors="backslashreplace"))
        self.num_skipped[skipped.kind] += 1


def write_sides(
    folder: Path,
    validation: npt.NDArray[np.bool_],
    digests: bytes | bytearray,
    repeats: npt.NDArray[np.int64] | None = None,
) -> dict[str, str]:
    """Writes the rows of each side.

    Args:
        folder: a cache whose pixels and captions are written.
        validation: (N,) true for the validation side.
        digests: the N hashes of the pixels, one after another.
        repeats: (N,) how often an image of the training side is there; None for once.

    Returns:
        The fingerprint of each side: a hash of its pixels and captions in their order.
    """
    store = CaptionStore(folder)
    fingerprints = {}
    for side, is_on_side in zip(SIDES, (~validation, validation), strict=True):
        rows = np.flatnonzero(is_on_side)
        if repeats is not None and side == "train":
            rows = np.repeat(rows, repeats[rows])
        (folder / f"{side}.bin").write_bytes(rows.astype("<i8").tobytes())
        digest = hashlib.blake2b(digest_size=16)
        for row in rows.tolist():
            digest.update(digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES])
            digest.update("\n".join(store.of(row)).encode() + b"\0")
        fingerprints[side] = digest.hexdigest()
    return fingerprints


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest of a complete cache; None if the folder is not one."""
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
        if manifest["format"] != CACHE_FORMAT:
            return None
        sizes = {name: (folder / name).stat().st_size for name in manifest["file_bytes"]}
        return manifest if sizes == manifest["file_bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_cache(folder: Path) -> bool:
    """Says whether a folder was written as a cache of any format, complete or damaged."""
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
        return str(manifest["format"]).startswith("tessella-cache/")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_skipped(folder: Path) -> tuple[Skipped, ...]:
    """Reads the files that a cache skipped."""
    with (folder / SKIPPED).open(encoding="utf-8") as file:
        return tuple(Skipped(**json.loads(line)) for line in file)
