"""Codebook health: numbers by hand, the plot, the warning and when it stays silent."""

import math

import numpy as np
import pytest
import torch

from tessella.tokenizer import Codebooks, FiniteScalarSettings, VectorQuantizerSettings
from tessella.tokenizer.codebook_health import (
    CodebookHealth,
    describe_codebook_problem,
    measure_codebook_health,
    plot_codebook_use,
)


def create_health(*use: int) -> CodebookHealth:
    return CodebookHealth(np.array(use), np.zeros(len(use), dtype=np.int64))


def create_codebooks(*books: list[float], composition: str = "product") -> Codebooks:
    """Codebooks of one channel each, in training."""
    settings = VectorQuantizerSettings(
        codebook_size=len(books[0]),
        code_width=1,
        normalize=False,
        codes_per_position=len(books),
        composition=composition,
        tail_dropout=0.0,
    )
    quantizer = Codebooks(settings).train()
    for part, book in zip(quantizer.parts, books, strict=True):
        vectors = torch.tensor(book)[:, None]
        part.load_state_dict({**part.state_dict(), "vectors": vectors, "started": torch.ones(())})
    return quantizer


def test_numbers_by_hand() -> None:
    """Of four codes one is chosen twice, two once: entropy 1.5 bits, so 2^1.5 codes."""
    health = CodebookHealth(np.array([1, 2, 0, 1]), np.array([0, 10, 40, 20]))
    assert health.metrics() == {
        "codes_used": 3,
        "codes_used_share": 0.75,
        "perplexity": pytest.approx(2**1.5),
        "idle_images_median": 15,
        "idle_images_90_percent": pytest.approx(34),
        "idle_images_max": 40,
    }


@pytest.mark.parametrize("size", [1, 2, 100])
def test_perplexity_of_even_use_is_the_number_of_codes_used(size: int) -> None:
    assert create_health(*[7] * size, 0).perplexity == pytest.approx(size)


def test_it_is_measured_from_a_quantizer_and_codes() -> None:
    """Code 0 was chosen in the last step of two images, code 1 never, code 2 before it."""
    quantizer = create_codebooks([0.0, 100.0, 5.0, -100.0])
    quantizer(torch.full((2, 1, 2, 2), 5.0))
    quantizer(torch.zeros(2, 1, 2, 2))
    health = measure_codebook_health(quantizer, np.array([[[[0, 2], [2, 2]]]]))
    assert health.use.tolist() == [1, 0, 3, 0]
    assert health.idle_images.tolist() == [0, 4, 2, 4]


@pytest.mark.parametrize("composition", ["product", "residual"])
def test_of_several_codebooks_it_counts_the_codes_of_all(composition: str) -> None:
    """Two codebooks of three, one after the other: code 1 of the second is the fifth."""
    quantizer = create_codebooks([0.0, 5.0, 9.0], [0.0, 1.0, 99.0], composition=composition)
    # Code 1 of both, by groups or as 5 + 1, then code 0 of both.
    first = [[5.0], [1.0]] if composition == "product" else [[6.0]]
    latent = torch.tensor(first)[None, :, :, None]
    assert quantizer(latent.repeat(2, 1, 1, 1)).codes.flatten().tolist() == [1, 1, 1, 1]
    assert quantizer(torch.zeros_like(latent)).codes.flatten().tolist() == [0, 0]
    codes = np.array([[[[0, 2, 0, 0]], [[1, 1, 1, 2]]]])  # (1, 2, 1, 4)
    health = measure_codebook_health(quantizer, codes)
    assert health.use.tolist() == [3, 0, 1, 0, 3, 1]
    assert health.idle_images.tolist() == [0, 1, 3, 0, 1, 3]
    assert (health.codes_used, health.fraction_used) == (4, 4 / 6)


