"""Places: where each picture lies, to be decoded again whenever it is needed.

    rows ─▶ places ─▶ decode ─▶ checked against the digests of the first reading

Where a run keeps no pixels (`data.cache=codes`), its cache has these instead:

    places.bin       (N, 3) int64: the file's number in files.json, the first byte, and the number
                     of bytes, -1 for all. A negative number of a file is one of those below
    files.json       the tars and pictures that are named by number, and where names begin
    digests.bin      (N, 16) the hash of each picture's pixels

A picture that is not what it was is an error: nothing else would tell that a resumed run sees
other pictures.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tessella.data.addresses import is_address, open_locally
from tessella.data.decode import decode_records
from tessella.data.records import ImageLocation, Part, Record, SceneLocation, Skipped
from tessella.data.settings import DataSettings
from tessella.errors import DataError
from tessella.images import Pixels

PLACES = "places.bin"
FILES = "files.json"

Place: TypeAlias = tuple[str | None, int, int]
"""File, first byte, number of bytes or -1 for all; of scenes None, index, seed."""

_SCENE = -1  # file number of a scene
_NAMED = -2  # of a picture that is called as its file is
_WHOLE = -1  # bytes
_OPEN_FILES = 128  # shards that are elsewhere, or compressed, are kept as temporary copies


def place_of(record: Record, part: Part) -> Place:
    """Returns where a picture is found again.

    Raises:
        DataError: it is inside a file of which single pictures cannot be read again.
    """
    location = record.location
    if isinstance(location, SceneLocation):
        return None, location.index, location.seed
    if not isinstance(location, ImageLocation):
        raise refuse_stored(part.name)
    if location.size is None:
        return location.path, 0, _WHOLE
    # What is read from a temporary copy is found again by the name of the file itself.
    file = location.path if location.owner is None else part.name
    return file, location.offset, location.size


def refuse_stored(name: str) -> DataError:
    """Returns the error about a file of which single pictures cannot be read again."""
    return DataError(
        f"The pictures cannot be read again one by one: `{name}`, and data.cache is `codes`. "
        "Expected a folder of pictures, .tar shards, scenes:N or scenes2:N; set "
        "data.cache=pixels, or write shards first, with webdataset.ShardWriter."
    )


class PlaceTable:
    """Numbers the files of places, to write them as rows of integers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def row(self, place: Place, name: str) -> tuple[int, int, int]:
        """Returns a place as a row of places.bin; `name` is the picture's."""
        file, first, size = place
        if file is None:
            return _SCENE, first, size
        if file == name and name.isprintable():  # else it is not written as it is
            return _NAMED, first, size
        file = file if is_address(file) else str(Path(file).absolute())
        return self._numbers.setdefault(file, len(self._numbers)), first, size

    def describe(self) -> dict[str, Any]:
        """Lists the files in the order of their numbers, for files.json."""
        return {"base": str(Path.cwd()), "files": list(self._numbers)}


class SourcePixels:
    """Reads square pixels out of the data itself.

    Args:
        folder: of a cache without pixels.
        settings: of its manifest: image size and limit.
        name: returns the name of a row's picture.
        digests: (N, 16) of the pixels.
    """

    def __init__(
        self,
        folder: Path,
        settings: DataSettings,
        name: Callable[[int], str],
        digests: npt.NDArray[np.uint8],
    ) -> None:
        self._settings, self._name, self._digests = settings, name, digests
        places = folder / PLACES
        self._places = np.zeros((0, 3), np.int64)
        if places.stat().st_size:
            self._places = np.asarray(np.memmap(places, np.dtype("<i8"), "r")).reshape(-1, 3)
        files = json.loads((folder / FILES).read_text(encoding="utf-8"))
        self._base, self._files = Path(files["base"]), files["files"]
        self._open = functools.lru_cache(_OPEN_FILES)(open_locally)

    def read(self, rows: npt.NDArray[np.int64]) -> Pixels:
        """Decodes pictures (B, S, S, 3), in several threads.

        Raises:
            DataError: a picture is missing, or is not what it was.
        """
        size = self._settings.image_size
        pixels = np.empty((len(rows), size, size, 3), np.uint8)
        records = (self._record(row) for row in rows.tolist())
        for index, picture in enumerate(decode_records(records, self._settings)):
            if isinstance(picture, Skipped):
                raise _not_the_same(picture.name, picture.reason.rstrip("."))
            if picture.digest != self._digests[rows[index]].tobytes():
                raise _not_the_same(picture.record.name, "it shows something else")
            pixels[index] = np.frombuffer(picture.pixels, np.uint8).reshape(size, size, 3)
        return pixels

    def _record(self, row: int) -> Record:
        file, first, size = self._places[row].tolist()
        name = self._name(row)
        if file == _SCENE:
            # A scene's name begins as its source was named: scenes2:50000/7.
            return Record(name, SceneLocation(size, first, name.partition(":")[0]), ())
        path = str(self._base / name) if file == _NAMED else self._files[file]
        if size == _WHOLE:
            return Record(name, ImageLocation(path), ())
        local = self._open(path)
        return Record(name, ImageLocation(str(local.path), first, size, local.owner), ())


def _not_the_same(name: str, why: str) -> DataError:
    return DataError(
        f"A picture is not what it was when the data was read: `{name}`; {why}. With "
        "data.cache=codes the data has to stay as it is until the run is finished: put it back, "
        "or choose a new --out to train on what is there now."
    )
