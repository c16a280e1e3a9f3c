"""Schedules: what is learned how fast, in which order, with which random numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.training import schedule
from tessella.training.schedule import (
    create_image_generators,
    learning_rate_multiplier,
    order_images,
    order_streamed,
    step_seed,
)


@pytest.mark.parametrize(
    ("images_seen", "expected"),
    [
        (0, 1 / 100),  # already a little: the first step is not lost
        (49, 50 / 100),
        (99, 1.0),
        (300, 1.0),
        (600, 1.0),  # the last 40 % begin
        (700, 0.75),
        (800, 0.5),
        (1000, 0.0),
    ],
)
def test_up_level_and_down(images_seen: int, expected: float) -> None:
    made = learning_rate_multiplier(images_seen, images=1000, warmup_images=99, decay_fraction=0.4)
    assert made == pytest.approx(expected)


def test_without_warmup_or_decay() -> None:
    assert learning_rate_multiplier(0, 1000, 0, 0.4) == 1.0
    assert learning_rate_multiplier(999, 1000, 0, 0.0) == 1.0
    assert learning_rate_multiplier(500, 1000, 0, 1.0) == 0.5


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_it_is_always_a_share(images: int, warmup: int, decay: float, progress: float) -> None:
    seen = int(progress * (images - 1))
    assert 0 < learning_rate_multiplier(seen, images, warmup, decay) <= 1


@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 4))
def test_each_pass_sees_every_image_once(num_images: int, seed: int, passes: int) -> None:
    seen = order_images(num_images, seed, 0, passes * num_images).reshape(passes, -1)
    assert np.array_equal(np.sort(seen, axis=1), np.tile(np.arange(num_images), (passes, 1)))


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 90))
def test_the_order_is_a_function_of_the_position(num_images: int, start: int, count: int) -> None:
    """Begun anywhere, after anything, in whatever portions: the same images."""
    whole = order_images(num_images, 3, 0, start + count)
    assert np.array_equal(order_images(num_images, 3, start, count), whole[start:])
    assert np.array_equal(order_images(num_images, 3, 0, start + count), whole)
    pieces = [order_images(num_images, 3, place, 1)[0] for place in range(start + count)]
    assert np.array_equal(pieces, whole)


def test_passes_and_seeds_differ() -> None:
    first, second = order_images(100, 0, 0, 200).reshape(2, -1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, order_images(100, 1, 0, 100))


def test_every_step_has_its_own_seed() -> None:
    """Of all steps, all processes and neighbouring seeds; and it is the same another time."""
    seeds = [
        step_seed(seed, images, rank)
        for seed in range(4)
        for rank in (None, *range(4))
        for images in range(0, 64 * 100, 64)
    ]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**64
    assert step_seed(1, 3, 2) == step_seed(1, 3, 2) != step_seed(1, 2, 3)


def test_what_is_drawn_for_an_image_follows_from_its_place() -> None:
    """Whatever batch it is in; and no two places draw alike, nor do two seeds."""
    together = [rng.random() for rng in create_image_generators(0, 90, 20)]
    apart = [rng.random() for n in range(90, 110) for rng in create_image_generators(0, n, 1)]
    other = [rng.random() for rng in create_image_generators(1, 90, 20)]
    assert together == apart
    assert len({*together, *other}) == 40


# --- orders that take no list ----------------------------------------------------------------


@pytest.mark.parametrize("num_images", [1, 2, 3, 7, 64, 1000, 4097])
def test_many_are_shuffled_without_a_list(num_images: int, monkeypatch) -> None:
    """Each once in a pass, in another order in each, from anywhere on."""
    monkeypatch.setattr(schedule, "_LISTED", 0)
    seen = order_images(num_images, 3, 0, 3 * num_images)
    passes = seen.reshape(3, -1)
    assert np.array_equal(np.sort(passes, axis=1), np.tile(np.arange(num_images), (3, 1)))
    start = num_images // 2
    assert np.array_equal(order_images(num_images, 3, start, num_images), seen[start:][:num_images])
    if num_images >= 64:
        assert not np.array_equal(passes[0], passes[1])
        assert not np.array_equal(passes[0], order_images(num_images, 4, 0, num_images))
        # Neighbours come from far apart: a third of the way on average.
        assert np.abs(np.diff(passes[0])).mean() == pytest.approx(num_images / 3, rel=0.2)


def unit_ends(*sizes: int) -> np.ndarray:
    return np.cumsum(sizes)


@pytest.mark.parametrize(
    "ends",
    [unit_ends(1), unit_ends(5), unit_ends(3, 0, 70, 1), unit_ends(*[100] * 20, 7)],
    ids=["one", "few", "uneven", "many"],
)
def test_a_streamed_pass_sees_every_image_once(ends: np.ndarray, monkeypatch) -> None:
    monkeypatch.setattr(schedule, "_BLOCK", 8)
    count = int(ends[-1])
    seen = order_streamed(ends, 1, 0, 3 * count)
    assert np.array_equal(np.sort(seen.reshape(3, -1)), np.tile(np.arange(count), (3, 1)))
    if count > 10:
        assert not np.array_equal(seen[:count], seen[count : 2 * count])


def test_a_streamed_order_is_a_function_of_the_position() -> None:
    ends = unit_ends(*[50] * 9)
    whole = order_streamed(ends, 2, 0, 1000)
    for start, count in ((0, 1), (7, 32), (440, 40), (449, 2), (900, 100)):
        assert np.array_equal(order_streamed(ends, 2, start, count), whole[start:][:count])


def test_few_units_are_read_at_a_time_and_all_are_mixed(monkeypatch) -> None:
    """400 units of 100: 64 lanes hold one or two each, and a batch has its images from most."""
    monkeypatch.setattr(schedule, "_BLOCK", 50)
    ends = unit_ends(*[100] * 400)
    seen = order_streamed(ends, 0, 0, 40_000)
    units = seen // 100
    for start in range(0, 39_000, 6400):
        assert len(set(units[start : start + 6400])) <= 64 * 3
    assert np.mean([len(set(units[s : s + 64])) for s in range(0, 39_000, 64)]) > 60
    # Each is read in one stretch, or in two where a lane ends in it.
    places = [np.flatnonzero(units == unit) for unit in range(400)]
    assert np.median([p[-1] - p[0] for p in places]) < 64 * 200


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_read_units_of_their_own(processes: int) -> None:
    """Every so-manieth image comes from lanes of its own; at their ends two share a unit."""
    ends = unit_ends(*[100] * 640)
    seen = order_streamed(ends, 0, 0, 64_000) // 100
    shares = [set(seen[rank::processes].tolist()) for rank in range(processes)]
    shared = sum(map(len, shares)) - len(set.union(*shares))
    assert shared <= 64
