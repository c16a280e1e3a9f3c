"""WebDataset shards: tars of pictures with captions beside them.

Captions are `.txt`, `.caption` or `.cap`, a field of `.json`, or the class in `.cls`; `samples.py`
says which files belong together. A shard is read once from front to back, and only its headers
and captions: the decoding threads read the pictures by their offset in the tar. Samples whose
files do not follow each other are put together at the end.

Source: https://github.com/webdataset/webdataset, "WebDataset format".
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import BinaryIO

from tessella.data import records
from tessella.data.addresses import LocalFile, read_beside
from tessella.data.archives import TABLE_SUFFIXES, Packed, packed_records
from tessella.data.class_names import CLASS_FILES, ClassNames, read_class_names
from tessella.data.folders import is_image, suffix_of
from tessella.data.records import ImageLocation, Record, Skipped
from tessella.data.samples import Grouping, Member, Pairs, key_of
from tessella.errors import DataError

_TEXTS = (".txt", ".caption", ".cap")  # the first that a sample has is read
_CAPTIONS = (*_TEXTS, ".json", ".cls")
_MAX_TABLE_BYTES = 1 << 30


@dataclass
class _Shard:
    """A tar while it is read."""

    local: LocalFile
    stream: BinaryIO
    split_by: str | None
    class_names: ClassNames | None
    grouping: Grouping = field(default_factory=Grouping)
    waiting: list[Member] = field(default_factory=list)  # of samples that are not complete yet
    tables: list[Member] = field(default_factory=list)  # read if no picture has a caption file
    links: list[str] = field(default_factory=list)
    num_paired: int = 0  # pictures that have a caption file

    def content(self, member: Member, most: int = records.MAX_CAPTION_BYTES + 1) -> bytes:
        """Reads a small file; tarfile seeks by itself afterwards."""
        self.stream.seek(member.offset)
        return self.stream.read(min(member.size, most))

    def name(self, member: Member) -> str:
        return f"{self.local.name}/{member.name}"

    def location(self, image: Member) -> ImageLocation:
        return ImageLocation(str(self.local.path), image.offset, image.size, self.local.owner)


def shard_records(local: LocalFile, split_by: str | None = None) -> Iterator[Record | Skipped]:
    """Reads the samples of a shard.

    A tar in which no picture has a caption file is read as the folder that was packed: with a
    table of captions, or folders named after what they show.

    Args:
        local: a tar.
        split_by: the JSON field that becomes the record's group.

    Yields:
        A record per sample; a skip for a sample without a picture or without captions.

    Raises:
        DataError: not a tar, or cut off (it cannot be known how much is missing, so this does not
            count as one bad file).
    """
    try:
        with local.path.open("rb") as stream:
            shard = _Shard(local, stream, split_by, _names_beside(local))
            for run in shard.grouping.runs(_members(shard)):
                pairs = shard.grouping.pair(run)
                shard.waiting += [*pairs.images, *pairs.texts]
                yield from _samples(shard, pairs, may_wait=True)
            images = [member for member in shard.waiting if is_image(member.name)]
            rest = _put_together_rest(shard)
            if not shard.num_paired:
                rest = _read_as_folder(shard, images) or rest
            yield from rest
            for name in shard.links:
                yield Skipped(name, "a link in a tar is not followed; pack the file itself", "link")
    except OSError as error:
        raise DataError(f"Cannot read the tar: `{local.name}`. {error.strerror}.") from None


def _names_beside(local: LocalFile) -> ClassNames | None:
    """Reads the class names in the shard's folder."""
    found = read_beside(local.name, CLASS_FILES)
    try:
        return read_class_names(*found) if found else None
    except records.CaptionError as error:
        file = found[0] if found else ""
        raise DataError(f"The names of the classes cannot be read: `{file}`, {error}.") from None


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
    if info.isdir() or _is_hidden(member.name):
        return None
    if not info.isreg() or info.issparse():
        if is_sample:
            shard.links.append(shard.name(member))
        return None
    if not is_sample and suffix_of(member.name) in TABLE_SUFFIXES:
        shard.tables.append(member)
    return member if is_sample else None


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".") or "__MACOSX/" in name


