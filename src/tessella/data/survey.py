"""Survey: finds out how the pictures of a folder get their captions, before any is read.

Each way is looked for only as long as pictures lack captions, the surest first; the last is to
look beside the folder, for people also name `Images` when `captions.txt` lies next to it.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tessella.data.descriptions import read_description
from tessella.data.folders import (
    SIDECAR_SUFFIXES,
    Listing,
    is_image,
    is_mask,
    is_sidecar,
    stem_of,
    suffix_of,
    walk,
)
from tessella.data.names import (
    class_caption,
    has_repeats,
    is_wordnet_id,
    normalise,
    read_file_name,
    reads_like_caption,
)
from tessella.data.pairing import (
    FILE_NAME,
    OWN_DESCRIPTIONS,
    OWN_NAMES,
    FolderKind,
    FolderReading,
)
from tessella.data.picture_index import PictureIndex
from tessella.data.records import CAPTION_FIELDS, CaptionError
from tessella.data.siblings import Siblings, find_siblings, rank_of_text_folder
from tessella.data.sidecars import Sidecars, read_sidecars
from tessella.data.table_rows import TABLE_SUFFIXES
from tessella.data.tables import METADATA_NAMES, CaptionlessTable, Table, recognise_table
from tessella.errors import DataError

# Of files that may hold captions and are not read: what to do with them.
_CSV, _UNPACK = "save it as a CSV", "unpack it"
_UNREAD = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), _CSV),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db", ".yaml", ".yml", ".xml", ".mat"), _CSV),
    **dict.fromkeys((".html", ".htm", ".docx", ".pkl", ".pickle", ".feather"), _CSV),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"), _UNPACK),
}
_MAX_TRIED = 200  # files that may be tables
_MAX_LOOKED_INTO = 30  # pictures that may hold their captions
_SAMPLE = 5  # sidecars, of which one must have a caption: boxes of objects have none
_MAX_BYTES_BESIDE = 1 << 29  # of a file outside of the data that is looked into


@dataclass
class FolderSurvey:
    """What one walk over a folder finds."""

    root: Path
    top_images: int = 0  # directly in the root
    deep_images: int = 0  # in folders under it
    pairs: int = 0  # pictures with a text beside them
    named: int = 0  # pictures in folders whose names say something
    metadata: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)  # files that may be tables
    unread: dict[str, Path] = field(default_factory=dict)  # the first of each suffix
    orphans: list[Path] = field(default_factory=list)  # texts without a picture beside them
    suffixes: set[str] = field(default_factory=set)  # of the texts beside pictures
    classes: set[str] = field(default_factory=set)  # what the names of folders say
    folders: set[str] = field(default_factory=set)  # names of those that hold pictures
    wordnet_id: str | None = None  # the name of a folder above pictures, if it is one
    num_masks: int = 0  # of OneTrainer's, that are left out
    first_images: list[str] = field(default_factory=list)  # up to three of each folder
    num_originals: int = 0  # that are left out: a readable picture of the same name lies beside
    num_json_pairs: int = 0  # pictures with a .json beside them, and no text
    samples: dict[bool, list[tuple[str, ...]]] = field(
        default_factory=lambda: {True: [], False: []}
    )
    """A few pictures' sidecars: of those with a text, and of those without."""

    @property
    def images(self) -> int:
        """Pictures in all."""
        return self.top_images + self.deep_images

    def add(self, listing: Listing) -> None:
        """Adds the files directly in a folder."""
        sidecars = Sidecars(listing)
        folders = listing.folder.relative_to(self.root).parts
        count = len(sidecars.images)
        num_masks = sum(map(is_mask, listing.files)) - sum(map(is_mask, sidecars.images))
        self.num_masks += num_masks
        self.num_originals += sum(map(is_image, listing.files)) - count - num_masks
        if len(self.first_images) < _MAX_LOOKED_INTO:
            few = 3 if folders else _MAX_LOOKED_INTO
            self.first_images += map(listing.path, sidecars.images[:few])
        self.top_images += 0 if folders else count
        self.deep_images += count if folders else 0
        if count and folders:
            self.folders.add(folders[-1])
            self.wordnet_id = self.wordnet_id or next(filter(is_wordnet_id, folders), None)
            caption = class_caption(folders)
            self.named += count if caption else 0
            self.classes.add(caption)
        for image in sidecars.images:
            suffixes = {suffix_of(name) for name in sidecars.of(image)}
            has_text = bool(suffixes - {".json"})
            self.pairs += has_text
            self.suffixes |= suffixes - {".json"}
            self.num_json_pairs += suffixes == {".json"}
            if suffixes and len(self.samples[has_text]) < _SAMPLE:
                self.samples[has_text].append(tuple(map(listing.path, sidecars.of(image))))
        orphans = set(sidecars.orphans)
        for name in listing.files:
            if name in METADATA_NAMES:
                self.metadata.append(Path(listing.path(name)))
            elif name in orphans:
                self.orphans.append(Path(listing.path(name)))
            elif suffix_of(name) in TABLE_SUFFIXES and not is_sidecar(name):
                self.tables.append(Path(listing.path(name)))
            elif suffix_of(name) in _UNREAD and name != "Thumbs.db":
                self.unread.setdefault(suffix_of(name), Path(listing.path(name)))


