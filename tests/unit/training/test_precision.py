"""The precision of training: what `auto` chooses, and what its measurement can be fooled by."""

import os
import time
from collections.abc import Callable

import pytest
import torch

from tessella.errors import ConfigError
from tessella.training import precision as precision_module
from tessella.training.precision import (
    PrecisionChoice,
    PrecisionSetting,
    autocast,
    choose_precision,
    measure_bf16_speedup,
    settle_precision,
)
from tessella.training.recipe import resolve_recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("speedup", "expected"),
    [
        (3.925, "bf16; 3.9 times as fast as fp32 here"),
        (1.2, "bf16; 1.2 times as fast as fp32 here"),
        (1.19, "fp32; bf16 is only 1.19 times as fast here"),
        (1.0, "fp32; bf16 is only 1.00 times as fast here"),
        (0.01, "fp32; bf16 takes 100 times as long here"),
    ],
)
def test_a_cpu_takes_what_is_clearly_faster(
    speedup: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module, "measure_bf16_speedup", lambda: speedup)
    choice = choose_precision("auto", CPU)
    assert choice.name == expected[:4]
    assert str(choice) == expected


@pytest.mark.parametrize(
    ("setting", "device", "expected"),
    [
        ("auto", "cuda", PrecisionChoice("bf16", "as on every cuda device")),
        ("auto", "mps", PrecisionChoice("fp32", "as on every mps device")),
        ("fp32", "cuda", PrecisionChoice("fp32", "as the settings say")),
        ("bf16", "cpu", PrecisionChoice("bf16", "as the settings say")),
    ],
)
def test_nothing_else_is_measured(
    setting: PrecisionSetting,
    device: str,
    expected: PrecisionChoice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision_module, "measure_bf16_speedup", lambda: pytest.fail("it was"))
    assert choose_precision(setting, torch.device(device)) == expected
    assert settle_precision(setting, torch.device(device)) == expected.name


def test_without_measuring_a_cpu_trains_in_fp32() -> None:
    assert settle_precision("auto", CPU) == "fp32"


def test_another_precision_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^Setting `precision`: got: `fp16`; input should be 'auto', 'fp32' or"
    ):
        resolve_recipe(assignments=["precision=fp16"])


def test_products_and_convolutions_are_rounded_and_weights_are_not() -> None:
    layer = torch.nn.Linear(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, precision):
            assert layer(torch.ones(1, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32


# The measurement.


def times(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[str], float]) -> list[str]:
    """Replaces the clock; returns what is timed."""
    timed: list[str] = []

    def take(_: object, precision: str) -> float:
        timed.append(precision)
        return seconds(precision)

    monkeypatch.setattr(precision_module, "_time", take)
    return timed


def test_the_middle_pair_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else had the processor in a third of the calls."""
    calls = {"fp32": 0, "bf16": 1}  # so that it never meets both of a pair

    def seconds(precision: str) -> float:
        calls[precision] += 1
        disturbed = calls[precision] % 3 == 0
        return {"fp32": 1.8, "bf16": 1.0}[precision] * (50 if disturbed else 1)

    timed = times(monkeypatch, seconds)
    assert measure_bf16_speedup() == pytest.approx(1.8)
    assert timed == ["fp32", "bf16"] * 20  # nine pairs and one to warm up, of both pieces of work


def test_a_processor_without_bf16_is_found_out_by_the_small_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision_module, "_create_step", lambda: pytest.fail("it would take long"))
    times(monkeypatch, lambda precision: {"fp32": 0.01, "bf16": 1.0}[precision])
    assert measure_bf16_speedup() == pytest.approx(0.01)


def test_a_slow_machine_measures_one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "_SECONDS", 0.0)
    timed = times(monkeypatch, lambda _: 1.0)
    assert measure_bf16_speedup() == 1.0
    assert timed == ["fp32", "bf16"] * 4


@pytest.mark.skipif(os.name == "nt", reason="its clock is too coarse")
def test_the_time_of_other_programs_does_not_count() -> None:
    assert precision_module._time(lambda: time.sleep(0.1), "fp32") < 0.05


def test_a_measurement_leaves_no_trace() -> None:
    """Neither in the number of threads, nor in what is drawn afterwards."""
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    assert measure_bf16_speedup() > 0
    step = precision_module._create_step()
    for precision in ("fp32", "bf16"):
        assert precision_module._time(step, precision) > 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), generator)
