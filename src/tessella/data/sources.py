"""Sources: recognises a DATA argument by its contents, and reads its records.

The contents decide, never a flag:

    scenes:N                                     drawn pictures
    .tar, or a folder of them                    shards
    a table of pictures                          table
    a folder of pictures                         table, captions or classes: see pairing.py

What fits no kind, or more than one, is refused; the message says what it contains.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from tessella.data.folders import stem_of, suffix_of, walk
from tessella.data.names import side_of_file, side_of_folders
from tessella.data.pairing import FolderReading
from tessella.data.records import Record, SceneLocation, Side, Skipped
from tessella.data.shards import shard_records
from tessella.data.survey import FolderSurvey, is_table, read_folder, read_table_alone
from tessella.errors import DataError

Kind = Literal["table", "captions", "shards", "classes", "scenes"]

WHAT_DATA_MAY_BE = (
    "DATA may be: a folder of pictures with their captions in a table (metadata.jsonl, .csv, "
    ".parquet, or any other that names the files), in COCO's or Flickr's annotations, or in texts "
    "of the same names, beside the pictures or in a folder next to theirs; a folder of class "
    "folders, whose names are the captions; such a table itself; .tar shards; or scenes:N."
)


@dataclass(frozen=True)
class Fingerprint:
    """Shows whether a source has changed, without reading its contents."""

    files: int  # number of files
    bytes: int  # their total size
    digest: str  # of every file's relative path, size and modification time


@dataclass(frozen=True)
class Source:
    """One recognised DATA argument."""

    argument: str  # as the user wrote it
    kind: Kind
    fingerprint: Fingerprint
    root: Path | None = None  # the folder or file; None for scenes
    paths: tuple[Path, ...] = ()  # the shards
    count: int | None = None  # pictures, if known before reading
    reading: FolderReading | None = None  # of a folder or table

    def identity(self) -> dict[str, str | int]:
        """Returns what the manifest keeps, to be compared next time."""
        return {
            "source": self.argument if self.root is None else str(self.root.resolve()),
            "kind": self.kind,
            **asdict(self.fingerprint),
        }

    @property
    def origins(self) -> tuple[str, ...]:
        """Says where the captions are read, as in "captions from train.csv, column caption"."""
        if self.reading is not None:
            return self.reading.origins
        return ("captions from the texts in the tars",) if self.kind == "shards" else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Says what else people should know of how it is read."""
        return self.reading.notes if self.reading is not None else ()

    def records(
        self, seed: int = 0, split_by: str | None = None, notes: Counter[str] | None = None
    ) -> Iterator[Record | Skipped]:
        """Reads the records, in an order that depends only on their names.

        Args:
            seed: of the scenes.
            split_by: the field that becomes a record's group.
            notes: counts what is done to rows of tables.

        Raises:
            DataError: a table or shard cannot be read.
        """
        if self.kind == "scenes":
            for index in range(self.count or 0):
                yield Record(f"{self.argument}/{index}", SceneLocation(seed, index), ())
        if self.reading is not None:
            yield from self.reading.records(split_by, notes)
        for path in self.paths:
            side = self._side_of_shard(path)
            for record in shard_records(path, split_by):
                yield replace(record, side=side) if side and isinstance(record, Record) else record

    def _side_of_shard(self, path: Path) -> Side | None:
        """Returns the side of the split that a shard's name or folder says: train-0000.tar."""
        is_inside = self.root is not None and path.is_relative_to(self.root)
        folders = path.relative_to(self.root).parts[:-1] if is_inside and self.root else ()
        return side_of_folders(folders) or side_of_file(stem_of(path.name))


