"""Pixels: pictures of one size, between Pillow and torch.

picture   Pillow, RGB, any size
pixels    (B, H, W, 3) uint8 numpy, RGB
image     (B, 3, H, W) float tensor in [-1, 1], RGB
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from tessella.errors import CheckpointError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]


def fit_square(image: Image.Image, size: int) -> Pixels:
    """Crops a picture to its middle square and resizes it (Lanczos), up or down.

    Args:
        image: RGB, any size.
        size: side of the result in pixels, >= 1.

    Returns:
        (size, size, 3) uint8.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    # Very large pictures are averaged down before Lanczos; below 6:1 this changes nothing.
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.asarray(square)


def to_float(pixels: "Pixels | Tensor") -> "Tensor":
    """Turns pixels into an image.

    Args:
        pixels: (B, H, W, 3) uint8; numpy, or a tensor on any device.

    Returns:
        (B, 3, H, W) float32 in [-1, 1] on the same device: 0 becomes -1, 255 becomes 1.

    Raises:
        ShapeError: another shape or another type of number.
    """
    import torch

    tensor = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels
    if tensor.ndim != 4 or tensor.shape[-1] != 3 or tensor.dtype != torch.uint8:
        raise ShapeError(
            f"Pixels must be (B, H, W, 3) uint8: `{tuple(tensor.shape)} {tensor.dtype}`. "
            "For one picture add a first axis: pixels[None]."
        )
    return tensor.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)


def to_uint8(image: "Tensor") -> Pixels:
    """Turns an image into pixels; the exact inverse of `to_float`.

    Args:
        image: (B, 3, H, W) float; clamped to [-1, 1].

    Returns:
        (B, H, W, 3) uint8.

    Raises:
        ShapeError: another shape.
        CheckpointError: some values are NaN.
    """
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ShapeError(
            f"An image must be (B, 3, H, W) float: `{tuple(image.shape)} {image.dtype}`. "
            "For one picture add a first axis: image[None]."
        )
    values = image.detach().float().clamp(-1.0, 1.0)
    if bool(values.isnan().any()):
        raise CheckpointError(
            "The image holds values that are not numbers (NaN): the weights that made it are "
            "damaged or diverged in training. Use an earlier checkpoint or a lower learning rate."
        )
    return np.ascontiguousarray(round_to_bytes(values).permute(0, 2, 3, 1).cpu().numpy())


def round_to_bytes(values: "Tensor") -> "Tensor":
    """Rounds values in [-1, 1] to uint8 of the same shape: -1 becomes 0, 1 becomes 255."""
    return values.add(1.0).mul(127.5).round().byte()
