"""Schedules: what is learned how fast, in which order, with which random numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.training.schedule import (
    create_image_generators,
    learning_rate_multiplier,
    order_images,
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