def read_folder(
    survey: FolderSurvey, watch: Callable[[Path], object], caption_column: str | None = None
) -> FolderReading | tuple[str, ...]:
    """Decides how the pictures of a folder get their captions.

    Args:
        survey: of the folder.
        watch: told each file outside of the folder that is read, because it is part of the data.
        caption_column: the column or field with the captions, if it is named.

    Returns:
        The reading; if the pictures have no captions, what was looked at in vain.

    Raises:
        DataError: `metadata.*` cannot be read or lacks a column.
    """
    return _Decision(survey, watch, caption_column).decide()


def read_table_alone(
    path: Path, root: Path, caption_column: str | None = None
) -> FolderReading | None:
    """Returns the reading of a table that is itself the data; None if it names no pictures.

    Raises:
        DataError: the table cannot be read.
    """
    index = PictureIndex(root)
    table = recognise_table(path, index, caption_column=caption_column)
    if table is None:
        return None
    origins = (table.describe(root),)
    return FolderReading(root, "table", index, origins, (table,), is_whole=False)


class _Decision:
    """The ways to captions of one folder, tried one after the other."""

    def __init__(
        self, survey: FolderSurvey, watch: Callable[[Path], object], caption_column: str | None
    ) -> None:
        self._survey, self._watch, self._column = survey, watch, caption_column
        self._has_descriptions = False
        self._captionless: list[CaptionlessTable] = []
        self._root = survey.root
        self._index = PictureIndex(survey.root)
        self._origins: list[str] = []
        self._notes: list[str] = []
        self._tables: list[Table] = []
        self._siblings = Siblings()
        self._has_repeats = has_repeats(sorted(survey.folders))

    def decide(self) -> FolderReading | tuple[str, ...]:
        survey = self._survey
        if self._column == FILE_NAME:
            self._origins = [OWN_NAMES]
            return self._reading("captions")
        for path in survey.metadata:
            self._add_metadata(path)
        num_json = survey.num_json_pairs if self._have_captions(survey.samples[False]) else 0
        num_pairs = num_json + (survey.pairs if self._have_captions(survey.samples[True]) else 0)
        if num_pairs:
            suffixes = [one for one in SIDECAR_SUFFIXES if one in survey.suffixes]
            suffixes += [".json"] if num_json else []
            self._origins.append(f"captions from the {', '.join(suffixes)} beside each picture")
        if self._tables:
            return self._reading("table")
        if num_pairs < survey.images:
            self._look_inside()
        if not (num_pairs or self._siblings.texts or self._tables) and survey.images:
            self._look_beside()
        if num_pairs or self._siblings.texts:
            return self._reading("captions")
        if self._tables:
            return self._reading("table")
        if self._column is not None:
            raise self._refuse_column()
        if self._look_into_pictures():
            return self._reading("captions")
        # One name for all pictures of a table says less than the table, if it is known what does.
        is_table = bool(self._captionless) and len(survey.classes) < 2
        if survey.named and not survey.top_images and not is_table:
            self._origins = ["captions from the folders' names"]
            self._notes += (f"not used: {error}" for error in self._captionless[:3])
            return self._reading("classes")
        if self._captionless:
            raise self._captionless[0]
        if survey.pairs:  # and none of them usable: reading them says why
            return self._reading("captions")
        unread = (f"{path.name} is not read: {_UNREAD[end]}" for end, path in survey.unread.items())
        if survey.wordnet_id is not None:
            self._notes.append(
                f"folders are called by WordNet's numbers ({survey.wordnet_id}): call them what "
                "they show, or list the files with captions in a CSV"
            )
        stems = [stem_of(Path(path).name) for path in survey.first_images]
        if sum(map(reads_like_caption, stems)) > len(stems) / 2:
            named = next(filter(reads_like_caption, stems))
            self._notes.append(
                f'the names of the files may be captions ("{read_file_name(named)}"): '
                f"--set data.caption_column={FILE_NAME} takes them"
            )
        return (*self._notes, *islice(unread, 3))

    def _refuse_column(self) -> DataError:
        """Returns the error about a column that is named and not there."""
        if self._captionless:
            return self._captionless[0]
        return DataError(
            f"There is no column or field {self._column} (data.caption_column) in what was looked "
            f"at: `{self._root}`, its tables and the .json beside its pictures. Name one that is "
            f"there, or {FILE_NAME} for the names of the files."
        )

    def _look_into_pictures(self) -> bool:
        """Looks whether pictures' own files hold their captions: most of them, and different."""
        looked = self._survey.first_images[:_MAX_LOOKED_INTO]
        found = [caption for path in looked if (caption := read_description(path))]
        self._has_descriptions = len(found) * 2 > len(looked) and (
            len(looked) == 1 or len(set(found)) > 1
        )
        if self._has_descriptions:
            self._origins = [OWN_DESCRIPTIONS]
        return self._has_descriptions

    def _reading(self, kind: FolderKind) -> FolderReading:
        return FolderReading(
            self._root,
            kind,
            self._index,
            tuple(self._origins),
            tuple(self._tables),
            self._siblings,
            self._has_repeats,
            (*self._notes, *self._note_originals(), *self._note_numbers()),
            self._column,
            self._has_descriptions,
        )

    def _note_originals(self) -> Iterator[str]:
        """Says how many raw files and the like are left out."""
        if count := self._survey.num_originals:
            yield f"{count:,} raw files and the like left out: read from the picture beside each"
        if count := self._survey.num_masks:
            yield f"{count:,} masks left out, of the pictures that they are named after"

    def _note_numbers(self) -> Iterator[str]:
        """Says how numbers before folders' names are read."""
        found = sorted(name for name in self._survey.folders if name[:1].isdigit() and "_" in name)
        if self._has_repeats:
            yield f"the numbers of {', '.join(found[:3])} are repeats, as in kohya's layout"
        elif found:
            yield f"the numbers of {', '.join(found[:3])} are no repeats: they count the folders"

    def _look_inside(self) -> None:
        orphans = self._survey.orphans
        self._add_siblings(orphans, self._root)
        used = self._siblings.paths()
        self._add_tables([*self._survey.tables, *(p for p in orphans if str(p) not in used)])

    def _look_beside(self) -> None:
        """Looks into the folder above, and into its folders for captions."""
        root = self._root
        parent = root / ".." if root.name in ("", "..") else root.parent
        name = root.absolute().name
        tables, texts = [], []
        folders = []
        for folder in _text_folders(parent, besides=name):
            if _holds_images(folder):  # another set, with captions of its own
                self._notes.append(f"{folder.name} beside it holds pictures: not looked into")
            else:
                folders.append(folder)
        for folder in [parent, *folders]:
            for path in _files(folder):
                if is_table(path) and path.stat().st_size < _MAX_BYTES_BESIDE:
                    tables.append(path)
        for folder in folders:
            texts += [
                Path(one.path(file))
                for one in walk(folder)
                for file in one.files
                if is_sidecar(file)
            ]
        self._add_siblings(texts, parent)
        used = self._siblings.paths()
        self._add_tables([path for path in tables if str(path) not in used], are_beside=True)
        for path in [*map(Path, sorted(used)), *(table.path for table in self._tables)]:
            self._watch(path)

    def _add_siblings(self, texts: Iterable[Path], base: Path) -> None:
        """Adds the texts that are named like pictures of another folder, if they are captions."""
        siblings = find_siblings(self._root, texts, base)
        names = sorted({Path(paths[0]).parent.name for paths in siblings.texts.values()})
        if siblings.num_ambiguous:
            self._notes.append(
                f"{siblings.num_ambiguous} texts of another folder may be of several pictures, so "
                "that they are of none"
            )
        if names and not self._have_captions(islice(siblings.texts.values(), _SAMPLE)):
            self._notes.append(f"the texts of the same name in {', '.join(names)} are no captions")
        elif names:
            self._siblings = siblings
            self._origins.append(f"captions from the texts of the same name in {', '.join(names)}")

    def _have_captions(self, samples: Iterable[tuple[str, ...]]) -> bool:
        """Says whether one of some pictures has a caption in its sidecars."""
        for paths in samples:
            try:
                if read_sidecars(paths, "", None, self._column) is not None:
                    return True
            except CaptionError as error:
                if "data.caption_column" in str(error):
                    return True  # reading them says which
        return False

    def _add_metadata(self, path: Path) -> None:
        try:
            table = recognise_table(path, self._index, caption_column=self._column)
        except CaptionlessTable as error:
            if self._column is None:
                raise
            self._captionless.append(error)
            return
        if table is not None:
            self._tables.append(table)
            self._origins.append(table.describe(self._root))

    def _add_tables(self, paths: list[Path], *, are_beside: bool = False) -> None:
        """Adds the files that turn out to be tables of the pictures."""
        if len(paths) > _MAX_TRIED:
            skipped = len(paths) - _MAX_TRIED
            self._notes.append(f"{skipped:,} more files were not looked into for captions")
        for path in sorted(paths, key=lambda path: (suffix_of(path.name) == ".txt", path))[
            :_MAX_TRIED
        ]:
            try:
                table = recognise_table(
                    path, self._index, is_beside=are_beside, caption_column=self._column
                )
            except CaptionlessTable as error:
                if suffix_of(path.name) != ".txt" or self._column is not None:
                    self._captionless.append(error)
                continue
            except DataError as error:
                if suffix_of(path.name) not in (".txt", ".json"):
                    self._notes.append(f"not used: {error}")
                continue
            if table is not None:
                self._tables.append(table)
        self._tables.sort(key=_rank_table)
        self._origins += (table.describe(self._root) for table in self._tables)


