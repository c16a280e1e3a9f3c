"""image (B, 3, H, W) → the same image in other colours, moved, with a hole; differentiable.

The discriminator sees real images and reconstructions through this alone, in its own step and in
the tokenizer's, so that it cannot learn a small folder by heart.

Source: DiffAugment (arXiv:2006.10738), color + translation + cutout with its published ranges.
"""

import torch
from torch import Tensor

_MAX_SHIFT = 8  # an image moves by up to 1/8 of its side
_HOLE = 2  # a hole's side is 1/2 of the image's


def augment(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Changes every image of a batch by draws of its own.

    Args:
        image: (B, 3, H, W) about [-1, 1].
        generator: on the image's device; else torch's global one of that device.

    Returns:
        (B, 3, H, W), finite but not kept in [-1, 1].
    """
    num_images, _, height, width = image.shape
    device = image.device

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(num_images, device=device).uniform_(low, high, generator=generator)

    def draw_place(low: tuple[int, int], high: tuple[int, int]) -> Tensor:
        sides = [
            torch.randint(a, b, (num_images,), device=device, generator=generator)
            for a, b in zip(low, high, strict=True)
        ]
        return torch.stack(sides, dim=1)

    image = change_colors(image, draw(-0.5, 0.5), draw(0.0, 2.0), draw(0.5, 1.5))
    down, right = height // _MAX_SHIFT, width // _MAX_SHIFT
    image = translate(image, draw_place((-down, -right), (down + 1, right + 1)))
    return cut_out(image, draw_place((0, 0), (height, width)))


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
    place = torch.arange(size, device=shift.device)
    return (place[:, None] - shift[:, None, None] == place).to(dtype)


def cut_out(image: Tensor, center: Tensor) -> Tensor:
    """Sets a rectangle of half height and half width around center (B, 2: row, column) to 0.

    What of the rectangle lies outside of the image cuts nothing.
    """
    rows = _is_in_hole(center[:, 0], image.shape[2])
    columns = _is_in_hole(center[:, 1], image.shape[3])
    hole = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, H, W)
    return image.masked_fill(hole, 0.0)


def _is_in_hole(center: Tensor, size: int) -> Tensor:
    """Says (B, size) which places a hole around center (B,) covers along one side."""
    start = center - size // _HOLE // 2
    place = torch.arange(size, device=center.device) - start[:, None]
    return (place >= 0) & (place < size // _HOLE)
