"""Class names: what the numbers in `.cls` files mean, from a `classes.txt` of one name a line.

tench                        line i names class i, counted from 0
0 tench                      the numbers may be there, if each is that of its line
n01440764 tench, Tinca       WordNet's identifiers are left out
"""

import re
from dataclasses import dataclass

from tessella.data import records

CLASS_FILES = ("classes.txt", "classnames.txt", "class_names.txt", "labels.txt")

_WORDNET_ID = re.compile(r"n\d{8}[\s,:]+")
_NUMBERED = re.compile(r"(\d+)[\s,:]+(.+)")


@dataclass(frozen=True)
class ClassNames:
    """The names of classes by number."""

    file: str  # where they were read
    names: tuple[str, ...]

    def caption(self, number: int) -> str:
        """Returns the caption of a class.

        Raises:
            CaptionError: there is no such class.
        """
        if not 0 <= number < len(self.names):
            raise records.CaptionError(
                f"{self.file} has {len(self.names)} classes, and this is number {number}"
            )
        return " ".join(self.names[number].replace("_", " ").split())


def read_class_names(file: str, content: bytes) -> ClassNames:
    """Reads a file of class names.

    Raises:
        CaptionError: it is no text.
    """
    text = records.decode_caption(content)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if all(found and int(found[1]) == index for index, found in enumerate(numbered)):
        lines = [found[2] for found in numbered if found]
    return ClassNames(file, tuple(_WORDNET_ID.sub("", line, count=1) for line in lines))
