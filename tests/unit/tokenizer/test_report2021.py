"""The founding report's network, counted layer by layer on the meta device: shapes, no numbers."""

import pytest
import torch
from torch import Tensor, nn

from tessella.tokenizer import TokenizerSettings, VectorQuantizerSettings, VQAutoencoder
from tessella.tokenizer.report2021 import (
    ReportBlock,
    ReportDecoder,
    ReportEncoder,
    SharedBatchNorm,
)
from two_processes import connect


def on_meta(kind: type[nn.Module], nhid: int = 256) -> nn.Module:
    with torch.device("meta"):
        return kind(nhid)


def convolutions(module: nn.Module, size: int) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    found = [m for m in module.modules() if isinstance(m, kinds)]
    return [m for m in found if m.kernel_size == (size, size)]


def trace(network: nn.Module, given: Tensor) -> list[tuple[int, ...]]:
    """Shapes (C, H, W) after each block."""
    shapes = []
    for block in network.body:
        block.register_forward_hook(
            lambda _block, _given, made: shapes.append(tuple(made[0].shape))
        )
    network(given)
    return shapes


def test_128_pixels_become_256_channels_of_16_by_16() -> None:
    latent = on_meta(ReportEncoder)(torch.empty(3, 3, 128, 128, device="meta"))
    assert latent.shape == (3, 256, 16, 16)
    image = on_meta(ReportDecoder)(latent)
    assert image.shape == (3, 3, 128, 128)


def test_the_encoder_is_what_the_report_counts() -> None:
    encoder = on_meta(ReportEncoder)
    assert len(convolutions(encoder, 7)) == 1
    assert encoder.first.kernel_size == (7, 7)
    blocks = [m for m in encoder.modules() if isinstance(m, ReportBlock)]
    assert len(blocks) == 6
    assert len(convolutions(encoder, 3)) == 6 * 4
    halving = [[c.stride for c in convolutions(block, 3)].count((2, 2)) for block in blocks]
    assert sorted(halving) == [0, 0, 0, 1, 1, 1]


def test_the_decoder_mirrors_it_with_transposed_convolutions() -> None:
    encoder, decoder = on_meta(ReportEncoder), on_meta(ReportDecoder)
    assert not [m for m in decoder.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions(decoder, 7)) == 1
    assert len(convolutions(decoder, 3)) == 6 * 4
    down = trace(encoder, torch.empty(1, 3, 128, 128, device="meta"))
    up = trace(decoder, torch.empty(1, 256, 16, 16, device="meta"))
    # What each block of the decoder makes is what the encoder's mirror block was given.
    given = [(32, 128, 128), *down[:-1]]
    assert up == given[::-1]
    # And convolution by convolution: the same widths, exchanged, in the opposite order.
    encoding = [(c.in_channels, c.out_channels, c.stride) for c in convolutions(encoder, 3)]
    decoding = [(c.out_channels, c.in_channels, c.stride) for c in convolutions(decoder, 3)]
    assert decoding == encoding[::-1]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_each_convolution_is_normalised_with_relu_in_between(transposed: bool, stride: int) -> None:
    block = ReportBlock(8, 16, stride, transposed)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    one = [kind, SharedBatchNorm, nn.ReLU]
    # The fourth normalization is followed by the skip, and only then by ReLU.
    assert [type(layer) for layer in block.layers] == [*one, *one, *one, kind, SharedBatchNorm]
    made = block(torch.randn(2, 8, 6, 6))
    side = {1: 6, 2: 12 if transposed else 3}[stride]
    assert made.shape == (2, 16, side, side)
    assert made.min() >= 0


def test_a_block_that_changes_nothing_keeps_its_input_as_the_skip() -> None:
    block = ReportBlock(8, 8, 1, transposed=False).eval()
    with torch.no_grad():
        block.layers[-1].weight.zero_()
        block.layers[-1].bias.zero_()
    hidden = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(hidden), hidden.relu())


def test_a_small_one_learns_on_64_pixels() -> None:
    """The first fit with `nhid` 32 died of a segmentation fault in the backward pass.

    oneDNN does not survive a strided 1×1 convolution of four channels laid out channels last.
    """
    torch.manual_seed(0)
    quantizer = VectorQuantizerSettings(code_width=32, normalize=False)
    settings = TokenizerSettings(network="report2021", nhid=32, quantizer=quantizer)
    tokenizer = VQAutoencoder(settings)
    image = torch.rand(32, 3, 64, 64) * 2 - 1
    (tokenizer(image).image - image).square().mean().backward()
    first = tokenizer.encoder.first.weight.grad
    assert first is not None
    assert first.abs().sum() > 0


def test_batches_are_normalized_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves on two processes, whose gradients are averaged, are one batch on one."""
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(2, 4, 3, 5, 5, generator=generator)
    images = 3 * images + 1
    norms, made = [SharedBatchNorm(3) for _ in range(2)], dict[int, Tensor]()

    def work(rank: int) -> None:
        half = slice(2 * rank, 2 * rank + 2)
        made[rank] = norms[rank](images[half])
        (made[rank] * weights[half]).square().mean().backward()

    connect(monkeypatch).run(work)
    monkeypatch.undo()
    whole = nn.BatchNorm2d(3)
    expected = whole(images)
    (expected * weights).square().mean().backward()
    torch.testing.assert_close(torch.cat([made[0], made[1]]), expected)
    for name, parameter in whole.named_parameters():
        gradients = [norm.get_parameter(name).grad for norm in norms]
        assert gradients[0] is not None
        torch.testing.assert_close(sum(gradients) / 2, parameter.grad, msg=name)
    for norm in norms:
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(norm.get_buffer(name), buffer, msg=name)


def test_a_shared_norm_passes_gradients_back_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image moves the mean that the other process's images are normalized by."""
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(2, 4, 3, 5, 5, generator=generator)
    halves = [images[:2].clone().requires_grad_(), images[2:].clone().requires_grad_()]

    def work(rank: int) -> None:
        (SharedBatchNorm(3)(halves[rank]) * weights[2 * rank : 2 * rank + 2]).mean().backward()

    connect(monkeypatch).run(work)
    monkeypatch.undo()
    whole = images.clone().requires_grad_()
    (nn.BatchNorm2d(3)(whole) * weights).mean().backward()
    got = torch.cat([half.grad for half in halves if half.grad is not None]) / 2
    torch.testing.assert_close(got, whole.grad)
