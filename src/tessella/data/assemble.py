"""Assemble: the units of all sources become the flat files of a cache, split in two sides.

    units ─ contents ─▶ captions, names, digests, places ─▶ sides and their fingerprints

One unit is held at a time. For the split a picture takes a byte of memory; some hundred only where
groups or named sides connect pictures.
"""

import contextlib
import hashlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tessella.data.cache import SIDES, SKIPPED
from tessella.data.decode import DIGEST_BYTES
from tessella.data.places import FILES, PLACES, PlaceTable
from tessella.data.settings import DataSettings
from tessella.data.split import (
    NAMED_SIDES,
    Keys,
    assign_by_key,
    assign_sides,
    bound_keys,
    settle_named_sides,
    split_key,
)
from tessella.data.units import Contents, Unit, Units
from tessella.errors import DataError
from tessella.files import write_json


def assemble(
    folder: Path, units: Units, sources: Sequence[Sequence[Unit]], settings: DataSettings
) -> dict[str, Any]:
    """Writes the files of a cache, all but its pixels.

    Args:
        folder: of the new cache.
        units: reads them.
        sources: the units of each source, in their order.
        settings: of the split.

    Returns:
        What the manifest says of them: counts, readings, units and fingerprints.

    Raises:
        DataError: no picture has the field to split by, or none is left to train on.
    """
    with tempfile.TemporaryFile(dir=folder) as scratch:
        return _assemble(folder, units, sources, settings, _Split(scratch))


def _assemble(
    folder: Path,
    units: Units,
    sources: Sequence[Sequence[Unit]],
    settings: DataSettings,
    split: "_Split",
) -> dict[str, Any]:
    origins = Counter[str]()
    num_ignored, skipped, num_captions = 0, Counter[str](), 0
    with _FlatFiles(folder, has_places=settings.cache != "pixels") as files:
        for source, unit in _enumerate(sources):
            contents = units.read(unit)
            files.add(contents)
            split.add(contents, source)
            origins.update(contents.origins)
            skipped.update(one["kind"] for one in contents.skipped)
            num_ignored += contents.num_ignored
            num_captions += sum(map(len, contents.captions))
    if settings.split_by is not None and split.num_images and not split.groups:
        raise DataError(
            f"No image has the field to split by: `{settings.split_by}`. Expected it in metadata "
            "columns or in .json files of pictures; leave data.split_by out to split by pixels "
            "alone."
        )
    is_validation = split.assign(settings)
    num_validation = int(is_validation.sum())
    with _SideFiles(folder) as sides:
        sides.divisor = split.common_repeats(is_validation)
        for _, unit in _enumerate(sources):
            sides.add(unit, units.read(unit), is_validation)
    return {
        "counts": {
            "images": split.num_images,
            "captions": num_captions,
            "train": split.num_images - num_validation,
            "validation": num_validation,
            "skipped": dict(skipped),
            "ignored_profiles": num_ignored,
        },
        "readings": dict(origins),
        "units": sides.units,
        "fingerprints": {side: sides.hashes[side].hexdigest() for side in SIDES},
    }


def _enumerate(sources: Sequence[Sequence[Unit]]) -> Iterator[tuple[int, Unit]]:
    for source, units in enumerate(sources):
        for unit in units:
            yield source, unit


class _FlatFiles(contextlib.ExitStack):
    """Writes captions, names, digests and places from front to back."""

    def __init__(self, folder: Path, *, has_places: bool) -> None:
        super().__init__()
        names = ["captions.bin", "ends.bin", "counts.bin", "names.bin", "name_ends.bin"]
        names += ["digests.bin", SKIPPED, *([PLACES] if has_places else [])]
        self._folder = folder
        self._files = {
            name: self.enter_context((folder / name).open("wb", buffering=1 << 20))
            for name in names
        }
        self._table = PlaceTable()
        self._caption_end = self._name_end = self._num_captions = 0  # ends in bytes
        if has_places:
            self.callback(self._write_files)

    def _write_files(self) -> None:
        write_json(self._folder / FILES, self._table.describe())

    def add(self, contents: Contents) -> None:
        """Adds the pictures of a unit."""
        ends, counts, name_ends, names = [], [], [], []
        for name, captions in zip(contents.names, contents.captions, strict=True):
            for caption in captions:
                self._caption_end += self._files["captions.bin"].write(caption.encode())
                ends.append(self._caption_end)
            self._num_captions += len(captions)
            counts.append(self._num_captions)
            # A file name that is not UTF-8 keeps its odd bytes as escapes.
            names.append(name.encode(errors="backslashreplace"))
            self._name_end += len(names[-1])
            name_ends.append(self._name_end)
        self._files["names.bin"].write(b"".join(names))
        for file, values in (("ends", ends), ("counts", counts), ("name_ends", name_ends)):
            self._files[f"{file}.bin"].write(np.array(values, "<u8").tobytes())
        self._files["digests.bin"].write(bytes.fromhex(contents.digests))
        if PLACES in self._files:
            placed = zip(contents.places, contents.names, strict=True)
            rows = [self._table.row(place, name) for place, name in placed]
            self._files[PLACES].write(np.array(rows, "<i8").tobytes())
        for skipped in contents.skipped:
            # A file name that is not UTF-8 keeps its odd bytes as JSON's own escapes.
            line = json.dumps(skipped, ensure_ascii=False) + "\n"
            self._files[SKIPPED].write(line.encode(errors="backslashreplace"))


