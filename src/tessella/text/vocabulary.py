"""The words that a model knows: those of its training captions, or of its token vocabulary.

On the data's way: saved when a model is trained (`captions.json` of its folder), and read again
to tell users which of their words the model does not know.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tessella.text.base import TextEncoder, to_utf8
from tessella.text.bpe import TextTokenizer

_LETTERS = r"[^\W_]+(?:['’][^\W_]+)*"
# Emoji as people see them: a keycap, a flag of two letters, or one with its skin and those that a
# joiner adds.
_SIGN = (
    r"[0-9#*]\uFE0F?\u20E3|[\U0001F1E6-\U0001F1FF]{2}"
    r"|[^\w\s][\uFE0F\U0001F3FB-\U0001F3FF]*(?:\u200D[^\w\s][\uFE0F\U0001F3FB-\U0001F3FF]*)*"
)
_WORD = re.compile(f"(?P<sign>{_SIGN})|{_LETTERS}")
_SIGNS = ("So", "Sm", "Sc")  # Unicode's categories: emoji and other symbols, of maths, of money
_VARIANT = "\ufe0f"  # asks for a colourful emoji; with it or without, it is the same one
_MAX_WORDS = 5_000
_MAX_EXAMPLES = 200
_MAX_ENDING = 3  # letters at the end in which two forms of a word may differ
_MIN_STEM = 3  # letters
_MIN_SIMILARITY = 0.8  # of difflib, between 0 and 1


@dataclass(frozen=True)
class CaptionSummary:
    """A summary of a model's training captions."""

    captions: int  # number of captions
    words: Mapping[str, int]  # number of captions with each word, the commonest first
    examples: Sequence[str]  # some captions, spread over the data


class Vocabulary:
    """The words that a model knows, and the nearest of them to any other word.

    Words are letters and digits, with apostrophes inside, and signs, each emoji a word; normalised
    by the model's text tokenizer. Without a summary of its captions, a model knows the words that
    are one token of its vocabulary; then only signs and words of letters can be unknown. With a
    frozen encoder and no summary, no word is unknown.

    Args:
        text_tokenizer: of the model.
        summary: of its training captions, if its folder has one.
    """

    def __init__(self, text_tokenizer: TextEncoder, summary: CaptionSummary | None = None) -> None:
        self._text_tokenizer = text_tokenizer
        self._words = _list_tokens(text_tokenizer) if summary is None else list(summary.words)
        # Older summaries count no signs; those of their examples are known all the same.
        examples = summary.examples if summary else ()
        shown = {word for text in examples for word in split_words(text, text_tokenizer)}
        self._set = frozenset(self._words) | {word for word in shown if _is_sign(word)}
        self._longer: dict[str, list[str]] = {}  # known words by their stems
        for word in self._words:
            for stem in _list_stems(word):
                self._longer.setdefault(stem, []).append(word)
        self._has_summary = summary is not None

    @property
    def words(self) -> Sequence[str]:
        """The known words, the commonest first; empty if no word is unknown."""
        return self._words

    def find_unknown(self, text: str) -> list[str]:
        """Lists the words of a text that the model does not know, each once, in order."""
        words = split_words(text, self._text_tokenizer)
        return [word for word in dict.fromkeys(words) if not self._is_known(word)]

    def find_form(self, word: str) -> str | None:
        """Finds a known word that differs only in a short ending: `croissant` for `croissants`.

        Args:
            word: normalised.

        Returns:
            The word itself if it is known, or else the known form nearest in length; None if no
            form is known.
        """
        if self._is_known(word):
            return word
        shorter = [stem for stem in _list_stems(word) if stem in self._set]
        forms = [*shorter, *self._longer.get(word, ())]
        return min(forms, key=lambda known: abs(len(known) - len(word)), default=None)

    def find_nearest(self, word: str) -> str | None:
        """Finds a form of a word, or else the known word with the most similar spelling."""
        form = self.find_form(word)
        near = [form] if form else difflib.get_close_matches(word, self._words, 1, _MIN_SIMILARITY)
        return next(iter(near), None)

    def _is_known(self, word: str) -> bool:
        if word in self._set or not self._words:
            return True
        if self._has_summary or word.isalpha():
            return False
        return not _is_sign(word) or _is_token(word, self._text_tokenizer)


