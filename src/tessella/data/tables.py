"""Metadata tables: `metadata.jsonl`, `.csv` or `.parquet` beside pictures.

Each row names a picture (`file_name`, relative to the table) and its captions (`text`, `caption`
or `captions`). Consecutive rows with the same picture are joined.

Source: Hugging Face datasets, "Create an image dataset", ImageFolder.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from tessella.data import records
from tessella.data.folders import suffix_of
from tessella.data.records import ImageLocation, Record, Skipped
from tessella.errors import DataError, needs_extra

TABLE_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

# The number of a row, from 1 and not counting a CSV's header; and its fields, or its error.
_Row: TypeAlias = tuple[int, dict[str, Any] | records.CaptionError]


def table_records(table: Path, split_by: str | None = None) -> Iterator[Record | Skipped]:
    """Reads the rows of a table.

    Args:
        table: a file named as in `TABLE_NAMES`.
        split_by: the column that becomes the record's group.

    Yields:
        A record per picture; a skip for a row without picture or caption, or a broken one.

    Raises:
        DataError: the table cannot be read, or lacks a column.
    """
    waiting: Record | None = None
    for row in _rows(table):
        record = _record(table, row, split_by)
        if isinstance(record, Skipped):
            yield record
        elif waiting is not None and record.location == waiting.location:
            captions = tuple(dict.fromkeys(waiting.captions + record.captions))
            waiting = replace(waiting, captions=captions)
        else:
            if waiting is not None:
                yield waiting
            waiting = record
    if waiting is not None:
        yield waiting


def _record(table: Path, row: _Row, split_by: str | None) -> Record | Skipped:
    """Makes the record of one row."""
    number, fields = row
    name = f"{table}:{number}"
    if isinstance(fields, records.CaptionError):
        return Skipped(name, f"the row cannot be used: {fields}", "bad_row")
    file_name = fields.get("file_name")
    if not isinstance(file_name, str) or not file_name.strip():
        return Skipped(name, "the row has no file_name", "bad_row")
    relative = PurePath(file_name)
    if relative.is_absolute() or ".." in relative.parts:
        return Skipped(name, f"file_name leads out of the folder: {file_name}", "outside")
    path = str(table.parent / relative)
    try:
        captions = records.captions_from_fields(fields)
    except records.CaptionError as error:
        return Skipped(path, f"its row cannot be used: {error}", "bad_caption")
    if not captions:
        return Skipped(path, f"row {number} has no caption", "captionless")
    return Record(path, ImageLocation(path), captions, records.group_from_fields(fields, split_by))


def _rows(table: Path) -> Iterator[_Row]:
    """Reads a table row by row after checking its columns."""
    readers = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    try:
        yield from readers[suffix_of(table.name)](table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read the table: `{table}`. {error}.") from None


def _json_rows(table: Path) -> Iterator[_Row]:
    with table.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, records.fields_from_json(line)
            except records.CaptionError as error:
                yield number, error


def _csv_rows(table: Path) -> Iterator[_Row]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(table, list(reader.fieldnames or []))
        yield from enumerate(reader, start=1)


def _parquet_rows(table: Path) -> Iterator[_Row]:
    with needs_extra("parquet", f"The table `{table}`", DataError):
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    try:
        with parquet.ParquetFile(table) as file:
            _check_columns(table, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=1024)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from enumerate(rows, start=1)
    except arrow.ArrowException as error:
        raise DataError(f"Cannot read the table: `{table}`. {error}.") from None


def _check_columns(table: Path, columns: list[str]) -> None:
    if "file_name" not in columns or not set(columns) & set(records.CAPTION_FIELDS):
        raise DataError(
            f"The table lacks columns: `{table}`. It must have file_name and one of "
            f"{', '.join(records.CAPTION_FIELDS)}; got: {', '.join(columns) or 'none'}."
        )
