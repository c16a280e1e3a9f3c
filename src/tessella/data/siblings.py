"""Siblings: texts that are named like the pictures of another folder.

    images/train/0001.jpg      captions/train/0001.txt
    train_images/0001.jpg      train_captions/0001.txt
    images/crow/0001.jpg       text_c10/crow/0001.txt

They belong together if their paths are the same once the words are left out that only say what
kind of file lies in a folder. A text that pictures of two folders may mean is neither's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tessella.data.folders import is_image, stem_of, walk
from tessella.data.names import PICTURE_WORDS, TEXT_WORDS, normalise, side_of_name

_Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Siblings:
    """The texts in other folders, by what they have in common with a picture."""

    texts: Mapping[_Key, tuple[str, ...]] = field(default_factory=dict)  # the likeliest first
    above: tuple[str, ...] = ()  # the folders above the pictures' that count too
    num_ambiguous: int = 0  # texts that may be of pictures in several folders

    def find(self, folders: tuple[str, ...], image: str) -> tuple[str, ...]:
        """Returns the texts of a picture; empty if there is none.

        Args:
            folders: from the root to the picture.
            image: its file name.
        """
        keys = _list_keys((*self.above, *folders), image) if self.texts else ()
        return next((self.texts[key] for key in keys if key in self.texts), ())

    def paths(self) -> set[str]:
        """Returns all texts."""
        return {path for paths in self.texts.values() for path in paths}


def find_siblings(root: Path, texts: Iterable[Path], base: Path) -> Siblings:
    """Finds the texts of the pictures under a root.

    Args:
        root: of the pictures.
        texts: that lie beside no picture of their name.
        base: the root; or the folder above it, for texts that lie beside the root.
    """
    found: dict[_Key, list[str]] = {}
    for path in texts:
        for key in _list_keys(path.parent.relative_to(base).parts, path.name):
            found.setdefault(key, []).append(str(path))
    above = () if base == root else (root.absolute().name,)
    holders: dict[_Key, set[Path]] = {}
    for listing in walk(root) if found else ():
        folders = (*above, *listing.folder.relative_to(root).parts)
        for image in filter(is_image, listing.files):
            keys = [key for key in _list_keys(folders, image) if key in found]
            if keys:
                holders.setdefault(keys[0], set()).add(listing.folder)
    clear = [key for key, of in holders.items() if len(of) == 1]
    siblings = {key: tuple(sorted(found[key], key=_rank)) for key in clear}
    return Siblings(siblings, above, len(holders) - len(siblings))


def _list_keys(folders: tuple[str, ...], name: str) -> Iterator[_Key]:
    """Lists what a picture and its text may have in common, the stricter first."""
    stem = stem_of(name)
    if not is_image(name) and is_image(stem):  # photo.jpg.txt
        stem = stem_of(stem)
    exact, loose = [normalise(stem)], [normalise(stem)]
    for folder in reversed(folders):
        words = _words(folder)
        rest = [word for word in words if word not in PICTURE_WORDS and word not in TEXT_WORDS]
        exact += ["_".join(rest)] if rest else []
        # text_c10: the rest tells kinds of texts apart, and says nothing of the picture.
        rest = rest if len(rest) == len(words) else [word for word in rest if side_of_name(word)]
        loose += ["_".join(rest)] if rest else []
    yield tuple(exact)
    yield ("", *loose)


def _words(folder: str) -> list[str]:
    return [word for word in re.split(r"[\s_-]+", normalise(folder)) if word]


def _rank(path: str) -> tuple[int, str]:
    """Ranks texts by the names of their folders, the likeliest captions first."""
    return rank_of_text_folder(Path(path).parts[:-1]), path


def rank_of_text_folder(folders: Iterable[str]) -> int:
    """Ranks folders by the word for texts in their names; as many as there are words without."""
    words = {word for folder in folders for word in _words(folder)}
    return min((n for n, word in enumerate(TEXT_WORDS) if word in words), default=len(TEXT_WORDS))
