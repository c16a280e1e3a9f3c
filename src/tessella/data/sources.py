"""Sources: recognises a DATA argument by its contents, and reads its records.

The contents decide, never a flag:

    scenes:N                                     drawn pictures
    a folder with metadata.jsonl/.csv/.parquet   table       (also the table itself)
    .tar, .parquet with pictures, .arrow, .zip   shards, parquet, arrow, zip (one, or a folder)
    pictures with same-path .txt                 captions
    pictures in folders, no .txt                 classes

A folder that fits no kind, or more than one, is refused; the message says what it contains.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tessella.data.addresses import expand, fingerprint_addresses, is_address, is_pattern
from tessella.data.class_names import CLASS_FILES
from tessella.data.containers import (
    ContainerKind,
    container_records,
    find_containers,
    is_foreign,
    kind_of_file,
    refuse_foreign,
)
from tessella.data.embedded import has_pictures
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
from tessella.data.tables import TABLE_NAMES, table_records
from tessella.errors import DataError

Kind = Literal["table", "captions", "classes", "scenes"] | ContainerKind

WHAT_DATA_MAY_BE = (
    "DATA may be: a folder with metadata.jsonl, .csv or .parquet (file_name and text); a folder "
    "of pictures with a .txt of the same name beside each; .tar shards of the same, or a .zip; "
    "Parquet or Arrow files that hold the pictures; a folder of class folders, whose names are "
    "the captions; or scenes:N."
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
    paths: tuple[Path, ...] = ()  # the tables, or the folder of pictures
    containers: tuple[str, ...] = ()  # files with many pictures: paths, addresses, commands
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
        elif self.kind in ("shards", "parquet", "arrow", "zip"):
            yield from container_records(self.kind, self.containers, split_by)
        else:
            yield from self._folder_records(split_by)

    def _folder_records(self, split_by: str | None) -> Iterator[Record | Skipped]:
        for path in self.paths:
            yield from _READERS[self.kind](path, split_by)


# By kind: reads a table, a shard or a folder of pictures. Folders have no fields to split by.
_READERS: dict[Kind, Callable[[Path, str | None], Iterator[Record | Skipped]]] = {
    "table": table_records,
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
        self.containers: list[Path] = []
        self.foreign: list[Path] = []
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
            if is_foreign(listing.folder.name):
                self.foreign.append(listing.folder)
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
                elif kind_of_file(name) is not None:
                    self.containers.append(Path(path))
                elif is_foreign(name):
                    self.foreign.append(Path(path))

    def add(self, path: str | Path) -> None:
        """Adds one file to the fingerprint."""
        status = os.stat(path)  # noqa: PTH116 - Path is ten times slower
        relative = str(path).removeprefix(str(self._root))
        line = f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n"
        self._hash.update(line.encode(errors="surrogateescape"))
        self._num_files += 1
        self._num_bytes += status.st_size

    def add_facts(self, facts: Sequence[str]) -> None:
        """Adds what is known of files elsewhere to the fingerprint."""
        for line in facts:
            self._hash.update(f"{line}\n".encode(errors="surrogateescape"))
        self._num_files += len(facts)


def recognise(argument: str) -> Source:
    """Recognises one DATA argument.

    Args:
        argument: a path, or `scenes:N`.

    Raises:
        DataError: the path does not exist, or its contents fit no kind or more than one.
    """
    if argument.startswith("scenes:"):
        return _recognise_scenes(argument)
    if is_address(argument) or is_pattern(argument):
        return _recognise_files(argument)
    path = Path(argument).expanduser()
    if not path.exists():
        raise DataError(f"There is no such data: `{argument}`. {WHAT_DATA_MAY_BE}")
    if is_foreign(path.name):
        raise refuse_foreign(argument, path)
    if path.is_dir():
        return _recognise_folder(argument, path)
    if path.name in TABLE_NAMES and not _holds_pictures(path):
        scan = _Scan(path.parent)
        scan.add(path)
        scan.walk()  # changed pictures beside a table change the data too
        return Source(argument, "table", scan.fingerprint, path, (path,))
    kind = kind_of_file(path.name)
    if kind is None:
        raise DataError(f"Not data that can be read: `{argument}`. {WHAT_DATA_MAY_BE}")
    scan = _Scan(path.parent)
    _add_files(scan, [path])
    return Source(argument, kind, scan.fingerprint, path, containers=(str(path),))


def _recognise_files(argument: str) -> Source:
    """Recognises files elsewhere, or several files that a pattern names."""
    names = expand(argument)
    known = {name: kind for name in names if (kind := kind_of_file(name))}
    # Others may lie in a remote folder; what a command or an odd address gives must be a tar.
    names = list(known) or names
    kinds: set[ContainerKind] = set(known.values()) or {"shards"}
    if len(kinds) > 1:
        raise DataError(
            f"Cannot tell what the data is: `{argument}` names {', '.join(sorted(kinds))}. Name "
            "one kind alone."
        )
    if missing := next((n for n in names if not is_address(n) and not Path(n).is_file()), None):
        raise DataError(f"There is no such data: `{missing}`, of `{argument}`. {WHAT_DATA_MAY_BE}")
    scan = _Scan(Path())
    _add_files(scan, [Path(name) for name in names if not is_address(name)])
    scan.add_facts(fingerprint_addresses([name for name in names if is_address(name)]))
    return Source(argument, kinds.pop(), scan.fingerprint, containers=tuple(names))


def _add_files(scan: _Scan, files: Sequence[Path]) -> None:
    """Adds files of many pictures to the fingerprint, and the names of classes beside them."""
    for file in files:
        scan.add(file)
    for folder in dict.fromkeys(file.parent for file in files):
        for name in filter(lambda name: (folder / name).is_file(), CLASS_FILES):
            scan.add(folder / name)


def _holds_pictures(table: Path) -> bool:
    """Says whether a metadata table holds the pictures themselves."""
    return suffix_of(table.name) == ".parquet" and has_pictures(table)


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
    pictured = [table for table in scan.tables if _holds_pictures(table)]
    if scan.tables and not pictured:
        _check_tables(argument, scan)
        return Source(argument, "table", scan.fingerprint, root, tuple(scan.tables))
    if images:
        _check_containers(contents, [*pictured, *scan.containers])
    elif found := find_containers(root, [*pictured, *scan.containers]):
        kind, files = found
        return Source(argument, kind, scan.fingerprint, root, containers=tuple(map(str, files)))
    if scan.pairs:
        return Source(argument, "captions", scan.fingerprint, root, (root,), count=images)
    if not images:
        if scan.foreign:
            raise refuse_foreign(argument, scan.foreign[0])
        raise DataError(f"No pictures found: `{argument}`. {WHAT_DATA_MAY_BE}")
    if scan.top_images:
        raise DataError(
            f"The pictures have no captions: {contents}; {scan.top_images} lie directly in it, so "
            f"that folder names cannot be the captions. {WHAT_DATA_MAY_BE}"
        )
    return Source(argument, "classes", scan.fingerprint, root, (root,), count=images)


def _check_containers(contents: str, containers: Sequence[Path]) -> None:
    """Refuses shards, or tables that hold pictures, beside pictures."""
    shards = [path for path in containers if suffix_of(path.name) == ".tar"]
    tables = [path for path in containers if suffix_of(path.name) == ".parquet"]
    with contextlib.suppress(DataError):  # pyarrow may not be there, and need not be
        shards += tables if any(map(has_pictures, tables[:1])) else []
    if shards:
        raise DataError(
            f"Cannot tell what the data is: {contents}, and {len(shards)} "
            f"{suffix_of(shards[0].name)} shards. "
            "Name the shards, or the folder of pictures, alone."
        )


def _check_tables(argument: str, scan: _Scan) -> None:
    """Refuses tables beside shards, and several tables in one folder."""
    shards = [path for path in scan.containers if suffix_of(path.name) == ".tar"]
    if shards:
        raise DataError(
            f"Cannot tell what the data is: `{argument}` holds {scan.tables[0].name} and "
            f"{len(shards)} .tar shards. Name the table or the shards alone."
        )
    folders = [table.parent for table in scan.tables]
    if len(set(folders)) < len(folders):
        names = ", ".join(table.name for table in scan.tables)
        raise DataError(
            f"Cannot tell what the data is: `{argument}` holds several tables in one folder: "
            f"{names}. Keep one, or name it."
        )
