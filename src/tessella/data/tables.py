"""Tables: which column names the pictures, which has the captions, and what each row says.

A table is one whose rows name pictures that are there. Which of its columns does is found by
trying, which of them has the captions by name, or, for lack of a known name, by what looks most
like sentences. Rows of one picture are joined.

Source: Hugging Face datasets, "Create an image dataset", ImageFolder, for `metadata.*`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tessella.data import records
from tessella.data.folders import stem_of, suffix_of
from tessella.data.names import side_of_file, side_of_value
from tessella.data.picture_index import PictureIndex, is_absolute, split_name
from tessella.data.records import Side, Skipped
from tessella.data.table_rows import LIST_DELIMITERS, Layout, Row, list_layouts, without_header
from tessella.errors import DataError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

_FILE_NAMES = (
    "file_name", "filename", "file", "image", "image_path", "image_file", "image_name", "path",
    "filepath", "file_path", "img", "img_path", "picture", "photo", "name", "key", "id", "image_id",
)  # fmt: skip
_VAGUE_NAMES = {"name", "key", "id", "image_id"}
_SIDE_NAMES = ("split", "set", "subset", "partition", "fold")
# Names that never hold captions, whatever their values look like.
_NO_CAPTIONS = {"url", "link", "hash", "md5", "sha256", "license", "licence", "author", "source"}
_NO_CAPTIONS |= {"date", "created_at", "width", "height", *_SIDE_NAMES, *_FILE_NAMES} - {"name"}
_NUMBERED_CAPTION = re.compile(r"(captions?|text|comment|sentence|description)_?\d+")
_SAMPLE = 300
_ENOUGH = 0.5  # of the rows name pictures that are there: then their column does
_STEM = 0.75  # of a name without a suffix, which may be any other number or word
_NAMED = 0.25  # counts for a column with a usual name
_WORDNET_ID = re.compile(r"n\d{8}")
_YES, _NO = {"1", "true"}, {"0", "-1", "false", "none", ""}
# Columns of zeros and ones that number a class or a side, or say something of the file.
_NO_KEYWORD = re.compile(
    r"(label|class|target|category|y|id|index|fold|train|test|val|valid|nsfw|(is|has)_.*|.*_id)"
)


class CaptionlessTable(DataError):
    """A table names the pictures, and no column has captions."""


@dataclass(frozen=True)
class Table:
    """A table that was recognised, and how it is read."""

    layout: Layout
    file_column: str
    caption_columns: tuple[str, ...]  # the first with a caption counts
    side_column: str | None = None
    is_metadata: bool = False  # called `metadata.*`: it speaks for its folder before any sidecar
    joins_columns: bool = False  # caption_1, caption_2: each is a caption
    has_flags: bool = False  # columns called cat and dog of zeros and ones: names are keywords
    kind: str = ""  # COCO's captions, …

    @property
    def path(self) -> Path:
        """The file."""
        return self.layout.path

    @property
    def side(self) -> Side | None:
        """The side of the split that the file's name says."""
        return side_of_file(stem_of(self.path.name))

    def describe(self, root: Path) -> str:
        """Says what is read, as in "captions from train.csv, column caption"."""
        inside = self.path.is_relative_to(root)
        name = self.path.relative_to(root if inside else root.parent)
        if self.has_flags:
            return f"captions from {name}, the names of the columns with 1 as keywords"
        columns = "" if self.kind else f", column {' or '.join(self.caption_columns)}"
        if self.joins_columns:
            columns = f", columns {' and '.join(self.caption_columns)}"
        notes = ", ".join(filter(None, [self.kind, self.layout.describe()]))
        return f"captions from {name}{columns}" + (f" ({notes})" if notes else "")


@dataclass(slots=True)
class Listed:
    """What tables say of one picture."""

    captions: tuple[str, ...]
    origin: str
    group: str | None = None
    side: Side | None = None
    is_first: bool = False  # before any sidecar
    problem: Skipped | None = None  # why it cannot be used


@dataclass
class TableContents:
    """What tables say of pictures, by the picture's path, in the order of their rows."""

    pictures: dict[str, Listed] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)  # rows that name no picture
    notes: Counter[str] = field(default_factory=Counter)  # what was done to rows


