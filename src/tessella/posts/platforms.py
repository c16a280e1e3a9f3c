"""The platforms that posts are written for, and how long a post may be on each.

Text and hashtags are published together, and both count. `platforms.toml` has the limits.
"""

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

# Only from the start of a word: otherwise a long word is scanned once for each of its letters.
_LINK = re.compile(r"(?<![\w.-])(https?://)?(?:[\w-]+\.)+[a-z]{2,}(?:[/:?#]\S*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Platform:
    """A platform and its limits; `platforms.toml` says what each field is."""

    name: str
    max_characters: int
    max_hashtags: int
    manner: str
    characters_per_link: int | None = None
    weights: Sequence[tuple[int, int, int]] = ()
    other_weight: int = 1

    def count_characters(self, text: str) -> int:
        """Counts as the platform does, or more: a text that fits here fits there.

        A text of over four times the limit is too long however its links count, so its characters
        are simply counted.
        """
        if len(text) > 4 * self.max_characters:
            return len(text)
        text = unicodedata.normalize("NFC", text)
        if self.characters_per_link is not None:
            text = _LINK.sub(self._shorten_link, text)
        return sum(self._weigh(ord(sign)) for sign in text)

    def _weigh(self, sign: int) -> int:
        weights = (weight for first, last, weight in self.weights if first <= sign <= last)
        return next(weights, self.other_weight)

    def _shorten_link(self, link: re.Match[str]) -> str:
        """Makes a link as long as it counts; without https:// a platform may not recognise one."""
        short = "x" * (self.characters_per_link or 0)
        return short if link[1] else max(short, link[0], key=len)


_TABLES = tomllib.loads(Path(__file__).with_name("platforms.toml").read_text(encoding="utf-8"))
PLATFORMS = {name: Platform(name, **limits) for name, limits in _TABLES.items()}

if TYPE_CHECKING:
    PlatformName = str
else:
    PlatformName = Literal[tuple(PLATFORMS)]
