"""WebDataset shards: tars of pictures with captions beside them.

Captions are `.txt`, `.caption` or `.cap`, a field of `.json`, or the class in `.cls`; `samples.py`
says which files belong together. A shard is read once from front to back, and only its headers
and captions: the decoding threads read the pictures by their offset in the tar. Samples whose
files do not follow each other are put together at the end.

Source: https://github.com/webdataset/webdataset, "WebDataset format".
"""

import contextlib
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

from tessella.data import records
from tessella.data.addresses import LocalFile, read_beside
from tessella.data.archives import Packed, packed_records
from tessella.data.class_names import CLASS_FILES, ClassNames, read_class_names
from tessella.data.folders import is_hidden, is_image, stem_of, suffix_of
from tessella.data.records import ImageLocation, Record, Skipped
from tessella.data.samples import Grouping, Member, Pairs, key_of
from tessella.data.table_rows import TABLE_SUFFIXES
from tessella.errors import DataError

_TEXTS = (".txt", ".caption", ".cap")  # the first that a sample has is read
_CAPTIONS = (*_TEXTS, ".json", ".cls")
_NO_CAPTION = f"no {', '.join(_CAPTIONS[:-1])} or {_CAPTIONS[-1]} with the same key has a caption"
_WHOLE_NAMES = (
    "pictures in tars are paired with their captions by their whole names: up to the first dot, "
    "where webdataset's key ends, many are called the same"
)
_MAX_TABLE_BYTES = 1 << 30


@dataclass
class _Shard:
    """A tar while it is read."""

    local: LocalFile
    stream: BinaryIO
    split_by: str | None
    notes: Counter[str]
    class_names: ClassNames | None
    caption_column: str | None = None
    grouping: Grouping = field(default_factory=Grouping)
    waiting: list[Member] = field(default_factory=list)  # of samples that are not complete yet
    tables: list[Member] = field(default_factory=list)  # read if no picture has a caption file
    links: list[str] = field(default_factory=list)
    num_paired: int = 0  # pictures that have a caption file

    def content(self, member: Member, most: int = records.MAX_CAPTION_BYTES + 1) -> bytes:
        """Reads a small file; tarfile seeks by itself afterwards."""
        self.stream.seek(member.offset)
        return self.stream.read(min(member.size, most))

    @property
    def caption_fields(self) -> tuple[str, ...]:
        """The JSON fields that may hold captions."""
        return (self.caption_column,) if self.caption_column else records.CAPTION_FIELDS

    def name(self, member: Member) -> str:
        return f"{self.local.name}/{member.name}"

    def location(self, image: Member) -> ImageLocation:
        return ImageLocation(str(self.local.path), image.offset, image.size, self.local.owner)


def shard_records(
    local: LocalFile,
    split_by: str | None,
    notes: Counter[str],
    caption_column: str | None = None,
) -> Iterator[Record | Skipped]:
    """Reads the samples of a shard.

    A tar in which no picture has a caption file is read as the folder that was packed: with a
    table of captions, or folders named after what they show.

    Args:
        local: a tar.
        split_by: the JSON field that becomes the record's group.
        notes: counts what is done to samples.
        caption_column: the JSON field with the captions, if it is named.

    Yields:
        A record per sample; a skip for a sample without a picture or without captions.

    Raises:
        DataError: not a tar, or cut off (it cannot be known how much is missing, so this does not
            count as one bad file).
    """
    try:
        with local.path.open("rb") as stream:
            shard = _Shard(local, stream, split_by, notes, _names_beside(local), caption_column)
            for run in shard.grouping.runs(_members(shard)):
                pairs = shard.grouping.pair(run)
                shard.waiting += [*pairs.images, *pairs.texts]
                yield from _samples(shard, pairs, may_wait=True)
            yield from _read_rest(shard)
            for name in shard.links:
                yield Skipped(name, "a link in a tar is not followed; pack the file itself", "link")
    except OSError as error:
        raise DataError(f"Cannot read the tar: `{local.name}`. {error.strerror}.") from None


def _names_beside(local: LocalFile) -> ClassNames | None:
    """Reads the class names in the shard's folder."""
    found = read_beside(local.name, CLASS_FILES)
    return _read_names(*found) if found else None


def _read_names(file: str, content: bytes) -> ClassNames:
    try:
        return read_class_names(file, content)
    except records.CaptionError as error:
        raise DataError(
            f"The names of the classes cannot be read: `{file}`, {error}. One name a line is "
            "expected; mend the file or take it away."
        ) from None


def _members(shard: _Shard) -> Iterator[Member]:
    """Reads the headers of the pictures and captions in a tar; memory stays flat."""
    last = "its first file"
    tar_name, stream = shard.local.name, shard.stream
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (info := tar.next()) is not None:
                # tarfile keeps every header it has seen; a shard may hold a million.
                vars(tar)["members"].clear()
                last = f"`{info.name}`"
                member = _choose(shard, info)
                if member is not None:
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
                f"The tar is cut off: `{tar_name}`. It ends in or after {last}; "
                "copy or download it again, or leave it out."
            ) from None
        raise DataError(
            f"Cannot read the tar: `{tar_name}`. It must be a .tar, compressed or not ({error}); "
            "copy or download it again, or leave it out."
        ) from None
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"Cannot read the tar: `{tar_name}`. Broken in or after {last} ({error}); "
            "copy or download it again, or leave it out."
        ) from None


