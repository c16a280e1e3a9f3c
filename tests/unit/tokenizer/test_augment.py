"""Differentiable augmentation: each change by hand, all of them by their ranges."""

import pytest
import torch
from torch import Tensor

from tessella.tokenizer.augment import augment, change_colors, cut_out, translate


def random_images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def one(value: float) -> Tensor:
    return torch.tensor([value])


# Each change.


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ((0.0, 1.0, 1.0), [0.0, 0.3, 0.6, 0.6, 0.6, 0.9]),  # nothing
        ((0.5, 1.0, 1.0), [0.5, 0.8, 1.1, 1.1, 1.1, 1.4]),
        # Grays (0.3 and 0.7) stay: the first pixel's channels are 0, 0.3, 0.6 away from 0.3.
        ((0.0, 0.0, 1.0), [0.3, 0.3, 0.3, 0.7, 0.7, 0.7]),
        ((0.0, 2.0, 1.0), [-0.3, 0.3, 0.9, 0.5, 0.5, 1.1]),
        # The mean of all six, 0.5, stays.
        ((0.0, 1.0, 0.5), [0.25, 0.4, 0.55, 0.55, 0.55, 0.7]),
        # Brightened by 0.5, colours gone (0.8, 1.2), then half as far from their mean 1.0.
        ((0.5, 0.0, 0.5), [0.9, 0.9, 0.9, 1.1, 1.1, 1.1]),
    ],
)
def test_colors_by_hand(amounts: tuple[float, float, float], expected: list[float]) -> None:
    pixels = torch.tensor([[0.0, 0.3, 0.6], [0.6, 0.6, 0.9]])
    image = pixels.T.reshape(1, 3, 1, 2)
    changed = change_colors(image, *(one(amount) for amount in amounts))
    torch.testing.assert_close(changed.reshape(3, 2).T.flatten(), torch.tensor(expected))


def test_moved_by_hand() -> None:
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3).repeat(3, 1, 1, 1)
    moved = translate(image, torch.tensor([[1, 0], [0, -1], [-2, 1]]))
    assert moved[:, 0].tolist() == [
        [[0, 0, 0], [1, 2, 3], [4, 5, 6]],
        [[2, 3, 0], [5, 6, 0], [8, 9, 0]],
        [[0, 7, 8], [0, 0, 0], [0, 0, 0]],
    ]


def test_moved_as_rolled() -> None:
    """Every shift of a picture that is not square, against `torch.roll` with its wrap cleared."""
    image = random_images(1, 3, 6, 5)
    for down in range(-3, 4):
        for right in range(-3, 4):
            expected = torch.roll(image, (down, right), (2, 3))
            expected[:, :, :down] = 0 if down > 0 else expected[:, :, :down]
            expected[..., :right] = 0 if right > 0 else expected[..., :right]
            if down < 0:
                expected[:, :, down:] = 0
            if right < 0:
                expected[..., right:] = 0
            moved = translate(image, torch.tensor([[down, right]]))
            assert torch.equal(moved, expected), (down, right)


@pytest.mark.parametrize(
    ("center", "rows", "columns"),
    [
        ((4, 5), (2, 6), (3, 8)),  # 4 × 5 of 8 × 10
        ((0, 0), (0, 2), (0, 3)),  # only what lies inside
        ((7, 9), (5, 8), (7, 10)),
    ],
)
def test_the_hole_by_hand(
    center: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    cut = cut_out(torch.ones(1, 3, 8, 10), torch.tensor([center]))
    expected = torch.ones(1, 3, 8, 10)
    expected[:, :, slice(*rows), slice(*columns)] = 0
    assert torch.equal(cut, expected)


# All of them.


def test_ranges_of_the_draws() -> None:
    """Shifts of up to an eighth, holes of up to a quarter of the area, every image its own."""
    torch.manual_seed(0)
    image = torch.full((256, 3, 16, 16), 100.0)  # gray: colours only add, and 0 is a hole
    changed = augment(image)
    assert torch.isfinite(changed).all()
    assert changed.max() <= 100.5
    assert changed[changed > 0].min() >= 99.5 - 1e-3
    assert len({round(picture.max().item(), 4) for picture in changed}) > 200
    empty = (changed == 0).all(1)  # (B, 16, 16)
    # A shift of 2 down and right empties 2 · 16 + 2 · 14 = 60 places, the hole 64 at most.
    assert empty.sum((1, 2)).max() <= 60 + 64
    assert empty.sum((1, 2)).min() >= 16  # the hole's quarter in a corner
    assert empty[:, 0].all(1).any()
    assert empty[:, :, -1].all(1).any()


def test_colors_are_drawn_as_published() -> None:
    """Standard deviations of single pixels: saturation changes hue, contrast the spread."""
    torch.manual_seed(0)
    image = torch.zeros(512, 3, 8, 8)
    image[:, 0, :4], image[:, 0, 4:] = 3.0, -3.0  # mean 0, gray ±1
    changed = augment(image)
    spread = changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))
    # Red is gray ± 2 · saturation, saturation up to 2, contrast up to 1.5: from -7.5 to 7.5.
    assert 13.5 < spread.max() <= 15.0
    assert spread.min() >= 0.0


def test_gradients_pass() -> None:
    torch.manual_seed(0)
    image = random_images(8, 3, 16, 16).requires_grad_()
    changed = augment(image)
    assert changed.shape == image.shape
    changed.square().sum().backward()
    assert torch.isfinite(image.grad).all()
    # Most pixels are still seen in most images.
    assert (image.grad != 0).float().mean() > 0.5


def test_the_gradient_is_the_difference_s() -> None:
    image = random_images(2, 3, 8, 8).double().requires_grad_()

    def change(values: Tensor) -> Tensor:
        return augment(values, torch.Generator().manual_seed(3))

    assert torch.autograd.gradcheck(change, (image,), fast_mode=True)


def test_draws_come_from_the_generator() -> None:
    image = random_images(4, 3, 16, 16)
    torch.manual_seed(0)
    first = augment(image)
    torch.manual_seed(0)
    assert torch.equal(augment(image), first)
    assert not torch.equal(augment(image), first)

    before = torch.get_rng_state()
    given = augment(image, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(given, first)
