r"""Picture index: finds the picture that a table means, by the name that the table gives it.

    0001.jpg, 0001, images\\0001.jpg, ./Images/0001.JPG, /home/her/set/images/0001.jpg, 0001.jpg#3

A name that fits no picture, or several equally well, finds none: a wrong picture is worse.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from tessella.data.folders import list_images, stem_of, suffix_of, walk
from tessella.data.names import PICTURE_WORDS, normalise, side_of_folders
from tessella.data.records import Side
from tessella.images import IMAGE_SUFFIXES

_FLICKR_NUMBER = re.compile(r"#\d+$")
_UPLOADED = re.compile(r"[\da-f]{8}-(?=.)")  # Label Studio's, before the name that a file had


@dataclass(frozen=True, slots=True)
class _Picture:
    folder: int  # which of the index's
    name: str


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    parts: tuple[str, ...]  # relative to the root, normalised
    side: Side | None  # of the split, that its name says


class PictureIndex:
    """The pictures of a folder by their names; it is listed when the first name needs it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: list[_Folder] = []
        self._pictures: dict[str, list[_Picture]] | None = None
        self._names: dict[Path, frozenset[str]] = {}  # of the files of a folder
        self._compared: dict[tuple[Path, Path], bool] = {}
        self._known: set[tuple[str, ...]] = set()  # the folders, relative to the root
        self._above = tuple(normalise(part) for part in root.absolute().parts)

    def find(self, given: str, table_folder: Path, side: Side | None = None) -> str | None:
        """Finds a picture.

        Args:
            given: its name in a table.
            table_folder: where the table lies; names are relative to it, as a rule.
            side: of the split that the table speaks of: of two pictures of the same name, the one
                in the folder of that side is meant.

        Returns:
            Its path; None if there is none, or more than one that fits as well.
        """
        parts = split_name(given)
        if not parts or self._leads_out(parts, table_folder):
            return None
        if exact := self._find_exact(given, parts, table_folder):
            return exact
        last = parts[-1]
        found = self._lookup(last)
        if not found and (uploaded := _UPLOADED.match(last)):
            found = self._lookup(last := last[uploaded.end() :])
        if suffix_of(last) in IMAGE_SUFFIXES:
            found = [one for one in found if suffix_of(one.name) == suffix_of(last)]
        ranked = [
            (rank, one) for one in found if (rank := self._rank(one, parts, table_folder, side))
        ]
        best = max((rank for rank, _ in ranked), default=None)
        fitting = [one for rank, one in ranked if rank == best]
        return self._path(fitting[0]) if len(fitting) == 1 else None

    def _find_exact(self, given: str, parts: list[str], table_folder: Path) -> str | None:
        """Finds the file of that very name, whatever its suffix."""
        if is_absolute(given) or ".." in parts or not self._is_under(table_folder, self.root):
            return None
        folder = table_folder.joinpath(*parts[:-1]) if len(parts) > 1 else table_folder
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))  # noqa: PTH208
            except (OSError, ValueError):  # a zero or half a character is in no name
                self._names[folder] = frozenset()
        return str(folder / parts[-1]) if parts[-1] in self._names[folder] else None

    def _leads_out(self, parts: list[str], table_folder: Path) -> bool:
        """Says whether a name climbs out of the root."""
        if ".." not in parts or not self._is_under(table_folder, self.root):
            return False
        return parts.count("..") > len(table_folder.relative_to(self.root).parts)

    def _is_under(self, folder: Path, other: Path) -> bool:
        """Says whether a folder lies in another; each pair is compared once, for that is slow."""
        if (folder, other) not in self._compared:
            self._compared[folder, other] = folder.is_relative_to(other)
        return self._compared[folder, other]

    def _lookup(self, last: str) -> list[_Picture]:
        if self._pictures is None:
            self._pictures = {}
            for listing in walk(self.root):
                parts = listing.folder.relative_to(self.root).parts
                folder = _Folder(
                    listing.folder, tuple(map(normalise, parts)), side_of_folders(parts)
                )
                self._folders.append(folder)
                self._known.add(folder.parts)
                for name in list_images(listing):
                    picture = _Picture(len(self._folders) - 1, name)
                    self._pictures.setdefault(normalise(stem_of(name)), []).append(picture)
        stem = stem_of(last) if suffix_of(last) in IMAGE_SUFFIXES else last
        return self._pictures.get(normalise(stem), [])

    def _rank(
        self, picture: _Picture, parts: list[str], table_folder: Path, side: Side | None
    ) -> tuple[int, ...] | None:
        """Ranks how well a picture of the right name fits; None if its folders contradict."""
        folder = self._folders[picture.folder]
        inner = folder.parts
        wanted = tuple(normalise(part) for part in parts[:-1] if part != "..")
        whole = (*self._above, *inner)
        # A longer path may end in what is here, unless the folder that it names is here too.
        is_longer = wanted not in self._known and _ends_with(_telling(wanted), _telling(inner))
        if not is_longer and not _ends_with(whole, wanted):
            return None
        common = 0
        while common < min(len(whole), len(wanted)) and whole[-1 - common] == wanted[-1 - common]:
            common += 1
        return (
            common,
            int(side is not None and folder.side == side),
            int(folder.path == table_folder),
            int(self._is_under(folder.path, table_folder)),
            int(picture.name == parts[-1]),
        )

    def _path(self, picture: _Picture) -> str:
        return str(self._folders[picture.folder].path / picture.name)


def split_name(given: str) -> list[str]:
    """Splits a picture's name in a table into its parts, with either kind of slash."""
    given = given.strip()
    if re.match(r"[a-z][a-z\d+.-]*://", given):  # an address: the name is at the end of its path
        given = unquote(given.removeprefix("file://").partition("?")[0])
    name = _FLICKR_NUMBER.sub("", given.replace("\\", "/"))
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return parts


def is_absolute(given: str) -> bool:
    """Says whether a name is an absolute path or an address, of any system."""
    return re.match(r"\s*([A-Za-z]:|[a-z][a-z\d+.-]+:/)?[/\\]", given) is not None


def _ends_with(parts: tuple[str, ...], end: tuple[str, ...]) -> bool:
    return not end or parts[-len(end) :] == end


def _telling(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Leaves out folders that only say that there are pictures in them."""
    return tuple(part for part in parts if part not in PICTURE_WORDS)
