"""Schedules, orders of places, and which code is taken."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessella.errors import ConfigError
from tessella.objectives import GenerationSettings
from tessella.objectives.sampling import (
    cosine_schedule,
    guide,
    halton_order,
    random_orders,
    sample_codes,
)

# How many places at each step.


@given(st.integers(1, 1024), st.integers(1, 1100))
def test_the_schedule_asks_every_place(num_places: int, steps: int) -> None:
    sizes = cosine_schedule(num_places, steps)
    assert sum(sizes) == num_places
    assert min(sizes) >= 1
    assert len(sizes) == min(steps, num_places)
    # Few at first, many at the end: never fewer than before, but for rounding.
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(sizes))


def test_the_schedule_by_hand() -> None:
    """64 places in 4 steps: 64 · (1 - cos(π/2 · k/4)) is 4.87, 18.75, 39.51 and 64."""
    assert cosine_schedule(64, 4) == [5, 14, 21, 24]
    assert cosine_schedule(5, 5) == [1, 1, 1, 1, 1]
    assert cosine_schedule(5, 99) == [1, 1, 1, 1, 1]
    assert cosine_schedule(7, 1) == [7]


# In which order.


@given(st.integers(1, 20), st.integers(1, 20))
def test_halton_orders_every_place_once(height: int, width: int) -> None:
    order = halton_order(height, width)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(height * width))


def test_halton_by_hand() -> None:
    """Rows by 1/2, 1/4, 3/4, 1/8, …, columns by 1/3, 2/3, 1/9, 4/9, …: a grid of 2 × 3."""
    # (1/2, 1/3) (1/4, 2/3) (3/4, 1/9) (1/8, 4/9) (5/8, 7/9) (3/8, 2/9)
    assert halton_order(2, 3).tolist() == [4, 2, 3, 1, 5, 0]


def test_halton_is_spread_evenly_from_the_start() -> None:
    """Of 16 × 16 places the first 16 lie in all quarters and apart; random ones hardly ever do."""
    first = halton_order(16, 16)[:16]
    quarters = (first // 16 // 8) * 2 + first % 16 // 8
    assert sorted(torch.bincount(quarters, minlength=4).tolist()) == [3, 4, 4, 5]
    rows, columns = np.divmod(first.numpy(), 16)
    apart = np.hypot(rows[:, None] - rows, columns[:, None] - columns) + 99 * np.eye(16)
    assert apart.min() >= 2


def test_random_orders_are_each_picture_s_own() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 1)]
    orders = random_orders(50, generators)
    assert torch.equal(orders.sort(1).values, torch.arange(50).expand(3, -1))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])


# Which code.


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def frequencies(logits: Tensor, count: int = 40_000, **changes: float) -> Tensor:
    taken = sample_codes(
        logits.expand(count, -1), noise(count, len(logits)), GenerationSettings(**changes)
    )
    return torch.bincount(taken, minlength=len(logits)) / count


LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0)
    torch.testing.assert_close(
        frequencies(LOGITS, temperature=temperature), expected, atol=0.01, rtol=0
    )


def test_top_k_keeps_the_likeliest_and_their_ratios() -> None:
    made = frequencies(LOGITS, temperature=1.0, top_k=2)
    expected = torch.tensor([2.0, 1.0]).softmax(0)
    torch.testing.assert_close(made[:2], expected, atol=0.01, rtol=0)
    assert made[2:].sum() == 0


def test_top_p_by_hand() -> None:
    """Probabilities .5, .3, .15, .05: 0.6 is reached by two, 0.5 by one, 0.96 takes all."""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    for top_p, kept in ((0.6, {1, 3}), (0.45, {1}), (0.9, {0, 1, 3}), (0.96, {0, 1, 2, 3})):
        made = frequencies(logits, temperature=1.0, top_p=top_p)
        assert set(made.nonzero().flatten().tolist()) == kept
    expected = torch.tensor([0.0, 5 / 8, 0.0, 3 / 8])
    made = frequencies(logits, temperature=1.0, top_p=0.6)
    torch.testing.assert_close(made, expected, atol=0.01, rtol=0)


@settings(max_examples=50)
@given(st.integers(0, 999), st.sampled_from([1.0, 30.0]))
def test_four_ways_to_take_the_likeliest(seed: int, scale: float) -> None:
    logits = scale * torch.randn(5, 3, 17, generator=torch.Generator().manual_seed(seed))
    likeliest = logits.argmax(-1)
    # A temperature so low that the logits would overflow once took whichever came first.
    for changes in (
        {"temperature": 0.0},
        {"temperature": 1e-40},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 1e-9},
    ):
        taken = sample_codes(logits, noise(5, 3, 17, seed=seed), GenerationSettings(**changes))
        assert torch.equal(taken, likeliest), changes


@settings(max_examples=50)
@given(st.integers(0, 999), st.integers(1, 20), st.floats(0.01, 1.0))
def test_what_is_filtered_out_is_never_taken(seed: int, top_k: int, top_p: float) -> None:
    logits = 3 * torch.randn(40, 12, generator=torch.Generator().manual_seed(seed))
    chosen = GenerationSettings(temperature=0.7, top_k=top_k, top_p=top_p)
    taken = sample_codes(logits, noise(40, 12, seed=seed), chosen)
    rank = (logits > logits.gather(1, taken[:, None])).sum(1)
    assert (rank < top_k).all()
    # Of what top_k leaves, those that are likelier had not reached top_p yet.
    least = logits.topk(min(top_k, 12)).values[:, -1:]
    shares = (logits / 0.7).masked_fill(logits < least, -math.inf).softmax(1)
    likelier = shares.masked_fill(logits <= logits.gather(1, taken[:, None]), 0.0).sum(1)
    assert (likelier < top_p + 1e-5).all()


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24])
def test_the_ends_of_the_noise_stay_finite(value: float) -> None:
    """At 0 and just below 1 the logarithms of the Gumbel rule would be infinite."""
    logits = torch.tensor([[0.0, 100.0, 0.0]])
    taken = sample_codes(logits, torch.full((1, 3), value), GenerationSettings(temperature=1.0))
    assert taken.item() == 1


def test_guidance_by_hand() -> None:
    conditional, unconditional = torch.tensor([1.0, 4.0]), torch.tensor([0.0, 2.0])
    assert guide(conditional, unconditional, 1.0).tolist() == [1.0, 4.0]
    assert guide(conditional, unconditional, 0.0).tolist() == [0.0, 2.0]
    assert guide(conditional, unconditional, 3.0).tolist() == [3.0, 8.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "`steps`: got: `0`; input should be greater than or equal to 1"),
        ({"temperature": -0.1}, "`temperature`: got: `-0.1`"),
        ({"temperature": math.nan}, "`temperature`: got: `nan`"),
        ({"top_k": 0}, "`top_k`: got: `0`"),
        ({"top_p": 0.0}, "`top_p`: got: `0.0`"),
        ({"guidance_scale": math.inf}, "`guidance_scale`: got: `inf`"),
        ({"order": "raster"}, "`order`: got: `raster`; input should be 'random' or 'halton'"),
        ({"temprature": 1}, "Unknown setting `temprature`; did you mean `temperature`"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GenerationSettings().replace(**changes)
