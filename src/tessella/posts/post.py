"""One post, and how it is made to keep to its platform's limits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tessella.posts.platforms import Platform
from tessella.posts.request import clean_line

MAX_ALT_CHARACTERS = 500  # the least that any of the platforms takes
_MAX_HASHTAG_CHARACTERS = 50
_SENTENCE_END = re.compile(r"[.!?…\u3002\uff01\uff1f](?=\s|$)")


@dataclass(frozen=True)
class Post:
    """A post, all of it but the picture."""

    text: str
    hashtags: tuple[str, ...]  # letters, digits and underscores, without the #
    alt_text: str  # what the picture shows, for who cannot see it
    label: str  # what is painted, in the image model's own language
    repairs: tuple[str, ...] = ()  # what was changed of what was written, in words

    @property
    def published(self) -> str:
        """What is copied into the platform."""
        return compose(self.text, self.hashtags)


def compose(text: str, hashtags: Sequence[str]) -> str:
    """Puts the hashtags below the text."""
    return "\n\n".join(filter(None, (text, " ".join(f"#{tag}" for tag in hashtags))))


def clean_hashtags(hashtags: Sequence[str], platform: Platform) -> tuple[str, ...]:
    """Keeps letters, digits and underscores, each hashtag once, as many as the platform takes.

    What is left is no number, which no platform links.
    """
    clean: dict[str, str] = {}
    for hashtag in hashtags:
        tag = re.sub(r"\W+", "", hashtag)[:_MAX_HASHTAG_CHARACTERS]
        if re.search(r"[^\W\d_]", tag):
            clean.setdefault(tag.lower(), tag)
    return tuple(clean.values())[: platform.max_hashtags]


def cut_alt_text(text: str) -> str:
    """Makes a description of a picture one line of a length that every platform takes."""
    return cut(clean_line(text), MAX_ALT_CHARACTERS)


def fit_text(text: str, hashtags: Sequence[str], platform: Platform) -> str:
    """Cuts a text so that the platform takes it with its hashtags.

    At the end of a sentence if half of what fits stays, else at the end of a word.
    """
    if platform.count_characters(compose(text, hashtags)) <= platform.max_characters:
        return text
    fitting, too_long = 0, len(text)  # characters
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        whole = compose(cut(text, middle), hashtags)
        if platform.count_characters(whole) <= platform.max_characters:
            fitting = middle
        else:
            too_long = middle
    return cut(text, fitting)


def cut(text: str, most: int) -> str:
    """Cuts a text to a number of characters, after a sentence or a word."""
    if len(text) <= most:
        return text
    ends = [found.end() for found in _SENTENCE_END.finditer(text[: most + 1])]
    if ends and ends[-1] <= most and ends[-1] >= most / 2:
        return text[: ends[-1]]
    words = re.sub(r"\s+\S*$", "", text[:most]).rstrip(" ,;:-–\n")
    return words + "…" if len(words) < most else text[: max(0, most - 1)].rstrip() + "…"
