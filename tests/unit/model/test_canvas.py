"""Canvases: which windows decode them, which sizes and masks there are."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessella.errors import GenerationError
from tessella.model.canvas import (
    Canvas,
    check_margins,
    derive_seed,
    find_grid,
    find_layout,
    fit_images,
    plan_windows,
)

# Windows.


def corners(known: torch.Tensor, grid: tuple[int, int]) -> list[tuple[int, int]]:
    return [(rows.start, columns.start) for rows, columns in plan_windows(known, grid)]


def test_windows_overlap_by_half_and_go_row_by_row() -> None:
    nothing = torch.zeros(4, 9, dtype=torch.bool)
    assert corners(nothing, (4, 4)) == [(0, 0), (0, 2), (0, 4), (0, 5)]
    nothing = torch.zeros(6, 6, dtype=torch.bool)
    assert corners(nothing, (4, 4)) == [(0, 0), (0, 2), (2, 0), (2, 2)]
    assert corners(nothing, (6, 6)) == [(0, 0)]
    assert corners(torch.zeros(1, 3, dtype=torch.bool), (1, 1)) == [(0, 0), (0, 1), (0, 2)]


def test_around_a_picture_they_go_outwards() -> None:
    known = torch.zeros(4, 12, dtype=torch.bool)
    known[:, 4:8] = True
    assert corners(known, (4, 4)) == [(0, 2), (0, 6), (0, 0), (0, 8)]
    known[:] = True
    assert corners(known, (4, 4)) == []
    known[0, 0] = False
    assert corners(known, (4, 4)) == [(0, 0)]


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), *[st.integers(0, 9)] * 4, st.booleans())
def test_every_position_is_sampled_by_a_window_that_knows_something(
    height: int, width: int, top: int, left: int, bottom: int, right: int, picture: bool
) -> None:
    known = torch.zeros(top + height + bottom, left + width + right, dtype=torch.bool)
    if picture:
        known[top : top + height, left : left + width] = True
    for number, window in enumerate(plan_windows(known, (height, width))):
        here = known[window]
        assert here.shape == (height, width)
        assert not here.all()
        # A window of one position a side overlaps no other.
        if min(height, width) > 1:
            assert number == 0 or here.any()
            assert not picture or here.any()
        known[window] = True
    assert known.all()


def test_each_window_has_random_numbers_of_its_own() -> None:
    """Windows of one seed once repeated each other's noise, and with it patterns."""
    seeds = [derive_seed(seed, window) for seed in (0, 1, 2**63 - 1) for window in range(50)]
    assert len(set(seeds)) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[::50] == [0, 1, 2**63 - 1]


def test_an_outpainted_canvas_has_the_codes_in_their_place() -> None:
    """2 × 2 positions of 4 pixels; one more on the left, two above, one below."""
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    codes = torch.tensor([[[5, 6], [7, 8]], [[1, 2], [3, 4]]])
    canvas = Canvas.outpaint(image, codes, left=4, top=8, right=0, bottom=4)
    assert canvas.codes.tolist() == [
        [[0, 0, 0], [0, 0, 0], [0, 5, 6], [0, 7, 8], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 1, 2], [0, 3, 4], [0, 0, 0]],
    ]
    assert torch.equal(canvas.known, canvas.codes[0] > 0)
    assert canvas.repainted is not None
    assert (~canvas.repainted).nonzero()[0].tolist() == [
        row for row in range(8, 16) for _ in "8" * 8
    ]
    assert np.array_equal(canvas.finish(np.zeros((20, 12, 3), np.uint8))[8:16, 4:], image)


def test_an_edited_canvas_keeps_all_codes_of_a_position() -> None:
    """2 × 2 positions of 2 pixels; one pixel of the second is marked."""
    repainted = np.zeros((4, 4), dtype=bool)
    repainted[1, 2] = True
    codes = torch.arange(12).view(3, 2, 2)
    canvas = Canvas.edit(np.zeros((4, 4, 3), np.uint8), codes, repainted)
    assert canvas.known.tolist() == [[True, False], [True, True]]
    assert torch.equal(canvas.codes, codes)


def test_variations_open_positions_not_codes() -> None:
    """Half of 2 × 3 positions, of which each has two codes."""
    codes = torch.arange(12).view(2, 2, 3)
    canvases = Canvas.variations(codes, range(20), strength=0.5)
    assert {canvas.known.shape for canvas in canvases} == {(2, 3)}
    assert {int(canvas.known.sum()) for canvas in canvases} == {3}
    assert all(torch.equal(canvas.codes, codes) for canvas in canvases)
    [one] = Canvas.variations(codes, [0], strength=1e-9)
    assert int((~one.known).sum()) == 1