class _Scan:
    """The files of a source on one walk: their fingerprint, and which of them tell its kind."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hash = hashlib.blake2b(digest_size=16)
        self._num_files = 0
        self._num_bytes = 0
        self.survey = FolderSurvey(root)
        self.shards: list[Path] = []
        self.compressed: list[Path] = []

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._num_files, self._num_bytes, self._hash.hexdigest())

    def walk(self) -> None:
        """Scans all files under the root."""
        for listing in walk(self._root):
            self.survey.add(listing)
            for name in listing.files:
                path = listing.path(name)
                try:
                    self.add(path)
                except OSError:  # a link to nowhere: it is reported when it is read
                    self._hash.update(f"{name}\0missing\n".encode(errors="surrogateescape"))
                if suffix_of(name) == ".tar":
                    self.shards.append(Path(path))
                elif _is_compressed_tar(name):
                    self.compressed.append(Path(path))

    def add(self, path: str | Path) -> None:
        """Adds one file to the fingerprint."""
        status = os.stat(path)  # noqa: PTH116 - Path is ten times slower
        relative = str(path).removeprefix(str(self._root))
        line = f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n"
        self._hash.update(line.encode(errors="surrogateescape"))
        self._num_files += 1
        self._num_bytes += status.st_size


def recognise(argument: str) -> Source:
    """Recognises one DATA argument.

    Args:
        argument: a path, or `scenes:N`.

    Raises:
        DataError: the path does not exist, or its contents fit no kind or more than one.
    """
    if argument.startswith("scenes:"):
        return _recognise_scenes(argument)
    path = Path(argument).expanduser()
    if path.is_dir():
        return _recognise_folder(argument, path)
    if not path.exists():
        hint = " Braces are not expanded: name the folder." if "{" in argument else ""
        raise DataError(f"There is no such data: `{argument}`.{hint} {WHAT_DATA_MAY_BE}")
    scan = _Scan(path.parent)
    scan.add(path)
    if suffix_of(path.name) == ".tar":
        return Source(argument, "shards", scan.fingerprint, path, (path,))
    if _is_compressed_tar(path.name):
        raise _compressed(path)
    reading = read_table_alone(path, path.parent) if is_table(path) else None
    if reading is None:
        raise DataError(f"Not data that can be read: `{argument}`. {WHAT_DATA_MAY_BE}")
    scan.walk()  # changed pictures beside a table change the data too
    return Source(argument, "table", scan.fingerprint, path, reading=reading)


def recognise_all(arguments: Sequence[str]) -> list[Source]:
    """Recognises all DATA arguments.

    Raises:
        DataError: there is none, one is named twice, or one is not recognised.
    """
    if not arguments:
        raise DataError(f"No data was named. {WHAT_DATA_MAY_BE}")
    sources = [recognise(argument) for argument in arguments]
    names: set[str | int] = set()
    for source in sources:
        name = source.identity()["source"]
        if name in names:
            raise DataError(f"The same data is named twice: `{source.argument}`. Name it once.")
        names.add(name)
    return sources


def describe_notes(notes: Counter[str]) -> list[str]:
    """Puts counts of what was done to rows into words."""
    return [f"{count:,} {note}" if count else note for note, count in notes.items()]


def _recognise_scenes(argument: str) -> Source:
    number = re.fullmatch(r"scenes:(\d+)", argument)
    if number is None or int(number[1]) < 1:
        raise DataError(f"Expected a number of scenes: `{argument}`. For example scenes:50000.")
    return Source(argument, "scenes", Fingerprint(0, 0, ""), count=int(number[1]))


def _recognise_folder(argument: str, root: Path) -> Source:
    """Scans a folder once and decides its kind."""
    scan = _Scan(root)
    scan.walk()
    survey, images = scan.survey, scan.survey.images
    contents = (
        f"`{argument}` holds {images} pictures, {survey.pairs} of them with a .txt beside them"
    )
    if survey.metadata:
        _check_tables(argument, scan)
    elif scan.shards and images:
        raise DataError(
            f"Cannot tell what the data is: {contents}, and {len(scan.shards)} .tar shards. "
            "Name the shards, or the folder of pictures, alone."
        )
    elif scan.shards:
        return Source(argument, "shards", scan.fingerprint, root, tuple(scan.shards))
    elif not images:
        if scan.compressed:
            raise _compressed(scan.compressed[0])
        raise DataError(f"No pictures found: `{argument}`. {WHAT_DATA_MAY_BE}")
    reading = read_folder(survey, scan.add)
    if isinstance(reading, tuple):
        raise _captionless(survey, "; ".join((contents, *reading)))
    count = None if survey.metadata else images
    return Source(argument, reading.kind, scan.fingerprint, root, count=count, reading=reading)


def _captionless(survey: FolderSurvey, contents: str) -> DataError:
    """Says why folder names cannot be the captions either."""
    if survey.top_images:
        why = f"{survey.top_images} lie directly in it, so that folder names cannot be the captions"
    else:
        names = ", ".join(sorted(survey.folders)[:3])
        why = f"the names of their folders say nothing of what they show ({names})"
    return DataError(f"The pictures have no captions: {contents}; {why}. {WHAT_DATA_MAY_BE}")


def _check_tables(argument: str, scan: _Scan) -> None:
    """Refuses tables beside shards, and several tables in one folder."""
    if scan.shards:
        raise DataError(
            f"Cannot tell what the data is: `{argument}` holds {scan.survey.metadata[0].name} and "
            f"{len(scan.shards)} .tar shards. Name the table or the shards alone."
        )
    folders = [table.parent for table in scan.survey.metadata]
    if len(set(folders)) < len(folders):
        names = ", ".join(table.name for table in scan.survey.metadata)
        raise DataError(
            f"Cannot tell what the data is: `{argument}` holds several tables in one folder: "
            f"{names}. Keep one, or name it."
        )


def _is_compressed_tar(name: str) -> bool:
    return re.search(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", name.lower()) is not None


def _compressed(path: Path) -> DataError:
    return DataError(
        f"Compressed tars are not read: `{path}`. Unpack it to a .tar first, for example with "
        "gunzip; compression makes pictures no smaller anyway."
    )
