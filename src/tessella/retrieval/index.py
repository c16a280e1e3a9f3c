"""captions → an inverted index → the examples whose captions cover a prompt best.

Each next example is chosen for what of the prompt the ones before it leave out: for "a red dress"
a red shirt and a blue dress, not two blue dresses. Every caption is indexed by itself, so that the
keywords of a picture do not stand in the way of its title. Arrays, not objects: the index of a
million captions is memory-mapped and read where a prompt's words are.

Source: tf-idf (Salton and Buckley 1988) with the weights and lengths of `build`;
Snowball's stemmer; the greedy choice is the usual one for coverage, with a factor instead of a
limit.
"""

import functools
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

COVERED = 0.2
"""What a word still counts for each time that an example has covered it (docs/log.md)."""

# Captions that are compared for a prompt: all that have its rarest words, then evenly spaced ones
# of those that have its commoner words.
_MAX_CANDIDATES = 2_000
_FIRST = 32  # of these, that are put in order first: mostly it is enough
_NOTHING = 1e-30  # less is float32's zero; a word of all captions is worth little, and counts
# Languages that are written without spaces: their pairs of letters stand for words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u3040-\u30fa\u30fc-\u30ff\u3400-\u9fff"
_IDEOGRAPH = re.compile("[\u3400-\u9fff]")  # a word by itself, too

Indices = npt.NDArray[np.int32]
FindExcluded = Callable[[Indices], npt.NDArray[np.bool_]]
"""Finds which examples (R,) must not be chosen: (R,) bool."""


