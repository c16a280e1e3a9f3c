"""Which pictures are as good as the same: no picture may look itself up while it is learned.

Otherwise the model learns to copy. The same picture again, another crop of it, another skin tone
of the same drawing: their codes are almost equal, or similar under the very same caption.
"""

from collections.abc import Iterable, Set

import numpy as np
import numpy.typing as npt

from tessella.retrieval.examples import Codes, ExampleMemory

# Similarity is 1 for equal codes, and 0 on average for two pictures of the data. Two emoji that
# differ in skin tone alone are at 0.85 (nine tenths of them above 0.45), two photographs of the
# same class at 0.0 (one in a hundred above 0.4): docs/log.md.
ALONE = 0.85
SAME_CAPTION = 0.45

# Codes of one picture that may differ: between two codes that are as near, rounding decides, and
# that depends on the batch.
_MAX_DIFFERENT = 3
_CODES_FOR_ONE = 32

_SAMPLE = 2048


class NearCopies:
    """Finds out whether two examples are as good as the same.

    Args:
        memory: has both.
        codebook: (M, K, C) vectors of the codes.
    """

    def __init__(self, memory: ExampleMemory, codebook: npt.NDArray[np.float32]) -> None:
        self._memory, self._codebook = memory, codebook
        # A number each: equal ones are as good as certainly equal captions.
        captions = (caption for row in memory.rows for caption in row.captions)
        self._captions = [hash(caption.casefold()) for caption in captions]
        self._starts = np.searchsorted(memory.example_of, np.arange(len(memory) + 1)).tolist()
        rng = np.random.default_rng(0)
        first, second = rng.integers(len(memory), size=(2, _SAMPLE))
        pairs = self._distance(memory.codes[first], memory.codes[second])
        self._scale = max(float(pairs.mean()), 1e-12)

    def find(self, example: int, others: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Finds which of some examples (R,) are as good as one: (R,) bool. It is, of itself."""
        found = self._compare(self._memory.codes[example], self._read(example), others)
        found |= others == example
        return found

    def find_like(
        self, codes: Codes, captions: Iterable[str], others: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.bool_]:
        """Finds which of some examples (R,) are as good as a picture that need not be one.

        Args:
            codes: (M, h, w) of the picture.
            captions: all of the picture's.
            others: (R,) examples.
        """
        return self._compare(codes, {hash(one.casefold()) for one in captions}, others)

    def _compare(
        self, codes: Codes, captions: Set[int], others: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.bool_]:
        similarity = 1 - self._distance(codes, self._memory.codes[others]) / self._scale
        found: npt.NDArray[np.bool_] = similarity >= ALONE
        for number in np.flatnonzero(~found & (similarity >= SAME_CAPTION)).tolist():
            found[number] = not captions.isdisjoint(self._read(int(others[number])))
        return found

    def _read(self, example: int) -> set[int]:
        start, end = self._starts[example : example + 2]
        return set(self._captions[start:end])

    def _distance(self, first: Codes, second: Codes) -> npt.NDArray[np.float64]:
        """Computes mean squared distances (R,) of the vectors of codes (…, M, h, w)."""
        left, right = self._look_up(first), self._look_up(second)
        distances: npt.NDArray[np.float64] = np.square(left - right).sum(-1).mean((-1, -2))
        return distances

    def _look_up(self, codes: Codes) -> npt.NDArray[np.float32]:
        vectors = sum(book[codes[..., m, :, :]] for m, book in enumerate(self._codebook))
        return np.asarray(vectors, np.float32)


def are_same(first: Codes, second: Codes) -> bool:
    """Whether two codes (M, h, w) are those of one picture, but for rounding."""
    return int(np.count_nonzero(first != second)) <= count_tolerated(first.size)


def count_tolerated(num_codes: int) -> int:
    """Counts how many codes of a picture rounding may change."""
    return min(_MAX_DIFFERENT, num_codes // _CODES_FOR_ONE)