def _samples(shard: _Shard, pairs: Pairs, *, may_wait: bool) -> Iterator[Record | Skipped]:
    """Reads the captions of the files that were put together."""
    for image, texts in pairs.samples:
        shard.num_paired += 1
        record = _sample(shard, image, texts)
        if record is None and may_wait:
            shard.waiting += [image, *texts]
            shard.num_paired -= 1
        else:
            reason = f"its .cls holds a number, and there is no {CLASS_FILES[0]} beside the shard"
            yield record or Skipped(shard.name(image), reason, "captionless")
    for images in pairs.same_name:
        reason = f"{len(images)} pictures have the same key"
        yield Skipped(shard.name(images[0]), reason, "ambiguous")


def _sample(shard: _Shard, image: Member, texts: list[Member]) -> Record | Skipped | None:
    """Makes the record of one sample; None if it needs names of classes that are not known yet."""
    name = shard.name(image)
    by_suffix = {suffix_of(text.name): text for text in sorted(texts, key=lambda t: -len(t.name))}
    try:
        table = by_suffix.get(".json")
        fields = records.fields_from_json(shard.content(table)) if table else {}
        captions: tuple[str, ...] = ()
        origin = ""
        for suffix in filter(by_suffix.__contains__, _CAPTIONS):
            origin = suffix
            if suffix == ".json":
                captions = records.captions_from_fields(fields)
            elif suffix == ".cls":
                caption = _class_caption(shard, shard.content(by_suffix[suffix]))
                if caption is None:
                    return None
                captions = records.clean_captions([caption])
            else:
                captions = records.captions_from_text(shard.content(by_suffix[suffix]))
            if captions:
                break
    except records.CaptionError as error:
        return Skipped(name, f"its caption file cannot be used: {error}", "bad_caption")
    if not captions:
        return Skipped(name, f"no {_LIST} with the same key has a caption", "captionless")
    group = records.group_from_fields(fields, shard.split_by)
    return Record(name, shard.location(image), captions, group, origin=_origin(shard, origin))


_LIST = f"{', '.join(_CAPTIONS[:-1])} or {_CAPTIONS[-1]}"


def _class_caption(shard: _Shard, content: bytes) -> str | None:
    """Reads a class: its name, or its number among the names; None if these are not known."""
    text = records.decode_caption(content).strip()
    if not text.isdecimal():
        return text.replace("_", " ")
    return None if shard.class_names is None else shard.class_names.caption(int(text))


def _origin(shard: _Shard, suffix: str) -> str:
    """Says where captions were read."""
    origin = f"{suffix} files in tars"
    if suffix == ".cls" and shard.class_names is not None:
        origin += f", named by {shard.class_names.file}"
    if shard.grouping.is_dotted:
        origin += (
            ", paired by whole names (the key up to the first dot, as webdataset has it, would "
            "make many pictures one)"
        )
    return origin


def _put_together_rest(shard: _Shard) -> list[Record | Skipped]:
    """Makes the samples of files that did not follow each other."""
    groups: dict[str, list[Member]] = {}
    for member in shard.waiting:
        if member.name.rpartition("/")[2] in CLASS_FILES:
            content = shard.content(member)
            shard.class_names = shard.class_names or read_class_names(shard.name(member), content)
        else:
            groups.setdefault(key_of(member.name), []).append(member)
    shard.waiting = []
    return list(chain.from_iterable(_rest_of_key(shard, group) for group in groups.values()))


def _rest_of_key(shard: _Shard, group: list[Member]) -> Iterator[Record | Skipped]:
    """Makes what can be made of the last files with the same key."""
    pairs = shard.grouping.pair(group)
    yield from _samples(shard, pairs, may_wait=False)
    texts = [text for text in pairs.texts if suffix_of(text.name) in _TEXTS]
    if len(pairs.images) > 1 and pairs.texts and not shard.grouping.is_dotted:
        # One file may name both, such as 0001.before.jpg, 0001.after.jpg and 0001.txt.
        name, number = shard.name(pairs.images[0]), len(pairs.images)
        yield Skipped(name, f"{number} pictures have the same key", "ambiguous")
        return
    for image in pairs.images:
        name = shard.name(image)
        yield Skipped(name, f"no {_LIST} with the same key has a caption", "captionless")
    for text in texts:
        yield Skipped(shard.name(text), "no picture has the same key", "imageless")


def _read_as_folder(shard: _Shard, images: list[Member]) -> list[Record | Skipped] | None:
    """Reads a tar whose pictures have no caption files as the folder that it was, if it can be."""
    packed = [Packed(image.name, shard.location(image)) for image in images]
    for table in shard.tables:
        packed.append(Packed(table.name, read=partial(shard.content, table, _MAX_TABLE_BYTES)))
    try:
        return list(packed_records(shard.local.name, packed, shard.split_by))
    except DataError:
        return None
