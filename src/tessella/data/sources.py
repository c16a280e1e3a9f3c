"""Sources: recognises a DATA argument by its contents, and reads its records.

The contents decide, never a flag:

    scenes:N                                     drawn pictures
    a folder with metadata.jsonl/.csv/.parquet   table       (also the table itself)
    .tar, or a folder of them                    shards
    pictures with same-path .txt                 captions
    pictures in folders, no .txt                 classes

A folder that fits no kind, or more than one, is refused; the message says what it contains.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tessella.data.folders import (
    caption_folder_records,
    class_folder_records,
    is_caption,
    is_image,
    stem_of,
    suffix_of,
    walk,
)
from tessella.data.records import Record, SceneLocation, Skipped
from tessella.data.shards import shard_records
from tessella.data.tables import TABLE_NAMES, table_records
from tessella.errors import DataError

Kind = Literal["table", "captions", "shards", "classes", "scenes"]

WHAT_DATA_MAY_BE = (
    "DATA may be: a folder with metadata.jsonl, .csv or .parquet (file_name and text); a folder "
    "of pictures with a .txt of the same name beside each; .tar shards of the same; a folder of "
    "class folders, whose names are the captions; or scenes:N."
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
    paths: tuple[Path, ...] = ()  # the tables or shards, or the folder of pictures
    count: int | None = None  # pictures, if known before reading

    def identity(self) -> dict[str, str | int]:
        """Returns what the manifest keeps, to be compared next time."""
        return {
            "source": self.argument if self.root is None else str(self.root.resolve()),
            "kind": self.kind,
            **asdict(self.fingerprint),
        }

    def records(self, seed: int = 0, split_by: str | None = None) -> Iterator[Record | Skipped]:
        """Reads the records, in an order that depends only on their names.

        Args:
            seed: of the scenes.
            split_by: the field that becomes a record's group.

        Raises:
            DataError: a table or shard cannot be read.
        """
        if self.kind == "scenes":
            for index in range(self.count or 0):
                yield Record(f"{self.argument}/{index}", SceneLocation(seed, index), ())
        for path in self.paths:
            yield from _READERS[self.kind](path, split_by)


# By kind: reads a table, a shard or a folder of pictures. Folders have no fields to split by.
_READERS: dict[Kind, Callable[[Path, str | None], Iterator[Record | Skipped]]] = {
    "table": table_records,
    "shards": shard_records,
    "captions": lambda path, _: caption_folder_records(path),
    "classes": lambda path, _: class_folder_records(path),
}


class _Scan:
    """The files of a source on one walk: their fingerprint, and which of them tell its kind."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hash = hashlib.blake2b(digest_size=16)
        self._num_files = 0
        self._num_bytes = 0
        self.tables: list[Path] = []
        self.shards: list[Path] = []
        self.compressed: list[Path] = []
        self.top_images = 0  # directly in the root
        self.deep_images = 0  # in folders under it
        self.pairs = 0  # pictures with a .txt beside them

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._num_files, self._num_bytes, self._hash.hexdigest())

    def walk(self) -> None:
        """Scans all files under the root."""
        for listing in walk(self._root):
            texts = {stem_of(name) for name in listing.files if is_caption(name)}
            is_top = listing.folder == self._root
            for name in listing.files:
                path = listing.path(name)
                try:
                    self.add(path)
                except OSError:  # a link to nowhere: it is reported when it is read
                    self._hash.update(f"{name}\0missing\n".encode(errors="surrogateescape"))
                if is_image(name):
                    self.top_images += is_top
                    self.deep_images += not is_top
                    self.pairs += stem_of(name) in texts
                elif name in TABLE_NAMES:
                    self.tables.append(Path(path))
                elif suffix_of(name) == ".tar":
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
    is_table = path.name in TABLE_NAMES
    if not is_table and suffix_of(path.name) != ".tar":
        if _is_compressed_tar(path.name):
            raise _compressed(path)
        raise DataError(f"Not data that can be read: `{argument}`. {WHAT_DATA_MAY_BE}")
    scan = _Scan(path.parent)
    scan.add(path)
    if is_table:  # changed pictures beside a table change the data too
        scan.walk()
    return Source(argument, "table" if is_table else "shards", scan.fingerprint, path, (path,))


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


def _recognise_scenes(argument: str) -> Source:
    number = re.fullmatch(r"scenes:(\d+)", argument)
    if number is None or int(number[1]) < 1:
        raise DataError(f"Expected a number of scenes: `{argument}`. For example scenes:50000.")
    return Source(argument, "scenes", Fingerprint(0, 0, ""), count=int(number[1]))


def _recognise_folder(argument: str, root: Path) -> Source:
    """Scans a folder once and decides its kind."""
    scan = _Scan(root)
    scan.walk()
    images = scan.top_images + scan.deep_images
    contents = f"`{argument}` holds {images} pictures, {scan.pairs} of them with a .txt beside them"
    if scan.tables:
        _check_tables(argument, scan)
        return Source(argument, "table", scan.fingerprint, root, tuple(scan.tables))
    if scan.shards and images:
        raise DataError(
            f"Cannot tell what the data is: {contents}, and {len(scan.shards)} .tar shards. "
            "Name the shards, or the folder of pictures, alone."
        )
    if scan.shards:
        return Source(argument, "shards", scan.fingerprint, root, tuple(scan.shards))
    if scan.pairs:
        return Source(argument, "captions", scan.fingerprint, root, (root,), images)
    if not images:
        if scan.compressed:
            raise _compressed(scan.compressed[0])
        raise DataError(f"No pictures found: `{argument}`. {WHAT_DATA_MAY_BE}")
    if scan.top_images:
        raise DataError(
            f"The pictures have no captions: {contents}; {scan.top_images} lie directly in it, so "
            f"that folder names cannot be the captions. {WHAT_DATA_MAY_BE}"
        )
    return Source(argument, "classes", scan.fingerprint, root, (root,), images)


def _check_tables(argument: str, scan: _Scan) -> None:
    """Refuses tables beside shards, and several tables in one folder."""
    if scan.shards:
        raise DataError(
            f"Cannot tell what the data is: `{argument}` holds {scan.tables[0].name} and "
            f"{len(scan.shards)} .tar shards. Name the table or the shards alone."
        )
    folders = [table.parent for table in scan.tables]
    if len(set(folders)) < len(folders):
        names = ", ".join(table.name for table in scan.tables)
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
