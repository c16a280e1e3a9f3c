"""How many times as fast one precision is, and what the measurement could be fooled by."""

import os
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from tessella import precision
from tessella.precision import PrecisionChoice, Work, measure_speedup


def fp32() -> None: ...


def other() -> None: ...


def times(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Work], float]) -> list[Work]:
    """Replaces the clock; returns what is timed."""
    timed: list[Work] = []

    def take(work: Work) -> float:
        timed.append(work)
        return seconds(work)

    monkeypatch.setattr(precision, "_time", take)
    return timed


def test_the_middle_pair_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else had the processor in a third of the calls."""
    calls = {fp32: 0, other: 1}  # so that it never meets both of a pair

    def seconds(work: Work) -> float:
        calls[work] += 1
        disturbed = calls[work] % 3 == 0
        return {fp32: 1.8, other: 1.0}[work] * (50 if disturbed else 1)

    timed = times(monkeypatch, seconds)
    assert measure_speedup([(fp32, other), (fp32, other)]) == pytest.approx(1.8)
    assert timed == [fp32, other] * 20  # nine pairs and one to warm up, of both pieces of work


def test_what_is_hopeless_is_not_tried_on_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def works() -> Iterator[tuple[Work, Work]]:
        yield fp32, other
        pytest.fail("it would take long")

    times(monkeypatch, lambda work: {fp32: 0.01, other: 1.0}[work])
    assert measure_speedup(works()) == pytest.approx(0.01)


def test_a_slow_machine_measures_one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_SECONDS", 0.0)
    timed = times(monkeypatch, lambda _: 1.0)
    assert measure_speedup([(fp32, other), (fp32, other)]) == 1.0
    assert timed == [fp32, other] * 4


@pytest.mark.skipif(os.name == "nt", reason="its clock is too coarse")
def test_the_time_of_other_programs_does_not_count() -> None:
    assert precision._time(lambda: time.sleep(0.1)) < 0.05


def test_a_measurement_leaves_no_trace() -> None:
    threads, seen = torch.get_num_threads(), []
    works: list[tuple[Work, Work]] = [(lambda: seen.append(torch.get_num_threads()), other)]
    assert measure_speedup(works) > 0
    assert set(seen) == {1}
    assert torch.get_num_threads() == threads


def test_a_choice_is_said_with_its_reason() -> None:
    assert str(PrecisionChoice("int8", "as asked for")) == "int8; as asked for"