def _rank_table(table: Table) -> tuple[object, ...]:
    """Ranks tables: sentences before keywords, captions called so before others."""
    name = normalise(table.path.name)
    return (
        "keywords" in table.kind,
        not {column.strip().lower() for column in table.caption_columns} & set(CAPTION_FIELDS),
        "lemma" in name,
        "caption" not in name,
        table.path,
    )


def _holds_images(folder: Path) -> bool:
    return any(is_image(name) for one in _walk_quietly(folder) for name in one.files)


def _files(folder: Path) -> list[Path]:
    """Lists the files directly in a folder; none if it cannot be listed."""
    listing = next(islice(_walk_quietly(folder), 1), None)
    return [] if listing is None else [Path(listing.path(name)) for name in listing.files]


def _walk_quietly(folder: Path) -> Iterator[Listing]:
    try:
        yield from walk(folder)
    except DataError:
        return


def _text_folders(parent: Path, besides: str) -> list[Path]:
    """Lists the folders in a folder whose names say that texts are in them."""
    try:
        names = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    except OSError:
        return []
    unknown = rank_of_text_folder(())
    return [parent / n for n in names if n != besides and rank_of_text_folder((n,)) < unknown]


def is_table(path: Path) -> bool:
    """Says by its name whether a file may be a table."""
    return suffix_of(path.name) in (*TABLE_SUFFIXES, ".txt") and bool(stem_of(path.name))
