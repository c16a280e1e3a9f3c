"""The discriminator: its layers one by one, and what a logit sees."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.tokenizer.discriminator import PatchDiscriminator, smallest_image_size


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_as_many_parameters_as_taming_s() -> None:
    """pix2pix's with six channels has 2,768,705: three channels are 3 · 64 · 16 weights."""
    assert count_parameters(PatchDiscriminator(64, 3)) == 2_768_705 - 3072


def test_channels_double_up_to_eight_times() -> None:
    convolutions = [m for m in PatchDiscriminator(16, 5).modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 32, 64, 128, 128, 128, 1]
    assert [c.stride[0] for c in convolutions] == [2, 2, 2, 2, 2, 1, 1]


def test_the_same_as_layer_by_layer() -> None:
    """Taming's layers written out: width, stride and bias of each, with norms over groups."""
    torch.manual_seed(0)
    network = PatchDiscriminator(32, 2)
    weights = list(network.parameters())
    assert [tuple(weight.shape) for weight in weights] == [
        *[(32, 3, 4, 4), (32,)],
        *[(64, 32, 4, 4), (64,), (64,)],
        *[(128, 64, 4, 4), (128,), (128,)],
        *[(1, 128, 4, 4), (1,)],
    ]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.randn(weight.shape) / 10)

    def normalise(hidden: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        grouped = hidden.unflatten(1, (-1, 16))
        mean = grouped.mean((2, 3, 4), keepdim=True)
        variance = (grouped - mean).square().mean((2, 3, 4), keepdim=True)
        flat = ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        return flat * scale[:, None, None] + bias[:, None, None]

    def bend(hidden: Tensor) -> Tensor:
        return torch.where(hidden > 0, hidden, 0.2 * hidden)

    image = torch.rand(2, 3, 16, 20) * 2 - 1
    hidden = bend(functional.conv2d(image, weights[0], weights[1], stride=2, padding=1))
    hidden = functional.conv2d(hidden, weights[2], stride=2, padding=1)
    hidden = bend(normalise(hidden, weights[3], weights[4]))
    hidden = functional.conv2d(hidden, weights[5], stride=1, padding=1)
    hidden = bend(normalise(hidden, weights[6], weights[7]))
    expected = functional.conv2d(hidden, weights[8], weights[9], stride=1, padding=1)
    torch.testing.assert_close(network(image), expected, atol=1e-4, rtol=1e-4)
    assert expected.shape == (2, 1, 2, 3)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_what_a_logit_sees(layers: int, field: int) -> None:
    """Its gradient covers a square of so many pixels; the norms, which see all, left out."""
    torch.manual_seed(0)
    network = PatchDiscriminator(16, layers)
    for index, module in enumerate(network.body):
        if isinstance(module, nn.GroupNorm):
            network.body[index] = nn.Identity()
    image = torch.randn(1, 3, 80, 80, requires_grad=True)
    logits = network(image)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    seen = image.grad[0].abs().sum(0) > 0
    assert seen.sum() == field**2
    assert seen.any(0).sum() == seen.any(1).sum() == field


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_image_leaves_one_logit(layers: int) -> None:
    size = smallest_image_size(layers)
    network = PatchDiscriminator(16, layers)
    assert network(torch.zeros(1, 3, size, size)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        network(torch.zeros(1, 3, size - 1, size - 1))


def test_images_are_judged_one_by_one() -> None:
    """Unlike under batch normalisation, and with nothing that a pass could move."""
    torch.manual_seed(0)
    network = PatchDiscriminator(16, 2).train()
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))
    assert not list(network.buffers())


def test_the_start() -> None:
    """Weights of N(0, 0.02), as in Taming Transformers."""
    torch.manual_seed(0)
    for module in PatchDiscriminator(64, 2).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(module.weight.mean().item()) < 0.002
