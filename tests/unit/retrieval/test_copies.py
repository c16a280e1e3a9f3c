"""Which pictures are as good as the same."""

import numpy as np
import pytest

from tessella.retrieval import ExampleMemory
from tessella.retrieval.copies import ALONE, SAME_CAPTION, NearCopies
from tessella.retrieval.examples import ExampleRow

CODEBOOK = np.eye(8, dtype=np.float32)
"""Any two codes are equally far apart: a similarity is the fraction of equal places, stretched."""


def create_copies(changed: int, captions: tuple[str, str]) -> NearCopies:
    """Two examples that differ at some of their 64 places, and 500 others."""
    rng = np.random.default_rng(0)
    codes = rng.integers(8, size=(502, 8, 8)).astype(np.uint16)
    codes[1] = codes[0]
    places = codes[1].reshape(-1)
    places[:changed] = (places[:changed] + 1) % 8
    rows = [ExampleRow("a", ["x", captions[0]]), ExampleRow("b", [captions[1]])]
    rows += [ExampleRow(str(number), ["other"]) for number in range(500)]
    return NearCopies(ExampleMemory.build(codes, rows, "hash"), CODEBOOK)


# Two random pictures differ at 7 of 8 places: similarity 0. So many places differ at most:
ALONE_PLACES = int(64 * (1 - ALONE) * 7 / 8)
SAME_CAPTION_PLACES = int(64 * (1 - SAME_CAPTION) * 7 / 8)


@pytest.mark.parametrize(
    ("changed", "captions", "expected"),
    [
        (0, ("cat", "dog"), True),
        (ALONE_PLACES, ("cat", "dog"), True),
        (ALONE_PLACES + 1, ("cat", "dog"), False),
        (ALONE_PLACES + 1, ("Cat", "cat"), True),
        (SAME_CAPTION_PLACES, ("cat", "CAT"), True),
        (SAME_CAPTION_PLACES + 1, ("cat", "cat"), False),
        (64, ("cat", "cat"), False),
    ],
)
def test_equal_codes_or_similar_ones_under_the_same_caption(
    changed: int, captions: tuple[str, str], expected: bool
) -> None:
    copies = create_copies(changed, captions)
    assert copies.find(0, np.array([1])).tolist() == [expected]
    assert copies.find(1, np.array([0])).tolist() == [expected]


def test_a_picture_is_its_own_copy_and_others_are_not() -> None:
    copies = create_copies(64, ("cat", "dog"))
    found = copies.find(3, np.arange(502))
    assert np.flatnonzero(found).tolist() == [3]
    assert copies.find(3, np.zeros(0, np.int64)).shape == (0,)


def test_a_memory_of_equal_pictures() -> None:
    """No two differ, so there is no scale; all are copies."""
    rows = [ExampleRow(name, [name]) for name in "abc"]
    memory = ExampleMemory.build(np.zeros((3, 2, 2), np.uint16), rows, "hash")
    assert NearCopies(memory, CODEBOOK).find(0, np.arange(3)).all()
