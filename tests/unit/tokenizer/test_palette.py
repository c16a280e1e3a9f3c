"""The palette: k-means over colours."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vector_quantize_pytorch.vector_quantize_pytorch import kmeans

from tessella.errors import ShapeError
from tessella.images import to_float, to_uint8
from tessella.tokenizer import TokenizerSettings, VQAutoencoder
from tessella.tokenizer import palette as palette_module
from tessella.tokenizer.palette import fit_palette, refine_palette
from tessella.tokenizer.vector_quantizer import VectorQuantizerSettings, nearest_codes


def distortion(colours: Tensor, weights: Tensor, palette: Tensor) -> float:
    """The weighted squared distance to the nearest palette colour, the long way."""
    distances = (colours[:, None] - palette[None]).square().sum(2)
    return float((weights * distances.min(1).values).sum())


def picture(*colours: tuple[int, int, int]) -> np.ndarray:
    """One picture, one pixel high."""
    return np.array(colours, np.uint8)[None, None]


def draw_colours(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Distinct colours and how often each occurs."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (count, 3), generator=generator).unique(dim=0).double()
    return colours, torch.randint(1, 9, (len(colours),), generator=generator).double()


def test_two_colours_by_hand() -> None:
    """Three dark pixels and two bright ones: the palette is the two means, darkest first."""
    pixels = picture((200, 250, 210), (10, 0, 0), (10, 0, 0), (220, 250, 210), (40, 0, 30))
    palette = fit_palette(pixels, 2, seed=0)
    expected = torch.tensor([[20.0, 0.0, 10.0], [210.0, 250.0, 210.0]]) / 127.5 - 1
    torch.testing.assert_close(palette, expected)
    assert palette.dtype == torch.float32


def test_no_other_grouping_is_better() -> None:
    """Eight colours in two far groups: all 3^8 assignments to three means are tried."""
    torch.manual_seed(1)
    near = torch.randint(20, (5, 3)), torch.randint(20, (3, 3)) + torch.tensor([200, 0, 0])
    colours = torch.cat(near).double()
    best = min(
        sum(
            float((group - group.mean(0)).square().sum())
            for value in range(3)
            if len(group := colours[torch.tensor(choice) == value])
        )
        for choice in itertools.product(range(3), repeat=8)
    )
    pixels = colours.to(torch.uint8)[None, None].numpy()
    reached = []
    for seed in range(8):
        palette = (fit_palette(pixels, 3, seed).double() + 1) * 127.5
        reached.append(distortion(colours, torch.ones(8), palette))
    assert min(reached) == pytest.approx(best, rel=1e-4)
    assert all(value >= best * (1 - 1e-4) for value in reached)


@pytest.mark.parametrize("seed", range(5))
def test_separated_clusters_are_found_exactly(seed: int) -> None:
    """Eight corners of the colour cube, each with some noise whose mean is known."""
    corners = np.array(list(itertools.product((40, 210), repeat=3)))
    noise = np.random.default_rng(seed).integers(-9, 10, (8, 20, 3))
    pixels = (corners[:, None] + noise).astype(np.uint8)[None]
    expected = torch.from_numpy(pixels[0].astype(np.float64).mean(1)) / 127.5 - 1
    palette = fit_palette(pixels, 8, seed).double()
    nearest = torch.cdist(expected, palette).min(1)
    assert sorted(nearest.indices.tolist()) == list(range(8))
    assert nearest.values.max() < 1e-6


def test_every_step_lowers_the_distortion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(palette_module, "_MAX_STEPS", 1)
    colours, weights = draw_colours(600)
    palette = colours[:16]
    measured = [distortion(colours, weights, palette)]
    for _ in range(30):
        palette = refine_palette(colours, weights, palette)
        measured.append(distortion(colours, weights, palette))
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(measured))
    assert measured[-1] < 0.8 * measured[0]


def test_it_ends_where_nothing_moves() -> None:
    colours, weights = draw_colours(200)
    palette = refine_palette(colours, weights, colours[:8])
    assert torch.equal(refine_palette(colours, weights, palette), palette)
    codes = nearest_codes(colours.T[None, :, None], palette).flatten()
    for code, colour in enumerate(palette):
        chose = codes == code
        mean = (colours[chose] * weights[chose, None]).sum(0) / weights[chose].sum()
        torch.testing.assert_close(colour, mean)


def test_weights_count_as_repeats() -> None:
    colours, weights = draw_colours(100)
    repeated = colours.repeat_interleave(weights.long(), dim=0)
    expected = refine_palette(repeated, torch.ones(len(repeated)).double(), colours[:5])
    torch.testing.assert_close(refine_palette(colours, weights, colours[:5]), expected)


def test_it_is_the_peers_k_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same start, same number of steps as vector-quantize-pytorch's."""
    monkeypatch.setattr(palette_module, "_MAX_STEPS", 10)
    colours, _ = draw_colours(300)
    start = colours[::30][:10]
    theirs, _ = kmeans(colours[None], 10, num_iters=10, sample_fn=lambda *_: start[None].clone())
    ours = refine_palette(colours, torch.ones(len(colours)).double(), start)
    torch.testing.assert_close(ours, theirs[0])


