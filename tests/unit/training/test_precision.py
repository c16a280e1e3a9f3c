"""The precision of training: what `auto` chooses, and by what."""

import itertools

import pytest
import torch

from tessella import precision as shared
from tessella.errors import ConfigError
from tessella.precision import PrecisionChoice
from tessella.training import precision as precision_module
from tessella.training.precision import (
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


def test_a_processor_without_bf16_is_found_out_by_the_small_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision_module, "_create_step", lambda: pytest.fail("it would take long"))
    seconds = itertools.cycle([0.01, 1.0])  # fp32, bf16
    monkeypatch.setattr(shared, "_time", lambda _: next(seconds))
    assert measure_bf16_speedup() == pytest.approx(0.01)


def test_a_product_and_a_step_are_timed_in_both_precisions() -> None:
    generator = torch.get_rng_state()
    works = list(precision_module._list_works())
    assert len(works) == 2
    for pair in works:
        for work in pair:
            work()
    assert measure_bf16_speedup() > 0
    assert torch.equal(torch.get_rng_state(), generator)
