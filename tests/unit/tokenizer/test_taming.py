"""VQGAN's network, against diffusers' implementation of the same."""

import pytest
import torch
from diffusers import VQModel
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tessella.tokenizer.taming import TamingAttention, TamingDecoder, TamingEncoder, TamingShape

F8 = (128, 128, 256, 512)
F16 = (128, 128, 256, 256, 512)


def published(widths: tuple[int, ...], blocks: int, code_width: int) -> VQModel:
    """Their network of that shape, attention at the coarsest level."""
    finer = len(widths) - 1
    return VQModel(
        block_out_channels=list(widths),
        layers_per_block=blocks,
        down_block_types=["DownEncoderBlock2D"] * finer + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * finer,
        latent_channels=code_width,
        num_vq_embeddings=16,
    )


def run(network: nn.Module, given: Tensor) -> tuple[Tensor, list[nn.Module]]:
    """Runs a network; lists its weighted layers in the order of their work."""
    layers: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda done, *_: layers.append(done))
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.GroupNorm)
    ]
    made = network(given)
    for hook in hooks:
        hook.remove()
    return made, layers


def assert_equal(ours: nn.Module, theirs: nn.Module, given: Tensor) -> None:
    """Copies their weights in the order of work (query, key and value are one layer of ours)."""
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    expected, their_layers = run(theirs, given)
    _, our_layers = run(ours, given)
    for name in ("weight", "bias"):
        values = parameters_to_vector([getattr(layer, name) for layer in their_layers])
        vector_to_parameters(values, [getattr(layer, name) for layer in our_layers])
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    torch.testing.assert_close(ours(given), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01


@pytest.mark.parametrize(("widths", "blocks"), [((32,), 1), ((32, 64), 2), ((32, 64, 96), 1)])
def test_it_is_the_published_network(widths: tuple[int, ...], blocks: int) -> None:
    torch.manual_seed(0)
    shape = TamingShape(widths, blocks, 6, 6)
    theirs = published(widths, blocks, 6)
    factor = 2 ** (len(widths) - 1)
    with torch.no_grad():
        image = torch.randn(2, 3, 4 * factor, 3 * factor)
        assert_equal(TamingEncoder(shape), nn.Sequential(theirs.encoder, theirs.quant_conv), image)
        latent = torch.randn(2, 6, 4, 3)
        decoder = nn.Sequential(theirs.post_quant_conv, theirs.decoder)
        assert_equal(TamingDecoder(shape), decoder, latent)


@pytest.mark.parametrize("widths", [F8, F16])
def test_the_published_sizes(widths: tuple[int, ...]) -> None:
    """Without memory: as many weights as theirs, and 16×16 codes of 128 or 256 pixels a side."""
    factor = 2 ** (len(widths) - 1)
    with torch.device("meta"):
        theirs = published(widths, 2, 256)
        shape = TamingShape(widths, 2, 256, 256)
        encoder, decoder = TamingEncoder(shape), TamingDecoder(shape)
        latent = encoder(torch.empty(1, 3, 16 * factor, 16 * factor))
    assert latent.shape == (1, 256, 16, 16)
    assert decoder(latent).shape == (1, 3, 16 * factor, 16 * factor)
    codebook = sum(p.numel() for p in theirs.quantize.parameters())
    ours = sum(p.numel() for network in (encoder, decoder) for p in network.parameters())
    assert ours == sum(p.numel() for p in theirs.parameters()) - codebook


def test_attention_stands_at_the_coarsest_level_and_in_the_middle() -> None:
    with torch.device("meta"):
        shape = TamingShape((32, 64, 128), 2, 8, 8)
        networks = (TamingEncoder(shape), TamingDecoder(shape))
    for network, expected in zip(networks, (2 + 1, 3 + 1), strict=True):
        found = [m for m in network.modules() if isinstance(m, TamingAttention)]
        assert len(found) == expected
        assert all(layer.out.in_channels == 128 for layer in found)


def test_attention_by_hand() -> None:
    """Alike places attend alike: every place gets the mean of all values, around the skip."""
    torch.manual_seed(0)
    layer = TamingAttention(32)
    nn.init.zeros_(layer.query_key_value.weight[:64])
    nn.init.zeros_(layer.query_key_value.bias[:64])
    hidden = torch.randn(2, 32, 3, 5)
    values = layer.query_key_value(layer.norm(hidden))[:, 64:]
    mean = values.mean((2, 3), keepdim=True).expand_as(hidden)
    torch.testing.assert_close(layer(hidden), hidden + layer.out(mean))


def test_the_decoder_goes_on_to_higher_resolutions() -> None:
    """Two levels more: four times the side, at the finest level's width."""
    with torch.device("meta"):
        decoder = TamingDecoder(TamingShape((32, 64), 1, 8, 8), upsampling=2)
        assert decoder(torch.empty(1, 8, 5, 3)).shape == (1, 3, 40, 24)
    assert decoder.last.in_channels == 32


def test_memory_formats_agree() -> None:
    """Channels last is how the tokenizer trains: the same result, and no copy at attention."""
    torch.manual_seed(0)
    encoder = TamingEncoder(TamingShape((32, 64), 1, 4, 4))
    image = torch.randn(1, 3, 8, 8)
    expected = encoder(image)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = encoder(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    shape = TamingShape((32, 64), 1, 4, 4)
    encoder, decoder = TamingEncoder(shape), TamingDecoder(shape)
    decoder(encoder(torch.randn(1, 3, 8, 8))).square().mean().backward()
    for network in (encoder, decoder):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