def test_a_colour_that_none_chose_goes_to_the_farthest() -> None:
    """The third start is farther from all colours than the others: its first step is to 100."""
    colours = torch.tensor([[0.0] * 3, [1.0] * 3, [50.0] * 3, [100.0] * 3]).double()
    start = torch.tensor([[0.0] * 3, [45.0] * 3, [255.0] * 3]).double()
    palette = refine_palette(colours, torch.ones(4).double(), start)
    expected = torch.tensor([[0.5] * 3, [50.0] * 3, [100.0] * 3]).double()
    torch.testing.assert_close(palette, expected)


@pytest.mark.parametrize("size", [3, 4, 8])
def test_fewer_colours_than_asked_for(size: int) -> None:
    """A palette of exactly these colours, all finite, every one of them there."""
    given = {(255, 255, 255), (0, 0, 0), (255, 0, 0)}
    palette = fit_palette(picture(*given, *given), size, seed=3)
    assert palette.shape == (size, 3)
    rows = {tuple(row) for row in ((palette + 1) * 127.5).round().int().tolist()}
    assert rows == given


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**16))
def test_any_pixels_give_an_ordered_palette(count: int, size: int, spread: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 4**spread, (1, count, 1, 3), endpoint=True).clip(0, 255)
    pixels = pixels.astype(np.uint8)
    palette = fit_palette(pixels, size, seed)
    assert palette.shape == (size, 3)
    assert palette.isfinite().all()
    assert (palette.abs() <= 1).all()
    luminance = palette.double() @ torch.tensor([0.2126, 0.7152, 0.0722]).double()
    assert (luminance.diff() >= -1e-6).all()
    assert len(palette.unique(dim=0)) == min(size, len(np.unique(pixels.reshape(-1, 3), axis=0)))
    assert torch.equal(fit_palette(pixels, size, seed), palette)


def test_pixels_are_drawn_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(palette_module, "_SAMPLED_PIXELS", 64)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    first = fit_palette(pixels, 8, seed=0)
    assert torch.equal(first, fit_palette(pixels, 8, seed=0))
    assert not torch.equal(first, fit_palette(pixels, 8, seed=1))


def test_the_tokenizer_that_it_makes() -> None:
    """Codes are the nearest colours, and a picture of palette colours comes back as it was."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    quantizer = VectorQuantizerSettings(
        codebook_size=8, code_width=3, normalize=False, learning="ema"
    )
    tokenizer = VQAutoencoder(TokenizerSettings(network="palette", quantizer=quantizer)).eval()
    tokenizer.learn_palette(pixels, seed=0)
    palette = fit_palette(pixels, 8, seed=0)
    assert torch.equal(tokenizer.codebook, palette[None])
    codes = tokenizer.encode(to_float(pixels))
    assert codes.shape == (2, 1, 6, 5)
    distances = torch.cdist(to_float(pixels).movedim(1, -1).flatten(0, 2), palette)
    assert torch.equal(codes.flatten(), distances.argmin(1))
    painted = to_uint8(tokenizer.decode(codes))
    assert torch.equal(tokenizer.encode(to_float(painted)), codes)
    assert not [*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()]


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (np.zeros((4, 4, 3), np.uint8), "(4, 4, 3) uint8"),
        (np.zeros((1, 3, 4, 4), np.uint8), "(1, 3, 4, 4) uint8"),
        (np.zeros((1, 4, 4, 3), np.float32), "(1, 4, 4, 3) float32"),
        (np.zeros((0, 4, 4, 3), np.uint8), "(0, 4, 4, 3) uint8"),
    ],
)
def test_other_arrays_are_refused(pixels: np.ndarray, got: str) -> None:
    message = (
        f"Pixels must be (N, H, W, 3) uint8, one or more: `{got}`. "
        "For one picture add a first axis: pixels[None]."
    )
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        fit_palette(pixels, 4, seed=0)
