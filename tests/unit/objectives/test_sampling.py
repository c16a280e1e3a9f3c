"""Schedules, orders of positions, and which code is taken."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessella.generation import GenerationSettings
from tessella.objectives.sampling import (
    choose_confident,
    gather_log_probability,
    guide,
    halton_order,
    random_orders,
    sample_codes,
    scale_guidance,
    split_positions,
    to_gumbel,
    unknown_fraction,
)

# How many positions at each step.


SCHEDULES = st.sampled_from(["cosine", "arccos"])


@given(st.integers(0, 1024), st.integers(1, 4096), SCHEDULES)
def test_the_schedule_predicts_every_position(
    num_positions: int, steps: int, schedule: str
) -> None:
    sizes = split_positions(num_positions, steps, schedule)
    assert sum(sizes) == num_positions
    assert min(sizes, default=1) >= 1
    assert len(sizes) == min(steps, num_positions)
    if schedule == "cosine":
        # Few at first, many at the end: never fewer than before, but for rounding.
        assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(sizes))
    # As the schedule says, but for rounding and where each step to come must have a position.
    for step, known in enumerate(itertools.accumulate(sizes), start=1):
        if known > step and known < num_positions - (len(sizes) - step):
            wanted = num_positions * (1 - unknown_fraction(step / len(sizes), schedule))
            assert abs(known - wanted) <= 0.5 + 1e-9


def test_the_schedule_by_hand() -> None:
    """64 positions in 4 steps: 64 · (1 - cos(π/2 · k/4)) is 4.87, 18.75, 39.51 and 64.

    By arccos 64 · (1 - 2/π · arccos(k/4)) is 10.29, 21.33, 34.55 and 64.
    """
    assert split_positions(64, 4) == [5, 14, 21, 24]
    assert split_positions(64, 4, "arccos") == [10, 11, 14, 29]
    for schedule in ("cosine", "arccos"):
        assert split_positions(5, 5, schedule) == [1, 1, 1, 1, 1]
        assert split_positions(5, 99, schedule) == [1, 1, 1, 1, 1]
        assert split_positions(7, 1, schedule) == [7]
        assert split_positions(0, 3, schedule) == []


def test_the_unknown_fraction_by_hand() -> None:
    for schedule in ("cosine", "arccos"):
        assert unknown_fraction(0.0, schedule) == pytest.approx(1.0)
        assert unknown_fraction(1.0, schedule) == pytest.approx(0.0)
    assert unknown_fraction(1 / 3) == pytest.approx(math.sqrt(3) / 2)
    assert unknown_fraction(0.5, "arccos") == pytest.approx(2 / 3)


# In which order.


@given(st.integers(1, 20), st.integers(1, 20))
def test_halton_orders_every_position_once(height: int, width: int) -> None:
    order = halton_order(height, width)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(height * width))


def test_halton_by_hand() -> None:
    """Rows by 1/2, 1/4, 3/4, 1/8, …, columns by 1/3, 2/3, 1/9, 4/9, …: a grid of 2 × 3."""
    # (1/2, 1/3) (1/4, 2/3) (3/4, 1/9) (1/8, 4/9) (5/8, 7/9) (3/8, 2/9)
    assert halton_order(2, 3).tolist() == [4, 2, 3, 1, 5, 0]


def test_halton_s_order_is_a_fresh_tensor() -> None:
    """The positions are listed once a grid; changing one tensor changes no other."""
    halton_order(2, 3).zero_()
    assert halton_order(2, 3).tolist() == [4, 2, 3, 1, 5, 0]


def test_halton_is_spread_evenly_from_the_start() -> None:
    """Of 16 × 16 positions the first 16 are in all quarters and apart; random ones rarely are."""
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


def test_the_ramp_of_guidance_by_hand() -> None:
    """From 1 up to 5 in four steps: the last has it in full."""
    ramped = GenerationSettings(guidance_scale=5.0, guidance_schedule="linear")
    assert [scale_guidance(ramped, step, 4) for step in (1, 2, 3, 4)] == [2.0, 3.0, 4.0, 5.0]
    below = GenerationSettings(guidance_scale=0.0, guidance_schedule="linear")
    assert [scale_guidance(below, step, 2) for step in (1, 2)] == [0.5, 0.0]
    constant = GenerationSettings(guidance_scale=5.0)
    assert [scale_guidance(constant, step, 2) for step in (1, 2)] == [5.0, 5.0]


# Chance, and where the transformer is sure.


def test_gumbel_numbers() -> None:
    """The inverse of exp(-exp(-g)): 1/e gives 0; mean Euler's constant, variance π²/6."""
    assert to_gumbel(torch.tensor([math.exp(-1)])).item() == pytest.approx(0.0, abs=1e-6)
    drawn = to_gumbel(noise(200_000))
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert drawn.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    assert to_gumbel(torch.tensor([0.0, 1 - 2**-24])).isfinite().all()


def test_confidence_by_hand() -> None:
    """Four positions; the codes taken have .7, .2, .9 and .5: the surest are 2, then 0, then 3."""
    shares = torch.tensor([[[0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.5, 0.5]]])
    codes, any_noise = torch.tensor([[0, 0, 1, 1]]), noise(1, 4)
    for scale in (0.0, 3.0):  # logits are what they are but for a constant
        log_probability = gather_log_probability(shares.log() + scale, codes)
        for count, kept in ((1, [2]), (2, [0, 2]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])):
            made = choose_confident(log_probability, any_noise, count, 0.0)
            assert made.tolist() == [kept]


def test_noise_changes_what_is_sure() -> None:
    """.6 and .3 with noise of temperature 1 are taken as often as 2 to 1: Gumbel's rule again."""
    count = 40_000
    log_probability = torch.tensor([0.6, 0.3]).log().expand(count, -1)
    for temperature, share in ((1.0, 2 / 3), (0.5, 4 / 5), (0.0, 1.0)):
        made = choose_confident(log_probability, noise(count, 2), 1, temperature)
        assert (made == 0).float().mean().item() == pytest.approx(share, abs=0.01)


@given(st.integers(0, 99), st.integers(1, 9), st.sampled_from([0.0, 4.5, 1000.0]))
def test_confident_positions_come_in_rising_order(
    seed: int, count: int, temperature: float
) -> None:
    log_probability = -torch.rand(3, 9, generator=torch.Generator().manual_seed(seed)).exp()
    made = choose_confident(log_probability, noise(3, 9, seed=seed), count, temperature)
    assert made.shape == (3, count)
    assert (made.diff(dim=1) > 0).all()
    assert 0 <= made.min() <= made.max() < 9
