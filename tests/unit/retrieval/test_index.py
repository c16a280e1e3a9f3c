"""Captions by their words: by hand, against dense vectors, and where there is nothing."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from tessella.retrieval import index as index_module
from tessella.retrieval.index import CaptionIndex, Indices, split_stems

WORDS = ("red", "green", "blue", "star", "ring", "circle", "large", "small", "cat", "dog")


def look_up(captions: Sequence[str], prompt: str, count: int, **options: object) -> list[list[int]]:
    """What is found where each caption has an example of its own."""
    index = CaptionIndex.build(captions)
    found = index.look_up(prompt, count, np.arange(len(captions)), **options)  # type: ignore[arg-type]
    assert found.dtype == np.int32
    found_rows: list[list[int]] = found.tolist()
    return found_rows


def first_of(captions: Sequence[str], prompt: str, count: int) -> list[int]:
    return [row[0] for row in look_up(captions, prompt, count)]


def draw_captions(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(1, 6)))) for _ in range(count)]


def test_scores_by_hand() -> None:
    """`red` and `star` are in two of three captions, `blue` in one; repeating a word is nothing."""
    index = CaptionIndex.build(["red star", "blue star star", "red"])
    assert index.words == ["blue", "red", "star"]
    assert index.offsets.tolist() == [0, 1, 3, 5]
    assert index.captions.tolist() == [1, 0, 2, 0, 1]
    of_two, of_one = math.log(1 + 1.5 / 2.5) ** 2, math.log(1 + 2.5 / 1.5) ** 2
    long, short = 1 / math.sqrt(2), 1.0
    expected = [of_one * long, of_two * long, of_two * short, of_two * long, of_two * long]
    assert index.scores == pytest.approx(expected)
    assert index.look_up("red", 1, np.arange(3), alternatives=3).tolist() == [[2, 0, -1]]


def test_order_is_that_of_dense_vectors() -> None:
    captions = draw_captions(300)
    has_word = np.array([[word in one.split() for word in WORDS] for one in captions], float)
    counts = has_word.sum(0)
    idf = np.log(1 + (300 - counts + 0.5) / (counts + 0.5))
    vectors = has_word * idf / np.sqrt(has_word.sum(1, keepdims=True))
    for prompt in draw_captions(20, seed=1):
        asked = idf * [word in prompt.split() for word in WORDS]
        scores = vectors @ asked
        [found] = look_up(captions, prompt, 1, alternatives=20)
        assert scores[found] == pytest.approx(np.sort(scores)[::-1][:20], rel=1e-5)


def test_what_says_no_more_than_the_prompt_comes_first() -> None:
    """A star in another style, before one among other things in the right style.

    Styles are equally far away, however common each is.
    """
    captions = [f"thing{number}, {'flat' if number % 3 else 'glossy'}" for number in range(40)]
    captions += ["star, flat", "star, blob", "night, sky, star, stars, glossy"]
    assert look_up(captions, "star, glossy", 1, alternatives=3) == [[40, 41, 42]]


def test_examples_cover_the_prompt_together() -> None:
    captions = ["a blue dress", "a green dress", "a black dress", "a red shirt", "a red hat"]
    assert first_of(captions, "a red dress", 2) == [3, 0]
    # With both words in one caption that one is first, and then what is left counts.
    captions += ["a red dress"]
    assert first_of(captions, "a red dress", 1) == [5]


def test_a_covered_word_counts_less_each_time() -> None:
    captions = ["cat", "cat cat", "cat tree", *["dog"] * 5]
    # `dog` is commoner, so it is worth less than `cat`, until a cat is there.
    assert first_of(captions, "cat dog", 2)[1] == 3


def test_an_example_is_found_once_though_it_has_several_captions() -> None:
    captions = ["red star", "a star", "stars", "blue star"]
    index = CaptionIndex.build(captions)
    example_of = np.array([0, 0, 0, 1])
    found = index.look_up("stars", 4, example_of)[:, 0]
    assert example_of[found[:2]].tolist() in ([0, 1], [1, 0])
    assert found[2:].tolist() == [-1, -1]
    [alternatives] = index.look_up("stars", 1, example_of, alternatives=4)
    assert sorted(example_of[alternatives[:2]].tolist()) == [0, 1]
    assert alternatives[2:].tolist() == [-1, -1]
    # Of its captions the best is named: the shortest.
    assert 1 in found or 2 in found


def test_alternatives_are_the_next_best_in_the_same_place() -> None:
    captions = ["red", "red star", "red star ring", "dog"]
    # `star` and `ring` are left for the second place; its own best is the first of it.
    assert look_up(captions, "red", 1, alternatives=3) == [[0, 1, 2]]
    [first, second] = look_up(captions, "red star", 2, alternatives=2)
    assert first == [1, 2]
    assert second[0] not in (1, -1)


def test_what_is_excluded_is_not_found() -> None:
    captions = ["red star"] * 3 + ["red ring"]
    asked: list[npt.NDArray[np.int64]] = []

    def find_excluded(examples: Indices) -> npt.NDArray[np.bool_]:
        asked.append(examples)
        return examples < 2

    assert look_up(captions, "star", 2, find_excluded=find_excluded) == [[2], [-1]]
    assert not set(np.concatenate(asked).tolist()) - {0, 1, 2}
    everything = look_up(captions, "star", 1, find_excluded=lambda few: few >= 0)
    assert everything == [[-1]]


def test_of_equally_good_ones_the_first_is_found() -> None:
    """To the last bit, wherever they stand among others."""
    captions = draw_captions(999)
    same = "small blue cat ring large dog red star"
    for place in (3, 500, 900):
        captions[place:place] = [same] * 37
    [found] = look_up(captions, same, 1, alternatives=111)
    assert found == sorted(found)
    assert {captions[number] for number in found} == {same}


def test_more_alternatives_than_are_looked_at_first() -> None:
    captions = ["red"] * 200
    assert look_up(captions, "red", 1, alternatives=200) == [list(range(200))]
    # Nearly all are excluded: the search goes on.
    [[found]] = look_up(captions, "red", 1, find_excluded=lambda few: few < 199)
    assert found == 199


def test_a_word_that_all_captions_have_finds_them_however_often_it_is_covered() -> None:
    assert first_of(["a cat"] * 100_000, "cat", 16) == list(range(0, 800, 50))
    assert first_of(["red cat", "blue dog"] * 300, "cat", 16) == list(range(0, 32, 2))


@pytest.mark.parametrize("prompt", ["", " ,.!", "zebra", "zebra unicorn"])
def test_nothing_is_found_for_no_known_word(prompt: str) -> None:
    assert look_up(["red star", "blue"], prompt, 2, alternatives=2) == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize("captions", [[], [""], ["", "…"]])
def test_an_empty_index(captions: list[str]) -> None:
    index = CaptionIndex.build(captions)
    assert (index.words, index.offsets.tolist(), len(index.captions)) == ([], [0], 0)
    assert look_up(captions, "red star", 2) == [[-1], [-1]]


def test_a_blank_caption_keeps_its_number() -> None:
    assert first_of(["", "red", "", "blue"], "blue red", 2) == [1, 3]


def test_words_are_compared_by_stem_and_in_any_case() -> None:
    assert split_stems("Running DOGS, dog's") == ["run", "dog", "dog", "s"]
    assert split_stems("Straße_№2") == split_stems("STRASSE No2")
    # However an accent is written: file names of macOS take it apart.
    assert split_stems("cafe\u0301") == split_stems("caf\u00e9")
    assert split_stems("कुत्ता बिल्ली") == ["कुत्ता", "बिल्ली"]


def test_languages_without_spaces_are_compared_by_pairs_of_letters() -> None:
    assert split_stems("黑猫") == ["黑猫", "黑", "猫"]
    assert split_stems("猫") == ["猫"]
    assert split_stems("ねこ") == ["ねこ"]
    assert split_stems("ドレス") == ["ドレ", "レス"]
    assert split_stems("แมวดำ")[:2] == ["แม", "มว"]
    assert split_stems("red猫cats") == ["red", "猫", "cat"]
    captions = ["红色的衬衫", "蓝色的连衣裙", "黑猫"]
    assert first_of(captions, "红色的连衣裙", 2) == [1, 0]
    assert first_of(captions, "一只猫", 1) == [2]


def test_of_too_many_captions_all_with_rare_words_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_module, "_MAX_CANDIDATES", 50)
    captions = [f"dog{' cat' if number % 40 == 39 else ''}" for number in range(1000)]
    captions[700] += " zebra"
    index = CaptionIndex.build(captions)
    candidates, scores = index._find_candidates("a dog, a cat and a zebra")
    rare = [700, *range(39, 1000, 40)]
    assert set(rare) < set(candidates.tolist())
    assert 50 - 10 <= len(candidates) <= 50
    assert np.all(np.diff(candidates) > 0)
    # Evenly spaced: not all from the beginning.
    common = np.setdiff1d(candidates, rare)
    assert common.min() < 100
    assert common.max() > 900
    assert scores.shape == (3, len(candidates))
    assert first_of(captions, "zebra cat", 2) == [700, 39]


def test_it_is_the_same_every_time() -> None:
    captions = draw_captions(500)
    first, second = CaptionIndex.build(captions), CaptionIndex.build(iter(captions))
    assert first.words == second.words
    for name in ("offsets", "captions", "scores"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert look_up(captions, "large red cat", 3, alternatives=4) == look_up(
        captions, "red cat, LARGE", 3, alternatives=4
    )
