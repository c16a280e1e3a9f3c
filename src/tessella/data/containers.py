"""Containers: files that hold many pictures, recognised by their names and read one by one.

    .tar, .tar.gz, .tar.zst, …   shards     shards.py
    .parquet                     parquet    embedded.py
    .arrow, .feather             arrow      embedded.py
    .zip                         zip        archives.py

They may be elsewhere (`addresses.py`). Where their names say splits, as in
`data/train-00000-of-00012.parquet` and `data/test-00000-of-00001.parquet`, these are the split.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from tessella.data.addresses import (
    LocalFile,
    file_name_of,
    fingerprint_addresses,
    is_address,
    is_command,
    open_locally,
)
from tessella.data.archives import zip_records
from tessella.data.class_names import CLASS_FILES
from tessella.data.embedded import (
    ARROW_SUFFIXES,
    embedded_records,
    find_saved_files,
    has_pictures,
    read_columns,
)
from tessella.data.folders import stem_of, suffix_of
from tessella.data.names import side_of_file, side_of_folders
from tessella.data.records import Part, Record, Side, Skipped
from tessella.data.shards import shard_records
from tessella.errors import DataError

ContainerKind: TypeAlias = Literal["shards", "parquet", "arrow", "zip"]

_Reader: TypeAlias = Callable[
    [LocalFile, str | None, Counter[str], str | None], Iterator[Record | Skipped]
]
_READERS: dict[ContainerKind, _Reader] = {
    "shards": shard_records,
    "parquet": embedded_records,
    "arrow": embedded_records,
    "zip": zip_records,
}
_MAGIC: dict[bytes, ContainerKind] = {b"PK\3\4": "zip", b"PAR1": "parquet", b"ARROW1": "arrow"}
_COMPRESSED_TAR = re.compile(r"\.(tar(\.(gz|bz2|xz|zst|zstd))?|tgz|tbz2?|txz|tzst)$")

_AS_FILES = "Write its pictures as PNG files, with a .txt of captions beside each"

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
    "-ubyte": f"an array (MNIST's). {_AS_FILES}",
    ".mat": f"a file of MATLAB. {_AS_FILES}",
    ".pt": f"a file of tensors. {_AS_FILES}",
    ".pkl": f"a pickle. {_AS_FILES}",
    ".pickle": f"a pickle. {_AS_FILES}",
    "data_batch_1": f"a pickle (CIFAR's). {_AS_FILES}",
    ".dcm": f"a DICOM picture. {_AS_FILES}",
    ".nii": f"a NIfTI volume. {_AS_FILES}",
    ".001": "a part of an archive. Unpack the archive, and name the folder",
    ".z01": "a part of an archive. Unpack the archive, and name the folder",
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


@dataclass(frozen=True)
class Containers:
    """Files of one kind that are read one after another."""

    kind: ContainerKind
    names: tuple[str, ...]  # paths, addresses or `pipe:COMMAND`
    origins: tuple[str, ...] = ()  # where captions are read, for people
    notes: tuple[str, ...] = ()  # what else people should know
    caption_column: str | None = None  # the one with the captions, if it is named

    def records(
        self, split_by: str | None = None, notes: Counter[str] | None = None
    ) -> Iterator[Record | Skipped]:
        """Reads the records of all files.

        Args:
            split_by: the field or column that becomes a record's group.
            notes: counts what is done to records.

        Raises:
            DataError: a file cannot be read.
        """
        notes = Counter() if notes is None else notes
        for name, side in zip(self.names, _sides(self.names), strict=True):
            yield from self._read(name, side, split_by, notes)

    def parts(self, split_by: str | None = None) -> Iterator[Part]:
        """Lists the files as parts, each with what changes with its contents.

        Args:
            split_by: the field or column that becomes a record's group.

        Raises:
            DataError: a file is missing or cannot be reached.
        """
        remote = [name for name in self.names if is_address(name) and not is_command(name)]
        facts = dict(zip(remote, fingerprint_addresses(remote), strict=True))
        for name, side in zip(self.names, _sides(self.names), strict=True):
            stamp = facts.get(name)
            if not is_address(name):
                stamp = _stamp(
                    [Path(name), *(Path(name).parent / beside for beside in CLASS_FILES)]
                )
            # A table may name pictures beside it; one from elsewhere may not.
            is_whole = name in facts or self.kind in ("shards", "zip")
            yield Part(
                name,
                partial(self._read, name, side, split_by),
                None if stamp is None else self._describe(stamp, side, split_by),
                is_whole and not is_command(name),
            )

    def _describe(self, stamp: str, side: Side | None, split_by: str | None) -> str:
        """Returns what changes with the records of a file."""
        column = "" if self.caption_column is None else f"\0{self.caption_column}"
        return f"{self.kind}\0{stamp}\0{side}\0{split_by}{column}"

    def _read(
        self, name: str, side: Side | None, split_by: str | None, notes: Counter[str]
    ) -> Generator[Record | Skipped]:
        """Reads the records of one file."""
        local = open_locally(name)
        read = _READERS[self.kind if kind_of_file(name) else _kind_of_contents(local)]
        # A temporary copy is deleted with the last record that needs it.
        for record in read(local, split_by, notes, self.caption_column):
            if side is None or isinstance(record, Skipped) or record.side is not None:
                yield record
            else:
                yield replace(record, side=side)


def name_containers(
    kind: ContainerKind,
    names: Sequence[str],
    notes: Sequence[str] = (),
    caption_column: str | None = None,
) -> Containers:
    """Says of files of one kind how they are read.

    Raises:
        DataError: the first one is a table that cannot be read so.
    """
    origin = "captions from the texts in the tars"
    if kind == "zip":
        origin = "captions as in the folder that was packed"
    elif kind != "shards":
        origin = "captions from a column"
        if not is_address(names[0]):
            origin = read_columns(Path(names[0]), caption_column).origin
    return Containers(kind, tuple(names), (origin,), tuple(notes), caption_column)


def choose_containers(
    root: Path, files: Sequence[Path], caption_column: str | None = None
) -> Containers | None:
    """Chooses which files of a folder are read, if it is a folder of containers.

    Args:
        root: the folder.
        files: under it, those that `kind_of_file` knows.
        caption_column: the one with the captions, if it is named.

    Returns:
        How they are read; None if there are none.

    Raises:
        DataError: there are several kinds, or a file cannot be read.
    """
    if saved := find_saved_files(root):
        return name_containers("arrow", [str(file) for file in saved], (), caption_column)
    by_kind: dict[ContainerKind, list[Path]] = {}
    for file in files:
        if kind := kind_of_file(file.name):
            by_kind.setdefault(kind, []).append(file)
    notes = []
    if tables := by_kind.get("parquet"):
        # Beside tars, img2dataset writes a table of the same name.
        without = tables if "shards" in by_kind else [t for t in tables if not has_pictures(t)]
        if len(without) < len(tables):
            by_kind["parquet"] = [table for table in tables if table not in set(without)]
            notes += [
                f"{table.relative_to(root)} has no pictures, and is not read" for table in without
            ]
        elif len(by_kind) > 1:
            del by_kind["parquet"]
    if len(by_kind) > 1:
        names = ", ".join(found[0].name for found in by_kind.values())
        raise DataError(
            f"Cannot tell what the data is: `{root}` holds {names}. Name those that you want."
        )
    for kind, found in by_kind.items():
        return name_containers(kind, [str(file) for file in found], notes, caption_column)
    return None


def _stamp(files: Sequence[Path]) -> str | None:
    """Returns size and time of files; None if the first is not there, which is told later."""
    known = []
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            known.append(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}")
    return "\0".join(known) if known and files[0].exists() else None


def _kind_of_contents(local: LocalFile) -> ContainerKind:
    """Returns what a file is whose name does not say it; a tar, if nothing else."""
    with local.path.open("rb") as file:
        start = file.read(8)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "shards")


def _sides(names: Sequence[str]) -> list[Side | None]:
    """Returns the side of the split that each file's name or folder says: train-0000.tar."""
    folders = [re.split(r"[/\\]", name)[:-1] for name in names]
    common = len(folders[0]) if len(folders) == 1 else 0  # folders above all of them say nothing
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        common += len(folders) > 1
    return [
        side_of_folders(parts[common:]) or side_of_file(stem_of(file_name_of(name)))
        for name, parts in zip(names, folders, strict=True)
    ]
