"""Containers: files that hold many pictures, recognised by their names and read one by one.

    .tar, .tar.gz, .tar.zst, …   shards     shards.py
    .parquet                     parquet    embedded.py
    .arrow, .feather             arrow      embedded.py
    .zip                         zip        archives.py

They may be elsewhere (`addresses.py`). Where their names say splits, as in
`data/train-00000-of-00012.parquet` and `data/test-00000-of-00001.parquet`, these are the split.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from tessella.data.addresses import LocalFile, file_name_of, open_locally
from tessella.data.archives import zip_records
from tessella.data.embedded import ARROW_SUFFIXES, embedded_records, find_saved_files, has_pictures
from tessella.data.folders import stem_of, suffix_of
from tessella.data.names import side_of_file, side_of_folders
from tessella.data.records import Record, Side, Skipped
from tessella.data.shards import shard_records
from tessella.errors import DataError

ContainerKind: TypeAlias = Literal["shards", "parquet", "arrow", "zip"]

_READERS: dict[ContainerKind, Callable[[LocalFile, str | None], Iterator[Record | Skipped]]] = {
    "shards": shard_records,
    "parquet": embedded_records,
    "arrow": embedded_records,
    "zip": zip_records,
}
_MAGIC: dict[bytes, ContainerKind] = {b"PK\3\4": "zip", b"PAR1": "parquet", b"ARROW1": "arrow"}
_COMPRESSED_TAR = re.compile(r"\.(tar(\.(gz|bz2|xz|zst|zstd))?|tgz|tbz2?|txz|tzst)$")

# What other packages write that is not read, and how it becomes something that is.
_FOREIGN = {
    ".lance": (
        'a Lance data set. Write it as Parquet first: python -c "import lance, pyarrow.parquet; '
        "pyarrow.parquet.write_table(lance.dataset('{path}').to_table(), 'data.parquet')\""
    ),
    ".mds": (
        "MosaicML's MDS. Write it as WebDataset shards first: read it with "
        "streaming.StreamingDataset(local='{folder}', batch_size=1), and write each sample with "
        "webdataset.ShardWriter"
    ),
    ".tfrecord": "a TFRecord. Write it as WebDataset shards first, with webdataset.ShardWriter",
    ".beton": "an FFCV file. Use the data set that it was written from",
    ".h5": "an HDF5 file. Write its pictures as files, with a .txt of captions beside each",
    ".hdf5": "an HDF5 file. Write its pictures as files, with a .txt of captions beside each",
    ".mdb": "an LMDB. Write it as WebDataset shards first, with webdataset.ShardWriter",
    ".npz": "an archive of arrays. Write them as PNG files, with a .txt of captions beside each",
    ".npy": "an array. Write it as PNG files, with a .txt of captions beside each",
    ".7z": "a 7-Zip archive. Unpack it, and name the folder",
    ".rar": "a RAR archive. Unpack it, and name the folder",
}


def kind_of_file(name: str) -> ContainerKind | None:
    """Returns what a file is by its name or address; None if it is no container."""
    if name.startswith("pipe:"):
        return None
    name = file_name_of(name).lower()
    if _COMPRESSED_TAR.search(name):
        return "shards"
    suffix = suffix_of(name)
    if suffix in (".parquet", ".zip"):
        return "parquet" if suffix == ".parquet" else "zip"
    return "arrow" if suffix in ARROW_SUFFIXES else None


def is_foreign(name: str) -> bool:
    """Says by its name whether a file or folder is another package's, which is not read."""
    return _foreign_suffix(name) is not None


def _foreign_suffix(name: str) -> str | None:
    name = re.sub(r"\.(zstd?|gz)$", "", name.lower().rstrip("/"))  # MDS compresses its files
    return next((suffix for suffix in _FOREIGN if name.endswith(suffix)), None)


def refuse_foreign(argument: str, path: str | Path) -> DataError:
    """Returns the error about a foreign file or folder, which names the way out."""
    suffix = _foreign_suffix(str(path)) or ""
    what = _FOREIGN[suffix].format(path=path, folder=Path(path).parent)
    return DataError(f"Not data that can be read: `{argument}`. `{path}` is {what}.")


def find_containers(root: Path, files: Sequence[Path]) -> tuple[ContainerKind, list[Path]] | None:
    """Chooses which files of a folder are read, if it is a folder of containers.

    Args:
        root: the folder.
        files: under it, those that `kind_of_file` knows.

    Returns:
        Their kind and the files; None if there are none, or only tables without pictures.

    Raises:
        DataError: there are several kinds, or a file cannot be read.
    """
    if saved := find_saved_files(root):
        return "arrow", saved
    by_kind: dict[ContainerKind, list[Path]] = {}
    for file in files:
        if kind := kind_of_file(file.name):
            by_kind.setdefault(kind, []).append(file)
    # Beside tars, img2dataset writes a table of the same name.
    if "shards" in by_kind or not any(map(has_pictures, by_kind.get("parquet", [])[:1])):
        by_kind.pop("parquet", None)
    if len(by_kind) > 1:
        names = ", ".join(found[0].name for found in by_kind.values())
        raise DataError(
            f"Cannot tell what the data is: `{root}` holds {names}. Name those that you want."
        )
    return next(iter(by_kind.items()), None)


def container_records(
    kind: ContainerKind, names: Sequence[str], split_by: str | None = None
) -> Iterator[Record | Skipped]:
    """Reads files of many pictures, one after another.

    Args:
        kind: of all of them.
        names: paths, addresses or `pipe:COMMAND`.
        split_by: the field or column that becomes a record's group.

    Raises:
        DataError: one of them cannot be read.
    """
    for name, side in zip(names, _sides(names), strict=True):
        # A temporary copy is deleted with the last record that needs it.
        local = open_locally(name)
        read = _READERS[kind if kind_of_file(name) else _kind_of_contents(local)]
        for record in read(local, split_by):
            if side is None or isinstance(record, Skipped) or record.side is not None:
                yield record
            else:
                yield replace(record, side=side)


def _kind_of_contents(local: LocalFile) -> ContainerKind:
    """Returns what a file is whose name does not say it; a tar, if nothing else."""
    with local.path.open("rb") as file:
        start = file.read(8)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "shards")


def _sides(names: Sequence[str]) -> list[Side | None]:
    """Returns the side of the split that each file's name says, if they name both sides.

    Where they do, a file that says nothing is trained on.
    """
    folders = [re.split(r"[/\\]", name)[:-1] for name in names]
    common = 0  # folders above all of them say nothing
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        common += 1
    sides = [
        side_of_file(stem_of(file_name_of(name))) or side_of_folders(parts[common:])
        for name, parts in zip(names, folders, strict=True)
    ]
    if len(set(sides) - {None}) < 2:
        return [None] * len(sides)
    return [side or "train" for side in sides]
