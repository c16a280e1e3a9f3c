"""Pairing: gives each picture of a folder its captions, wherever people keep them.

    metadata.jsonl, .csv, .parquet          what it says of a picture counts before all else
    dog.txt beside dog.jpg                  sidecars.py
    captions/dog.txt for images/dog.jpg     the same path but for words such as "images"
    any other table that lists the picture  tables.py
    in the picture's own file               descriptions.py
    the folder's name                       only if nothing else has captions, and if it says
                                            something; kohya's `10_sks dog` always does

A picture has its captions from one of these, and carries a note of which. One that has none is
skipped, and so is what a table says of pictures that are not there.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from tessella.data import records
from tessella.data.descriptions import read_description
from tessella.data.folders import Listing, stem_of, suffix_of, walk
from tessella.data.names import class_caption, read_file_name, side_of_folders, split_repeats
from tessella.data.picture_index import PictureIndex
from tessella.data.records import ImageLocation, Record, Skipped
from tessella.data.siblings import Siblings
from tessella.data.sidecars import FoundCaptions, Sidecars, read_sidecars
from tessella.data.tables import Listed, Table, TableContents, read_table

FILE_NAME = "file_name"  # as `data.caption_column`: the pictures' own names are the captions
OWN_NAMES = "captions from the files' names"
OWN_DESCRIPTIONS = "captions from the descriptions in the pictures' own files"

# What lies beside pictures for other reasons, and is no lost caption.
_OF_OTHERS = (".json", ".xmp")

FolderKind: TypeAlias = Literal["table", "captions", "classes"]


@dataclass(frozen=True)
class FolderReading:
    """How the pictures of a folder get their captions."""

    root: Path
    kind: FolderKind  # where most of them come from
    index: PictureIndex
    origins: tuple[str, ...]  # what is read, for people
    tables: tuple[Table, ...] = ()  # the first that lists a picture counts
    siblings: Siblings = field(default_factory=Siblings)
    has_repeats: bool = False  # the numbers before folders' names are kohya's repeats
    notes: tuple[str, ...] = ()  # what else people should know
    caption_column: str | None = None  # the one with the captions, if it is named
    has_descriptions: bool = False  # pictures' own files hold captions
    is_whole: bool = True  # all pictures of the folder are meant, not only the listed ones

    def records(
        self, split_by: str | None = None, notes: Counter[str] | None = None
    ) -> Iterator[Record | Skipped]:
        """Reads the records, in an order that depends only on the files' names.

        Args:
            split_by: the column or field that becomes a record's group.
            notes: counts what is done to rows.

        Raises:
            DataError: a table cannot be read.
        """
        contents = TableContents()
        for table in self.tables:
            before = len(contents.pictures)
            read_table(table, self.index, contents, split_by)
            if len(contents.pictures) == before:
                contents.notes[f"{table.path.name} not used: earlier tables list its pictures"] = 0
        pairing = _Pairing(self, contents, split_by)
        yield from contents.skipped
        if self.is_whole:
            for listing in walk(self.root):
                yield from pairing.pair(listing)
            yield from pairing.list_unused()
        # What is left of the tables: files elsewhere, and pictures that are missing.
        for path in list(contents.pictures):
            yield pairing.of_listed(path, contents.pictures.pop(path))
        if notes is not None:
            notes.update(contents.notes)


class _Pairing:
    """Pairs the pictures of one folder after the other."""

    def __init__(
        self, reading: FolderReading, contents: TableContents, split_by: str | None
    ) -> None:
        self._reading, self._contents, self._split_by = reading, contents, split_by
        self._tables = {str(table.path) for table in reading.tables}
        self._used: set[str] = set()  # of the siblings
        self._orphans: list[str] = []

    def pair(self, listing: Listing) -> Iterator[Record | Skipped]:
        """Pairs the pictures directly in a folder."""
        folders = listing.folder.relative_to(self._reading.root).parts
        sidecars = Sidecars(listing)
        for image in sidecars.images:
            yield self._pair_one(listing, folders, image, sidecars.of(image))
        if self._reading.kind == "captions":
            texts = (
                listing.path(name) for name in sidecars.orphans if suffix_of(name) not in _OF_OTHERS
            )
            self._orphans += (path for path in texts if path not in self._tables)

    def list_unused(self) -> Iterator[Skipped]:
        """Lists the captions that no picture has."""
        for path in self._orphans:
            if path not in self._used:
                yield Skipped(path, "no picture of the same name lies beside it", "imageless")

    def _pair_one(
        self, listing: Listing, folders: tuple[str, ...], image: str, names: list[str]
    ) -> Record | Skipped:
        path = listing.path(image)
        listed = self._contents.pictures.pop(path, None)
        if listed is not None and listed.is_first:
            return self.of_listed(path, listed, folders)
        try:
            found = read_sidecars(
                [listing.path(name) for name in names],
                "beside each picture",
                self._split_by,
                self._reading.caption_column,
            ) or self._read_sibling(folders, image)
        except records.CaptionError as error:
            if listed is None:
                return Skipped(path, f"its caption file cannot be used: {error}", "bad_caption")
            found = None
        if found is None and listed is not None:
            return self.of_listed(path, listed, folders)
        found = found or self._read_picture(path, image) or self._read_folder_name(folders)
        if found is None:
            return Skipped(path, self._say_why(folders, names), "captionless")
        return self._record(path, folders, found)

    def of_listed(
        self, path: str, listed: Listed, folders: tuple[str, ...] | None = None
    ) -> Record | Skipped:
        """Makes the record of a picture that a table lists."""
        if listed.problem is not None:
            return listed.problem
        if folders is None:
            folder = Path(path).parent
            is_inside = folder.is_relative_to(self._reading.root)
            folders = folder.relative_to(self._reading.root).parts if is_inside else ()
        found = FoundCaptions(listed.captions, listed.origin, listed.group)
        return self._record(path, folders, found, listed.side)

    def _record(
        self,
        path: str,
        folders: tuple[str, ...],
        found: FoundCaptions,
        side: records.Side | None = None,
    ) -> Record:
        repeats = split_repeats(folders[-1]) if folders and self._reading.has_repeats else None
        return Record(
            path,
            ImageLocation(path),
            found.captions,
            found.group,
            side or side_of_folders(folders),
            repeats[0] if repeats else 1,
            found.origin,
        )

    def _read_sibling(self, folders: tuple[str, ...], image: str) -> FoundCaptions | None:
        paths = self._reading.siblings.find(folders, image)
        if not paths:
            return None
        self._used.update(paths)
        place = f"of the same name in {Path(paths[0]).parent.name}"
        return read_sidecars(paths, place, self._split_by, self._reading.caption_column)

    def _read_picture(self, path: str, image: str) -> FoundCaptions | None:
        """Reads what the picture's file itself says: inside, or by its name."""
        captions: tuple[str, ...] = ()
        origin = OWN_DESCRIPTIONS
        if self._reading.has_descriptions:
            captions = read_description(path)
        elif self._reading.caption_column == FILE_NAME:
            captions, origin = records.clean_captions([read_file_name(stem_of(image))]), OWN_NAMES
        return FoundCaptions(captions, origin) if captions else None

    def _read_folder_name(self, folders: tuple[str, ...]) -> FoundCaptions | None:
        if not folders or self._reading.caption_column is not None:
            return None
        repeats = split_repeats(folders[-1]) if self._reading.has_repeats else None
        if self._reading.kind != "classes" and repeats is None:
            return None
        try:
            captions = records.clean_captions([class_caption(folders)])
        except records.CaptionError:  # a name that is not UTF-8
            return None
        return FoundCaptions(captions, "captions from the folders' names") if captions else None

    def _say_why(self, folders: tuple[str, ...], names: list[str]) -> str:
        """Says why a picture has no caption."""
        if self._reading.has_descriptions:
            return "its file holds no description, unlike those of others"
        if self._reading.caption_column is not None:
            return f"nothing about it has {self._reading.caption_column} (data.caption_column)"
        if names:
            is_text = suffix_of(names[0]) != ".json"
            return "its caption file is blank" if is_text else "its .json has no caption"
        if self._reading.kind == "classes":
            return f"the folder's name says nothing about it: {folders[-1] if folders else '.'}"
        if self._reading.tables:
            return f"no row of {self._reading.tables[0].path.name} names it"
        return "no .txt of the same name lies beside it"
