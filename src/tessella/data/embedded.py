"""Embedded pictures: tables that hold the pictures themselves, in Parquet or Arrow files.

    train-00000-of-00012.parquet     image: {bytes, path}, text: "a red disc"

as `datasets` writes them, the Hugging Face hub stores them and img2dataset can write them. Files
are read some rows at a time; Arrow files are mapped, so that a picture is read only when it is
decoded. `columns.py` finds the pictures and captions.

Source: Hugging Face datasets, `datasets.Image` and `Dataset.save_to_disk`.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tessella.data import records
from tessella.data.addresses import LocalFile
from tessella.data.columns import Columns, find_columns, image_columns
from tessella.data.records import ImageLocation, Location, Record, Skipped
from tessella.errors import DataError, first_line, needs_extra
from tessella.untrusted import parse_json

# Rows that are read at a time: pictures that wait to be decoded keep theirs in memory.
_ROWS = 32
_READ_BYTES = 1 << 20  # of a column at a time: a row group may be as large as the file

ARROW_SUFFIXES = (".arrow", ".feather")
_SAVED = "state.json"  # of a folder that `save_to_disk` wrote
_SAVED_SPLITS = "dataset_dict.json"  # of a folder of such folders


@dataclass(frozen=True, slots=True)
class EmbeddedLocation:
    """A picture in a table: a view of the rows that were read, or of a mapped file."""

    buffer: Any  # pyarrow.Buffer
    owner: object = None  # keeps a temporary file as long as it is needed

    def read(self) -> bytes:
        """Copies the picture's file."""
        content: bytes = self.buffer.to_pybytes()
        return content


@dataclass(frozen=True)
class _Several:
    """Stands for the path of a row that holds several pictures."""

    count: int


@dataclass(frozen=True)
class _Table:
    """A file of rows that is open."""

    schema: Any  # pyarrow.Schema
    batches: Callable[[list[str]], Iterator[Any]]  # of some columns


def has_pictures(path: Path) -> bool:
    """Says whether a Parquet or Arrow file has a column of pictures.

    Raises:
        DataError: it cannot be read.
    """
    with _open(LocalFile(path, str(path))) as table:
        return bool(image_columns(table.schema))


def read_columns(path: Path, caption_column: str | None = None) -> Columns:
    """Finds out which columns of a table are read.

    Raises:
        DataError: it cannot be read, or has no column of pictures or none of captions.
    """
    with _open(LocalFile(path, str(path))) as table:
        return find_columns(str(path), table.schema, caption_column)


def _check_names(names: list[str]) -> None:
    """Refuses names that lead elsewhere than into their folder.

    Raises:
        ValueError: says which.
    """
    for name in names:
        if name in ("", ".", "..") or set("/\\\0") & set(name):
            raise ValueError(f"its state names a file outside of it: {name[:100]!r}")


def find_saved_files(folder: Path) -> list[Path] | None:
    """Lists the files of a folder that `save_to_disk` wrote; None if it is none.

    Only those that its state names: `map` and `filter` leave others beside them.

    Raises:
        DataError: its state cannot be read, or names a file that is not there.
    """
    try:
        if (folder / _SAVED_SPLITS).is_file():
            splits = parse_json((folder / _SAVED_SPLITS).read_bytes())["splits"]
            _check_names(splits)
            return [file for split in splits for file in find_saved_files(folder / split) or ()]
        if not (folder / _SAVED).is_file() or not (folder / "dataset_info.json").is_file():
            return None
        state = parse_json((folder / _SAVED).read_bytes())
        names = [file["filename"] for file in state["_data_files"]]
        _check_names(names)
        files = [folder / name for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The data set saved by `datasets` is damaged: `{folder}`. {first_line(error)}. Save "
            "it again with save_to_disk."
        ) from None
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"The data set saved by `datasets` lacks a file: `{missing[0]}`. Copy it there, or "
            "save the data set again with save_to_disk."
        )
    return files


def embedded_records(
    local: LocalFile,
    split_by: str | None,
    notes: Counter[str],
    caption_column: str | None = None,
) -> Iterator[Record | Skipped]:
    """Reads the rows of a table with pictures.

    Args:
        local: a Parquet file, or an Arrow file or stream.
        split_by: the column that becomes a record's group.
        notes: counts what is done to rows; nothing is.
        caption_column: the one with the captions, if it is named.

    Yields:
        A record per row; a skip for a row without picture or caption.

    Raises:
        DataError: the file cannot be read, or has no column of pictures or none of captions.
    """
    with _open(local) as table:
        columns = find_columns(local.name, table.schema, caption_column)
        names = [columns.image, *columns.captions]
        if split_by in table.schema.names and split_by not in names:
            names.append(str(split_by))
        number = 0
        for batch in table.batches(names):
            # What points out of the file would end the process when it is looked at.
            batch.validate(full=True)
            for row in _rows(batch, columns, names[1:]):
                yield _record(local, columns, number, row, split_by)
                number += 1


