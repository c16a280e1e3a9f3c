"""Copies of examples, on pictures whose distances are known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessella.evaluation.memorisation import Pair
from tessella.evaluation.metric import Metric, Results
from tessella.evaluation.neighbor_copies import (
    Beside,
    ExampleComparison,
    compute_mse,
    find_originals,
    measure_neighbor_copies,
)
from tessella.images import Pixels
from tessella.retrieval import Example

SIZE = 4
COPIES = ("neighbor_copy_rate", "neighbor_copy_rate_real", "neighbor_copy_excess")


def gray(*values: int) -> Pixels:
    return np.stack([np.full((SIZE, SIZE, 3), value, dtype=np.uint8) for value in values])


class Tens:
    """A model and its tokenizer: a picture's only code is its brightness in tens."""

    tokenizer: Any
    codebook = torch.zeros(1, 26, 1)

    def __init__(self) -> None:
        self.tokenizer = self

    def encode(self, image: Tensor) -> Tensor:
        return ((image[:, :1, :1, :1] + 1) * 12.75 + 0.01).long()

    def decode_codes(self, codes: Tensor) -> Pixels:
        return gray(*(10 * codes.flatten()).tolist())


class Training:
    """Training pictures in memory, by name."""

    def __init__(self, **shades: int) -> None:
        self.names = [name.replace("__", "/") + ".png" for name in shades]
        self.shades = list(shades.values())

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def pixels(self, indices: Sequence[int]) -> Pixels:
        return gray(*(self.shades[index] for index in indices))


def example(index: int, code: int, name: str) -> Example:
    return Example(np.array([[[code]]], np.uint16), f"caption of {name}", f"{name}.png", index)


CAT, DOG = example(0, 5, "cat"), example(1, 12, "dog")
BESIDE = Beside(
    prompts=["one", "two", "three", "four"],
    examples=[(CAT,), (DOG, CAT), (), (CAT,)],
    pixels=gray(44, 123, 50, 42),
    codes=np.array([4, 12, 5, 4], np.uint16).reshape(4, 1, 1, 1),
    real_codes=np.array([5, 9, 5, 4], np.uint16).reshape(4, 1, 1, 1),
    description="all mine",
)


def measure(
    beside: Beside = BESIDE, training: Training | None = None, missing: str = "None there."
) -> tuple[Results, list[Pair]]:
    model: Any = Tens()
    there: Any = training
    return measure_neighbor_copies(model, beside, there, missing)


def squared(difference: float) -> float:
    return float(difference / 127.5) ** 2


def value(results: Results, name: str) -> float:
    metric = results[name]
    assert isinstance(metric, Metric)
    return metric.value


def protocol(results: Results, name: str) -> str:
    metric = results[name]
    assert isinstance(metric, Metric)
    return metric.protocol


def test_copies_by_hand() -> None:
    """Decoded, the cat is 50 and its original 57; the dog 120, its original 124.

    Painted are 44, 6 from the cat: a copy, as that is 7 from its original; 123, 3 from the dog: a
    copy; 42, 8 from the cat: none. The third looks at nothing. Of the real ones, recompressed to
    50, 90 and 40, the first is a copy.
    """
    results, pairs = measure(training=Training(cat=57, dog=124, other=3))
    assert value(results, "neighbor_copy_rate") == pytest.approx(2 / 3)
    assert value(results, "neighbor_copy_rate_real") == pytest.approx(1 / 3)
    assert value(results, "neighbor_copy_excess") == pytest.approx(1 / 3)
    assert value(results, "neighbor_distance") == pytest.approx(squared(6))
    assert value(results, "neighbor_distance_real") == pytest.approx(squared(10))
    # Painted has the dog's code; real the cat's.
    assert value(results, "neighbor_same_codes_rate") == pytest.approx(1 / 3)
    assert value(results, "neighbor_same_codes_rate_real") == pytest.approx(1 / 3)
    assert protocol(results, "neighbor_copy_rate") == (
        "share of 3 painted pictures nearer to one of their examples, decoded, than that is to its "
        "original, by squared difference of pixels"
    )
    assert "3 real pictures of the same captions, recompressed, all mine," in protocol(
        results, "neighbor_copy_rate_real"
    )
    assert protocol(results, "neighbor_same_codes_rate").startswith(
        "share of 3 painted pictures of whose codes 90% are those of one of their examples"
    )

    # The worst first: 6 of 7, 3 of 4, 8 of 7 … squared.
    assert [pair.prompt for pair in pairs] == ["two", "one", "four"]
    assert [pair.example for pair in pairs] == ["dog.png", "cat.png", "cat.png"]
    assert [pair.describe()["is_copy"] for pair in pairs] == [True, True, False]
    assert pairs[0].distance == pytest.approx(squared(3))
    assert pairs[0].limit == pytest.approx(squared(4))
    assert np.array_equal(pairs[0].nearest, gray(120)[0])
    assert np.array_equal(pairs[0].generated, gray(123)[0])
    assert pairs[0].caption == "caption of dog"


