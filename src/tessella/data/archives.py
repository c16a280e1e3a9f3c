"""Archives: a folder of pictures that was packed into one file, read without unpacking it.

    names and texts ─▶ the same folder with empty pictures ─▶ its records, with their true places

A zip, or a tar that is no WebDataset shard, is read as the folder that it was: with captions
beside the pictures, in a table, or in folders' names. Only the texts and tables are unpacked, into
a temporary folder; the decoding threads read the pictures out of the archive.
"""

import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from tessella.data.addresses import LocalFile
from tessella.data.folders import SIDECAR_SUFFIXES, is_hidden, is_image, suffix_of
from tessella.data.records import ImageLocation, Location, Record, Skipped
from tessella.data.table_rows import TABLE_SUFFIXES
from tessella.errors import DataError, first_line
from tessella.images import ImageError

_TEXT_SUFFIXES = {*TABLE_SUFFIXES, *SIDECAR_SUFFIXES}
_MAX_IMAGE_BYTES = 1 << 30  # of one picture, unpacked
_MAX_TEXT_BYTES = 1 << 30  # of one table
# What Python raises at a member that is damaged, encrypted or packed in a way it does not know.
_UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class Packed:
    """One file of an archive."""

    name: str  # path in the archive
    location: Location | None = None  # of a picture
    read: Callable[[], bytes] = bytes  # of anything else: reads its contents


@dataclass(frozen=True, slots=True)
class ZipLocation:
    """A picture in a zip."""

    archive: zipfile.ZipFile
    member: zipfile.ZipInfo
    owner: object  # keeps a temporary file as long as it is needed

    def read(self) -> bytes:
        """Reads the picture's file.

        Raises:
            ImageError: it is broken, or packed in a way that Python cannot unpack.
        """
        if self.member.file_size > _MAX_IMAGE_BYTES:
            raise ImageError(
                f"The file is too large: {self.member.file_size:,} bytes.", "too_large"
            )
        try:
            return self.archive.read(self.member)
        except _UNREADABLE as error:
            raise ImageError(f"Cannot read it out of the zip: {first_line(error)}.") from None


def zip_records(
    local: LocalFile,
    split_by: str | None,
    notes: Counter[str],
    caption_column: str | None = None,
) -> Iterator[Record | Skipped]:
    """Reads a zip as the folder that was packed.

    Args:
        local: a zip.
        split_by: the column that becomes a record's group.
        notes: counts what is done to records.
        caption_column: the one with the captions, if it is named.

    Raises:
        DataError: it cannot be read, is encrypted, or holds nothing that DATA may be.
    """
    try:
        archive = zipfile.ZipFile(local.path)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"Cannot read the zip: `{local.name}`. {first_line(error)}; copy or download it again, "
            "or leave it out."
        ) from None
    if not all(member.filename for member in archive.infolist()):
        raise DataError(
            f"The zip is damaged: `{local.name}`. A file in it has no name; copy or download it "
            "again, or leave it out."
        )
    members = [member for member in archive.infolist() if not member.is_dir()]
    if any(member.flag_bits & 1 for member in members):
        raise DataError(
            f"The zip is encrypted: `{local.name}`. Unpack it with its password, and name the "
            "folder."
        )
    packed = (
        Packed(member.filename, ZipLocation(archive, member, local.owner))
        if is_image(member.filename)
        else Packed(member.filename, read=_reader(local, archive, member))
        for member in members
    )
    yield from packed_records(local.name, packed, split_by, notes, caption_column)


def _reader(
    local: LocalFile, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> Callable[[], bytes]:
    """Returns a function that reads a text of a zip."""

    def read() -> bytes:
        try:
            with archive.open(member) as file:
                content = file.read(_MAX_TEXT_BYTES + 1)
            if len(content) > _MAX_TEXT_BYTES:
                raise OSError(f"it has more than {_MAX_TEXT_BYTES:,} bytes")
            return content
        except _UNREADABLE as error:
            raise DataError(
                f"Cannot read `{member.filename}` in the zip: `{local.name}`. {first_line(error)}."
            ) from None

    return read


def packed_records(
    archive: str,
    files: Iterable[Packed],
    split_by: str | None,
    notes: Counter[str],
    caption_column: str | None = None,
) -> Iterator[Record | Skipped]:
    """Reads the files of an archive as the folder that they were.

    Args:
        archive: its name.
        files: of it.
        split_by: the column that becomes a record's group.
        notes: counts what is done to records.
        caption_column: the one with the captions, if it is named.

    Raises:
        DataError: the folder holds nothing that DATA may be.
    """
    from tessella.data.sources import recognise  # which reads archives too

    with tempfile.TemporaryDirectory(prefix="tessella-", ignore_cleanup_errors=True) as name:
        root = Path(name) / "data"  # a name that is no caption
        root.mkdir()
        locations = _lay_out(root, archive, files)
        try:
            source, inner = recognise(str(root), caption_column), Counter[str]()
            for record in source.records(split_by=split_by, notes=inner):
                yield _in_archive(record, root, archive, locations)
            for note, count in (*dict.fromkeys(source.notes, 0).items(), *inner.items()):
                notes[note.replace(str(root), archive)] += count
        except DataError as error:
            message = str(error).replace(str(root), archive)
            raise DataError(
                f"{message} If its pictures or captions are in other files, in it or beside it, "
                "unpack them all into one folder, and name that."
            ) from None


def _lay_out(root: Path, archive: str, files: Iterable[Packed]) -> dict[str, Location]:
    """Writes the texts of an archive and empty files for its pictures.

    Returns:
        The true locations of the pictures.
    """
    locations = {}
    try:
        for file in files:
            path = _place(root, file.name)
            if path is None:
                continue
            if file.location is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                locations[str(path)] = file.location
            elif suffix_of(path.name) in _TEXT_SUFFIXES:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
    except OSError as error:
        raise DataError(
            f"Cannot unpack the captions of: `{archive}` into `{root}`. {error.strerror}. Free "
            "some space, or let TMPDIR name a folder with more."
        ) from None
    return locations


def _place(root: Path, name: str) -> Path | None:
    """Returns where a file is laid out; None if it is hidden, or its name leads elsewhere."""
    parts = PurePosixPath(name.replace("\\", "/").lstrip("/")).parts
    if not parts or ".." in parts or any(map(is_hidden, parts)):
        return None
    return root.joinpath(*parts)


def _in_archive(
    record: Record | Skipped, root: Path, archive: str, locations: dict[str, Location]
) -> Record | Skipped:
    """Gives a record of the folder that was laid out its name and location in the archive."""
    name = record.name.replace(str(root), archive)
    if isinstance(record, Skipped):
        return replace(record, name=name, reason=record.reason.replace(str(root), archive))
    location = record.location
    if isinstance(location, ImageLocation) and location.path not in locations:
        return Skipped(name, "There is no such picture in the archive.", "missing")
    if isinstance(location, ImageLocation):
        location = locations[location.path]
    return replace(record, name=name, location=location)
