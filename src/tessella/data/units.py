"""Units: some thousand pictures that are decoded, kept and found again together.

    parts ─ records ─▶ cut into units ─▶ decode ─▶ <id>.pixels, <id>.json.gz

A unit's id is a hash of everything that it depends on: the records, their files' sizes and times,
and the settings. So a build that was killed goes on with the first unit that is missing, and after
a file was added or changed only the units with its pictures are built again.

    <id>.pixels      (n, S, S, 3) uint8; not there where pixels are not kept
    <id>.json.gz     what else is known of the n pictures; written last
    <id>.part.json   the units of a shard, which need not be opened to find them

Where a unit ends is told by the names of its pictures, not by their number: a picture that is
added leaves the units after its own as they were.
"""

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tessella.data.decode import NUM_PARAPHRASES, Decoded, decode_records, read_bytes
from tessella.data.places import Place, place_of
from tessella.data.records import (
    ImageLocation,
    Part,
    Record,
    SceneLocation,
    Skipped,
    StoredImage,
)
from tessella.data.settings import DataSettings
from tessella.files import new_file, write_bytes, write_json
from tessella.images import ImageError

_FORMAT = 2  # goes up when units of the same records get another content
_MOST_RECORDS = 4096
_MOST_BYTES = 256 << 20  # of pixels

PIXELS_SUFFIX = ".pixels"
_CONTENTS_SUFFIX = ".json.gz"
_PART_SUFFIX = ".part.json"

Chunk: TypeAlias = list[Record | Skipped]
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """A unit that is on the disk."""

    id: str
    num_images: int
    num_records: int  # with those that are skipped
    num_bytes: int  # of its contents' file


