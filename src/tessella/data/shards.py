"""WebDataset shards: tars of pictures with `.txt` or `.json` captions beside them.

Consecutive files with the same key, the path up to the first dot of the file's name, are one
sample. A shard is read once from front to back, and only its headers and captions: the decoding
threads read the pictures by their offset in the tar.

Source: https://github.com/webdataset/webdataset, "WebDataset format".
"""

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from tessella.data import records
from tessella.data.folders import is_image, suffix_of
from tessella.data.records import ImageLocation, Record, Skipped
from tessella.errors import DataError


def shard_records(shard: Path, split_by: str | None = None) -> Iterator[Record | Skipped]:
    """Reads the samples of a shard.

    Args:
        shard: an uncompressed tar.
        split_by: the JSON field that becomes the record's group.

    Yields:
        A record per sample; a skip for a sample without a picture or without captions.

    Raises:
        DataError: not a tar, compressed, or cut off (it cannot be known how much is missing, so
            this does not count as one bad file).
    """
    try:
        with shard.open("rb") as stream:
            for _, members in groupby(_members(shard, stream), key=lambda m: _key(m.name)):
                record = _sample(shard, stream, list(members), split_by)
                if record is not None:
                    yield record
    except OSError as error:
        raise DataError(f"Cannot read the tar: `{shard}`. {error.strerror}.") from None


def _members(shard: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Reads the headers of the plain files in a tar; memory stays flat."""
    last = "its first file"
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # tarfile keeps every header it has seen; a shard may hold a million.
                vars(tar)["members"].clear()
                last = f"`{member.name}`"
                if member.isreg() and not member.issparse() and not _is_hidden(member.name):
                    yield member
            # tarfile also stops at a damaged header, and at the end of a file cut between two
            # members. Only zeros end a tar.
            stream.seek(tar.offset)
            block = stream.read(tarfile.BLOCKSIZE)
            if not block:
                raise tarfile.ReadError("unexpected end of data")
            if block.strip(b"\0"):
                raise tarfile.HeaderError("the next header is damaged")
    except tarfile.ReadError as error:
        if "unexpected end of data" in str(error):
            raise DataError(
                f"The tar is cut off: `{shard}`. It ends in or after {last}; "
                "copy or download it again, or leave it out."
            ) from None
        raise DataError(
            f"Cannot read the tar: `{shard}`. It must be an uncompressed .tar ({error}); "
            "a compressed one is unpacked first, for example with gunzip."
        ) from None
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"Cannot read the tar: `{shard}`. Broken in or after {last} ({error}); "
            "copy or download it again, or leave it out."
        ) from None


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".") or name.startswith("__MACOSX/")


def _key(name: str) -> str:
    """Returns the path up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _sample(
    shard: Path, stream: BinaryIO, members: list[tarfile.TarInfo], split_by: str | None
) -> Record | Skipped | None:
    """Makes the record of one sample; None if it has neither a picture nor a text."""
    images = [m for m in members if is_image(m.name)]
    texts = [m for m in members if suffix_of(m.name) == ".txt"]
    tables = [m for m in members if suffix_of(m.name) == ".json"]
    if not images:
        if not texts:
            return None
        name = f"{shard}/{texts[0].name}"
        return Skipped(name, "no picture has the same key", "imageless")
    name = f"{shard}/{images[0].name}"
    if len(images) > 1:
        return Skipped(name, f"{len(images)} pictures have the same key", "ambiguous")
    try:
        fields = records.fields_from_json(_content(stream, tables[0])) if tables else {}
        captions = records.captions_from_text(_content(stream, texts[0])) if texts else ()
        captions = captions or records.captions_from_fields(fields)
    except records.CaptionError as error:
        return Skipped(name, f"its caption file cannot be used: {error}", "bad_caption")
    if not captions:
        return Skipped(name, "no .txt or .json with the same key has a caption", "captionless")
    location = ImageLocation(str(shard), images[0].offset_data, images[0].size)
    return Record(name, location, captions, records.group_from_fields(fields, split_by))


def _content(stream: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """Reads a small file out of the tar; tarfile seeks by itself afterwards."""
    stream.seek(member.offset_data)
    return stream.read(min(member.size, records.MAX_CAPTION_BYTES + 1))
