"""The modern residual network: image → latent, quantized → image.

A pixel-unshuffle stem gives the first convolution `patch` × `patch` pixels per position: the finest
resolution, where convolutions are bound by memory, costs nothing. Each level below halves height
and width. Blocks are normalise → SiLU → convolve, twice, around a skip. The decoder mirrors the
encoder, and may paint at higher resolutions than the encoder reads.

Source: blocks of Taming Transformers (arXiv:2012.09841), without its attention.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from tessella.tokenizer.body import Network, NormalizedBlock

_GROUP_WIDTH = 16


class ResidualBlock(NormalizedBlock):
    """(B, width, H, W) → the same shape; starts as the identity."""

    def __init__(self, width: int) -> None:
        """Creates a block whose last convolution is 0."""
        super().__init__(width, width, _norm)
        nn.init.zeros_(self.conv2.weight)


class ResidualEncoder(Network):
    """image (B, 3, H, W) → latent (B, C, H / downsampling, W / downsampling)."""

    def __init__(self, patch: int, widths: Sequence[int], blocks: int, code_width: int) -> None:
        """Creates one level per width, from the finest to the coarsest."""
        first = nn.Conv2d(3 * patch**2, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            if level > 0:
                layers.append(nn.Conv2d(widths[level - 1], width, 4, stride=2, padding=1))
            layers += [ResidualBlock(width) for _ in range(blocks)]
        layers += [_norm(widths[-1]), nn.SiLU()]
        super().__init__(first, layers, nn.Conv2d(widths[-1], code_width, 1))
        self.patch = patch

    def forward(self, image: Tensor) -> Tensor:
        """Encodes a batch of images in [-1, 1]."""
        return super().forward(functional.pixel_unshuffle(image, self.patch))


class ResidualDecoder(Network):
    """quantized (B, C, h, w) → image (B, 3, h · downsampling, w · downsampling)."""

    def __init__(
        self, patch: int, widths: Sequence[int], blocks: int, code_width: int, upsampling: int = 0
    ) -> None:
        """Creates one level per width; `widths` are those of the encoder, finest first.

        Each of the `upsampling` levels after them doubles height and width at half the channels.
        """
        finer = [max(_GROUP_WIDTH, _round(widths[0] / 2**n)) for n in range(upsampling, 0, -1)]
        widths = [*finer, *widths]
        first = nn.Conv2d(code_width, widths[-1], 3, padding=1)
        layers: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            width = widths[level]
            layers += [ResidualBlock(width) for _ in range(blocks)]
            if level > 0:
                upsample = nn.Conv2d(width, 4 * widths[level - 1], 3, padding=1)
                layers += [upsample, nn.PixelShuffle(2)]
        layers += [_norm(widths[0]), nn.SiLU()]
        super().__init__(first, layers, nn.Conv2d(widths[0], 3 * patch**2, 3, padding=1))
        self.patch = patch

    def forward(self, quantized: Tensor) -> Tensor:
        """Decodes to images, unclamped."""
        return functional.pixel_shuffle(super().forward(quantized), self.patch)


def _round(width: float) -> int:
    return round(width / _GROUP_WIDTH) * _GROUP_WIDTH


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // _GROUP_WIDTH), width)
