"""Which words a model has learned: those of its training captions, or of its vocabulary.

On the data's way: written down when a model is trained (`captions.json` of its folder), read
again when somebody wants to know what can be asked of it.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tessella.text.base import TextEncoder, to_utf8
from tessella.text.bpe import TextTokenizer

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_MAX_WORDS = 5_000
_MAX_EXAMPLES = 200
_MAX_ENDING = 3  # letters that two forms of a word may differ by at their end
_MIN_STEM = 3  # letters
_MIN_LIKENESS = 0.8  # of difflib, between 0 and 1


@dataclass(frozen=True)
class CaptionSummary:
    """What a model was trained to hear."""

    captions: int  # training captions
    words: Mapping[str, int]  # how many of them have it, the commonest first
    examples: Sequence[str]  # some captions, spread over the data


class KnownWords:
    """The words that a model has learned, and the nearest of them to any other.

    Words are letters and digits, with apostrophes inside, as the model's text tokenizer
    normalises them. Without a summary of its captions a model knows what is one token of its own
    vocabulary; only words of letters are judged then. A frozen encoder without a summary reads
    any word.

    Args:
        text_tokenizer: of the model.
        summary: of its training captions, if its folder has one.
    """

    def __init__(self, text_tokenizer: TextEncoder, summary: CaptionSummary | None = None) -> None:
        self._text_tokenizer = text_tokenizer
        self._words = self._list_tokens() if summary is None else list(summary.words)
        self._set = frozenset(self._words)
        self._longer: dict[str, list[str]] = {}  # known words by their beginnings
        for word in self._words:
            for stem in _list_stems(word):
                self._longer.setdefault(stem, []).append(word)
        self._judges_all = summary is not None
        self._judges = bool(self._words)

    @property
    def words(self) -> Sequence[str]:
        """The known words, the commonest first; none if any word can be read."""
        return self._words

    def find_unknown(self, text: str) -> list[str]:
        """Lists the different words of a text that the model does not know, in order."""
        words = split_words(text, self._text_tokenizer)
        return [word for word in dict.fromkeys(words) if not self._is_known(word)]

    def find_form(self, word: str) -> str | None:
        """Finds a known word that is this one but for a short ending: `croissant` of `croissants`.

        Args:
            word: normalised.

        Returns:
            The word itself if it is known; else the form that shares most letters; None if there
            is none.
        """
        if self._is_known(word):
            return word
        shorter = [stem for stem in _list_stems(word) if stem in self._set]
        near = [*shorter, *self._longer.get(word, ())]
        return min(near, key=lambda known: abs(len(known) - len(word)), default=None)

    def find_nearest(self, word: str) -> str | None:
        """Finds a form of a word, or else the known word that is written most like it."""
        form = self.find_form(word)
        like = [form] if form else difflib.get_close_matches(word, self._words, 1, _MIN_LIKENESS)
        return next(iter(like), None)

    def _is_known(self, word: str) -> bool:
        judged = self._judges and (self._judges_all or word.isalpha())
        return word in self._set or not judged

    def _list_tokens(self) -> list[str]:
        """Lists the words that are one token; the commonest were learned first."""
        vocabulary = self._text_tokenizer
        if not isinstance(vocabulary, TextTokenizer):
            return []
        tokens = vocabulary.decode(torch.arange(vocabulary.vocabulary_size)[:, None])
        # Begin, the token, end. A token that only ends words, such as `ing`, is none after a blank.
        return [token for token in tokens if token.isalpha() and len(vocabulary.tokens(token)) == 3]


def split_words(text: str, text_tokenizer: TextEncoder) -> list[str]:
    """Lists the words of a text in order, as the model reads them."""
    return _WORD.findall(normalize(text, text_tokenizer))


def replace_words(text: str, new_words: Mapping[str, str]) -> str:
    """Replaces words of a normalised text; one that becomes "" goes.

    Of the signs between words only those stay that captions have: commas, hyphens, colons.
    """
    replaced, gap, end = "", "", 0
    for found in _WORD.finditer(text):
        gap += text[end : found.start()]
        end = found.end()
        word = new_words.get(found[0], found[0])
        if word:
            between = ", " if "," in gap else gap if gap in ("-", ": ") else " "
            replaced += between + word if replaced else word
            gap = ""
    return replaced


def normalize(text: str, text_tokenizer: TextEncoder) -> str:
    """Returns a text as a model's own vocabulary reads it; in small letters for other encoders."""
    if isinstance(text_tokenizer, TextTokenizer):
        return text_tokenizer.normalize(text)
    return " ".join(to_utf8(text).lower().split())


def summarize_captions(
    captions: Iterable[str], text_tokenizer: TextEncoder, first: Sequence[str] = ()
) -> CaptionSummary:
    """Counts the words of training captions, and chooses examples of them.

    Args:
        captions: all training captions, read once.
        text_tokenizer: of the model.
        first: captions that are shown elsewhere and lead the examples, as far as all of their
            words are known.
    """
    words: Counter[str] = Counter()
    count, spread, stride = 0, [], 1
    for caption in captions:
        words.update(set(split_words(caption, text_tokenizer)))
        # Every stride-th caption; when there are twice too many, every other one goes.
        if count % stride == 0 and caption.strip():
            spread.append(caption)
            if len(spread) >= 2 * _MAX_EXAMPLES:
                spread, stride = spread[::2], 2 * stride
        count += 1
    # By the word where two are as common: the same captions give the same file.
    commonest = sorted(words, key=lambda word: (-words[word], word))[:_MAX_WORDS]
    known = {word: words[word] for word in commonest}
    shown = [
        caption
        for caption in dict.fromkeys(first)
        if caption and known.keys() >= set(split_words(caption, text_tokenizer))
    ]
    rest = [caption for caption in dict.fromkeys(spread) if caption not in shown]
    room = min(len(rest), _MAX_EXAMPLES - len(shown))
    spread = [rest[number * len(rest) // room] for number in range(room)]
    return CaptionSummary(count, known, [*shown, *spread])


def _list_stems(word: str) -> list[str]:
    """Lists what is left of a word without a short ending; the longer the word, the more may go."""
    stems = [word[:-letters] for letters in range(1, _MAX_ENDING + 1)]
    return [
        stem
        for stem in stems
        if len(word) - len(stem) <= len(stem) - _MIN_STEM
        # `cat` and `cats`, but not `car` and `card`
        or (len(stem) == _MIN_STEM and word == f"{stem}s")
    ]
