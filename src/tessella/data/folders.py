"""Folders: walks them in the same order on every machine, and says what a file's name means."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tessella.errors import DataError
from tessella.images import IMAGE_SUFFIXES, READ_SUFFIXES

# Files with captions that are named after their picture; the first one with a caption is read.
SIDECAR_SUFFIXES = (".txt", ".caption", ".cap", ".json", ".tags", ".xmp")

# Of systems and stores: what is deleted, small copies, what a notebook keeps.
_HIDDEN = {
    "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
}  # fmt: skip
# OneTrainer's masks of pictures: dog-masklabel.png beside dog.jpg.
_MASKS = ("-masklabel", "-condlabel")

# Texts that often lie beside pictures and are not captions.
_NOT_CAPTIONS = {"readme", "license", "licence", "notice", "credits", "attribution", "changelog"}


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one folder without hidden ones, sorted by name."""

    folder: Path
    files: list[str]

    def path(self, name: str) -> str:
        """Returns the path of a file, as `folder / name` writes it."""
        folder = str(self.folder)
        return name if folder == "." else os.path.join(folder, name)  # noqa: PTH118 - see below


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
        folders[:] = sorted(inner for inner in folders if not is_hidden(inner))
        yield Listing(folder, sorted(file for file in files if not is_hidden(file)))


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"Cannot list the folder: `{error.filename}`. {error.strerror}; check its permissions."
    ) from None


def is_hidden(name: str) -> bool:
    """Says whether a file or folder is nobody's own: hidden, deleted, or kept by a system."""
    return name.startswith(".") or name in _HIDDEN


def is_image(name: str) -> bool:
    """Says by its suffix whether a file should be a picture."""
    return suffix_of(name) in IMAGE_SUFFIXES


def is_mask(name: str) -> bool:
    """Says by its name whether a file is a mask of another picture, in OneTrainer's layout."""
    return stem_of(name).endswith(_MASKS)


def list_images(listing: Listing) -> list[str]:
    """Lists the pictures of a folder, each once.

    A file that cannot be read (a camera's raw file, a project of Photoshop) is left out if a
    picture of the same name that can be read lies beside it; and so is a picture's mask.
    """
    images = [name for name in listing.files if is_image(name)]
    if any(map(is_mask, images)):
        stems = {stem_of(name) for name in images}
        images = [
            name
            for name in images
            if not is_mask(name) or stem_of(name).rpartition("-")[0] not in stems
        ]
    readable = [name for name in images if suffix_of(name) in READ_SUFFIXES]
    if len(readable) == len(images):
        return images
    stems = {stem_of(name).casefold() for name in readable}
    return [
        name
        for name in images
        if suffix_of(name) in READ_SUFFIXES or stem_of(name).casefold() not in stems
    ]


def is_sidecar(name: str) -> bool:
    """Says by its name whether a file may hold the captions of the picture it is named after."""
    return suffix_of(name) in SIDECAR_SUFFIXES and stem_of(name).lower() not in _NOT_CAPTIONS


# The next two avoid Path, which is ten times slower for a million files.


def suffix_of(name: str) -> str:
    """Returns a file name's last suffix in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def stem_of(name: str) -> str:
    """Returns a file name without its last suffix."""
    return os.path.splitext(name)[0]  # noqa: PTH122
