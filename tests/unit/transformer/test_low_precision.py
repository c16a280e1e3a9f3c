"""Layers in bf16 and int8: how near they are, by hand, and what they leave as it was."""

import pytest
import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.transformer import has_int8, low_precision, lower_precision
from tessella.transformer.low_precision import BFloat16Linear, Int8Linear
from untrained import create_untrained

needs_int8 = pytest.mark.skipif(not has_int8(), reason="this PyTorch has no int8 kernels here")


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight = nn.Parameter(torch.tensor(weight), requires_grad=False)
    return layer


@needs_int8
def test_int8_by_hand() -> None:
    """Weights in steps of the largest over 127, rows in steps of the largest over 63."""
    layer = Int8Linear(linear([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0]]))  # 127, -50, 0 of 0.01
    rows = torch.tensor([[6.3, 3.14, -1.0], [0.0, 0.0, 0.0]])  # 63, 31 (31.4), -10 of 0.1
    expected = 0.01 * 0.1 * (127 * 63 - 50 * 31)
    assert torch.allclose(layer(rows), torch.tensor([[expected, 0.0], [0.0, 0.0]]))


@needs_int8
def test_the_largest_numbers_do_not_overflow() -> None:
    """Without VNNI products are added in pairs in 16 bits: 2 · 127 · 127 fits, 2 · 255 · 127 no."""
    layer = Int8Linear(linear([[1.0] * 512, [-1.0] * 512]))
    assert torch.allclose(layer(torch.ones(3, 512)), torch.tensor([512.0, -512.0]))


@needs_int8
def test_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(96, 40, bias=False))
    rows = torch.randn(5, 7, 96) * torch.tensor([1e-3, 1, 1e3, 1, 1])[:, None, None]
    with torch.inference_mode():
        together = layer(rows)
        alone = torch.stack([layer(one) for one in rows])
    assert torch.equal(together, alone)


@needs_int8
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    rows = torch.ones(2, 8)
    rows[0, 3] = value
    product = Int8Linear(nn.Linear(8, 4, bias=False))(rows)
    assert not product[0].isfinite().any()
    assert product[1].isfinite().all()


def test_bf16_by_hand() -> None:
    layer = BFloat16Linear(linear([[1.0, 1 + 2**-9]]))  # the second weight is rounded to 1
    product = layer(torch.tensor([[2.0, 3.0]]))
    assert product.dtype == torch.float32
    assert product.item() == 5.0


@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=needs_int8)])
def test_a_lowered_transformer_is_near_and_shares_its_weights(precision: str) -> None:
    model = create_untrained()
    plain = model.transformer
    kind = {"bf16": BFloat16Linear, "int8": Int8Linear}[precision]
    lowered = lower_precision(plain, precision)
    layers = [one for one in lowered.modules() if isinstance(one, kind)]
    assert len(layers) == 5 * plain.settings.depth
    assert type(lowered.out) is nn.Linear
    assert not any(isinstance(one, kind) for one in plain.modules())
    for name, tensor in plain.state_dict().items():
        assert lowered.state_dict()[name].data_ptr() == tensor.data_ptr(), name
    text, codes = model.sampler.encode_text(["a red star"]), torch.arange(16).view(1, 16, 1)
    positions = torch.arange(16)[None]
    with torch.inference_mode():
        hidden = []
        for one in (plain, lowered):
            cache = one.encode_context(text)
            one.append_codes(cache, codes, positions)
            hidden.append(one.predict(cache, positions, torch.full((16,), 16)))
    error = (hidden[0] - hidden[1]).norm() / hidden[0].norm()
    assert 0 < error < 0.1


def test_fp32_is_the_transformer_itself() -> None:
    plain = create_untrained().transformer
    assert lower_precision(plain, "fp32") is plain


def test_without_kernels_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Didn't find engine for operation")

    monkeypatch.setattr(low_precision.torch.ops.quantized, "linear_prepack", fail)
    with pytest.raises(
        ConfigError,
        match=r"^This PyTorch has no int8 kernels for this CPU: precision `int8`; .* says: "
        r"Didn't find engine for operation\. Choose auto, bf16 or fp32\.$",
    ):
        lower_precision(create_untrained().transformer, "int8")
    assert not has_int8()
