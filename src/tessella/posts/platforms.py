"""The platforms that posts are written for, and how long a post may be on each.

Text and hashtags are published as one text, and both count. Sources: docs/how-to/post.md.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

PlatformName = Literal[
    "instagram",
    "facebook",
    "x",
    "linkedin",
    "threads",
    "bluesky",
    "mastodon",
    "pinterest",
    "tiktok",
]
PLATFORM_NAMES: tuple[PlatformName, ...] = get_args(PlatformName)

# From a word's start on: from within, a long word would be read once for each of its letters.
_LINK = re.compile(r"(?<![\w.-])(https?://)?(?:[\w-]+\.)+[a-z]{2,}(?:[/:?#]\S*)?", re.IGNORECASE)
# (first, last, weight) of code points.
_Weights = tuple[tuple[int, int, int], ...]
# twitter-text, configuration 3: all others, emoji among them, count as two.
_X_WEIGHTS: _Weights = (
    (0x0000, 0x10FF, 1),
    (0x2000, 0x200D, 1),
    (0x2010, 0x201F, 1),
    (0x2032, 0x2037, 1),
)
# Threads counts an emoji's bytes in UTF-8, those of its invisible parts included.
_EMOJI_BYTES: _Weights = (
    (0x200D, 0x200D, 3),
    (0x2190, 0x2BFF, 3),
    (0x3030, 0x303D, 3),
    (0xFE0F, 0xFE0F, 3),
    (0x1F000, 0x1FFFF, 4),
    (0xE0020, 0xE007F, 4),
)


@dataclass(frozen=True)
class Platform:
    """Where a post is published."""

    name: PlatformName
    max_characters: int  # of text and hashtags together
    max_hashtags: int
    manner: str  # what posts look like there, for whoever writes them
    characters_per_link: int | None = None  # every link counts as so many
    weights: _Weights = ()  # of what does not count as ...
    other_weight: int = 1  # ... this many characters

    def count_characters(self, text: str) -> int:
        """Counts as the platform does; never fewer, so that what fits here fits there.

        Links may count less than they are long; a text of more than four times what is allowed is
        too long all the same, and counts as it is.
        """
        if len(text) > 4 * self.max_characters:
            return len(text)
        text = unicodedata.normalize("NFC", text)
        if self.characters_per_link is not None:
            text = _LINK.sub(self._shorten_link, text)
        return sum(self._weigh(ord(sign)) for sign in text)

    def _weigh(self, sign: int) -> int:
        found = (weight for first, last, weight in self.weights if first <= sign <= last)
        return next(found, self.other_weight)

    def _shorten_link(self, found: re.Match[str]) -> str:
        """Makes a link as long as it counts; without its https:// not every platform sees one."""
        short = "x" * (self.characters_per_link or 0)
        return short if found[1] else max(short, found[0], key=len)


PLATFORMS: dict[str, Platform] = {
    platform.name: platform
    for platform in (
        Platform(
            "instagram",
            2_200,
            5,
            "one to three short paragraphs; the first 125 characters are what most people see",
        ),
        Platform("facebook", 63_206, 3, "one or two short paragraphs, at most 500 characters"),
        Platform("x", 280, 2, "one or two sentences", 23, _X_WEIGHTS, other_weight=2),
        Platform(
            "linkedin",
            3_000,
            5,
            "three to five sentences; the first 200 characters are what most people see",
        ),
        Platform("threads", 500, 1, "two or three conversational sentences", weights=_EMOJI_BYTES),
        Platform("bluesky", 300, 3, "one or two sentences"),
        Platform("mastodon", 500, 5, "two or three sentences", 23),
        Platform("pinterest", 500, 5, "two or three sentences that say what the picture is for"),
        Platform("tiktok", 2_200, 5, "one or two sentences"),
    )
}