def recognise_table(
    path: Path, index: PictureIndex, *, is_beside: bool = False, caption_column: str | None = None
) -> Table | None:
    """Finds out how a table is read; None if it does not name the pictures.

    Args:
        path: of the table.
        index: of the pictures.
        is_beside: it lies outside of the pictures' folder, so that most of its rows must fit.
        caption_column: the one with the captions, if it is named.

    Raises:
        CaptionlessTable: it names the pictures, and has no column of captions.
        DataError: the table cannot be read; or it is called `metadata.*` and lacks a column.
    """
    is_metadata = path.name in METADATA_NAMES
    best: tuple[float, Table] | None = None
    columns: list[str] = []
    captionless: tuple[str, list[str]] | None = None
    for layout in _layouts(path, index):
        rows = [row for row in islice(layout.rows(), _SAMPLE) if row.error is None]
        named = list(dict.fromkeys(name for row in rows for name in row.fields))
        columns = columns or [*layout.columns] or named
        score, file_column = _find_file_column(path, rows, named or columns, index, is_beside)
        if is_metadata and not is_beside and "file_name" in (named or columns):
            score, file_column = max(score, _ENOUGH), "file_name"
        if score < _ENOUGH or (best is not None and score <= best[0]):
            continue
        captions, has_flags = _find_captions(
            path, rows, named or columns, file_column, index, caption_column
        )
        if not captions:
            captionless = (file_column, named or columns) if rows else captionless
            continue
        kind = rows[0].kind if rows else ""
        best = (
            score,
            _make_table(layout, named or columns, file_column, captions, kind, has_flags),
        )
    if best is not None:
        return best[1]
    if captionless is not None:
        raise _refuse_captionless(path, *captionless, caption_column)
    if is_metadata and not is_beside:
        return _metadata_without_rows(path, columns)
    return None


def _layouts(path: Path, index: PictureIndex) -> Iterator[Layout]:
    """Lists the layouts of a file; without a header where the first line names a picture.

    A line of plain text may end in what could be a picture's number: only a name with a suffix
    counts between words, and a number only in the first place.
    """
    side = side_of_file(stem_of(path.name))
    for layout in list_layouts(path):
        is_list = layout.delimiter in LIST_DELIMITERS
        named = (
            column
            for column, cell in enumerate(layout.columns)
            if (suffix_of(cell) or (column == 0 and not is_list))
            and index.find(cell, path.parent, side)
        )
        if layout.delimiter is not None and next(named, None) is not None:
            yield without_header(layout)
        elif not is_list:
            yield layout


def _make_table(
    layout: Layout,
    columns: Sequence[str],
    file_column: str,
    captions: tuple[str, ...],
    kind: str,
    has_flags: bool,
) -> Table:
    by_name = {_simple(column): column for column in reversed(columns)}
    return Table(
        layout,
        file_column,
        captions,
        next((by_name[name] for name in _SIDE_NAMES if name in by_name), None),
        layout.path.name in METADATA_NAMES,
        len(captions) > 1 and all(_NUMBERED_CAPTION.fullmatch(_simple(name)) for name in captions),
        has_flags,
        kind,
    )


def _refuse_captionless(
    path: Path, file_column: str, columns: Sequence[str], caption_column: str | None
) -> CaptionlessTable:
    others = ", ".join(column for column in columns if column != file_column) or "none"
    what = "no column of captions was found"
    if caption_column is not None:
        what = f"there is no column {caption_column} (data.caption_column)"
    return CaptionlessTable(
        f"The table has no captions: `{path}` names pictures in {file_column}, and {what}; the "
        f"others are: {others}. Name the right one: --set data.caption_column=COLUMN."
    )


def name_of_picture(value: Any) -> str | None:
    """Returns the name by which a table's cell means a picture; None if it means none, or many.

    JSON and Parquet have numbers, lists of one, and objects such as {"path": "0001.jpg"} too.
    """
    if isinstance(value, list) and len(value) == 1:
        [value] = value
    if isinstance(value, dict):
        names = (value.get(name) for name in ("path", "file_name", "filename", "name"))
        value = next((name for name in names if name), None)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def _metadata_without_rows(path: Path, columns: Sequence[str]) -> Table:
    """Returns how an empty `metadata.*` is read; lines of JSON say by themselves what they lack.

    Raises:
        DataError: it has columns, and not the right ones.
    """
    if path.suffix == ".jsonl":
        return Table(list_layouts(path)[0], "file_name", records.CAPTION_FIELDS, is_metadata=True)
    raise DataError(
        f"The table lacks columns: `{path}`. It must have file_name and one of "
        f"{', '.join(records.CAPTION_FIELDS)}; got: {', '.join(columns) or 'none'}."
    )


