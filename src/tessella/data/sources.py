"""Sources: recognises what a DATA argument is by what is in it, and reads its records.

What is in it decides, never a flag:

    scenes:N                                     drawn pictures
    a folder with metadata.jsonl/.csv/.parquet   table       (also the table itself)
    .tar, or a folder of them                    shards
    pictures with same-path .txt                 captions
    pictures in folders, no .txt                 classes

A folder that fits no kind, or more than one, is refused with what was found in it.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tessella.data.folders import (
    Listing,
    caption_folder_records,
    class_folder_records,
    is_caption,
    is_image,
    stem_of,
    suffix_of,
    walk,
)
from tessella.data.records import Record, ScenePlace, Skipped
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
    """What tells whether a source has changed, without reading its contents."""

    files: int  # how many files were looked at
    bytes: int  # their sizes together
    digest: str  # of every file's relative path, size and modification time


@dataclass(frozen=True)
class Source:
    """One recognised DATA argument."""

    given: str  # as the user wrote it
    kind: Kind
    fingerprint: Fingerprint
    root: Path | None = None  # the folder or file; None for scenes
    files: tuple[Path, ...] = ()  # the tables or shards
    count: int | None = None  # pictures, if that is known before reading

    def identity(self) -> dict[str, str | int]:
        """Gives what the manifest keeps, to be compared next time."""
        return {
            "source": self.given if self.root is None else str(self.root.resolve()),
            "kind": self.kind,
            "files": self.fingerprint.files,
            "bytes": self.fingerprint.bytes,
            "digest": self.fingerprint.digest,
        }

    def records(self, seed: int = 0, split_by: str | None = None) -> Iterator[Record | Skipped]:
        """Reads the records, in an order that depends on the names only.

        Args:
            seed: which scenes are drawn.
            split_by: the field that becomes a record's group.

        Raises:
            DataError: a table or shard cannot be read.
        """
        if self.kind == "scenes":
            for index in range(self.count or 0):
                yield Record(f"{self.given}/{index}", ScenePlace(seed, index), ())
        elif self.kind == "table":
            for table in self.files:
                yield from table_records(table, split_by)
        elif self.kind == "shards":
            for shard in self.files:
                yield from shard_records(shard, split_by)
        elif self.root is not None:
            read = caption_folder_records if self.kind == "captions" else class_folder_records
            yield from read(self.root)


@dataclass
class _Found:
    """What lies in a folder, counted on one walk."""

    tables: list[Path] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)
    compressed: list[Path] = field(default_factory=list)
    top_images: int = 0  # directly in the folder
    deep_images: int = 0  # in folders under it
    pairs: int = 0  # pictures with a .txt beside them


def recognise(given: str) -> Source:
    """Recognises one DATA argument.

    Args:
        given: a path, or `scenes:N`.

    Raises:
        DataError: there is no such path, or what is in it fits no kind or more than one.
    """
    if given.startswith("scenes:"):
        return _scenes(given)
    path = Path(given).expanduser()
    if path.is_dir():
        return _folder(given, path)
    if not path.exists():
        hint = " Braces are not expanded: name the folder." if "{" in given else ""
        raise DataError(f"There is no such data: `{given}`.{hint} {WHAT_DATA_MAY_BE}")
    if path.name in TABLE_NAMES:
        return _of_files(given, path, "table", [path])
    if suffix_of(path.name) == ".tar":
        return _of_files(given, path, "shards", [path])
    if _is_compressed_tar(path.name):
        raise _compressed(path)
    raise DataError(f"Not data that can be read: `{given}`. {WHAT_DATA_MAY_BE}")


def recognise_all(given: Sequence[str]) -> list[Source]:
    """Recognises all DATA arguments.

    Raises:
        DataError: there is none, one is named twice, or one is not recognised.
    """
    if not given:
        raise DataError(f"No data was named. {WHAT_DATA_MAY_BE}")
    sources = [recognise(one) for one in given]
    named: set[str | int] = set()
    for source in sources:
        name = source.identity()["source"]
        if name in named:
            raise DataError(f"The same data is named twice: `{source.given}`. Name it once.")
        named.add(name)
    return sources


def _scenes(given: str) -> Source:
    number = re.fullmatch(r"scenes:(\d+)", given)
    if number is None or int(number[1]) < 1:
        raise DataError(f"Scenes are asked for by number: `{given}`. For example scenes:50000.")
    return Source(given, "scenes", Fingerprint(0, 0, ""), count=int(number[1]))


def _of_files(given: str, root: Path, kind: Kind, files: list[Path]) -> Source:
    """Makes the source of tables or shards that are named themselves."""
    tally = _Tally(root.parent)
    for file in files:
        tally.add(str(file), file.stat())
    if kind == "table":
        # A table is changed by its pictures too; those beside it are looked at.
        for listing in walk(root.parent):
            tally.add_listing(listing)
    return Source(given, kind, tally.fingerprint(), root, tuple(files))


def _folder(given: str, root: Path) -> Source:
    """Looks once through a folder and decides what it is."""
    found, tally = _Found(), _Tally(root)
    for listing in walk(root):
        tally.add_listing(listing)
        _count(found, listing, top=listing.folder == root)
    images = found.top_images + found.deep_images
    here = f"`{given}` holds {images} pictures, {found.pairs} of them with a .txt beside them"

    if found.tables:
        _check_tables(given, found)
        return Source(given, "table", tally.fingerprint(), root, tuple(found.tables))
    if found.shards and images:
        raise DataError(
            f"Cannot tell what the data is: {here}, and {len(found.shards)} .tar shards. "
            "Name the shards, or the folder of pictures, alone."
        )
    if found.shards:
        return Source(given, "shards", tally.fingerprint(), root, tuple(found.shards))
    if found.pairs:
        return Source(given, "captions", tally.fingerprint(), root, count=images)
    if not images:
        if found.compressed:
            raise _compressed(found.compressed[0])
        raise DataError(f"No pictures found: `{given}`. {WHAT_DATA_MAY_BE}")
    if found.top_images:
        raise DataError(
            f"The pictures have no captions: {here}; {found.top_images} lie directly in it, so "
            f"that folder names cannot be the captions. {WHAT_DATA_MAY_BE}"
        )
    return Source(given, "classes", tally.fingerprint(), root, count=images)


def _count(found: _Found, listing: Listing, *, top: bool) -> None:
    """Adds one folder's files to what was found."""
    texts = {stem_of(e.name) for e in listing.files if is_caption(e.name)}
    for entry in listing.files:
        path = listing.folder / entry.name if not is_image(entry.name) else None
        if path is None:
            found.top_images += top
            found.deep_images += not top
            found.pairs += stem_of(entry.name) in texts
        elif entry.name in TABLE_NAMES:
            found.tables.append(path)
        elif suffix_of(entry.name) == ".tar":
            found.shards.append(path)
        elif _is_compressed_tar(entry.name):
            found.compressed.append(path)