def test_without_the_originals_distances_and_codes_are_left() -> None:
    results, pairs = measure()
    assert {results[name] for name in COPIES} == {"None there."}
    assert value(results, "neighbor_distance") == pytest.approx(squared(6))
    assert value(results, "neighbor_same_codes_rate") == pytest.approx(1 / 3)
    assert [pair.prompt for pair in pairs] == ["two", "one", "four"]
    assert {pair.limit for pair in pairs} == {None}
    assert {pair.describe()["is_copy"] for pair in pairs} == {None}

    gone, _ = measure(training=Training(other=3))
    reason = "The originals of its examples are not among the training pictures."
    assert {gone[name] for name in COPIES} == {reason}


def test_pictures_whose_examples_have_lost_their_originals_are_not_judged() -> None:
    results, pairs = measure(training=Training(cat=57))
    assert value(results, "neighbor_copy_rate") == pytest.approx(1 / 3)
    assert protocol(results, "neighbor_copy_rate").startswith("share of 3 painted")
    only_dog, pairs = measure(training=Training(dog=124))
    assert value(only_dog, "neighbor_copy_rate") == 1.0
    assert protocol(only_dog, "neighbor_copy_rate").startswith("share of 1 painted")
    # What can be judged comes first.
    assert [pair.example for pair in pairs] == ["dog.png", "cat.png", "cat.png"]


def test_an_objective_without_codes_has_no_codes_to_compare() -> None:
    beside = Beside(**{**vars(BESIDE), "codes": None})
    results, _ = measure(beside, Training(cat=57))
    assert results["neighbor_same_codes_rate"] == "The objective generates no codes."
    assert results["neighbor_same_codes_rate_real"] == "The objective generates no codes."
    assert value(results, "neighbor_copy_rate") == pytest.approx(1 / 3)


def test_of_several_codes_at_a_position_each_counts() -> None:
    """Of ten codes nine are the example's: a copy. Eight are not, though the first are."""

    class FirstCodes(Tens):
        def decode_codes(self, codes: Tensor) -> Pixels:
            return super().decode_codes(codes[:, :1])

    model: Any = FirstCodes()
    cat = Example(np.arange(10, dtype=np.uint16).reshape(10, 1, 1), "a cat", "cat.png", 0)
    comparison = ExampleComparison(model, [(cat,), (cat,)], None)
    codes = np.stack([cat.codes, cat.codes])
    codes[:, 9] = 0
    assert comparison.compute_same_codes_rate(codes) == 1
    codes[1, 8] = 0
    assert comparison.compute_same_codes_rate(codes) == 1 / 2


def test_prompts_that_find_nothing_leave_all_out() -> None:
    results, pairs = measure(Beside(**{**vars(BESIDE), "examples": [()] * 4}), Training(cat=57))
    assert set(results.values()) == {"No caption finds an example."}
    assert len(results) == 7
    assert pairs == []


def test_originals_are_found_by_name_and_codes() -> None:
    """Other folders have a cat too, and elsewhere the same folder may have another name."""
    model: Any = Tens()

    def find(training: Any) -> dict[int | None, int]:
        found = find_originals(model, [CAT, DOG], training)
        return {index: int(picture[0, 0, 0]) for index, picture in found.items()}

    assert find(Training(cat=57, dog=124)) == {0: 57, 1: 124}
    assert find(Training(a__cat=97, b__cat=58, dog=110)) == {0: 58}
    assert find(Training(a__cat=53, cat=57)) == {0: 57}
    assert find(Training(bird=57)) == {}
    assert find(None) == {}


def test_the_distance_is_of_pixels_in_minus_one_to_one() -> None:
    black, white = gray(0, 255)
    assert compute_mse(black, white) == 4
    assert compute_mse(white, white) == 0
