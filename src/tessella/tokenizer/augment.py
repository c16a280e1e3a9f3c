"""image (B, 3, H, W) → the same image in other colours, moved, with a hole; differentiable.

The discriminator sees real images and reconstructions only through this, in its own step and in
the tokenizer's, so that it cannot memorise a small folder.

Source: DiffAugment (arXiv:2006.10738), color + translation + cutout with its published ranges.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tessella.batch import draw_rows

_MAX_SHIFT = 8  # an image moves by up to 1/8 of its side
_HOLE = 2  # a hole's side is 1/2 of the image's


def augment(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Changes every image of a batch at random, each differently.

    Args:
        image: (B, 3, H, W) about [-1, 1].
        generator: on the image's device; without one the whole batch draws (`tessella.batch`).

    Returns:
        (B, 3, H, W), finite but not kept in [-1, 1].
    """
    num_images, _, height, width = image.shape
    device = image.device

    def draw_each(draw: Callable[[int, torch.Generator | None], Tensor]) -> Tensor:
        return draw(num_images, generator) if generator else draw_rows(num_images, draw)

    def draw(low: float, high: float) -> Tensor:
        return draw_each(
            lambda rows, own: torch.empty(rows, device=device).uniform_(low, high, generator=own)
        )

    def draw_position(low: tuple[int, int], high: tuple[int, int]) -> Tensor:
        def draw_side(low: int, high: int) -> Tensor:
            return draw_each(
                lambda rows, own: torch.randint(low, high, (rows,), device=device, generator=own)
            )

        return torch.stack([draw_side(*ends) for ends in zip(low, high, strict=True)], dim=1)

    image = change_colors(image, draw(-0.5, 0.5), draw(0.0, 2.0), draw(0.5, 1.5))
    down, right = height // _MAX_SHIFT, width // _MAX_SHIFT
    image = translate(image, draw_position((-down, -right), (down + 1, right + 1)))
    return cut_out(image, draw_position((0, 0), (height, width)))


def change_colors(
    image: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor
) -> Tensor:
    """Adds brightness (B,); scales distances from gray by saturation, from the mean by contrast."""
    brightness, saturation, contrast = (
        amount.to(image.dtype)[:, None, None, None] for amount in (brightness, saturation, contrast)
    )
    image = image + brightness
    gray = image.mean(1, keepdim=True)
    image = gray + saturation * (image - gray)
    mean = image.mean((1, 2, 3), keepdim=True)
    return mean + contrast * (image - mean)


def translate(image: Tensor, shift: Tensor) -> Tensor:
    """Moves each image by whole pixels, shift (B, 2) down and right; 0 comes in at the edges."""
    rows = _shift_matrix(shift[:, 0], image.shape[2], image.dtype)
    columns = _shift_matrix(shift[:, 1], image.shape[3], image.dtype)
    # A product where indices would do: its gradient is one too, fast and the same every time.
    return rows[:, None] @ image @ columns[:, None].mT


def _shift_matrix(shift: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Returns (B, size, size): row i has its 1 in column i - shift, if there is one."""
    position = torch.arange(size, device=shift.device)
    return (position[:, None] - shift[:, None, None] == position).to(dtype)


def cut_out(image: Tensor, center: Tensor) -> Tensor:
    """Sets a rectangle of half height and half width around center (B, 2: row, column) to 0.

    The part of the rectangle outside the image has no effect.
    """
    rows = _is_in_hole(center[:, 0], image.shape[2])
    columns = _is_in_hole(center[:, 1], image.shape[3])
    hole = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, H, W)
    return image.masked_fill(hole, 0.0)


def _is_in_hole(center: Tensor, size: int) -> Tensor:
    """Returns (B, size): which positions along a side a hole around center (B,) covers."""
    start = center - size // _HOLE // 2
    offset = torch.arange(size, device=center.device) - start[:, None]
    return (offset >= 0) & (offset < size // _HOLE)