def test_a_new_canvas_is_empty() -> None:
    canvas = Canvas.new((2, 3))
    assert (canvas.codes.shape, canvas.known.shape) == ((1, 2, 3), (2, 3))
    assert not canvas.known.any()


# Sizes.


def test_sizes_in_pixels() -> None:
    assert find_grid((64, 64), 8, 64) == (8, 8)
    assert find_grid((256, 128), 8, 64) == (16, 32)
    assert find_grid((4096, 64), 8, 64) == (8, 512)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((100, 64), r"multiple of 8 \(.*\): `100x64`\. Try 96x64 or 104x64\."),
        ((100, 99), r"`100x99`\. Try 96x96 or 104x104\."),
        ((56, 128), r"at least 64 pixels .* at most 4096: `56x128`\. Try 64x128\."),
        ((-8, 0), r"`-8x0`\. Try 64x64\."),
        ((64, 1_000_000), r"`64x1000000`\. Try 64x4096\."),
        ((100, 5000), r"`100x5000`\. Try 96x4096\."),
    ],
)
def test_sizes_that_cannot_be_painted(size: tuple[int, int], said: str) -> None:
    with pytest.raises(GenerationError, match=said):
        find_grid(size, 8, 64)


@settings(deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 24))
def test_every_size_that_is_named_instead_is_right(width: int, height: int, side: int) -> None:
    """A size out of range once brought up another that was no multiple."""
    trained = 8 * side
    try:
        find_grid((width, height), side, trained)
    except GenerationError as error:
        named = re.findall(r"(\d+)x(\d+)", str(error).partition("Try ")[2])
        assert named
        for wide, high in named:
            assert find_grid((int(wide), int(high)), side, trained)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, r"`left`, `top`, `right` and `bottom` are 0\. Give pixels .* multiples of 8"),
        ({"top": 12}, r"multiple of 8 .*: `top 12`\. Try 8 or 16\."),
        ({"right": 8, "bottom": -8}, r"`bottom -8`\. Try 0 or 8\."),
    ],
)
def test_margins_that_cannot_be_painted(changes: dict[str, int], said: str) -> None:
    margins = {"left": 0, "top": 0, "right": 0, "bottom": 0} | changes
    with pytest.raises(GenerationError, match=said):
        check_margins(margins, 8)


# Pictures.


def test_pictures_of_the_right_size_stay_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    assert np.array_equal(fit_images(pixels, 4), pixels)
    assert np.array_equal(fit_images([Image.fromarray(p) for p in pixels], 4), pixels)
    assert fit_images([Image.new("L", (9, 7), 100)], 4).tolist() == [[[[100] * 3] * 4] * 4]


def test_what_is_no_picture() -> None:
    with pytest.raises(GenerationError, match=r"There is no picture\. Give"):
        fit_images([], 4)
    with pytest.raises(GenerationError, match=r"not a picture: `str`\. Open it with PIL"):
        fit_images(["cat.png"], 4)  # type: ignore[list-item]


# Canvases that are sampled together.


def test_of_one_grid_the_number_of_known_positions_counts() -> None:
    known = torch.zeros(2, 3, dtype=torch.bool)
    first, second, third = known.clone(), known.clone(), known.clone()
    first[0, 0] = second[1, 2] = True
    third[0] = True
    grid = (2, 3)
    assert find_layout(first, grid) == find_layout(second, grid)
    assert len({find_layout(mask, grid) for mask in (known, first, third)}) == 3


def test_of_larger_canvases_each_position_counts() -> None:
    """Their windows go round what is known: another position, another order."""
    grid = (2, 3)
    first, second = (torch.zeros(2, 6, dtype=torch.bool) for _ in range(2))
    assert find_layout(first, grid) == find_layout(second, grid)
    first[0, 0] = second[0, 1] = True
    assert find_layout(first, grid) != find_layout(second, grid)
    tall = torch.zeros(6, 2, dtype=torch.bool)
    assert find_layout(tall, grid) != find_layout(torch.zeros(2, 6, dtype=torch.bool), grid)
    # Not the transpose: it is no canvas of this grid, though of as many positions.
    assert find_layout(torch.zeros(3, 2, dtype=torch.bool), grid) != find_layout(
        torch.zeros(2, 3, dtype=torch.bool), grid
    )


def test_what_stays_is_put_back() -> None:
    generated = np.full((2, 2, 3), 9, dtype=np.uint8)
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    repainted = np.array([[True, False], [False, True]])
    canvas = Canvas.edit(image, torch.zeros(1, 1, 1, dtype=torch.int64), repainted)
    finished = canvas.finish(generated)
    assert finished.tolist() == [[[9] * 3, [3, 4, 5]], [[6, 7, 8], [9] * 3]]
    assert finished.dtype == np.uint8
    assert Canvas.new((1, 1)).finish(generated) is generated
    assert (generated == 9).all()
