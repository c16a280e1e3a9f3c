"""A request for posts: a business, what it does, and where and how it wants to publish."""

import re
import unicodedata
from dataclasses import dataclass

from tessella.errors import GenerationError
from tessella.posts.platforms import PLATFORMS, Platform
from tessella.text.base import to_utf8

MAX_NAME_CHARACTERS = 200
MAX_ABOUT_CHARACTERS = 2_000
MAX_TONE_CHARACTERS = 60

# Invisible characters that change how the text around them is read or shown.
_HIDDEN = re.compile(r"[\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


@dataclass(frozen=True)
class PostRequest:
    """A request for posts, clean and within its limits; made by `PostRequest.create`."""

    business: str  # one line
    about: str
    platform: Platform
    tone: str  # one line
    seed: int  # of every random choice

    @classmethod
    def create(
        cls, business: str, about: str, *, platform: str, tone: str, seed: int = 0
    ) -> "PostRequest":
        """Checks and cleans a user's words.

        Raises:
            GenerationError: a text is blank or too long, or the platform is unknown.
        """
        if platform not in PLATFORMS:
            raise GenerationError(
                f"Unknown platform: `{platform[:60]}`. Expected one of: {', '.join(PLATFORMS)}."
            )
        return cls(
            clean_line(_check("The name of the business", business, MAX_NAME_CHARACTERS)),
            clean_text(_check("What the business is about", about, MAX_ABOUT_CHARACTERS)),
            PLATFORMS[platform],
            clean_line(_check("The tone", tone, MAX_TONE_CHARACTERS)),
            seed,
        )


def clean_text(text: str) -> str:
    """Removes control and hidden characters and superfluous white space; keeps lines."""
    text = unicodedata.normalize("NFC", to_utf8(text)).replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(
        sign if sign == "\n" or unicodedata.category(sign) != "Cc" else " "
        for sign in _HIDDEN.sub("", text)
    )
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def clean_line(text: str) -> str:
    """Cleans a text and puts it on one line."""
    return " ".join(clean_text(text).split())


def _check(name: str, text: str, max_characters: int) -> str:
    """Refuses a text that is blank or too long."""
    is_blank = not clean_text(text)
    if is_blank or len(text) > max_characters:
        problem = "it is blank" if is_blank else f"it has {len(text):,}"
        raise GenerationError(f"{name} must have 1 to {max_characters:,} characters; {problem}.")
    return text
