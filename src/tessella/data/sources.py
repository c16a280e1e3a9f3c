"""Sources: recognises a DATA argument by its contents, and reads its records.

The contents decide, never a flag:

    scenes:N, scenes2:N                          drawn pictures
    hf:USER/DATASET                              what is in it, on the Hugging Face hub
    .tar, .parquet, .arrow, .zip, or several     shards, parquet, arrow, zip: see containers.py
    a table of pictures                          table
    a folder of pictures                         table, captions or classes: see pairing.py

What fits no kind, or more than one, is refused; the message says what it contains.
"""

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tessella.data.addresses import expand, fingerprint_addresses, is_address, is_pattern
from tessella.data.class_names import CLASS_FILES
from tessella.data.containers import (
    ContainerKind,
    Containers,
    choose_containers,
    is_foreign,
    kind_of_file,
    name_containers,
    refuse_foreign,
)
from tessella.data.embedded import has_pictures
from tessella.data.folders import suffix_of, walk
from tessella.data.from_hub import find_data
from tessella.data.pairing import FolderReading
from tessella.data.records import Part, Record, SceneLocation, Skipped
from tessella.data.scenes.sets import SCENE_SETS
from tessella.data.survey import FolderSurvey, is_table, read_folder, read_table_alone
from tessella.data.table_faults import explain_table
from tessella.data.tables import METADATA_NAMES
from tessella.errors import DataError
from tessella.hub import is_hub_address

Kind = Literal["table", "captions", "classes", "scenes"] | ContainerKind

WHAT_DATA_MAY_BE = (
    "DATA may be: a folder of pictures with their captions in a table (metadata.jsonl, .csv, "
    ".parquet, or any other that names the files), in COCO's or Flickr's annotations, or in texts "
    "of the same names, beside the pictures or in a folder next to theirs; a folder of class "
    "folders, whose names are the captions; such a table itself; .tar shards or a .zip of any of "
    "these; Parquet or Arrow files that hold the pictures; hf:USER/DATASET on the Hugging Face "
    "hub; or scenes:N or scenes2:N, which are drawn."
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
    count: int | None = None  # pictures, if known before reading
    reading: FolderReading | Containers | None = None  # of all but scenes

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
        return self.reading.origins if self.reading is not None else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Says what else people should know of how it is read."""
        return self.reading.notes if self.reading is not None else ()

    def records(
        self, seed: int = 0, split_by: str | None = None, notes: Counter[str] | None = None
    ) -> Generator[Record | Skipped]:
        """Reads the records, in an order that depends only on their names.

        Args:
            seed: of the scenes.
            split_by: the field that becomes a record's group.
            notes: counts what is done to rows of tables.

        Raises:
            DataError: a table or shard cannot be read.
        """
        if self.reading is not None:
            yield from self.reading.records(split_by, notes)
        else:
            for index in range(self.count or 0):
                location = SceneLocation(seed, index, self.argument.partition(":")[0])
                yield Record(f"{self.argument}/{index}", location, ())

    def parts(self, seed: int = 0, split_by: str | None = None) -> Iterator[Part]:
        """Lists what is read one after another: shards, or all of a folder as one.

        The records of all parts are those of `records`.

        Raises:
            DataError: a shard is missing or cannot be reached.
        """
        if isinstance(self.reading, Containers):
            yield from self.reading.parts(split_by)
        else:
            yield Part(self.argument, partial(self.records, seed, split_by))


class _Scan:
    """The files of a source on one walk: their fingerprint, and which of them tell its kind."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hash = hashlib.blake2b(digest_size=16)
        self._num_files = 0
        self._num_bytes = 0
        self.survey = FolderSurvey(root)
        self.containers: list[Path] = []
        self.foreign: list[Path] = []

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._num_files, self._num_bytes, self._hash.hexdigest())

    def walk(self) -> None:
        """Scans all files under the root."""
        for listing in walk(self._root):
            self.survey.add(listing)
            if is_foreign(listing.folder.name):
                self.foreign.append(listing.folder)
            for name in listing.files:
                path = listing.path(name)
                try:
                    self.add(path)
                except OSError:  # a link to nowhere: it is reported when it is read
                    self._hash.update(f"{name}\0missing\n".encode(errors="surrogateescape"))
                if kind_of_file(name) is not None and name not in METADATA_NAMES:
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


def recognise(argument: str, caption_column: str | None = None) -> Source:
    """Recognises one DATA argument.

    Args:
        argument: a path, an address, `scenes:N` or `scenes2:N`.
        caption_column: the column or field with the captions, if it is named.

    Raises:
        DataError: the path does not exist, lacks that column, or its contents fit no kind or more
            than one.
    """
    if argument.partition(":")[0] in SCENE_SETS:
        return _recognise_scenes(argument)
    if is_hub_address(argument):
        return _recognise_on_hub(argument, caption_column)
    if is_address(argument) or is_pattern(argument):
        return _recognise_files(argument, expand(argument), caption_column)
    path = Path(argument).expanduser()
    if not path.exists():
        raise DataError(f"There is no such data: `{argument}`. {WHAT_DATA_MAY_BE}")
    if is_foreign(path.name):
        raise refuse_foreign(argument, path)
    if path.is_dir():
        return _recognise_folder(argument, path, caption_column)
    scan = _Scan(path.parent)
    kind = kind_of_file(path.name)
    if kind is None or (kind == "parquet" and not has_pictures(path)):
        scan.add(path)
        reading = read_table_alone(path, path.parent, caption_column) if is_table(path) else None
        if reading is not None:
            scan.walk()  # changed pictures beside a table change the data too
            return Source(argument, "table", scan.fingerprint, path, reading=reading)
        if kind is None:
            why = explain_table(path) if is_table(path) else ""
            raise DataError(f"Not data that can be read: `{argument}`. {why}{WHAT_DATA_MAY_BE}")
    _add_files(scan, [path])
    containers = name_containers(kind, [str(path)], caption_column=caption_column)
    return Source(argument, kind, scan.fingerprint, path, reading=containers)


