"""Sheets of pictures: what stands where, captions, and what is refused."""

import numpy as np
import pytest

from tessella.errors import ShapeError
from tessella.sheets import make_sheet


def test_a_sheet_keeps_each_picture_on_white() -> None:
    pixels = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = make_sheet(pixels, columns=2)
    assert sheet.shape == (2 + 34 * 2, 2 + 34 * 2, 3)
    assert (sheet[2:34, 2:34] == 10).all() and (sheet[2:34, 36:68] == 20).all()
    assert (sheet[36:68, 2:34] == 30).all() and (sheet[36:68, 36:] == 255).all()
    assert (sheet[:2] == 255).all() and (sheet[:, -2:] == 255).all()


def test_a_sheet_can_be_enlarged_without_smoothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    sheet = make_sheet(pixels, columns=5, scale=3)
    assert np.array_equal(sheet[3 : 3 + 96 : 3, 3 : 3 + 96 : 3], pixels[0])
    assert sheet.shape == (102, 102, 3)


def test_labels_are_drawn_under_their_picture_and_wrapped() -> None:
    pixels = np.full((2, 48, 48, 3), 200, np.uint8)
    bare, short, long = (
        make_sheet(pixels, 2, labels)
        for labels in (None, ["a", ""], ["a red circle on a white background", "🦑 Ünïcödé" * 3])
    )
    assert bare.shape[0] < short.shape[0] < long.shape[0]
    assert bare.shape[1] == short.shape[1] == long.shape[1]
    below = short[52:]
    assert below[:, :52].min() < 100 and below[:, 52:].min() == 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": 0}, "columns >= 1"),
        ({"columns": 1, "scale": 0}, "scale >= 1"),
        ({"columns": 1, "labels": ["one"]}, "one label per picture: `1` for 2"),
    ],
)
def test_wrong_sheets_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make_sheet(np.zeros((2, 4, 4, 3), np.uint8), **options)


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ShapeError, match="with B >= 1"):
        make_sheet(np.zeros((0, 4, 4, 3), np.uint8), 1)