def _find_file_column(
    path: Path, rows: Sequence[Row], columns: Sequence[str], index: PictureIndex, is_beside: bool
) -> tuple[float, str]:
    """Finds the column that names pictures which are there, and how surely it does."""
    best, side = (0.0, 0, ""), side_of_file(stem_of(path.name))
    for column in columns:
        values = [value for row in rows if (value := name_of_picture(row.fields.get(column)))]
        name = _simple(column)
        stem = _STEM if name in _FILE_NAMES or column == columns[0] else 0.0
        found = (value for value in values if index.find(value, path.parent, side))
        hits = sum(1.0 if suffix_of(split_name(value)[-1]) else stem for value in found)
        if hits:
            rank = _FILE_NAMES.index(name) if name in _FILE_NAMES else len(_FILE_NAMES)
            # Under such a name one picture is enough: most of them may be elsewhere.
            is_named = name in _FILE_NAMES and name not in _VAGUE_NAMES and not is_beside
            score = max(hits / len(rows), _ENOUGH if is_named else 0.0)
            score += _NAMED * (name in _FILE_NAMES and score >= _ENOUGH)
            best = max(best, (score, -rank, column), key=lambda one: one[:2])
    return best[0], best[2]


def _find_captions(
    path: Path,
    rows: Sequence[Row],
    columns: Sequence[str],
    file_column: str,
    index: PictureIndex,
    caption_column: str | None,
) -> tuple[tuple[str, ...], bool]:
    """Finds the columns with captions, and says whether their names are the captions."""
    others = [column for column in columns if column != file_column]
    if caption_column is not None:
        wanted = _simple(caption_column)
        exact = [caption_column] if caption_column in others else []
        return tuple((exact or [name for name in others if _simple(name) == wanted])[:1]), False
    if found := _find_caption_columns(path, rows, others, index):
        return found, False
    flags = [name for name in others if any(map(str.isalpha, name)) and _are_flags(name, rows)]
    return (tuple(flags), True) if len(flags) > 1 else ((), False)


def _are_flags(column: str, rows: Sequence[Row]) -> bool:
    values = {str(row.fields.get(column)).strip().lower() for row in rows}
    is_keyword = _simple(column) not in _NO_CAPTIONS and not _NO_KEYWORD.fullmatch(_simple(column))
    return is_keyword and bool(values & _YES) and values <= _YES | _NO


def _find_caption_columns(
    path: Path, rows: Sequence[Row], others: Sequence[str], index: PictureIndex
) -> tuple[str, ...]:
    """Finds the columns with captions: by their names, else the one that reads most like them."""
    by_name = {_simple(column): column for column in reversed(others)}
    if known := tuple(by_name[name] for name in records.CAPTION_FIELDS if name in by_name):
        return known
    if numbered := tuple(name for name in others if _NUMBERED_CAPTION.fullmatch(_simple(name))):
        return numbered
    lengths = {
        column: _mean_letters(row.fields.get(column) for row in rows)
        for column in others
        if _simple(column) not in _NO_CAPTIONS
        and _find_file_column(path, rows, [column], index, True)[0] <= _STEM
    }
    longest = max(lengths, key=lambda column: lengths[column], default=None)
    return (longest,) if longest is not None and lengths[longest] else ()


def _mean_letters(values: Iterable[Any]) -> float:
    """Returns how many letters texts have on average; 0 if most of the values are no texts.

    Texts that are the same in many rows count for less: a sampler's name, a question.
    """
    kept = list(values)
    texts = [value for value in kept if isinstance(value, str) and not is_absolute(value)]
    texts = [text for text in texts if not _WORDNET_ID.fullmatch(text)]
    letters = [sum(map(str.isalpha, text)) for text in texts]
    if 2 * sum(map(bool, letters)) <= len(kept):
        return 0.0
    return sum(letters) / len(letters) * len(set(texts)) / len(texts)


def _simple(column: str) -> str:
    return re.sub(r"[\s_-]+", "_", column.strip().lower())


def read_table(
    table: Table, index: PictureIndex, contents: TableContents, split_by: str | None = None
) -> None:
    """Reads a table into what tables say of pictures; what an earlier one said of one stays.

    Raises:
        DataError: the table cannot be read.
    """
    reading = _Reading(table, index, contents, split_by)
    for row in table.layout.rows():
        reading.add(row)