class CaptionIndex:
    """Finds the captions that cover a prompt.

    Args:
        words: stems, sorted; their places are their numbers.
        offsets: (words + 1,) int64, where each word's postings begin.
        captions: (P,) int32, the captions that have each word, rising within a word.
        scores: (P,) float32, what the word is worth there.
    """

    def __init__(
        self,
        words: Sequence[str],
        offsets: npt.NDArray[np.int64],
        captions: Indices,
        scores: npt.NDArray[np.float32],
    ) -> None:
        self.words, self.offsets = words, offsets
        self.captions, self.scores = captions, scores
        self._number_of = {word: number for number, word in enumerate(words)}

    @classmethod
    def build(cls, captions: Iterable[str]) -> "CaptionIndex":
        """Indexes captions.

        A word is worth idf² / √n in a caption of n different words: the sum over a prompt's words
        is the product of two tf-idf vectors over the caption's length. Not the cosine, whose
        length is that of the idf's: captions alike but for a style would differ by how common the
        styles are.
        """
        number_of: dict[str, int] = {}
        rows, lengths = array("i"), array("i")
        for caption in captions:
            words = dict.fromkeys(split_stems(caption))
            rows.extend(number_of.setdefault(word, len(number_of)) for word in words)
            lengths.append(len(words))
        sorted_words = sorted(number_of)
        place_of = np.empty(len(number_of), np.int32)
        place_of[[number_of[word] for word in sorted_words]] = np.arange(len(number_of))
        places, sizes = place_of[np.array(rows, np.int32)], np.array(lengths, np.int32)
        counts = np.bincount(places, minlength=len(number_of))
        postings = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        postings = postings[np.argsort(places, kind="stable")]
        squared = np.square(compute_idf(counts, len(sizes)))
        scores = np.repeat(squared, counts) / np.sqrt(sizes)[postings]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(sorted_words, offsets, postings, scores.astype(np.float32))

    def look_up(
        self,
        prompt: str,
        count: int,
        example_of: npt.NDArray[np.integer[Any]],
        *,
        alternatives: int = 1,
        find_excluded: FindExcluded | None = None,
    ) -> Indices:
        """Finds captions of different examples that together cover the words of a prompt.

        Args:
            prompt: any text; words that no caption has are not looked up.
            count: examples to find.
            example_of: the example of each caption; an example is found once.
            alternatives: also lists, for each of them, the next best ones in its place.
            find_excluded: asked of examples (R,); returns (R,) bool, True where they must not be
                chosen.

        Returns:
            (count, alternatives) captions, the best first; -1 where none has a word of the prompt
            that still counts. Of equally good ones the one that was added first.
        """
        found = np.full((count, alternatives), -1, np.int32)
        candidates, scores = self._find_candidates(prompt)
        examples = np.asarray(example_of[candidates])
        weights = np.ones(len(scores), np.float32)
        taken: set[int] = set()
        for row in found:
            # Word after word, not as a product: equal captions are worth the same to the last bit.
            worth = (weights[:, None] * scores).sum(0)
            in_order = _iterate_best(worth, examples, taken, find_excluded)
            best = list(islice(in_order, alternatives))
            if not best:
                break
            row[: len(best)] = candidates[best]
            taken.add(int(examples[best[0]]))
            weights = np.where(scores[:, best[0]] > 0, weights * COVERED, weights)
        return found

    def is_whole(self, num_captions: int) -> bool:
        """Returns whether every word has its postings, and these point to captions.

        Args:
            num_captions: that there are.
        """
        offsets, captions, scores = self.offsets, self.captions, self.scores
        kinds = [str(array.dtype) for array in (offsets, captions, scores)]
        if kinds != ["int64", "int32", "float32"] or offsets.shape != (len(self.words) + 1,):
            return False
        is_cut = offsets[0] != 0 or (offsets[1:] <= offsets[:-1]).any()
        if is_cut or not captions.shape == scores.shape == (offsets[-1],):
            return False
        is_outside = captions.size and (captions.min() < 0 or captions.max() >= num_captions)
        return not is_outside and bool(np.isfinite(scores).all())

    def count_captions(self, word: str) -> int:
        """Counts the captions that have a word, a stem."""
        number = self._number_of.get(word)
        return 0 if number is None else int(self.offsets[number + 1] - self.offsets[number])

    def _find_candidates(self, prompt: str) -> tuple[Indices, npt.NDArray[np.float32]]:
        """Finds captions (D,) with words of a prompt, and what each word is worth (W, D)."""
        numbers = {self._number_of.get(word) for word in split_stems(prompt)}
        known = [number for number in numbers if number is not None]
        spans = sorted(
            (slice(*self.offsets[n : n + 2].tolist()) for n in sorted(known)), key=_length
        )
        found, left = [], _MAX_CANDIDATES
        for span in spans:
            if left <= 0:
                break
            found.append(np.asarray(self.captions[span][:: -(-_length(span) // left)]))
            left -= len(found[-1])
        if not found:
            return np.zeros(0, np.int32), np.zeros((0, 0), np.float32)
        candidates = np.sort(np.concatenate(found))
        candidates = candidates[np.append(True, candidates[1:] != candidates[:-1])]
        scores = np.zeros((len(spans), len(candidates)), np.float32)
        for row, span in zip(scores, spans, strict=True):
            captions = self.captions[span]
            at = np.minimum(np.searchsorted(captions, candidates), _length(span) - 1)
            has_word = captions[at] == candidates
            row[has_word] = self.scores[span][at[has_word]]
        return candidates, scores


def _iterate_best(
    worth: npt.NDArray[np.float32],
    examples: Indices,
    taken: Set[int],
    find_excluded: FindExcluded | None,
) -> Iterator[int]:
    """Yields candidates, the best of each example first, without taken and excluded examples.

    Args:
        worth: (D,) of the candidates; what is worth nothing is left out.
        examples: (D,) theirs.
        taken: examples that are left out.
        find_excluded: as for `look_up`.
    """
    seen, size = set(taken), _FIRST
    while True:
        size = min(size, len(worth))
        # The threshold first, so that equally good ones come in their own order.
        least = np.partition(worth, -size)[-size] if size else 0.0
        [best] = np.nonzero(worth >= max(least, _NOTHING))
        best = best[np.argsort(-worth[best], kind="stable")]
        best = best[[example not in seen for example in examples[best].tolist()]]
        if find_excluded is not None and len(best):
            best = best[~find_excluded(examples[best])]
        for at in best.tolist():
            if (example := int(examples[at])) not in seen:
                seen.add(example)
                yield at
        if size == len(worth) or least < _NOTHING:
            return
        size *= 8


def compute_idf(counts: npt.ArrayLike, num_captions: int) -> npt.NDArray[np.float64]:
    """Computes what words say: the inverse document frequency of BM25, as Lucene computes it.

    Args:
        counts: of the captions that have each word.
        num_captions: that there are.
    """
    counts = np.asarray(counts)
    idf: npt.NDArray[np.float64] = np.log1p((num_captions - counts + 0.5) / (counts + 0.5))
    return idf


def split_stems(text: str) -> list[str]:
    """Splits a text into the stems of its words, in lower case."""
    return [stem for word in split_words(text) for stem in _stem(word)]


def split_words(text: str) -> list[str]:
    """Splits a text into its words, in lower case; what has no spaces between words stays whole."""
    words: list[str] = _create_word_pattern().findall(
        unicodedata.normalize("NFKC", text).casefold()
    )
    return words


@functools.cache
def _create_word_pattern() -> re.Pattern[str]:
    """Creates the pattern of a word: letters and digits with their marks (Hindi's vowels)."""
    marks = "".join(c for c in map(chr, range(0x300, 0x1100)) if unicodedata.category(c)[0] == "M")
    return re.compile(f"[{_UNSPACED}]+|(?:[^\\W_{_UNSPACED}][{marks}]*)+")


@functools.lru_cache(maxsize=1 << 16)
def _stem(word: str) -> tuple[str, ...]:
    """Returns a word's stem; of a word written without spaces its pairs of letters."""
    if not re.match(f"[{_UNSPACED}]", word):
        return (_create_stemmer().stemWord(word),)
    pairs = [word[i : i + 2] for i in range(len(word) - 1)]
    return tuple(dict.fromkeys([*pairs, *_IDEOGRAPH.findall(word)])) or (word,)


@functools.cache
def _create_stemmer() -> Any:
    from snowballstemmer import stemmer

    return stemmer("english")


def _length(span: slice) -> int:
    return int(span.stop) - int(span.start)