def _check_tables(given: str, found: _Found) -> None:
    """Refuses tables beside shards, and tables that claim the same pictures."""
    if found.shards:
        raise DataError(
            f"Cannot tell what the data is: `{given}` holds {found.tables[0].name} and "
            f"{len(found.shards)} .tar shards. Name the table or the shards alone."
        )
    folders = [table.parent for table in found.tables]
    if len(set(folders)) < len(folders):
        names = ", ".join(table.name for table in found.tables)
        raise DataError(
            f"Cannot tell what the data is: `{given}` holds several tables in one folder: "
            f"{names}. Keep one, or name it."
        )


def _is_compressed_tar(name: str) -> bool:
    return re.search(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", name.lower()) is not None


def _compressed(path: Path) -> DataError:
    return DataError(
        f"Compressed tars are not read: `{path}`. Unpack it to a .tar first, for example with "
        "gunzip; pictures do not get smaller by it anyway."
    )


class _Tally:
    """Gathers the fingerprint of files in the order of the walk."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._hash = hashlib.blake2b(digest_size=16)
        self._files = 0
        self._bytes = 0

    def add(self, path: str, status: os.stat_result) -> None:
        relative = path.removeprefix(self._root)
        line = f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n"
        self._hash.update(line.encode(errors="surrogateescape"))
        self._files += 1
        self._bytes += status.st_size

    def add_listing(self, listing: Listing) -> None:
        for entry in listing.files:
            try:
                self.add(entry.path, entry.stat())
            except OSError:
                # A link to nowhere: it is reported when it is read.
                self._hash.update(f"{entry.name}\0missing\n".encode(errors="surrogateescape"))

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._files, self._bytes, self._hash.hexdigest())
