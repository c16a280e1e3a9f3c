"""Samples: which files of a WebDataset shard belong together, by their names alone.

Files with the same key are one sample. The key is the path up to the first dot of the file's
name. Where that would make one sample of many pictures (`St. Mary 0001.jpg`, `St. Mary 0002.jpg`),
files belong to the picture whose whole name, without its suffix, theirs begins with.

Source: https://github.com/webdataset/webdataset, "WebDataset format".
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tessella.data.folders import is_image, stem_of


class Member(NamedTuple):
    """A file in a tar; a tuple, because a shard may hold a million."""

    name: str
    offset: int  # of its first byte
    size: int


@dataclass
class Pairs:
    """Files of the same key, put together."""

    samples: list[tuple[Member, list[Member]]] = field(default_factory=list)  # picture, texts
    same_name: list[list[Member]] = field(default_factory=list)  # differ only in their suffixes
    images: list[Member] = field(default_factory=list)  # without a text
    texts: list[Member] = field(default_factory=list)  # without a picture


class Grouping:
    """Groups the files of one shard."""

    def __init__(self) -> None:
        """Starts with webdataset's key."""
        self.is_dotted = False
        """Whether the first dots of names were found not to tell samples apart."""

    def runs(self, members: Iterable[Member]) -> Iterator[list[Member]]:
        """Groups files that follow each other and have the same key.

        A group also ends where a picture has its text and the next file belongs to neither: names
        with a dot in common would make one group of the whole shard.
        """
        run: list[Member] = []
        stems: set[str] = set()
        for member in members:
            is_new = bool(run) and key_of(member.name) != key_of(run[0].name)
            if run and not is_new and _within(member.name, stems) is None:
                texts = (text.name for text in run if not is_image(text.name))
                is_new = any(_within(text, stems) for text in texts)
                self.is_dotted |= is_new
            if is_new:
                yield run
                run, stems = [], set()
            run.append(member)
            if is_image(member.name):
                stems.add(stem_of(member.name))
        if run:
            yield run

    def pair(self, group: Iterable[Member]) -> Pairs:
        """Puts the pictures and texts of one key together."""
        images: dict[str, list[Member]] = {}
        texts = []
        for member in group:
            if is_image(member.name):
                images.setdefault(stem_of(member.name), []).append(member)
            else:
                texts.append(member)
        pairs, of = Pairs(), {stem: list[Member]() for stem in images}
        for text in texts:
            stem = _within(text.name, images)
            if stem is None and len(images) == 1 and not self.is_dotted and _is_suffixed(text):
                [stem] = images  # `0001.image.jpg` and `0001.caption.txt`
            (pairs.texts if stem is None else of[stem]).append(text)
        paired = {stem for stem, found in of.items() if found}
        self.is_dotted |= len(paired) > 1
        for stem, same in images.items():
            if stem in paired and len(same) == 1:
                pairs.samples.append((same[0], of[stem]))
            elif stem in paired:
                pairs.same_name.append(same)
            # Else it may be another column of a sample: `0001.seg.png` beside `0001.jpg`.
            elif _within(stem, paired) is None:
                pairs.images += same
        return pairs

    def has_sample(self, group: Iterable[Member]) -> bool:
        """Says whether any picture of a key has a text."""
        pairs = self.pair(group)
        return bool(pairs.samples or pairs.same_name)


def key_of(name: str) -> str:
    """Returns webdataset's key: the path up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _within(name: str, stems: Collection[str]) -> str | None:
    """Returns the longest of some stems that a name begins with, up to one of its dots."""
    while (shorter := stem_of(name)) != name:
        if shorter in stems:
            return shorter
        name = shorter
    return None


def _is_suffixed(text: Member) -> bool:
    """Says whether what follows the key may be suffixes, not a part of a name with dots."""
    return re.search(r"\s", text.name[len(key_of(text.name)) :]) is None