@contextlib.contextmanager
def _open(local: LocalFile) -> Iterator[_Table]:
    """Opens a file of rows, and says so if it breaks while it is read."""
    with needs_extra("parquet", f"The table `{local.name}`", DataError):
        import pyarrow as arrow
    try:
        with local.path.open("rb") as file:
            start = file.read(100)
        if start.startswith(b"version https://git-lfs"):
            raise DataError(
                f"Only a pointer to the file is there: `{local.name}`. Fetch the file itself, in "
                "its repository, with git lfs pull."
            )
        with _open_parquet(local) if start.startswith(b"PAR1") else _open_arrow(local) as table:
            yield table
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Cannot read the table: `{local.name}`. {first_line(error)}; copy or download it "
            "again, or leave it out."
        ) from None


@contextlib.contextmanager
def _open_parquet(local: LocalFile) -> Iterator[_Table]:
    import pyarrow.parquet as parquet

    # Buffered, a column is read page by page; otherwise all of a row group at once, which may be
    # the whole file. (Of pictures, pyarrow puts up to 1024 into a page.)
    with parquet.ParquetFile(local.path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
        yield _Table(
            file.schema_arrow, lambda names: file.iter_batches(batch_size=_ROWS, columns=names)
        )


@contextlib.contextmanager
def _open_arrow(local: LocalFile) -> Iterator[_Table]:
    """Opens an Arrow file or stream; both are written by that name."""
    import pyarrow as arrow
    from pyarrow import ipc

    with arrow.memory_map(str(local.path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        reader = ipc.open_file(mapped) if is_file else ipc.open_stream(mapped)
        with reader:

            def batches(names: list[str]) -> Iterator[Any]:
                numbers = range(reader.num_record_batches) if is_file else ()
                for batch in map(reader.get_batch, numbers) if is_file else reader:
                    yield batch.select(names)

            yield _Table(reader.schema, batches)


def _rows(
    batch: Any, columns: Columns, names: list[str]
) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Yields of each row the picture's buffer, its path, and the other fields."""
    import pyarrow as arrow

    image = batch.column(columns.image)
    counts = None
    if arrow.types.is_list(image.type) or arrow.types.is_large_list(image.type):
        # A row with several pictures has none that its caption is known to be of.
        counts = [len(row) if row.is_valid else 0 for row in image]
        firsts = [
            row[0].as_py() if count == 1 else None for row, count in zip(image, counts, strict=True)
        ]
        image = arrow.array(firsts, image.type.value_type)
    paths = None
    if arrow.types.is_struct(image.type):
        children = dict(zip((field.name for field in image.type), image.flatten(), strict=True))
        image, paths = children["bytes"], children.get("path")
    fields = batch.select(names).to_pylist()
    for index, values in enumerate(fields):
        path = paths[index].as_py() if paths is not None else None
        if counts is not None and counts[index] > 1:
            path = _Several(counts[index])
        yield image[index].as_buffer(), path, values


def _record(
    local: LocalFile,
    columns: Columns,
    number: int,
    row: tuple[Any, Any, dict[str, Any]],
    split_by: str | None,
) -> Record | Skipped:
    """Makes the record of one row."""
    buffer, path, fields = row
    name = f"{local.name}:{number}"
    location = _locate(local, buffer, path)
    if isinstance(location, str):
        return Skipped(name, location, "missing")
    try:
        captions = columns.read(fields)
    except records.CaptionError as error:
        return Skipped(name, f"its row cannot be used: {error}", "bad_caption")
    if not captions:
        return Skipped(name, f"its {columns.words} is blank", "captionless")
    group = records.group_from_fields(fields, split_by)
    return Record(name, location, captions, group, origin=columns.origin)


def _locate(local: LocalFile, buffer: Any, path: Any) -> Location | str:
    """Returns where a row's picture is, or why it has none."""
    if buffer is not None:
        return EmbeddedLocation(buffer, local.owner)
    if isinstance(path, _Several):
        return f"the row holds {path.count} pictures, of which none is known to be the caption's"
    if not isinstance(path, str) or not path:
        return "the row has no picture"
    relative = PurePath(path)
    if relative.is_absolute() or ".." in relative.parts or local.owner is not None:
        return (
            f"the row names a picture elsewhere, and does not hold it: {path}; save the data set "
            "again with its pictures embedded"
        )
    return ImageLocation(str(local.path.parent / relative))