def _list_tokens(text_tokenizer: TextEncoder) -> list[str]:
    """Lists the words that are one token; the commonest were learned first."""
    if not isinstance(text_tokenizer, TextTokenizer):
        return []
    tokens = text_tokenizer.decode(torch.arange(text_tokenizer.vocabulary_size)[:, None])
    return [token for token in tokens if token.isalpha() and _is_token(token, text_tokenizer)]


def _is_token(word: str, text_tokenizer: TextEncoder) -> bool:
    """Says whether a word is one token; of a frozen encoder, yes."""
    if not isinstance(text_tokenizer, TextTokenizer):
        return True
    # Begin, the word, end: a token that only ends words, such as `ing`, is not one after a blank.
    return len(text_tokenizer.tokens(word)) == 3


def split_words(text: str, text_tokenizer: TextEncoder) -> list[str]:
    """Lists the words of a text as the model reads them, signs included, in order."""
    return [strip_marks(match[0]) for match in _find_words(normalize(text, text_tokenizer))]


def strip_marks(text: str) -> str:
    """Removes what only chooses between two looks of the same emoji."""
    return text.replace(_VARIANT, "")


def _find_words(text: str) -> Iterator[re.Match[str]]:
    """Finds words and signs; punctuation is neither."""
    return (m for m in _WORD.finditer(text) if not m["sign"] or _is_sign(m["sign"]))


def _is_sign(word: str) -> bool:
    """Says whether it is an emoji or a symbol; `<`, `|` and the like are punctuation."""
    if word.endswith("\u20e3"):
        return True
    return unicodedata.category(word[0]) in _SIGNS and (word[0] > "\x7f" or word[0] == "$")


def replace_words(text: str, new_words: Mapping[str, str]) -> str:
    """Replaces words of a normalised text; a word that becomes "" is removed.

    Between words only the punctuation of captions stays: commas, hyphens and colons.
    """
    replaced, gap, end = "", "", 0
    for match in _find_words(text):
        gap += text[end : match.start()]
        end = match.end()
        found = strip_marks(match[0])
        word = new_words.get(found, found)
        if word:
            between = ", " if "," in gap else gap if gap in ("-", ": ") else " "
            replaced += between + word if replaced else word
            gap = ""
    return replaced


def normalize(text: str, text_tokenizer: TextEncoder) -> str:
    """Normalises a text as the model's tokenizer does; for frozen encoders, to small letters."""
    if isinstance(text_tokenizer, TextTokenizer):
        return text_tokenizer.normalize(text)
    return " ".join(to_utf8(text).lower().split())


def summarize_captions(
    captions: Iterable[str], text_tokenizer: TextEncoder, first: Sequence[str] = ()
) -> CaptionSummary:
    """Counts the words of training captions and chooses some captions as examples.

    Args:
        captions: all training captions, read once.
        text_tokenizer: of the model.
        first: captions that are shown elsewhere; they lead the examples if all of their words are
            among the counted ones.
    """
    words: Counter[str] = Counter()
    count, spread, stride = 0, [], 1
    for caption in captions:
        words.update(set(split_words(caption, text_tokenizer)))
        # Every stride-th caption; when there are twice too many, every other one is dropped.
        if count % stride == 0 and caption.strip():
            spread.append(caption)
            if len(spread) >= 2 * _MAX_EXAMPLES:
                spread, stride = spread[::2], 2 * stride
        count += 1
    # Ties are broken by the word itself: the same captions give the same file.
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
    """Lists a word without each of its short endings; longer words may lose more letters."""
    return [
        word[:-letters]
        for letters in range(1, _MAX_ENDING + 1)
        if 2 * letters <= len(word) - _MIN_STEM
        # `cat` and `cats`, but not `car` and `card`
        or (letters == 1 and len(word) == _MIN_STEM + 1 and word.endswith("s"))
    ]
