"""The modern residual network."""

import pytest
import torch
from torch import nn

from tessella.tokenizer.residual import ResidualBlock, ResidualDecoder, ResidualEncoder


def test_a_block_starts_as_the_identity() -> None:
    block = ResidualBlock(32)
    hidden = torch.randn(2, 32, 5, 5)
    # All but the last convolution's bias, which is not zero.
    assert torch.allclose(block(hidden) - hidden, block.conv2.bias[:, None, None], atol=1e-6)


def test_a_block_learns_around_its_skip() -> None:
    block = ResidualBlock(16)
    nn.init.normal_(block.conv2.weight)
    hidden = torch.randn(1, 16, 4, 4)
    norm = nn.functional.group_norm
    update = block.conv1(nn.functional.silu(norm(hidden, 1)))
    update = block.conv2(nn.functional.silu(norm(update, 1)))
    torch.testing.assert_close(block(hidden), hidden + update)


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("widths", [(16,), (16, 32), (16, 32, 48)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_shapes(patch: int, widths: tuple[int, ...], blocks: int) -> None:
    """Each level but the first halves; the stem divides by the patch."""
    factor = patch * 2 ** (len(widths) - 1)
    with torch.device("meta"):
        encoder = ResidualEncoder(patch, widths, blocks, code_width=8)
        decoder = ResidualDecoder(patch, widths, blocks, code_width=8)
        latent = encoder(torch.empty(2, 3, 3 * factor, 5 * factor))
    assert latent.shape == (2, 8, 3, 5)
    assert decoder(latent).shape == (2, 3, 3 * factor, 5 * factor)
    for network in (encoder, decoder):
        found = [m for m in network.modules() if isinstance(m, ResidualBlock)]
        assert len(found) == blocks * len(widths)


def test_a_corner_of_the_latent_sees_its_own_corner_of_the_image() -> None:
    """A change at the top right moves the latent there: height and width are not exchanged."""
    torch.manual_seed(0)
    encoder = ResidualEncoder(2, (16, 32), 1, code_width=4).eval()
    image = torch.zeros(1, 3, 32, 16)
    changed = image.clone()
    changed[:, :, 0:8, 8:16] = 1.0
    moved = (encoder(changed) - encoder(image)).norm(dim=1)[0]
    assert moved.shape == (8, 4)
    for rows, columns in ((slice(0, 2), slice(0, 2)), (slice(6, 8), slice(0, 4))):
        assert moved[0:2, 2:4].mean() > 1.5 * moved[rows, columns].mean()
