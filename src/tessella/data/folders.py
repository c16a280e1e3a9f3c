"""Folders of pictures: walks them, pairs pictures with caption files, reads class folders.

A picture and its caption file belong together if they have the same relative path without the
suffix; the same stem in another folder is another picture.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tessella.data import records
from tessella.data.records import ImageLocation, Record, Skipped
from tessella.errors import DataError
from tessella.images import IMAGE_SUFFIXES

# Texts that often lie beside pictures and are not captions.
_NOT_CAPTIONS = {"readme", "license", "licence", "notice", "credits", "attribution", "changelog"}


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one folder without hidden ones, sorted by name."""

    folder: Path
    files: list[str]

    def path(self, name: str) -> str:
        """Returns the path of a file."""
        return os.path.join(self.folder, name)  # noqa: PTH118 - Path is ten times slower


def walk(root: Path) -> Iterator[Listing]:
    """Lists a folder and all folders under it, in the same order on every machine.

    Linked folders are followed, but each real folder is listed once.

    Raises:
        DataError: a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        folder = Path(name)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(inner for inner in folders if not _is_hidden(inner))
        yield Listing(folder, sorted(file for file in files if not _is_hidden(file)))


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"Cannot list the folder: `{error.filename}`. {error.strerror}; check its permissions."
    ) from None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Says by its suffix whether a file should be a picture."""
    return suffix_of(name) in IMAGE_SUFFIXES


def is_caption(name: str) -> bool:
    """Says by its name whether a file should hold captions."""
    return suffix_of(name) == ".txt" and stem_of(name).lower() not in _NOT_CAPTIONS


# The next two avoid Path, which is ten times slower for a million files.


def suffix_of(name: str) -> str:
    """Returns a file name's last suffix in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def stem_of(name: str) -> str:
    """Returns a file name without its last suffix."""
    return os.path.splitext(name)[0]  # noqa: PTH122


def caption_folder_records(root: Path) -> Iterator[Record | Skipped]:
    """Pairs the pictures under a folder with their caption files.

    Yields:
        A record per picture, or a skip: for pictures without captions and captions without picture.
    """
    for listing in walk(root):
        texts = {stem_of(name): listing.path(name) for name in listing.files if is_caption(name)}
        used: set[str] = set()
        for image in filter(is_image, listing.files):
            stem = stem_of(image)
            used.add(stem)
            yield _pair(listing.path(image), texts.get(stem))
        for stem, path in texts.items():
            if stem not in used:
                yield Skipped(path, "no picture of the same name lies beside it", "imageless")


def _pair(image: str, text: str | None) -> Record | Skipped:
    """Makes the record of a picture and its caption file."""
    if text is None:
        return Skipped(image, "no .txt of the same name lies beside it", "captionless")
    try:
        with Path(text).open("rb") as file:
            captions = records.captions_from_text(file.read(records.MAX_CAPTION_BYTES + 1))
    except (OSError, records.CaptionError) as error:
        return Skipped(image, f"its caption file cannot be used: {error}", "bad_caption")
    if not captions:
        return Skipped(image, "its caption file is blank", "captionless")
    return Record(image, ImageLocation(image), captions)


def class_folder_records(root: Path) -> Iterator[Record | Skipped]:
    """Captions each picture with the name of its folder; dashes become spaces.

    Yields:
        A record per picture; a skip if the folder's name cannot be a caption.
    """
    for listing in walk(root):
        words = listing.folder.name.replace("_", " ").replace("-", " ")
        try:
            captions = records.clean_captions([words])
        except records.CaptionError:
            captions = ()
        for path in map(listing.path, filter(is_image, listing.files)):
            if captions:
                yield Record(path, ImageLocation(path), captions)
            else:
                yield Skipped(path, "the folder's name cannot be a caption", "captionless")
