"""The language that an image model understands: its words, sample captions, and their form.

A label, which is what a post's picture is painted from, is made to speak it.
"""

import math
import random
import re
from collections.abc import Sequence

from tessella.text import TextEncoder
from tessella.text.vocabulary import (
    CaptionSummary,
    KnownWords,
    normalize,
    replace_words,
    split_words,
)

# A word of fewer captions says what a picture shows; commoner ones how captions say it: "emoji".
_SUBJECT_SHARE = 0.05
_MAX_LABEL_CHARACTERS = 300
# They are in captions and in descriptions alike, and say nothing of a picture.
_FILLING = frozenset(
    re.findall(
        "[a-z]+",
        """
        a about all an and any are as at away be but by can come do every for from get go has have
        her his how i if in into is it its just more my new no not now of off on one or our out she
        so some that the their them there they this to two up us very was we what when where which
        who with you your
        """,
    )
)


class ImageLanguage:
    """What an image model can be asked for.

    Args:
        text_tokenizer: of the model.
        captions: what it was trained to hear; None where its folder does not say.
    """

    def __init__(self, text_tokenizer: TextEncoder, captions: CaptionSummary | None) -> None:
        self._text_tokenizer = text_tokenizer
        self._known = KnownWords(text_tokenizer, captions)
        self._captions = captions or CaptionSummary(0, {}, ())
        self._words_of = [set(self._split(example)) for example in self.examples]

    @property
    def examples(self) -> Sequence[str]:
        """Sample captions; none where the model's folder does not say."""
        return self._captions.examples

    @property
    def words(self) -> Sequence[str]:
        """Known words, the commonest first."""
        return self._known.words

    def find_unknown(self, label: str) -> list[str]:
        """Lists the words of a label that no training caption had."""
        return self._known.find_unknown(label)

    def find_words(self, text: str) -> list[str]:
        """Lists the known words that a text shares with the captions, in the text's order.

        Those that fill every sentence are left out; other forms count: `cakes` finds `cake`.
        """
        words = [word for word in self._split(text) if word not in _FILLING]
        forms = {word: self._known.find_form(word) for word in dict.fromkeys(words)}
        # Where any word can be read, none is shared.
        known = frozenset(self.words)
        return list(dict.fromkeys(form for form in forms.values() if form in known))

    def frame(self, word: str, context: str, rng: random.Random) -> str:
        """Puts a word into the form of the captions: `octopus, 3d emoji` → `bread, 3d emoji`.

        A word that says how a picture looks rather than what it shows has no place in such a
        form: it gets that caption of which it is a part that shares most words with the context;
        without one it stands alone.

        Args:
            word: one of `find_words`.
            context: what the picture belongs to.
            rng: draws among what suits equally well.
        """
        if self._is_subject(word):
            forms = [
                (caption, subjects)
                for caption, words in zip(self.examples, self._words_of, strict=True)
                if len(subjects := [w for w in words if self._is_subject(w)]) == 1
            ]
            shortest = min((len(caption.split()) for caption, _ in forms), default=0)
            forms = [form for form in forms if len(form[0].split()) == shortest]
            if forms:
                caption, [subject] = rng.choice(forms)
                return replace_words(normalize(caption, self._text_tokenizer), {subject: word})
        scores = self._score_examples(self.find_words(f"{word} {context}"))
        having = [n for n, words in enumerate(self._words_of) if word in words]
        best = max((scores[n] for n in having), default=0.0)
        return rng.choice([self.examples[n] for n in having if scores[n] == best] or [word])

    def describe_problem(self, label: str) -> str | None:
        """Says what a label has that the model cannot read; None if it reads it well."""
        if not self._split(label):
            return "the label says nothing"
        unknown = self.find_unknown(label)
        if unknown:
            return f"the label has unknown words: {', '.join(unknown[:20])}"
        if self._text_tokenizer.count_tokens(label) > self._text_tokenizer.max_tokens:
            return "the label is too long for the image model"
        return None

    def repair(self, label: str, context: str) -> str:
        """Makes a label of known words alone, which the model can read whole.

        An unknown word becomes the nearest known one, or goes. If then nothing is left that
        says what to paint, the sample caption is taken that shares most with label and context.

        Args:
            label: anything.
            context: what the picture belongs to.

        Returns:
            A label, never empty.
        """
        label = normalize(label[:_MAX_LABEL_CHARACTERS], self._text_tokenizer)
        nearest = {word: self._known.find_nearest(word) for word in self.find_unknown(label)}
        mended = replace_words(label, {word: found or "" for word, found in nearest.items()})
        if None in nearest.values() and any(map(self._is_subject, self.words)):
            still_says = any(map(self._is_subject, self._split(mended)))
        else:
            still_says = bool(self._split(mended))
        if not still_says:
            mended = self._find_nearest_example(f"{label} {context}")
        return self._text_tokenizer.shorten(mended)

    def _find_nearest_example(self, text: str) -> str:
        """Finds the sample caption that shares most with a text."""
        shared = self.find_words(text)
        if not self.examples:
            return " ".join(shared) or next(iter(self.words), "picture")
        scores = self._score_examples(shared)
        return self.examples[max(range(len(scores)), key=scores.__getitem__)]

    def _score_examples(self, shared: Sequence[str]) -> list[float]:
        """Scores sample captions by the words that they share; the rarer, the more."""
        return [sum(self._rarity(w) for w in shared if w in words) for words in self._words_of]

    def _is_subject(self, word: str) -> bool:
        """Says whether a word tells pictures apart: few captions have it."""
        count = self._captions.words.get(word, 0)
        return 0 < count <= _SUBJECT_SHARE * self._captions.captions and word not in _FILLING

    def _rarity(self, word: str) -> float:
        return math.log((self._captions.captions + 1) / (self._captions.words.get(word, 0) + 0.5))

    def _split(self, text: str) -> list[str]:
        return split_words(text, self._text_tokenizer)
