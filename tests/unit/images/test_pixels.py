"""Squares and tensors: exact pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drawn import gradient
from tessella.errors import CheckpointError, ShapeError
from tessella.images import fit_square, save_png, to_float, to_uint8

# --- squares -------------------------------------------------------------------------------


def test_the_middle_square_is_taken() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (100, 0, 200, 100))
    for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
        assert (fit_square(turned, 100) == (0, 0, 255)).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 50), (64, 64), (900, 700)])
def test_any_size_fits(size: tuple[int, int]) -> None:
    square = fit_square(Image.new("RGB", size, (7, 8, 9)), 64)
    assert square.shape == (64, 64, 3) and square.dtype == np.uint8
    assert (square == (7, 8, 9)).all()


def test_a_square_of_the_right_size_is_left_as_it_is() -> None:
    image = gradient(16, 16)
    assert np.array_equal(fit_square(image, 16), np.asarray(image))


# --- tensors -------------------------------------------------------------------------------


def test_float_and_back_is_exact_for_all_256_values() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    image = to_float(pixels)
    assert image.shape == (1, 3, 16, 16) and image.dtype == torch.float32
    assert (image.min(), image.max()) == (-1.0, 1.0)
    assert image.is_contiguous()
    assert np.array_equal(to_uint8(image), pixels)
    assert np.array_equal(to_uint8(to_float(torch.from_numpy(pixels))), pixels)


def test_read_only_pixels_are_fine() -> None:
    pixels = np.asarray(gradient())[None]
    pixels.flags.writeable = False
    assert np.array_equal(to_uint8(to_float(pixels)), pixels)


def test_values_outside_are_clamped_and_rounded() -> None:
    image = torch.tensor([-7.0, 7.0, 0.0]).reshape(1, 3, 1, 1)
    assert to_uint8(image).tolist() == [[[[0, 255, 128]]]]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"Pixels must be \(B, H, W, 3\) uint8"):
        to_float(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ShapeError, match=r"uint8: .* torch\.float32"):
        to_float(torch.zeros(1, 4, 4, 3))
    with pytest.raises(ShapeError, match=r"An image must be \(B, 3, H, W\) float"):
        to_uint8(torch.zeros(3, 4, 4))
    with pytest.raises(ShapeError, match=r"A picture must be \(H, W, 3\) uint8"):
        save_png(Path("x.png"), np.zeros((1, 4, 4, 3), np.uint8))


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not numbers"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))