def _recognise_on_hub(argument: str, caption_column: str | None) -> Source:
    """Recognises a data set that lies in the hub's cache."""
    found = find_data(argument)
    if found.files:
        return _recognise_files(argument, [str(file) for file in found.files], caption_column)
    return _recognise_folder(argument, found.root, caption_column)


def _recognise_files(argument: str, names: list[str], caption_column: str | None) -> Source:
    """Recognises files elsewhere, or several files that a pattern names."""
    known = {name: kind for name in names if (kind := kind_of_file(name))}
    # Others may lie in a remote folder. What a command or an odd address gives is seen later.
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
    containers = name_containers(kinds.pop(), names, caption_column=caption_column)
    return Source(argument, containers.kind, scan.fingerprint, reading=containers)


def _add_files(scan: _Scan, files: Sequence[Path]) -> None:
    """Adds files of many pictures to the fingerprint, and the names of classes beside them."""
    for file in files:
        scan.add(file)
    for folder in dict.fromkeys(file.parent for file in files):
        for name in filter(lambda name: (folder / name).is_file(), CLASS_FILES):
            scan.add(folder / name)


def recognise_all(arguments: Sequence[str], caption_column: str | None = None) -> list[Source]:
    """Recognises all DATA arguments.

    Raises:
        DataError: there is none, one is named twice, or one is not recognised.
    """
    if not arguments:
        raise DataError(f"No data was named. {WHAT_DATA_MAY_BE}")
    sources = [recognise(argument, caption_column) for argument in arguments]
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
    name, _, number = argument.partition(":")
    if not re.fullmatch(r"[0-9]+", number) or int(number) < 1:
        raise DataError(f"Expected a number of scenes: `{argument}`. For example {name}:50000.")
    return Source(argument, "scenes", Fingerprint(0, 0, ""), count=int(number))


def _recognise_folder(argument: str, root: Path, caption_column: str | None) -> Source:
    """Scans a folder once and decides its kind."""
    scan = _Scan(root)
    scan.walk()
    survey, images = scan.survey, scan.survey.images
    contents = (
        f"`{argument}` holds {images} pictures, {survey.pairs} of them with a .txt beside them"
    )
    pictured = [table for table in survey.metadata if _holds_pictures(table)]
    if survey.metadata and not pictured:
        _check_tables(argument, scan)
    elif images:
        _check_containers(contents, [*pictured, *scan.containers])
    elif found := choose_containers(root, [*pictured, *scan.containers], caption_column):
        return Source(argument, found.kind, scan.fingerprint, root, reading=found)
    elif scan.foreign:
        raise refuse_foreign(argument, scan.foreign[0])
    else:
        tables = [path for path in (*survey.tables, *survey.orphans) if is_table(path)]
        zips = [path for end, path in survey.unread.items() if end in (".zip", ".7z", ".rar")]
        why = explain_table(tables[0]) if tables and not zips else ""
        why += f"It holds {zips[0].name}: unpack that first. " if zips else ""
        raise DataError(f"No pictures found: `{argument}`. {why}{WHAT_DATA_MAY_BE}")
    reading = read_folder(survey, scan.add, caption_column)
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


def _holds_pictures(table: Path) -> bool:
    """Says whether a metadata table holds the pictures themselves."""
    return suffix_of(table.name) == ".parquet" and has_pictures(table)


def _check_containers(contents: str, containers: Sequence[Path]) -> None:
    """Refuses shards, or tables that hold pictures, beside pictures."""
    shards = [path for path in containers if suffix_of(path.name) == ".tar"]
    tables = [path for path in containers if suffix_of(path.name) == ".parquet"]
    with contextlib.suppress(DataError):  # pyarrow may not be there, and need not be
        shards += filter(has_pictures, tables[:1])
    if shards:
        raise DataError(
            f"Cannot tell what the data is: {contents}, and {len(shards)} "
            f"{suffix_of(shards[0].name)} shards. Name the shards, or the folder of pictures, "
            "alone."
        )


def _check_tables(argument: str, scan: _Scan) -> None:
    """Refuses tables beside shards, and several tables in one folder."""
    shards = [path for path in scan.containers if suffix_of(path.name) == ".tar"]
    if shards:
        raise DataError(
            f"Cannot tell what the data is: `{argument}` holds {scan.survey.metadata[0].name} and "
            f"{len(shards)} .tar shards. Name the table or the shards alone."
        )
    folders = [table.parent for table in scan.survey.metadata]
    if len(set(folders)) < len(folders):
        names = ", ".join(table.name for table in scan.survey.metadata)
        raise DataError(
            f"Cannot tell what the data is: `{argument}` holds several tables in one folder: "
            f"{names}. Keep one, or name it."
        )
