"""The platforms that posts are written for, and how long a post may be on each.

Text and hashtags are published together, and both count. Sources: docs/how-to/post.md.
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

# Only from the start of a word: otherwise a long word is scanned once for each of its letters.
_LINK = re.compile(r"(?<![\w.-])(https?://)?(?:[\w-]+\.)+[a-z]{2,}(?:[/:?#]\S*)?", re.IGNORECASE)
# (first, last, weight) of code points.
_Weights = tuple[tuple[int, int, int], ...]
# twitter-text, configuration 3: all others, such as emoji, count as two.
_X_WEIGHTS: _Weights = (
    (0x0000, 0x10FF, 1),
    (0x2000, 0x200D, 1),
    (0x2010, 0x201F, 1),
    (0x2032, 0x2037, 1),
)
# Threads counts an emoji's bytes in UTF-8, including those of its invisible parts.
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
    """A platform and its limits."""

    name: PlatformName
    max_characters: int  # of text and hashtags together
    max_hashtags: int
    manner: str  # how posts are usually written there, for a language model
    characters_per_link: int | None = None  # the length that every link counts as
    weights: _Weights = ()
    other_weight: int = 1  # of code points that are not in `weights`

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
