"""Finite scalar quantization: hand-worked numbers, and equality with vector-quantize-pytorch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vector_quantize_pytorch import FSQ

from tessella.config import build
from tessella.errors import ConfigError
from tessella.tokenizer import FiniteScalarQuantizer, FiniteScalarSettings, look_up_codes

LEVELS = st.lists(st.integers(3, 9), min_size=1, max_size=3).map(tuple)


def create(*levels: int) -> FiniteScalarQuantizer:
    return FiniteScalarQuantizer(FiniteScalarSettings(levels=levels)).train()


def look_up(quantizer: FiniteScalarQuantizer, codes: Tensor) -> Tensor:
    """Vectors (B, C, h, w) of codes (B, h, w)."""
    return look_up_codes(quantizer.codebook[None], codes[:, None])


def as_latent(*rows: list[float]) -> Tensor:
    """Vectors (N, C) as a latent (1, C, 1, N)."""
    return torch.tensor(rows).T[None, :, None]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [(3, [-1.0, 0.0, 1.0]), (4, [-1.0, -0.5, 0.0, 0.5]), (5, [-1.0, -0.5, 0.0, 0.5, 1.0])],
)
def test_the_grid_by_hand(levels: int, expected: list[float]) -> None:
    """An even number of levels has one more below the middle than above it."""
    quantizer = create(levels)
    assert quantizer.codebook.flatten().tolist() == expected
    # Far out is the outermost level, 0 stays 0.
    made = quantizer(as_latent([-50.0], [0.0], [50.0]))
    assert made.codes.flatten().tolist() == [0, levels // 2, levels - 1]
    assert made.quantized.flatten().tolist() == [expected[0], 0.0, expected[-1]]


def test_the_first_channel_counts_fastest() -> None:
    quantizer = create(3, 5)
    assert quantizer.codebook[1].tolist() == [0.0, -1.0]
    assert quantizer.codebook[3].tolist() == [-1.0, -0.5]
    assert quantizer.encode(as_latent([50.0, -50.0], [-50.0, 50.0])).tolist() == [[[2, 12]]]


def test_rounding_by_hand() -> None:
    """Of three levels the middle one reaches to where 1.001 · tanh(latent) is a half."""
    edge = math.atanh(0.5 / 1.001)
    codes = create(3).encode(
        as_latent([-edge - 1e-3], [-edge + 1e-3], [edge - 1e-3], [edge + 1e-3])
    )
    assert codes.flatten().tolist() == [0, 1, 1, 2]


@settings(max_examples=25, deadline=None)
@given(LEVELS)
def test_codes_and_vectors_are_one_to_one(levels: tuple[int, ...]) -> None:
    """Each code has a vector of its own, and a latent that the bound takes there chooses it."""
    quantizer = create(*levels)
    size = math.prod(levels)
    codes = torch.arange(size)[None, None]
    vectors = look_up(quantizer, codes)
    assert len({tuple(vector) for vector in vectors[0, :, 0].T.tolist()}) == size
    latent = torch.empty_like(vectors)
    for channel, count in enumerate(levels):
        reach, offset = (count - 1) * 1.001 / 2, 0.0 if count % 2 else 0.5
        steps = vectors[:, channel].double() * (count // 2)
        latent[:, channel] = ((steps + offset) / reach).atanh() - math.atanh(offset / reach)
    assert torch.equal(quantizer.encode(latent), codes)
    torch.testing.assert_close(quantizer(latent).quantized, vectors)


@pytest.mark.parametrize("levels", [(8, 8, 8), (8, 5, 5, 5), (3,), (4, 7)])
def test_the_same_as_the_peer(levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = create(*levels), FSQ(list(levels))
    mine = (2 * torch.randn(3, len(levels), 6, 5)).requires_grad_()
    other = mine.detach().clone().requires_grad_()
    weight = torch.randn(mine.shape)
    made = ours(mine)
    quantized, codes = theirs(other)
    assert torch.equal(made.codes, codes.long())
    torch.testing.assert_close(made.quantized, quantized)
    torch.testing.assert_close(ours.codebook, theirs.implicit_codebook)
    torch.testing.assert_close(look_up(ours, made.codes), theirs.indices_to_codes(codes))
    (made.quantized * weight).sum().backward()
    (quantized * weight).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)


def test_the_gradient_passes_straight_through_the_rounding() -> None:
    """What is left is the slope of the bound: 2.002 · (1 - tanh²) over two levels a side."""
    latent = torch.tensor([0.0, 0.3, -1.0]).reshape(1, 1, 1, 3).requires_grad_()
    create(5)(latent).quantized.sum().backward()
    expected = [1.001 * (1 - math.tanh(place) ** 2) for place in (0.0, 0.3, -1.0)]
    assert latent.grad is not None
    assert latent.grad.flatten().tolist() == pytest.approx(expected)


def test_there_is_nothing_to_learn() -> None:
    quantizer = create(8, 8)
    assert not list(quantizer.parameters())
    assert quantizer(torch.randn(1, 2, 2, 2)).loss.item() == 0.0


def test_autocast_does_not_coarsen_the_choice() -> None:
    """Of 1,001 levels neighbours lie closer together than bfloat16 can tell."""
    quantizer = create(1001)
    latent = torch.linspace(-0.5, 0.5, 101).reshape(1, 1, 1, 101)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = quantizer(latent)
    assert torch.equal(made.codes, quantizer.encode(latent))
    assert made.codes.unique().numel() == 101
    assert made.quantized.dtype == torch.float32


def test_sizes_follow_from_the_levels() -> None:
    """The rows of the paper's table 1."""
    for levels, size in (
        ((8, 6, 5), 240),
        ((8, 5, 5, 5), 1000),
        ((7, 5, 5, 5, 5), 4375),
        ((8, 8, 8, 6, 5), 15360),
        ((8, 8, 8, 5, 5, 5), 64000),
    ):
        chosen = FiniteScalarSettings(levels=levels)
        assert (chosen.codebook_size, chosen.code_width) == (size, len(levels))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([2, 8], r"Setting `levels.0`: got: `2`; input should be greater than or equal to 3"),
        ([], r"Setting `levels`: got: `\[\]`; .*at least 1 item"),
        ([257, 256], r"Setting `levels`: .* make 65792 codes, at most 65536 are possible"),
    ],
)
def test_levels_that_cannot_be(levels: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(FiniteScalarSettings, {"levels": levels})


def test_a_grid_has_no_residuals() -> None:
    values = {"codes_per_position": 2, "composition": "residual"}
    with pytest.raises(
        ConfigError,
        match=r"a fixed grid has no residual codebooks\. Set tokenizer\.quantizer\.composition="
        r"product, or tokenizer\.quantizer\.name=vq",
    ):
        build(FiniteScalarSettings, values)
    for allowed in ({**values, "composition": "product"}, {**values, "codes_per_position": 1}):
        assert build(FiniteScalarSettings, allowed)