@dataclass
class Contents:
    """What is known of a unit's pictures besides their pixels, in their order."""

    names: list[str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    digests: str = ""  # of their pixels, one after another, in hexadecimal digits
    places: list[Place] = field(default_factory=list)  # where pixels are not kept
    groups: list[str | None] = field(default_factory=list)  # empty if none has one
    sides: list[str | None] = field(default_factory=list)  # empty if none is named
    repeats: list[int] = field(default_factory=list)  # empty if each is seen once
    origins: dict[str, int] = field(default_factory=dict)
    num_ignored: int = 0  # broken colour profiles
    skipped: list[dict[str, str]] = field(default_factory=list)


class Units:
    """Finds the units of records, or builds them.

    Args:
        settings: of the data.
        work: a folder for units that are built; it may hold some of an earlier attempt.
        finished: a folder with units of a cache that was finished, if there is one.
        advance: called with the number of records that are done.
    """

    def __init__(
        self,
        settings: DataSettings,
        work: Path,
        finished: Path,
        advance: Callable[[int], object],
    ) -> None:
        self._settings = settings
        self._work, self._finished = work, finished
        self._advance = advance
        bytes_per_picture = settings.image_size**2 * 3
        self._most = max(16, min(_MOST_RECORDS, _MOST_BYTES // bytes_per_picture))

    def of_part(self, part: Part, notes: Counter[str]) -> list[Unit]:
        """Returns the units of a part, built where they are missing.

        Args:
            part: of a source.
            notes: counts what is done to records.

        Raises:
            DataError: the part cannot be read.
            CheckpointError: a unit cannot be written.
        """
        key = self._hash("part", part.name, part.stamp) if part.is_whole and part.stamp else None
        if key is not None and (known := self._read_part(key, notes)) is not None:
            return known
        counted = Counter[str]()
        with (
            contextlib.closing(part.read(counted)) as records,
            contextlib.closing(_read_ahead(cut(records, self._most))) as chunks,
        ):
            units = [self._of_chunk(part, chunk) for chunk in chunks]
        if key is not None:
            values = {"units": [asdict(unit) for unit in units], "notes": dict(counted)}
            write_json(self._work / f"{key}{_PART_SUFFIX}", values, what="a part of the cache")
        notes.update(counted)
        return units

    def read(self, unit: Unit) -> Contents:
        """Reads what is known of a unit's pictures."""
        return _read_contents(self._find(unit.id))

    def link(self, units: Iterable[Unit], folder: Path) -> None:
        """Gives the files of units, and the notes of their parts, another name in a folder."""
        wanted = {unit.id for unit in units}
        for source in (self._work, self._finished):
            for path in source.iterdir() if source.is_dir() else ():
                identity = path.name.partition(".")[0]
                is_part = path.name.endswith(_PART_SUFFIX)
                if not (_has_units(path, wanted) if is_part else identity in wanted):
                    continue
                with contextlib.suppress(FileExistsError):
                    _link(path, folder / path.name)

    def _find(self, identity: str) -> Path:
        """Finds a unit's contents, wherever they are; they need not be."""
        path = self._work / f"{identity}{_CONTENTS_SUFFIX}"
        return path if path.exists() else self._finished / path.name

    def _is_whole(self, unit: Unit) -> bool:
        """Says whether the files of a unit are there, as long as they should be."""
        contents = self._find(unit.id)
        pixels = contents.with_name(f"{unit.id}{PIXELS_SUFFIX}")
        num_bytes = unit.num_images * self._settings.image_size**2 * 3
        try:
            is_whole = contents.stat().st_size == unit.num_bytes
            keeps_pixels = self._settings.cache == "pixels"
            return is_whole and (not keeps_pixels or pixels.stat().st_size == num_bytes)
        except OSError:
            return False

    def _read_part(self, key: str, notes: Counter[str]) -> list[Unit] | None:
        """Reads the units of a part that was finished before; None if one is missing."""
        for folder in (self._work, self._finished):
            try:
                values = json.loads((folder / f"{key}{_PART_SUFFIX}").read_bytes())
                units = [Unit(**unit) for unit in values["units"]]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if all(map(self._is_whole, units)):
                notes.update(values["notes"])
                self._advance(sum(unit.num_records for unit in units))
                return units
        return None

    def _of_chunk(self, part: Part, chunk: Chunk) -> Unit:
        """Finds or builds the unit of some records."""
        identity = self._hash(*(_describe(record, part) for record in chunk))
        path = self._find(identity)
        try:
            num_images = len(_read_contents(path).names)
        except (OSError, ValueError, TypeError, EOFError, zlib.error):
            return self._build(identity, part, chunk)
        unit = Unit(identity, num_images, len(chunk), path.stat().st_size)
        if not self._is_whole(unit):
            return self._build(identity, part, chunk)
        self._advance(len(chunk))
        return unit

    def _build(self, identity: str, part: Part, chunk: Chunk) -> Unit:
        """Decodes the pictures of a unit; pixels are written first, the rest when they are safe."""
        what, contents = "a part of the cache", Contents()
        if self._settings.cache == "pixels":
            with (
                new_file(self._work / f"{identity}{PIXELS_SUFFIX}", what=what) as temporary,
                # A mebibyte at a time: memory stays flat.
                temporary.open("wb", buffering=1 << 20) as file,
                contextlib.closing(self._decode(chunk, contents)) as pictures,
            ):
                for picture in pictures:
                    file.write(picture.pixels)
        else:
            with contextlib.closing(self._decode(chunk, contents)) as pictures:
                contents.places = [place_of(picture.record, part) for picture in pictures]
        text = json.dumps(vars(contents)).encode()
        # Without a time, so that the same contents are the same bytes.
        packed = gzip.compress(text, 1, mtime=0)
        write_bytes(self._work / f"{identity}{_CONTENTS_SUFFIX}", packed, what=what)
        return Unit(identity, len(contents.names), len(chunk), len(packed))

    def _decode(self, chunk: Chunk, contents: Contents) -> Generator[Decoded]:
        """Decodes records, and notes everything but their pixels."""
        digests, origins = [], Counter[str]()
        # Closed at once on an error or Ctrl-C, so that no thread outlives the call.
        with contextlib.closing(decode_records(chunk, self._settings)) as pictures:
            for picture in pictures:
                self._advance(1)
                if isinstance(picture, Skipped):
                    contents.skipped.append(asdict(picture))
                    continue
                record = picture.record
                contents.names.append(record.name)
                contents.captions.append(list(picture.captions))
                contents.groups.append(record.group)
                contents.sides.append(record.side)
                contents.repeats.append(record.repeats)
                contents.num_ignored += picture.ignores_profile
                digests.append(picture.digest.hex())
                origins.update([record.origin] if record.origin else [])
                yield picture
        contents.digests, contents.origins = "".join(digests), dict(origins)
        if not any(group is not None for group in contents.groups):
            contents.groups.clear()
        if not any(contents.sides):
            contents.sides.clear()
        if all(number == 1 for number in contents.repeats):
            contents.repeats.clear()

    def _hash(self, *facts: object) -> str:
        """Hashes facts and the settings that pictures depend on."""
        settings = self._settings
        digest = hashlib.blake2b(digest_size=16)
        limits = (settings.image_size, settings.max_image_pixels)
        for fact in ((_FORMAT, NUM_PARAPHRASES, settings.cache, *limits), *facts):
            digest.update(repr(fact).encode(errors="surrogatepass") + b"\n")
        return digest.hexdigest()


def cut(records: Iterable[Record | Skipped], most: int) -> Iterator[Chunk]:
    """Cuts records into units of at most so many, and usually at least a quarter of that.

    A cut follows a name with a certain hash. So the cuts of the same names are the same, whatever
    comes before them.
    """
    fewest = max(1, most // 4)
    chunk: Chunk = []
    for record in records:
        chunk.append(record)
        if len(chunk) >= fewest:
            is_cut = zlib.crc32(record.name.encode(errors="surrogatepass")) % fewest == 0
            if is_cut or len(chunk) >= most:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _read_contents(path: Path) -> Contents:
    return Contents(**json.loads(gzip.decompress(path.read_bytes())))


def _has_units(path: Path, wanted: set[str]) -> bool:
    """Says whether all units that the note of a part names are wanted."""
    try:
        return wanted.issuperset(unit["id"] for unit in json.loads(path.read_bytes())["units"])
    except (ValueError, KeyError, TypeError):
        return False


def _read_ahead(items: Iterator[T]) -> Generator[T]:
    """Reads one item ahead in a thread: records are read while the ones before are decoded."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="tessella-records") as thread:
        upcoming = thread.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # not the end


def _describe(record: Record | Skipped, part: Part) -> tuple[Any, ...]:
    """Gathers what a record's picture, captions and place depend on."""
    if isinstance(record, Skipped):
        return record.name, record.reason, record.kind
    place: tuple[Any, ...] = (part.stamp,)
    location = record.location
    if isinstance(location, SceneLocation):
        place = location.seed, location.index
    elif isinstance(location, ImageLocation) and location.size is None:
        try:
            status = os.stat(location.path)  # noqa: PTH116 - Path is ten times slower
            place = location.path, status.st_size, status.st_mtime_ns
        except OSError:
            place = (location.path, "missing")
    elif part.stamp is None:  # a command's output: only its contents tell whether it is the same
        place = (_hash_picture(location),)
    elif isinstance(location, ImageLocation):
        place = part.stamp, location.offset, location.size
    return (
        record.name,
        place,
        record.captions,
        record.group,
        record.side,
        record.repeats,
        record.origin,
    )


def _hash_picture(location: ImageLocation | StoredImage) -> str:
    """Hashes a picture's file, before it is decoded."""
    try:
        return hashlib.blake2b(read_bytes(location), digest_size=16).hexdigest()
    except ImageError as error:
        return str(error)


def _link(path: Path, other: Path) -> None:
    """Gives a file a second name; copies it where the file system has no such thing."""
    try:
        other.hardlink_to(path)
    except FileExistsError:
        raise
    except OSError:
        with new_file(other) as temporary:
            temporary.write_bytes(path.read_bytes())
