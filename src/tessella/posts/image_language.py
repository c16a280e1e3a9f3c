"""The language that an image model understands: its words, its sample captions and their form.

Labels, the prompts of the posts' pictures, are put into this language.
"""

import math
import random
from collections.abc import Sequence

from tessella.posts.description import ENGLISH, Language, find_language, list_picture_words
from tessella.text import TextEncoder
from tessella.text.vocabulary import (
    CaptionSummary,
    Vocabulary,
    normalize,
    replace_words,
    split_words,
)

# Words in at most this fraction of the captions name a subject; commoner ones, such as "emoji",
# belong to the form of a caption.
_MAX_SUBJECT_FRACTION = 0.05
_MAX_LABEL_CHARACTERS = 300
_MIN_SHARED = 6  # letters of a word that two languages share, as they do croissant and sandwich


class ImageLanguage:
    """The prompts that an image model understands.

    Args:
        text_tokenizer: of the model.
        captions: summary of its training captions; None if its folder has none.
    """

    def __init__(self, text_tokenizer: TextEncoder, captions: CaptionSummary | None) -> None:
        self._text_tokenizer = text_tokenizer
        self._vocabulary = Vocabulary(text_tokenizer, captions)
        self._captions = captions or CaptionSummary(0, {}, ())
        self.examples = self._captions.examples
        """Sample captions; empty if the model's folder has none."""
        self.words = self._vocabulary.words
        """Known words, the commonest first."""
        # Captions say little, but some small words are among theirs. Tokens of a vocabulary, which
        # stand in for them, are pieces of words too, and say nothing.
        self.language = find_language(" ".join(self._captions.words)) or ENGLISH
        """The language of the captions."""
        self._forms: dict[str, str] = {}  # by stem, the commonest word of each
        for word in self.words:
            self._forms.setdefault(self.language.find_stem(word), word)
        self._words_of_examples = [set(self._split(example)) for example in self.examples]

    def find_words(self, text: str, language: Language | None = None) -> list[str]:
        """Lists the known words in a text that a picture could show, in its order.

        Other forms count too, by the stemmer of the language: `cakes` finds `cake`. Of a text in
        another language than the captions, long words count that are the same in both.

        Args:
            text: of a description, or a label.
            language: of the text; that of the captions unless given.
        """
        language = language or self.language
        # A model that reads any word lists none: then nothing is shared.
        known = frozenset(self.words)
        found: list[str] = []
        for word in list_picture_words(text, language):
            for part in self._split(word):
                form = part if part in known else self._forms.get(self.language.find_stem(part))
                shortest = 1 if language is self.language else _MIN_SHARED
                if form is not None and len(form) >= shortest:
                    found.append(form)
        return [one for one in dict.fromkeys(found) if one not in self.language.words]

    def frame(self, word: str, context: str, rng: random.Random) -> str:
        """Makes a caption of a word: `bread`, like `octopus, 3d emoji`, → `bread, 3d emoji`.

        A word that is not a subject, for example a colour, cannot take a subject's place. It gets
        the caption with this word that shares most words with the context, or stands alone.

        Args:
            word: one of `find_words`.
            context: text that the picture goes with.
            rng: draws among equally good captions.
        """
        if self._is_subject(word):
            frames = [
                (caption, subjects)
                for caption, words in zip(self.examples, self._words_of_examples, strict=True)
                if len(subjects := [w for w in words if self._is_subject(w)]) == 1
            ]
            shortest = min((len(caption.split()) for caption, _ in frames), default=0)
            frames = [frame for frame in frames if len(frame[0].split()) == shortest]
            if frames:
                caption, [subject] = rng.choice(frames)
                return replace_words(normalize(caption, self._text_tokenizer), {subject: word})
        scores = self._score_examples(self.find_words(f"{word} {context}"))
        with_word = [n for n, words in enumerate(self._words_of_examples) if word in words]
        best = max((scores[n] for n in with_word), default=0.0)
        return rng.choice([self.examples[n] for n in with_word if scores[n] == best] or [word])

    def describe_problem(self, label: str) -> str | None:
        """Describes why the model cannot read a label; None if it can."""
        if not self._split(label):
            return "the label has no words"
        unknown = self._vocabulary.find_unknown(label)
        if unknown:
            return f"the label has unknown words: {', '.join(unknown[:20])}"
        if self._text_tokenizer.count_tokens(label) > self._text_tokenizer.max_tokens:
            return "the label is too long for the image model"
        return None

    def repair(self, label: str, context: str) -> str:
        """Rewrites a label in known words, short enough for the model.

        An unknown word becomes the nearest known one or is dropped. If no subject is left then,
        the sample caption that shares most with label and context takes the label's place.

        Args:
            label: any text.
            context: text that the picture goes with.

        Returns:
            A label, never empty.
        """
        label = normalize(label[:_MAX_LABEL_CHARACTERS], self._text_tokenizer)
        unknown = self._vocabulary.find_unknown(label)
        nearest = {word: self._vocabulary.find_nearest(word) for word in unknown}
        repaired = replace_words(label, {word: known or "" for word, known in nearest.items()})
        words = self._split(repaired)
        needs_subject = None in nearest.values() and any(map(self._is_subject, self.words))
        if not (any(map(self._is_subject, words)) if needs_subject else words):
            repaired = self._find_nearest_example(f"{label} {context}")
        return self._text_tokenizer.shorten(repaired)

    def _find_nearest_example(self, text: str) -> str:
        """Finds the sample caption that shares most with a text."""
        shared = self.find_words(text)
        if not self.examples:
            return " ".join(shared) or next(iter(self.words), "picture")
        scores = self._score_examples(shared)
        return self.examples[max(range(len(scores)), key=scores.__getitem__)]

    def _score_examples(self, shared: Sequence[str]) -> list[float]:
        """Scores sample captions by the words that they share, rare words more."""
        num_captions, counts = self._captions.captions, self._captions.words
        rarity = {w: math.log((num_captions + 1) / (counts.get(w, 0) + 0.5)) for w in shared}
        return [sum(rarity[w] for w in shared if w in words) for words in self._words_of_examples]

    def _is_subject(self, word: str) -> bool:
        """Says whether a word tells pictures apart: few captions have it."""
        count = self._captions.words.get(word, 0)
        is_rare = 0 < count <= _MAX_SUBJECT_FRACTION * self._captions.captions
        return is_rare and word not in self.language.words

    def _split(self, text: str) -> list[str]:
        return split_words(text, self._text_tokenizer)
