"""Cache: square pixels and captions on the disk, read through memory maps.

    units/           pixels of some thousand pictures each: see units.py
    captions.bin     all captions one after another, UTF-8
    ends.bin         (M,) uint64: where each caption ends in captions.bin
    counts.bin       (N,) uint64: number of captions up to and including each image
    names.bin        the name of every image, one after another, UTF-8
    name_ends.bin    (N,) uint64: where each name ends in names.bin
    digests.bin      (N, 16) the hash of each image's pixels
    train.bin, validation.bin   int64: which of the N images are on that side
    places.bin, files.json      where pixels are not kept: where to read them, see places.py
    skipped.jsonl    the files that were skipped, and why
    manifest.json    written last; without it nothing here is used

However large N is, a process holds only the pictures that it asks for. Caches of format 2 have all
pixels in one `pixels.bin`, and no digests.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tessella.data.decode import DIGEST_BYTES
from tessella.data.places import PLACES, SourcePixels
from tessella.data.records import Skipped
from tessella.data.settings import DataSettings
from tessella.data.units import PIXELS_SUFFIX
from tessella.images import Pixels
from tessella.untrusted import parse_json

CACHE_FORMAT = "tessella-cache/3"
_ONE_FILE_FORMAT = "tessella-cache/2"  # read as it is, not written any more
MANIFEST = "manifest.json"
SKIPPED = "skipped.jsonl"
UNITS = "units"
SIDES = ("train", "validation")

_NEEDED = ("identity", "fingerprints", "units")  # of a manifest, to read pictures
_MAPPED_UNITS = 64  # at a time: each holds a file open


class _PixelReader(Protocol):
    def read(self, rows: npt.NDArray[np.int64]) -> Pixels: ...


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
        needed = {name: manifest[name] for name in _NEEDED if name in manifest}
        self._arguments = folder, side, needed
        self.image_size: int = manifest["identity"]["settings"]["image_size"]
        """Side of the pictures, in pixels."""
        self.fingerprint: str = manifest["fingerprints"][side]
        """Hash of all pixels and captions of this side."""
        self._rows = _map(folder / f"{side}.bin", np.dtype("<i8"))
        self._store = CaptionStore(folder)
        units = manifest.get("units", [])
        column = 2 + SIDES.index(side)
        ends = np.cumsum([unit[column] for unit in units], dtype=np.int64)
        self.unit_ends: npt.NDArray[np.int64] = ends if units else np.array([len(self)])
        """Where the pictures of each unit of the cache end among those of this side."""
        self.is_streamed = (folder / PLACES).exists()
        """Whether pixels are not kept, but read out of the data whenever they are asked for."""
        self._digests = None
        if (folder / "digests.bin").exists():
            raw = _map(folder / "digests.bin", np.dtype("u1"))
            self._digests = raw.reshape(-1, DIGEST_BYTES)
        self._pixels = self._open_pixels(folder, manifest)

    def _open_pixels(self, folder: Path, manifest: Mapping[str, Any]) -> _PixelReader:
        if self.is_streamed and self._digests is not None:
            limits = manifest["identity"]["settings"]
            names = {name: limits[name] for name in ("image_size", "max_image_pixels")}
            return SourcePixels(folder, DataSettings(**names), self._store.name, self._digests)
        if "units" not in manifest:
            total = (folder / "pixels.bin").stat().st_size // (3 * self.image_size**2)
            return _UnitPixels([folder / "pixels.bin"], [total], self.image_size)
        files = [folder / UNITS / f"{unit[0]}{PIXELS_SUFFIX}" for unit in manifest["units"]]
        return _UnitPixels(files, [unit[1] for unit in manifest["units"]], self.image_size)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as the constructor's arguments: a memory map would travel as a whole."""
        return type(self), self._arguments

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self._rows)

    def pixels(self, indices: npt.ArrayLike) -> Pixels:
        """Copies pictures out of the cache, or decodes them where it keeps none.

        Args:
            indices: (B,) integers in [0, len), in any order.

        Returns:
            (B, S, S, 3) uint8.

        Raises:
            IndexError: an index is out of range.
            DataError: a picture that has to be decoded is not what it was.
        """
        return self._pixels.read(self._rows[np.asarray(indices, dtype=np.int64).reshape(-1)])

    def hash_pixels(self, start: int, end: int) -> str:
        """Hashes the pixels of some pictures, without reading them.

        A cache of format 2 knows only all of them together: there, other pictures elsewhere
        change the hash too.
        """
        digest = hashlib.blake2b(digest_size=16)
        if self._digests is None:
            digest.update(f"{self.fingerprint} {start} {end}".encode())
        else:
            digest.update(self._digests[self._rows[start:end]].tobytes())
        return digest.hexdigest()

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


class _UnitPixels:
    """Reads pixels out of files of some thousand pictures each.

    Args:
        files: of the pictures, in their order.
        counts: of the pictures in each.
        size: side of a picture.
    """

    def __init__(self, files: list[Path], counts: list[int], size: int) -> None:
        self._files, self._size = files, size
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._map = functools.lru_cache(_MAPPED_UNITS)(self._map_unit)

    def _map_unit(self, number: int) -> Pixels:
        mapped = _map(self._files[number], np.dtype("u1"))
        return mapped.reshape(-1, self._size, self._size, 3)

    def read(self, rows: npt.NDArray[np.int64]) -> Pixels:
        """Copies pictures (B, S, S, 3)."""
        pixels = np.empty((len(rows), self._size, self._size, 3), np.uint8)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            first = self._ends[number - 1] if number else 0
            pixels[chosen] = self._map(number)[rows[chosen] - first]
        return pixels


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


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest of a complete cache; None if the folder is not one."""
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
        if manifest["format"] not in (CACHE_FORMAT, _ONE_FILE_FORMAT):
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
