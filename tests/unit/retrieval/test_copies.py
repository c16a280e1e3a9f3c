"""Which pictures are as good as the same."""

import numpy as np
import pytest

from tessella.retrieval import ExampleMemory
from tessella.retrieval.copies import ALONE, SAME_CAPTION, NearCopies, are_same, count_tolerated
from tessella.retrieval.examples import ExampleRow

CODEBOOK = np.eye(8, dtype=np.float32)[None]
"""Any two codes are equally far apart: a similarity is the fraction of equal places, stretched."""


def create_copies(changed: int, captions: tuple[str, str]) -> NearCopies:
    """Two examples that differ at some of their 64 places, and 500 others."""
    rng = np.random.default_rng(0)
    codes = rng.integers(8, size=(502, 1, 8, 8)).astype(np.uint16)
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
    memory = ExampleMemory.build(np.zeros((3, 1, 2, 2), np.uint16), rows, "hash")
    assert NearCopies(memory, CODEBOOK).find(0, np.arange(3)).all()


def test_several_codes_are_compared_by_the_sum_of_their_vectors() -> None:
    """By hand, in a plane: 0 is x, 1 is 2 x of the first codebook; 0 is y, 1 is x of the second."""
    codebook = np.array([[[1, 0], [2, 0]], [[0, 1], [1, 0]]], np.float32)
    # Of one position each: (1, 1), (2, 1), (2, 0) and (3, 0).
    pairs = [(0, 0), (1, 0), (0, 1), (1, 1)]
    codes = np.array(pairs, np.uint16).reshape(4, 2, 1, 1)
    memory = ExampleMemory.build(codes, [ExampleRow(c, [c]) for c in "abcd"], "hash")
    copies = NearCopies(memory, codebook)
    # The squared distances of the first to each of them.
    assert copies._distance(codes[0], codes).tolist() == [0, 1, 2, 5]
    # Pictures of two positions: the first two of them, and the third and the first.
    left, right = (codes[rows, :, 0].swapaxes(0, 1) for rows in ([0, 1], [2, 0]))
    assert copies._distance(left, right) == (2 + 1) / 2


def test_other_codes_of_the_same_vectors_are_a_copy() -> None:
    """Codes are compared by what they mean; the second codebook counts as much as the first."""
    codebook = np.zeros((2, 8, 8), np.float32)
    codebook[0, :, :4] = codebook[1, :, 4:] = np.eye(8, 4)
    codebook[1, 5:] = codebook[1, 4]  # 4 to 7 are one vector
    rng = np.random.default_rng(0)
    codes = rng.integers(8, size=(300, 2, 4, 4)).astype(np.uint16)
    codes[:3, 1] = 4
    codes[:3, 0] = codes[0, 0]
    codes[1, 1] = 7  # another number, the same vector
    codes[2, 1] = np.arange(16).reshape(4, 4) % 4  # other vectors
    rows = [ExampleRow(str(number), [str(number)]) for number in range(300)]
    copies = NearCopies(ExampleMemory.build(codes, rows, "hash"), codebook)
    assert copies.find(0, np.arange(3)).tolist() == [True, True, False]
    assert copies.find_like(codes[1], ["none"], np.arange(3)).tolist() == [True, True, False]


def test_which_codes_are_the_same_but_for_rounding() -> None:
    assert [count_tolerated(size) for size in (1, 31, 32, 64, 96, 1024)] == [0, 0, 1, 2, 3, 3]
    codes = np.arange(32, dtype=np.uint16).reshape(2, 4, 4)
    changed = codes.copy()
    changed[1, 2, 3] += 1
    assert are_same(codes, changed)
    changed[0, 0, 0] += 1
    assert not are_same(codes, changed)