class _Reading:
    """One table on its way into the contents."""

    def __init__(
        self, table: Table, index: PictureIndex, contents: TableContents, split_by: str | None
    ) -> None:
        self._table, self._index, self._contents = table, index, contents
        self._split_by = split_by
        self._origin = table.describe(index.root)
        self._own: dict[str, str] = {}  # the pictures of this table: path → name that they have

    def add(self, row: Row) -> None:
        """Adds what one row says."""
        name = f"{self._table.path}:{row.number}"
        if row.error is not None:
            self._skip(name, f"the row cannot be used: {row.error}", "bad_row")
            return
        given = name_of_picture(row.fields.get(self._table.file_column)) or ""
        if not given.strip():
            self._skip(name, f"the row has no {self._table.file_column}", "bad_row")
            return
        if row.excess and self._table.layout.columns[-1:] != self._table.caption_columns:
            count = len(self._table.layout.columns)
            reason = f"the row cannot be used: {count + len(row.excess)} cells for {count} columns"
            self._skip(name, f"{reason}; a text with commas needs quotes around it", "bad_row")
            return
        side = side_of_value(row.fields.get(self._table.side_column or "")) or self._table.side
        path = self._index.find(given, self._table.path.parent, side)
        if path is None:
            path = self._path_of_missing(given)
        if path is None:
            reason = f"{self._table.file_column} leads out of the folder: {given}"
            self._skip(name, reason, "outside")
            return
        earlier = self._contents.pictures.get(path)
        if earlier is not None and path not in self._own:
            return  # an earlier table has spoken
        listed = self._listed(path, row, side)
        if earlier is None:
            self._contents.pictures[path] = listed
            self._own[path] = given
        elif self._own[path].casefold() != given.casefold() and "#" not in given:
            reason = f"two names of {self._table.path.name} may mean it: {self._own[path]}, {given}"
            earlier.problem = Skipped(path, reason, "ambiguous")
        elif earlier.problem is None or listed.problem is None:
            _join(earlier, listed)

    def _path_of_missing(self, given: str) -> str | None:
        """Returns where a picture should be that is not there; None for one outside."""
        parts = split_name(given)
        if is_absolute(given) or ".." in parts or not parts:
            return None
        return str(self._table.path.parent.joinpath(*parts))

    def _listed(self, path: str, row: Row, side: Side | None) -> Listed:
        listed = Listed((), self._origin, side=side, is_first=self._table.is_metadata)
        try:
            listed.captions = self._captions(row)
        except records.CaptionError as error:
            listed.problem = Skipped(path, f"its row cannot be used: {error}", "bad_caption")
            return listed
        if not listed.captions:
            where = f"row {row.number} of {self._table.path.name}"
            listed.problem = Skipped(path, f"{where} has no caption", "captionless")
        listed.group = records.group_from_fields(row.fields, self._split_by)
        return listed

    def _captions(self, row: Row) -> tuple[str, ...]:
        """Reads a row's captions; what is beyond the last column belongs to it."""
        table, fields = self._table, row.fields
        if row.excess:
            last = table.layout.columns[-1]
            delimiter = table.layout.delimiter or ","
            fields = {**fields, last: delimiter.join([fields[last], *row.excess])}
            if delimiter != " ":
                self._contents.notes[f"rows of {table.path.name} with unquoted text joined"] += 1
        if table.layout.delimiter is not None:
            self._check_quotes(fields)
        if table.has_flags:
            names = [n for n in table.caption_columns if str(fields.get(n)).strip().lower() in _YES]
            return records.clean_captions([", ".join(names).replace("_", " ")])
        if table.joins_columns:
            each = (records.captions_from_fields(fields, [name]) for name in table.caption_columns)
            return tuple(dict.fromkeys(caption for captions in each for caption in captions))
        captions = records.captions_from_fields(fields, table.caption_columns)
        if {*map(_simple, table.caption_columns)} & {*records.CAPTION_FIELDS}:
            return captions
        # Names of classes: golden_retriever.
        return tuple(one if " " in one else one.replace("_", " ") for one in captions)

    def _check_quotes(self, fields: dict[str, Any]) -> None:
        """Refuses a cell that has swallowed the rows after it for want of a closing quote."""
        delimiter = self._table.layout.delimiter or ","
        for name in self._table.caption_columns:
            for line in str(fields.get(name) or "").splitlines()[1:]:
                cells = line.split(delimiter)
                if any(self._index.find(cell, self._table.path.parent) for cell in cells[:-1]):
                    raise records.CaptionError("a quote is not closed, which swallows the next row")

    def _skip(self, name: str, reason: str, kind: str) -> None:
        self._contents.skipped.append(Skipped(name, reason, kind))


def _join(earlier: Listed, later: Listed) -> None:
    """Joins two rows of one picture: one without a usable caption takes nothing away."""
    earlier.captions = tuple(dict.fromkeys(earlier.captions + later.captions))
    earlier.group = earlier.group or later.group
    if earlier.side != later.side:
        earlier.side = "validation" if "validation" in (earlier.side, later.side) else "train"
    if earlier.captions and earlier.problem is not None and earlier.problem.kind == "captionless":
        earlier.problem = None