class _Split:
    """What the split needs to know of every picture; most of it only where there is any.

    Args:
        scratch: an empty file for the keys of the pixels.
    """

    def __init__(self, scratch: IO[bytes]) -> None:
        self.num_images = 0
        self.groups: dict[int, Keys] = {}  # by the first row of a unit
        self._scratch = scratch
        self._named: dict[int, npt.NDArray[np.int8]] = {}
        self._repeats: dict[int, npt.NDArray[np.int64]] = {}
        self._sources: list[tuple[int, int]] = []  # source, and number of its pictures

    def add(self, contents: Contents, source: int) -> None:
        """Adds the pictures of a unit."""
        first, count = self.num_images, len(contents.names)
        digests = (
            contents.digests[2 * DIGEST_BYTES * n : 2 * DIGEST_BYTES * (n + 1)]
            for n in range(count)
        )
        keys = np.array([split_key(digest) for digest in digests], np.uint64)
        self._scratch.write(keys.tobytes())
        if contents.groups:
            grouped = keys.copy()
            for index, group in enumerate(contents.groups):
                grouped[index] = keys[index] if group is None else split_key(group)
            self.groups[first] = grouped
        if contents.sides:
            self._named[first] = np.array([NAMED_SIDES[s] for s in contents.sides], np.int8)
        if contents.repeats:
            self._repeats[first] = np.array(contents.repeats, np.int64)
        self._sources.append((source, count))
        self.num_images += count

    def assign(self, settings: DataSettings) -> npt.NDArray[np.bool_]:
        """Decides which images are for validation.

        Raises:
            DataError: the data's own split leaves none for training.
        """
        fraction, is_named = settings.validation_fraction, bool(self._named)
        if self.groups or (is_named and settings.named_splits):
            is_validation = self._assign_connected(settings)
        else:
            bounds = bound_keys(self._read_keys())
            parts = [assign_by_key(keys, fraction, bounds) for keys in self._read_keys()]
            is_validation = np.concatenate([np.zeros(0, np.bool_), *parts])
        if len(is_validation) and is_validation.all():
            raise DataError(
                "No image is left to train on: every one is held out, or is the same as one that "
                "is, by folders or tables called test or validation. Name other data, or set "
                "data.named_splits=false."
            )
        return is_validation

    def _read_keys(self) -> Iterator[Keys]:
        """Reads the keys of one unit after the other."""
        self._scratch.seek(0)
        for _, count in self._sources:
            yield np.frombuffer(self._scratch.read(8 * count), np.uint64)

    def _assign_connected(self, settings: DataSettings) -> npt.NDArray[np.bool_]:
        keys = np.concatenate([*self._read_keys()])
        groups, named = keys.copy(), np.full(len(keys), NAMED_SIDES[None], np.int8)
        for first, values in self.groups.items():
            groups[first : first + len(values)] = values
        for first, sides in self._named.items():
            named[first : first + len(sides)] = sides
        numbers, counts = zip(*self._sources, strict=True)
        sources = np.repeat(np.array(numbers, np.int32), counts)
        settled = settle_named_sides(named, sources) if settings.named_splits else None
        return assign_sides(keys, groups, settings.validation_fraction, settled)

    def common_repeats(self, is_validation: npt.NDArray[np.bool_]) -> int:
        """Computes the greatest common divisor of how often each training image is there.

        Only the ratios count, because no run is as long as its passes: 20 and 30 are 2 and 3.
        """
        divisor, first = 0, 0
        for _, count in self._sources:
            training = ~is_validation[first : first + count]
            repeats = self._repeats.get(first, np.ones(count, np.int64))[training]
            divisor = math.gcd(divisor, *set(repeats.tolist()))
            first += count
        return divisor or 1


class _SideFiles(contextlib.ExitStack):
    """Writes the rows of each side, and hashes its pixels and captions in their order."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.hashes = {side: hashlib.blake2b(digest_size=16) for side in SIDES}
        self.units: list[list[str | int]] = []
        """Of each unit its id, its pictures, and those on each side, repeats counted."""
        self.divisor = 1
        self._files = {
            side: self.enter_context((folder / f"{side}.bin").open("wb", buffering=1 << 20))
            for side in SIDES
        }
        self._first = 0

    def add(self, unit: Unit, contents: Contents, is_validation: npt.NDArray[np.bool_]) -> None:
        """Adds the pictures of a unit."""
        count = len(contents.names)
        is_held_out = is_validation[self._first : self._first + count]
        digests, on_sides = bytes.fromhex(contents.digests), []
        for side, is_on_side in zip(SIDES, (~is_held_out, is_held_out), strict=True):
            rows = np.flatnonzero(is_on_side)
            if contents.repeats and side == "train":
                rows = np.repeat(rows, np.array(contents.repeats)[rows] // self.divisor)
            self._files[side].write((self._first + rows).astype("<i8").tobytes())
            for row in rows.tolist():
                self.hashes[side].update(digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES])
                self.hashes[side].update("\n".join(contents.captions[row]).encode() + b"\0")
            on_sides.append(len(rows))
        self.units.append([unit.id, count, *on_sides])
        self._first += count
