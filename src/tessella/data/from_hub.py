"""Data sets on the Hugging Face hub: `hf:USER/DATASET@REVISION:SPLIT` becomes files in its cache.

    names of the repository's files ─ pictures, tables, shards of the split ─▶ hub's cache ─▶ DATA

Their files are read by the same code as yours, and a data set's own code is never run; `datasets`
is not needed. `hf://datasets/USER/DATASET/FILES` reads shards without keeping them: `addresses.py`.

Source: splits in names of files and folders are those of Hugging Face datasets, "Structure your
repository".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tessella.data.containers import is_foreign, kind_of_file, refuse_foreign
from tessella.data.folders import SIDECAR_SUFFIXES, is_hidden, suffix_of
from tessella.data.table_rows import TABLE_SUFFIXES
from tessella.errors import DataError
from tessella.hub import HubAddress, download, parse_address
from tessella.images import READ_SUFFIXES

_SUFFIXES = READ_SUFFIXES | {*TABLE_SUFFIXES, *SIDECAR_SUFFIXES}
# Tells the hub about the data set.
_METADATA_FILES = {"dataset_infos.json"}
_ESCAPED = re.compile(r"([*?\[])")
_SHOWN = 5


@dataclass(frozen=True)
class HubData:
    """A data set in the hub's cache."""

    root: Path  # a folder of pictures, tables or files of many pictures
    files: Sequence[Path] = ()  # of many pictures: those that are read; none: all of the folder


def find_data(argument: str) -> HubData:
    """Finds a data set on the hub, and fetches what is not in the hub's cache.

    Args:
        argument: `hf:USER/DATASET`, with `@REVISION` and `:SPLIT` as needed.

    Raises:
        DataError: there is no such data set, it has no such split, or no files that are read.
    """
    address = parse_address(argument, DataError, kind="dataset")
    places: list[str] = []

    def choose(names: Sequence[str]) -> list[str]:
        data = [name for name in names if _is_data(name)]
        if not any(map(_holds_pictures, data)):
            raise _no_data(address, names)
        if address.split is None:
            return sorted({f"*{_escape(PurePosixPath(name).suffix)}" for name in data})
        chosen = [name for name in data if _find_place(name, address.split)]
        if not chosen:
            raise _no_split(address, data)
        places[:] = sorted({_find_place(name, address.split) or "" for name in chosen})
        return sorted({_to_pattern(name, address.split) for name in chosen})

    folder = download(address, "dataset", choose, DataError)
    if len(places) == 1 and (folder / places[0]).is_dir():
        return HubData(folder / places[0])
    if any(kind_of_file(place) is None for place in places):
        raise DataError(
            f"Cannot tell which pictures are of the split: `{address}` keeps "
            f"{', '.join(places[:_SHOWN])}. Leave the split out: a split that the data set names "
            "is known by its name."
        )
    return HubData(folder, [folder / place for place in places])


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    if any(map(is_hidden, path.parts)) or path.name in _METADATA_FILES:
        return False
    return suffix_of(name) in _SUFFIXES or kind_of_file(name) is not None


def _holds_pictures(name: str) -> bool:
    return kind_of_file(name) is not None or suffix_of(name) in READ_SUFFIXES


def _find_place(name: str, split: str) -> str | None:
    """Returns the folder, or else the file, that has a split in its name: data/train, train-0.tar.

    The word may not be a part of another.
    """
    word = re.compile(rf"(?<![^\W\d_]){re.escape(split)}(?![^\W\d_])", re.IGNORECASE)
    parts = PurePosixPath(name).parts
    for end, part in enumerate(parts, start=1):
        if word.search(part):
            return "/".join(parts[:end])
    return None


def _to_pattern(name: str, split: str) -> str:
    """Returns what the client is asked for; of a folder of the split, all files of a suffix."""
    place = _find_place(name, split) or name
    if place == name:
        return _escape(name)
    return f"{_escape(place)}/*{_escape(PurePosixPath(name).suffix)}"


def _escape(text: str) -> str:
    """Takes the meaning from characters that stand for others in patterns."""
    return _ESCAPED.sub(r"[\1]", text)


def _no_split(address: HubAddress, data: Sequence[str]) -> DataError:
    more = ", …" if len(data) > _SHOWN else ""
    return DataError(
        f"The data set has no such split: `{address}`; no file or folder is called "
        f"{address.split}. It holds {', '.join(data[:_SHOWN])}{more}. Name a word of these, or "
        "leave the split out."
    )


def _no_data(address: HubAddress, names: Sequence[str]) -> DataError:
    """Says why nothing of a data set is read, and what may be."""
    scripts = [name for name in names if name.endswith(".py")]
    if scripts:
        return DataError(
            f"The data set is a program, which is never run: `{address}` ({scripts[0]}). The hub "
            "keeps a copy of many as Parquet; name it: "
            f"hf:{address.repository}@refs/convert/parquet."
        )
    if foreign := next((name for name in names if is_foreign(name)), None):
        return refuse_foreign(str(address), foreign)
    listed = ", ".join(name for name in names if not name.startswith("."))
    return DataError(
        f"The data set holds no pictures that are read: `{address}` holds "
        f"{listed[:200] or 'no files'}. Expected pictures with captions, Parquet or Arrow files, "
        ".tar shards or .zip files. Download what its card names, and give that."
    )
