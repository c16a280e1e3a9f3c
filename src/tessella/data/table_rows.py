"""Table rows: a table's file as rows of fields, in whichever form people write tables.

    .csv .tsv .txt .token   comma, tab, semicolon or bar; with a header or without
    .jsonl                  an object a line, or a list of objects all the same
    .json                   annotations.py
    .parquet

A CSV does not say how it is written, so that it has several layouts; which one is right is found
by its names of pictures (tables.py).
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from tessella.data.annotations import complete_row, rows_of_document
from tessella.data.folders import suffix_of
from tessella.data.text_encoding import TextError, describe_encoding, find_encoding
from tessella.errors import DataError, needs_extra
from tessella.untrusted import parse_json

TABLE_SUFFIXES = (
    *(".csv", ".tsv", ".jsonl", ".jsonlines", ".ndjson", ".json", ".parquet", ".token"),
)
_JSON_SUFFIXES = (".json", ".jsonl", ".jsonlines", ".ndjson")
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
# Lists without a header: "0001.jpg a red dog", "0001.jpg: a red dog".
LIST_DELIMITERS = {":": "colons", " ": "spaces"}
_SAMPLE = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    number: int  # from 1, not counting a header
    fields: dict[str, Any] = field(default_factory=dict)
    excess: tuple[str, ...] = ()  # cells beyond the last column
    error: str | None = None  # why it has no fields
    kind: str = ""  # of annotations: COCO's captions, …


@dataclass(frozen=True)
class Layout:
    """One way to read a table's file."""

    path: Path
    encoding: str = "utf-8"
    delimiter: str | None = None  # None if it is no CSV
    columns: tuple[str, ...] = ()  # of a CSV
    has_header: bool = True
    skips: int = 0  # lines before the header

    def rows(self) -> Iterator[Row]:
        """Reads the rows.

        Raises:
            DataError: the table cannot be read.
        """
        try:
            if self.delimiter is not None:
                yield from self._delimited_rows(self.delimiter)
            elif suffix_of(self.path.name) == ".parquet":
                yield from _parquet_rows(self.path)
            else:
                yield from _json_rows(self.path, self.encoding)
        except (OSError, UnicodeError, csv.Error, RecursionError) as error:
            raise _cannot_read(self.path, error) from None

    def describe(self) -> str:
        """Says what is not usual about it, for people: "CP1252, semicolons"; else ""."""
        words = [describe_encoding(self.encoding)]
        if self.delimiter is not None and _usual(self.path) != self.delimiter:
            words.append((_DELIMITERS | LIST_DELIMITERS)[self.delimiter])
        if not self.has_header:
            words.append("no header")
        return ", ".join(filter(None, words))

    def _delimited_rows(self, delimiter: str) -> Iterator[Row]:
        with self.path.open(encoding=self.encoding, newline="") as file:
            for _ in range(self.skips):
                file.readline()
            reader = csv.reader(file, delimiter=delimiter)
            if self.has_header:
                next(reader, None)
            rows = (cells for cells in reader if any(map(str.strip, cells)))
            for number, row in enumerate(rows, start=1):
                yield self._row(number, row)

    def _row(self, number: int, cells: list[str]) -> Row:
        count = len(self.columns)
        excess = tuple(cells[count:])
        # Excel ends rows with empty cells.
        while excess and not excess[-1].strip():
            excess = excess[:-1]
        return Row(number, dict(zip(self.columns, map(str.strip, cells), strict=False)), excess)


def list_layouts(path: Path) -> list[Layout]:
    """Lists the ways in which a file may be read, the usual one first.

    Raises:
        DataError: the file cannot be read.
    """
    suffix = suffix_of(path.name)
    if suffix == ".parquet":
        return [Layout(path)]
    try:
        encoding = find_encoding(path)
        if suffix in _JSON_SUFFIXES:
            return [Layout(path, encoding)]
        with path.open(encoding=encoding, newline="") as file:
            return list(_delimited_layouts(Layout(path, encoding), file))
    except (OSError, UnicodeError, TextError, csv.Error) as error:
        raise _cannot_read(path, error) from None


def without_header(layout: Layout) -> Layout:
    """Returns the layout for a file whose first line is a row; its columns are numbered."""
    headless = replace(layout, has_header=False, columns=("1", "2"))
    widths = [
        2 + len(row.excess) for row in islice(headless.rows(), _SAMPLE) if len(row.fields) > 1
    ]
    count = min(widths, default=2) if layout.delimiter in _DELIMITERS else 2
    return replace(headless, columns=tuple(map(str, range(1, count + 1))))


def _usual(path: Path) -> str:
    return "\t" if suffix_of(path.name) in (".tsv", ".token") else ","


def _delimited_layouts(plain: Layout, file: TextIO) -> Iterator[Layout]:
    start = file.tell()
    first = file.readline()
    # Excel's own way to name the delimiter.
    named = first.lstrip('"')[4:5] if first.lower().lstrip('"').startswith("sep=") else ""
    if named:
        plain = replace(plain, skips=1)
        start = file.tell()
    delimiters = dict.fromkeys([*named, _usual(plain.path), *_DELIMITERS])
    if suffix_of(plain.path.name) == ".txt":
        delimiters |= dict.fromkeys(LIST_DELIMITERS)
    for delimiter in delimiters:
        file.seek(start)
        header = [cell.strip() for cell in next(csv.reader(file, delimiter=delimiter), [])]
        if len(header) > 1:
            yield replace(plain, delimiter=delimiter, columns=tuple(header))


def _json_rows(path: Path, encoding: str) -> Iterator[Row]:
    if suffix_of(path.name) == ".json" or _is_list(path, encoding):
        rows, kind = rows_of_document(_load_json(path, encoding))
        for number, fields in enumerate(rows, start=1):
            yield _json_row(number, fields, kind)
        return
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield _json_row(number, parse_json(line))
                except ValueError as error:
                    yield Row(number, error=f"not JSON: {error}")


def _json_row(number: int, fields: Any, kind: str = "") -> Row:
    if isinstance(fields, dict):
        return Row(number, complete_row(fields), kind=kind)
    return Row(number, error=f"not a JSON object but a {type(fields).__name__}")


def _is_list(path: Path, encoding: str) -> bool:
    """Says whether a .jsonl is one JSON list: it begins with one, and its first line is not all."""
    with path.open(encoding=encoding) as file:
        first = next((line.strip() for line in file if line.strip()), "")
    if not first.startswith("["):
        return False
    try:
        value = parse_json(first)
    except ValueError:
        return True
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _load_json(path: Path, encoding: str) -> Any:
    """Reads a JSON document; one object a line is read too, whatever the file is called."""
    text = path.read_text(encoding=encoding)
    try:
        return parse_json(text)
    except ValueError as error:
        try:
            return [parse_json(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise _cannot_read(path, f"not JSON: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    with needs_extra("parquet", f"The table `{path}`", DataError):
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    try:
        with parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, fields in enumerate(rows, start=1):
                yield Row(number, fields)
    except arrow.ArrowException as error:
        raise _cannot_read(path, error) from None


def _cannot_read(path: Path, error: object) -> DataError:
    return DataError(f"Cannot read the table: `{path}`. {str(error).rstrip('.')}.")
