"""Layers in a row, with or without keeping what is inside them."""

import torch
from torch import Tensor, nn

from tessella.tokenizer.body import Body


class Counted(nn.Module):
    """Counts how often it is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(hidden).relu()


def gradients(body: Body, image: Tensor) -> list[Tensor]:
    body.zero_grad()
    body(image).square().sum().backward()
    return [parameter.grad.clone() for parameter in body.parameters() if parameter.grad is not None]


def test_computing_again_changes_no_gradient() -> None:
    torch.manual_seed(0)
    body, image = Body(Counted(), Counted()), torch.rand(1, 2, 4, 4)
    kept = gradients(body, image)
    assert [layer.calls for layer in body] == [1, 1]
    body.recompute = True
    again = gradients(body, image)
    assert [layer.calls for layer in body] == [3, 3]
    assert len(kept) == 4
    for a, b in zip(kept, again, strict=True):
        assert torch.equal(a, b)


def test_it_can_be_compiled_and_compute_again() -> None:
    """By the frontend of `torch.compile`, without its code generator."""
    torch.manual_seed(0)
    body, image = (
        Body(nn.Conv2d(2, 2, 3, padding=1), nn.SiLU(), nn.Conv2d(2, 2, 1)),
        torch.rand(1, 2, 4, 4),
    )
    plain = gradients(body, image)
    body.recompute = True
    body.compile(backend="eager")
    for one, other in zip(plain, gradients(body, image), strict=True):
        torch.testing.assert_close(one, other)


def test_in_use_nothing_is_computed_twice() -> None:
    body = Body(Counted()).eval()
    body.recompute = True
    gradients(body, torch.rand(1, 2, 4, 4))
    assert [layer.calls for layer in body] == [1]


def test_its_weights_have_the_names_of_a_sequence() -> None:
    layers = [nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)]
    assert list(Body(*layers).state_dict()) == list(nn.Sequential(*layers).state_dict())
