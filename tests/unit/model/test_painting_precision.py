"""What a model paints in: what `auto` measures, chooses and remembers, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tessella
from tessella.errors import ConfigError
from tessella.model import painting_precision
from tessella.model.painting_precision import (
    MAX_DIVERGENCE,
    Rounding,
    check_painting_precision,
    choose_rounding,
    compute_divergence,
    measure_layer_speedup,
    measure_roundings,
    paint_in,
)
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.precision import Precision, PrecisionChoice
from tessella.transformer import has_int8, lower_precision
from untrained import create_untrained, save_untrained

needs_int8 = pytest.mark.skipif(not has_int8(), reason="this PyTorch has no int8 kernels here")
REQUESTS = enumerate_requests(["a red star", "a blue star"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and models that count as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(painting_precision, "_LARGE_WIDTH", 16)
    return tmp_path / "cache" / "tessella" / "precision"


# What is chosen.


@pytest.mark.parametrize(
    ("roundings", "expected"),
    [
        (
            {"bf16": Rounding(1.9, 1e-4), "int8": Rounding(2.4, 2e-3)},
            "int8; its layers are 2.4 times as fast as in fp32 here",
        ),
        (
            {"bf16": Rounding(1.9, 1e-4), "int8": Rounding(2.4, 2 * MAX_DIVERGENCE)},
            "bf16; its layers are 1.9 times as fast as in fp32 here",
        ),
        (
            {"bf16": Rounding(0.012, 0.0), "int8": Rounding(1.19, 0.0)},
            "fp32; times as fast as it here: bf16 0.012, int8 1.2",
        ),
        (
            {"bf16": Rounding(0.5, 0.0), "int8": Rounding(1.2, 0.5)},
            "fp32; others predict otherwise: int8 by 0.5 nats a code",
        ),
    ],
)
def test_the_fastest_that_is_as_good(roundings: dict[Precision, Rounding], expected: str) -> None:
    assert str(choose_rounding(roundings)) == expected


def fake(speedups: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the clock; returns what is timed."""
    timed: list[str] = []

    def measure(_: object, lowered: torch.nn.Module, *__: int) -> float:
        name = "int8" if "Int8Linear" in repr(lowered) else "bf16"
        timed.append(name)
        return speedups[name]

    monkeypatch.setattr(painting_precision, "measure_layer_speedup", measure)
    return timed


@needs_int8
def test_auto_measures_once_and_remembers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = fake({"bf16": 0.01, "int8": 2.0}, monkeypatch)
    monkeypatch.setattr(painting_precision, "MAX_DIVERGENCE", 9.0)  # of random weights
    model = create_untrained()
    first = paint_in("auto", model)
    assert first.precision.name == "int8"
    each = ["bf16", "int8", "int8"]  # what is fast for one picture, for a batch too
    assert timed == each
    assert paint_in("auto", model).precision == first.precision
    assert timed == each
    [file] = cache.iterdir()
    note = json.loads(file.read_bytes())
    assert note["measured"]["int8"]["speedup"] == 2.0
    assert 0 < note["measured"]["int8"]["divergence"] < 9
    assert note["measured"]["bf16"] == {"speedup": 0.01, "divergence": 0.0}
    # Other weights are another model, and a damaged note is none.
    paint_in("auto", create_untrained(seed=1))
    assert len(timed) == 6
    file.write_text('{"made_from": []')
    assert paint_in("auto", model).precision == first.precision
    assert len(timed) == 9


