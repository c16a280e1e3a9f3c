"""The words of captions: how many of them a model can learn, and what the captions never mention.

Counted by pictures, not by captions: a word that five captions of one picture share is seen once.
Memory grows with the different words.
"""

import re
from collections import Counter
from collections.abc import Sequence

OFTEN = 10
"""Pictures with a word, about as many as it takes to learn it; a rule of thumb."""

_FEW = 50  # pictures, whose captions say little about what they leave out
_RARE = 0.005  # of the pictures: as good as never


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Any of these together is found in English captions and in those of no other language.
_ENGLISH = _words("the"), _words("and"), _words("with"), _words("a of")
_TELLING = {
    "colours": _words(
        "beige black blonde blue bronze brown colorful colourful cyan gold golden gray green grey "
        "magenta maroon multicolored navy orange pink purple red silver tan teal turquoise violet "
        "white yellow"
    ),
    "sizes": _words(
        "big enormous giant huge large little long massive medium mini narrow short small tall "
        "thick thin tiny wide"
    ),
    "counts": _words(
        "1 2 3 4 5 6 7 8 9 10 both couple dozen double eight five four group many multiple nine "
        "one pair several seven single six some ten three two"
    ),
}


class CaptionWords:
    """Counts the words of the captions of pictures."""

    def __init__(self) -> None:
        self.num_pictures = 0
        self.pictures = Counter[str]()  # that have a word, in small letters, in a caption
        self._telling = Counter[str]()  # pictures whose captions mention colours, sizes, counts

    def add(self, captions: Sequence[str]) -> list[int]:
        """Adds the captions of a picture; returns how many words each has."""
        split = [_split_words(caption) for caption in captions]
        words = [*dict.fromkeys(word for each in split for word in each)]  # in order, for ties
        parts = {part for word in words for part in re.split(r"[\W_]+", word)}
        self.num_pictures += 1
        self.pictures.update(words)
        self._telling.update(kind for kind, those in _TELLING.items() if parts & those)
        return [len(each) for each in split]

    def count_often(self) -> int:
        """Counts the words that enough pictures have to be learned."""
        return sum(count >= OFTEN for count in self.pictures.values())

    def list_untold(self) -> list[str]:
        """Lists what next to no caption mentions: `colours`, `sizes`, `counts`.

        Nothing of few pictures, nor where captions do not seem to be English: these words are.
        """
        if self.num_pictures < _FEW:
            return []
        enough = _RARE * self.num_pictures
        if not any(all(self.pictures[word] > enough for word in words) for words in _ENGLISH):
            return []
        return [kind for kind in _TELLING if self._telling[kind] <= enough]


def _split_words(caption: str) -> list[str]:
    stripped = (word.strip(".,;:!?\"'()[]{}") for word in caption.lower().split())
    return [word for word in stripped if word]


def join_words(words: Sequence[str], last: str) -> str:
    """Joins words as a sentence does: `colours, sizes or counts`."""
    *most, final = words
    return f"{', '.join(most)} {last} {final}" if most else final
