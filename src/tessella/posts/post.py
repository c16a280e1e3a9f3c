"""One post, and the ways to keep it within its platform's limits."""

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tessella.posts.platforms import Platform
from tessella.posts.request import clean_line

MAX_ALT_CHARACTERS = 500  # the lowest limit of all platforms
_MAX_HASHTAG_CHARACTERS = 50
_SENTENCE_END = re.compile(r"[.!?…\u3002\uff01\uff1f](?=\s|$)")


@dataclass(frozen=True)
class Post:
    """A post without its picture."""

    text: str
    hashtags: tuple[str, ...]  # letters, digits and underscores, without the #
    alt_text: str  # describes the picture for people who cannot see it
    label: str  # the prompt of the picture, in the image model's own language
    repairs: tuple[str, ...] = ()  # what was changed to keep to the limits, in words

    @classmethod
    def fit(
        cls, text: str, hashtags: Sequence[str], alt_text: str, label: str, platform: Platform
    ) -> "Post":
        """Makes a post within its platform's limits; a missing alt text names the label."""
        hashtags = clean_hashtags(hashtags, platform)
        alt_text = clean_line(alt_text) or f"A small generated picture: {label}."
        text = fit_text(text, hashtags, platform)
        return cls(text, hashtags, cut(alt_text, MAX_ALT_CHARACTERS), label)

    @property
    def published(self) -> str:
        """The text to copy into the platform."""
        return compose(self.text, self.hashtags)


def compose(text: str, hashtags: Sequence[str]) -> str:
    """Puts the hashtags below the text."""
    return "\n\n".join(filter(None, (text, " ".join(f"#{tag}" for tag in hashtags))))


def clean_hashtags(hashtags: Sequence[str], platform: Platform) -> tuple[str, ...]:
    """Keeps letters, digits and underscores; each hashtag once, as many as the platform takes.

    Hashtags without a letter are dropped: no platform links them.
    """
    clean: dict[str, str] = {}
    for hashtag in hashtags:
        tag = re.sub(r"\W+", "", hashtag)[:_MAX_HASHTAG_CHARACTERS]
        if re.search(r"[^\W\d_]", tag):
            clean.setdefault(tag.lower(), tag)
    return tuple(clean.values())[: platform.max_hashtags]


def fit_text(text: str, hashtags: Sequence[str], platform: Platform) -> str:
    """Cuts a text so that it fits the platform together with its hashtags; see `cut`."""

    def count(num_characters: int) -> int:
        return platform.count_characters(compose(cut(text, num_characters), hashtags))

    if count(len(text)) <= platform.max_characters:
        return text
    # The largest number of characters that fits: each is its own position, counted from 1.
    return cut(text, bisect.bisect_right(range(1, len(text)), platform.max_characters, key=count))


def cut(text: str, max_characters: int) -> str:
    """Shortens a text: after a sentence if half of the room is used then, else after a word."""
    if len(text) <= max_characters:
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text[: max_characters + 1])]
    if ends and max_characters / 2 <= ends[-1] <= max_characters:
        return text[: ends[-1]]
    words = re.sub(r"\s+\S*$", "", text[:max_characters]).rstrip(" ,;:-–\n")
    if len(words) < max_characters:
        return words + "…"
    return text[: max(0, max_characters - 1)].rstrip() + "…"