@needs_int8
def test_a_cache_that_cannot_be_written_to_is_no_fault(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.parent.write_text("a file")
    timed = fake({"bf16": 0.01, "int8": 0.5}, monkeypatch)
    for _ in range(2):
        choice = paint_in("auto", create_untrained()).precision
        assert choice == PrecisionChoice("fp32", "times as fast as it here: bf16 0.01, int8 0.5")
    assert len(timed) == 4


@pytest.mark.parametrize(
    ("objective", "width", "why"),
    [
        ("any_order", 17, "layers under 17 wide gain nothing"),
        ("latent_mse", 16, "without a likelihood nothing can be compared with it"),
    ],
)
def test_what_is_not_measured(
    objective: str, width: int, why: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(painting_precision, "_LARGE_WIDTH", width)
    monkeypatch.setattr(painting_precision, "measure_roundings", lambda _: pytest.fail("it was"))
    model = create_untrained(objective)
    chosen = paint_in("auto", model)
    assert chosen.precision == PrecisionChoice("fp32", why)
    assert chosen.transformer is model.transformer
    assert not cache.exists()


def test_only_a_cpu_paints_in_less() -> None:
    check_painting_precision("fp32", "cuda")
    with pytest.raises(
        ConfigError,
        match=r"^Only a CPU paints in another precision than fp32: `int8` on cuda\. Choose auto or "
        r"fp32, or the device cpu\.$",
    ):
        check_painting_precision("int8", "cuda")
    model = paint_in("bf16", create_untrained())
    with pytest.raises(ConfigError, match="Only a CPU"):
        model.to(torch.device("meta"))
    assert model.device.type == "cpu"


# What is measured.


@needs_int8
def test_the_measurement_itself() -> None:
    model = create_untrained()
    lowered = lower_precision(model.transformer, "int8")
    assert measure_layer_speedup(model.transformer, lowered, 2, 4) > 0
    assert set(measure_roundings(model)) == {"bf16", "int8"}


@pytest.mark.parametrize("objective", ["any_order", "autoregressive", "masked", "parallel"])
def test_the_divergence_of_the_same_is_zero(objective: str) -> None:
    """And it is the mean of p · log(p / q) over all predictions, here of a scaled output."""
    model = create_untrained(objective)
    codes = model.generate_images(REQUESTS).codes
    text = model.sampler.encode_text([one.prompt for one in REQUESTS])
    same = lower_precision(model.transformer, "bf16")
    assert compute_divergence(model.objective, model.transformer, text, codes) == 0
    near = compute_divergence(model.objective, same, text, codes)
    assert 0 < near < 1
    same.out = torch.nn.Linear(16, 16)
    assert compute_divergence(model.objective, same, text, codes) > near
    assert "compute_logits" not in vars(model.transformer)


def test_a_divergence_by_hand() -> None:
    """Everywhere code 0 by fp32; half of it by the other, which has two codes left."""
    model = create_untrained()
    codes = torch.zeros(1, 1, 4, 4, dtype=torch.int64)
    text = model.sampler.encode_text(["a red star"])
    other = lower_precision(model.transformer, "bf16")
    for transformer, num_codes in ((model.transformer, 1), (other, 2)):
        bias = torch.full((16,), -1e4)
        bias[:num_codes] = 0.0
        transformer.out = torch.nn.Linear(16, 16)
        transformer.out.weight.data.zero_()
        transformer.out.bias.data.copy_(bias)
    divergence = compute_divergence(model.objective, other, text, codes)
    assert divergence == pytest.approx(float(np.log(2)))


# What is painted.


@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=needs_int8)])
def test_a_loaded_model_paints_in_it_and_saves_what_it_was(
    precision: Precision, tmp_path: Path
) -> None:
    folder = save_untrained(create_untrained(), tmp_path / "model")
    plain = TextToImage.load(folder, "cpu")
    assert str(plain.precision) == "fp32; as asked for"
    model = tessella.load(folder, "cpu", precision)
    assert model.precision == PrecisionChoice(precision, "as asked for")
    assert model.with_parts().precision == model.precision
    together = model.generate_images(REQUESTS)
    assert np.array_equal(model.generate_images(REQUESTS[1:]).pixels[0], together.pixels[1])
    again = save_untrained(model, tmp_path / "again")
    name = "transformer.safetensors"
    assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_fp32_is_bit_for_bit_what_it_was(tmp_path: Path) -> None:
    """The model that was never loaded knows no precision."""
    model = create_untrained()
    folder = save_untrained(model, tmp_path / "model")
    expected = model.generate_images(REQUESTS)
    found = tessella.load(folder, "cpu", "fp32").generate_images(REQUESTS)
    assert np.array_equal(found.pixels, expected.pixels)


def test_the_choice_of_the_bundled_model_needs_no_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(painting_precision, "_LARGE_WIDTH", 256)
    monkeypatch.setattr(painting_precision, "measure_roundings", lambda _: pytest.fail("it was"))
    assert tessella.load(device="cpu").precision.name == "fp32"