def _choose(shard: _Shard, info: tarfile.TarInfo) -> Member | None:
    """Returns a picture or caption; notes tables and links; leaves everything else out."""
    member = Member(info.name.removeprefix("./"), info.offset_data, info.size)
    is_sample = is_image(member.name) or suffix_of(member.name) in _CAPTIONS
    if info.isdir() or any(map(is_hidden, member.name.split("/"))):
        return None
    if not info.isreg() or info.issparse():
        if is_sample:
            shard.links.append(shard.name(member))
        return None
    if not is_sample and suffix_of(member.name) in TABLE_SUFFIXES:
        shard.tables.append(member)
    return member if is_sample else None


def _samples(shard: _Shard, pairs: Pairs, *, may_wait: bool) -> Iterator[Record | Skipped]:
    """Reads the captions of the files that were put together."""
    for image, texts in pairs.samples:
        record = _sample(shard, image, texts)
        if may_wait and isinstance(record, Skipped) and record.kind == "captionless":
            shard.waiting += [image, *texts]  # its caption may come later
        else:
            shard.num_paired += 1
            yield record
    for images in pairs.same_name:
        reason = f"{len(images)} pictures have the same key"
        yield Skipped(shard.name(images[0]), reason, "ambiguous")


def _sample(shard: _Shard, image: Member, texts: list[Member]) -> Record | Skipped:
    """Makes the record of one sample."""
    name = shard.name(image)
    by_suffix = {suffix_of(text.name): text for text in sorted(texts, key=lambda t: -len(t.name))}
    known = _CAPTIONS if shard.caption_column is None else (".json",)
    suffixes = [suffix for suffix in known if suffix in by_suffix]  # the best first
    contents = {suffix: shard.content(by_suffix[suffix]) for suffix in suffixes}
    try:
        fields = records.fields_from_json(contents[".json"]) if ".json" in contents else {}
        for suffix in suffixes:
            if suffix == ".json":
                captions = records.captions_from_fields(fields, shard.caption_fields)
            elif suffix == ".cls":
                captions = _class_captions(shard, contents[suffix])
            else:
                captions = records.captions_from_text(contents[suffix])
            if captions:
                if shard.grouping.is_dotted and stem_of(image.name) != key_of(image.name):
                    shard.notes[_WHOLE_NAMES] += 1
                group = records.group_from_fields(fields, shard.split_by)
                origin = _origin(shard, suffix)
                return Record(name, shard.location(image), captions, group, origin=origin)
    except records.CaptionError as error:
        return Skipped(name, f"its caption file cannot be used: {error}", "bad_caption")
    if suffixes == [".cls"]:
        reason = f"its .cls holds a number, and there is no {CLASS_FILES[0]} beside the shard"
        return Skipped(name, reason, "captionless")
    if shard.caption_column is not None:
        reason = f"no .json with the same key has {shard.caption_column} (data.caption_column)"
        return Skipped(name, reason, "captionless")
    return Skipped(name, _NO_CAPTION, "captionless")


def _class_captions(shard: _Shard, content: bytes) -> tuple[str, ...]:
    """Reads a class: its name, or its number among the names; none if these are not known."""
    text = records.decode_caption(content).strip()
    if not text.isdecimal():
        return records.clean_captions([text.replace("_", " ")])
    return (shard.class_names.caption(int(text)),) if shard.class_names is not None else ()


def _origin(shard: _Shard, suffix: str) -> str:
    """Says where captions were read."""
    origin = f"captions from the {suffix} files in the tars"
    if suffix == ".cls" and shard.class_names is not None:
        origin += f", named by {shard.class_names.file}"
    return origin


def _read_rest(shard: _Shard) -> Iterator[Record | Skipped]:
    """Makes the samples of files that did not follow each other."""
    groups: dict[str, list[Member]] = {}
    for member in shard.waiting:
        if member.name.rpartition("/")[2] in CLASS_FILES:
            names = _read_names(shard.name(member), shard.content(member))
            shard.class_names = shard.class_names or names
        groups.setdefault(key_of(member.name), []).append(member)
    if not shard.num_paired and not any(map(shard.grouping.has_sample, groups.values())):
        packed, first = _read_as_folder(shard), None
        with contextlib.suppress(DataError):  # there is nothing that could be captions
            first = next(packed, None)
        if first is not None:
            yield first
            yield from packed
            return
    for group in groups.values():
        yield from _rest_of_key(shard, group)


def _rest_of_key(shard: _Shard, group: list[Member]) -> Iterator[Record | Skipped]:
    """Makes what can be made of the last files with the same key."""
    pairs = shard.grouping.pair(group)
    yield from _samples(shard, pairs, may_wait=False)
    texts = [text.name for text in pairs.texts if suffix_of(text.name) in _TEXTS]
    texts = [name for name in texts if name.rpartition("/")[2] not in CLASS_FILES]
    if len(pairs.images) > 1 and pairs.texts and not shard.grouping.is_dotted:
        # One file may name both, such as 0001.before.jpg, 0001.after.jpg and 0001.txt.
        name, number = shard.name(pairs.images[0]), len(pairs.images)
        yield Skipped(name, f"{number} pictures have the same key", "ambiguous")
        return
    for image in pairs.images:
        yield Skipped(shard.name(image), _NO_CAPTION, "captionless")
    for text in texts:
        yield Skipped(f"{shard.local.name}/{text}", "no picture has the same key", "imageless")


def _read_as_folder(shard: _Shard) -> Iterator[Record | Skipped]:
    """Reads a tar whose pictures have no caption files as the folder that it was."""
    packed = [
        Packed(member.name, shard.location(member))
        if is_image(member.name)
        else Packed(member.name, read=partial(shard.content, member, _MAX_TABLE_BYTES))
        for member in (*shard.waiting, *shard.tables)
    ]
    return packed_records(
        shard.local.name, packed, shard.split_by, shard.notes, shard.caption_column
    )