def test_a_fixed_grid_has_health_too() -> None:
    quantizer = Codebooks(FiniteScalarSettings(levels=(3, 3))).train()
    codes = quantizer(torch.zeros(5, 2, 2, 2)).codes
    health = measure_codebook_health(quantizer, codes.numpy())
    assert health.use.tolist() == [0, 0, 0, 0, 20, 0, 0, 0, 0]
    assert health.idle_images.tolist() == [5, 5, 5, 5, 0, 5, 5, 5, 5]


# The warning.

LATE = 10_000


def test_the_warning_says_what_to_try() -> None:
    settings = VectorQuantizerSettings(
        codebook_size=8, code_width=256, normalize=False, revive_after_images=400
    )
    assert describe_codebook_problem(create_health(16, 16, 0, 0, 0, 0, 0, 0), settings, LATE) == (
        "Only 2 of 8 codes (25%) are in use after 10,000 images; perplexity 2.0. The others cost "
        "and add nothing. Try `tokenizer.quantizer.normalize=true`, or a lower "
        "`tokenizer.quantizer.code_width` (8 is low), or "
        "`tokenizer.quantizer.revive_after_images=100`, or `tokenizer.quantizer=fsq`, which has no "
        "codes to lose, or `tokenizer.quantizer.codebook_size=4`."
    )


def test_the_warning_proposes_nothing_that_is_so_already() -> None:
    settings = VectorQuantizerSettings(codebook_size=2, revive_after_images=1)
    words = describe_codebook_problem(create_health(*[90, 0, 0, 0]), settings, LATE)
    assert words is not None
    assert words.endswith("Try `tokenizer.quantizer=fsq`, which has no codes to lose.")


def test_the_warning_for_a_fixed_grid() -> None:
    words = describe_codebook_problem(create_health(*[90, 0, 0, 0]), FiniteScalarSettings(), LATE)
    assert words is not None
    assert words.endswith("Try smaller `tokenizer.quantizer.levels`, or `tokenizer.quantizer=vq`.")


@pytest.mark.parametrize(
    ("use", "images_seen", "warns"),
    [
        ((8, 8, 0, 0, 0), LATE, True),  # 40 %
        ((8, 8, 0, 0), LATE, False),  # just half
        ((8, 8, 0, 0, 0), LATE - 1, False),  # too early
        ((8, 12, 0, 0, 0), LATE, True),  # 20 places: four a code
        ((8, 11, 0, 0, 0), LATE, False),  # too few to say
    ],
)
def test_when_it_warns(use: tuple[int, ...], images_seen: int, warns: bool) -> None:
    if sum(use) == 16:
        use = tuple(4 * times for times in use)
    words = describe_codebook_problem(create_health(*use), VectorQuantizerSettings(), images_seen)
    assert (words is not None) == warns


# The plot.


def red_columns(pixels: np.ndarray) -> int:
    """Width of what is tinted red, in a row through the lower panel."""
    red, green, blue = pixels.astype(int).transpose(2, 0, 1)
    tinted = (red - green > 20) & (abs(green - blue) < 20)
    return int(tinted.sum(1).max())


def test_the_plot_marks_the_unused_codes() -> None:
    idle = np.arange(100)
    whole = plot_codebook_use(CodebookHealth(np.full(100, 3), idle))
    half = plot_codebook_use(CodebookHealth(np.array([1, 0] * 50), idle))
    tenth = plot_codebook_use(CodebookHealth(np.array([1] * 90 + [0] * 10), idle))
    assert whole.shape == (600, 900, 3)
    assert whole.dtype == np.uint8
    assert red_columns(whole) == 0
    assert math.isclose(red_columns(half), 5 * red_columns(tenth), rel_tol=0.1)


def test_the_plot_bears_extremes() -> None:
    for use in ([1], [5, 0], [10**9] + [0] * 70_000):
        health = CodebookHealth(np.array(use), np.full(len(use), 10**9))
        assert plot_codebook_use(health).shape == (600, 900, 3)
