"""Masks: one reading of all of their kinds, and how they are fitted."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from masks import HOLE, KINDS, draw_hole
from tessella.errors import GenerationError
from tessella.model.mask import Mask, half_mask, read_channels, read_hole, read_mask
from untrained import create_untrained

MODEL = create_untrained()
GRAY = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
PHOTO = Image.fromarray(GRAY)


def fit_mask(mask: Image.Image | Mask, image: Image.Image, size: int) -> Mask:
    return read_mask(mask).fit(image.size, size).marked


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mask_says_the_same(kind: str) -> None:
    marking = read_mask(KINDS[kind].draw())
    wrong = marking.marked != HOLE
    assert wrong[KINDS[kind].is_certain].sum() == 0
    assert marking.read_by == KINDS[kind].read_by
    assert marking.warnings == []


def test_alpha_is_read_at_half() -> None:
    mask = Image.new("RGBA", (4, 1), "white")
    for column, alpha in enumerate((0, 127, 128, 255)):
        mask.putpixel((column, 0), (255, 255, 255, alpha))
    assert read_mask(mask).marked.tolist() == [[True, True, False, False]]


def test_brightness_is_read_at_half() -> None:
    """Compression leaves (1, 1, 1) where black was drawn, and all of it was once repainted."""
    mask = Image.new("RGB", (4, 1))
    for column, value in enumerate(((1, 1, 1), (127, 127, 127), (0, 0, 128), (255, 0, 0))):
        mask.putpixel((column, 0), value)
    assert read_mask(mask).marked.tolist() == [[False, False, True, True]]


def test_one_bit_of_one_pixel_changes_nothing_else() -> None:
    """One alpha of 254 once made a mask in black and white one that repaints everything."""
    mask = Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8)).convert("RGBA")
    mask.putpixel((0, 0), (0, 0, 0, 254))
    assert np.array_equal(read_mask(mask).marked, HOLE)
    hidden = draw_hole(PHOTO)
    hidden.putpixel((0, 0), (9, 9, 9, 254))
    assert np.array_equal(read_mask(hidden).marked, HOLE)


def test_a_mask_that_is_neither_black_nor_white_is_told() -> None:
    """A photo in the place of a mask."""
    marking = read_mask(PHOTO)
    assert marking.read_by == "brightness"
    [said] = marking.warnings
    assert "of the mask is neither black nor white. It has no transparency" in said


def test_a_pictures_own_hole() -> None:
    alpha = draw_hole(PHOTO).getchannel("A")
    marking = read_hole(alpha)
    assert marking is not None
    assert np.array_equal(marking.marked, HOLE)
    assert marking.describe() == {"read_by": "own_transparency", "repainted": 0.125}
    assert str(marking) == "Repainted, by the picture's own transparency: 12% of the picture"
    assert read_hole(None) is None
    assert read_hole(Image.new("L", (4, 4), 128)) is None


def test_how_it_was_read_in_words() -> None:
    opaque = np.zeros((32, 32), dtype=bool)
    opaque[0, 0] = True
    assert str(read_mask(opaque)) == "Repainted, by the array: less than 1% of the picture"
    assert str(read_mask(half_mask((4, 4)))) == "Repainted, by the mask's white: 50% of the picture"
    assert read_mask(draw_hole(PHOTO)).describe()["read_by"] == "transparency"


# Halves.


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("upper", [[0, 0], [1, 1], [1, 1]]),
        ("lower", [[1, 1], [0, 0], [0, 0]]),
        ("left", [[0, 1]] * 3),
        ("right", [[1, 0]] * 3),
    ],
)
def test_half_masks(keep: Any, expected: list[list[int]]) -> None:
    mask = half_mask((2, 3), keep)
    assert mask.size == (2, 3)
    assert (np.asarray(mask) == 255 * np.array(expected)).all()


def test_a_half_that_is_none() -> None:
    with pytest.raises(GenerationError, match=r"`middle`\. Choose upper, lower, left, right"):
        half_mask((2, 2), "middle")  # type: ignore[arg-type]


# How they are fitted.


def test_masks_are_cropped_and_resized_as_their_pictures() -> None:
    marked = np.zeros((4, 8), dtype=bool)
    marked[3, 2] = True  # the lower left corner of the middle square, columns 2 to 5
    wide = Image.new("RGB", (8, 4))
    assert np.argwhere(fit_mask(marked, wide, 4)).tolist() == [[3, 0]]
    assert np.argwhere(fit_mask(marked, wide, 2)).tolist() == [[1, 0]]
    assert np.argwhere(fit_mask(marked, wide, 8)).tolist() == [[6, 0], [6, 1], [7, 0], [7, 1]]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (Image.new("L", (4, 8), 255), r"the picture's size, 8x4: `4x8`"),
        (np.ones((4, 4), dtype=bool), r"the picture's size, 8x4: `4x4`"),
        (Image.new("L", (8, 4), 1), r"no transparency, .* brightest pixel is `1` of 255\."),
        (
            Image.new("RGBA", (8, 4), (255, 255, 255, 200)),
            r"has transparency, .* Make transparent",
        ),
        (np.zeros((4, 8), dtype=bool), "False everywhere"),
        (np.arange(8) < np.full((4, 1), 2), "marks nothing in the picture's middle square"),
        (np.ones((4, 8)), r"a bool array \(H, W\): `\(4, 8\) float64`"),
        (np.ones((4, 8, 3), dtype=bool), r"a bool array \(H, W\): `\(4, 8, 3\) bool`"),
    ],
)
def test_masks_that_mean_nothing(mask: Any, said: str) -> None:
    with pytest.raises(GenerationError, match=said):
        fit_mask(mask, Image.new("RGB", (8, 4)), 4)


# Python.


@pytest.mark.parametrize("kind", KINDS)
def test_python_keeps_what_no_mask_touches(kind: str) -> None:
    """OpenAI's kind of mask and every soft one once repainted the whole picture."""
    image = PHOTO.crop((8, 8, 24, 24))
    mask = KINDS[kind].draw().crop((8, 8, 24, 24))
    [made] = pictures = MODEL.edit(image, "a red star", mask, seed=1)
    changed = (np.asarray(made) != np.asarray(image)).any(-1)
    allowed = (HOLE | ~KINDS[kind].is_certain)[8:24, 8:24]
    assert not changed[~allowed].any()
    assert changed[HOLE[8:24, 8:24] & KINDS[kind].is_certain[8:24, 8:24]].mean() > 0.5
    assert pictures.mask is not None
    assert pictures.mask.startswith("Repainted, by the ")


def test_python_takes_a_pictures_own_hole() -> None:
    image = draw_hole(PHOTO).crop((8, 8, 24, 24))
    [made] = pictures = MODEL.edit(image, "a red star")
    assert pictures.mask is not None
    assert "by the picture's own transparency" in pictures.mask
    kept = ~HOLE[8:24, 8:24]
    assert np.array_equal(np.asarray(made)[kept], GRAY[8:24, 8:24][kept])
    with pytest.raises(GenerationError, match="There is no mask, and the picture has no transp"):
        MODEL.edit(PHOTO, "a red star")


def test_channels_that_were_decoded() -> None:
    image = draw_hole(PHOTO)
    marking = read_channels(image.convert("RGB"), image.getchannel("A"))
    assert np.array_equal(marking.marked, HOLE)
