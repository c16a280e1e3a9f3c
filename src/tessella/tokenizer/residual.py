"""The modern residual network: image → latent, quantized → image.

A pixel-unshuffle stem hands the first convolution `patch` × `patch` pixels at a place: the finest
resolution, where convolutions are bound by memory, costs nothing. Each level below halves height
and width. Blocks are normalise → SiLU → convolve, twice, around a skip; the decoder mirrors, and
may go on to higher resolutions than the encoder reads.

Source: block as in Taming Transformers (arXiv:2012.09841), without its attention.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from tessella.tokenizer.body import Body

_GROUP_WIDTH = 16


class ResidualBlock(nn.Module):
    """(B, width, H, W) → the same shape: two normalised 3×3 convolutions around a skip."""

    def __init__(self, width: int) -> None:
        """Creates a block that starts as the identity."""
        super().__init__()
        self.norm1 = _norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Adds what the two convolutions make of the input to it."""
        update: Tensor = self.conv1(functional.silu(self.norm1(hidden)))
        update = self.conv2(functional.silu(self.norm2(update)))
        return hidden + update


class ResidualEncoder(nn.Module):
    """image (B, 3, H, W) → latent (B, C, H / downsampling, W / downsampling)."""

    def __init__(self, patch: int, widths: Sequence[int], blocks: int, code_width: int) -> None:
        """Creates one level a width, from the finest to the coarsest."""
        super().__init__()
        self.first = nn.Conv2d(3 * patch**2, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            if level > 0:
                layers.append(nn.Conv2d(widths[level - 1], width, 4, stride=2, padding=1))
            layers += [ResidualBlock(width) for _ in range(blocks)]
        self.body = Body(*layers, _norm(widths[-1]), nn.SiLU())
        self.last = nn.Conv2d(widths[-1], code_width, 1)
        self.patch = patch

    def forward(self, image: Tensor) -> Tensor:
        """Encodes a batch of images in [-1, 1]."""
        hidden = self.first(functional.pixel_unshuffle(image, self.patch))
        latent: Tensor = self.last(self.body(hidden))
        return latent


class ResidualDecoder(nn.Module):
    """quantized (B, C, h, w) → image (B, 3, h · downsampling, w · downsampling)."""

    def __init__(
        self, patch: int, widths: Sequence[int], blocks: int, code_width: int, upsampling: int = 0
    ) -> None:
        """Creates one level a width; `widths` go from the finest to the coarsest, as encoded.

        Each of the `upsampling` levels after them doubles height and width at half the channels.
        """
        super().__init__()
        finer = [max(_GROUP_WIDTH, _round(widths[0] / 2**n)) for n in range(upsampling, 0, -1)]
        widths = [*finer, *widths]
        self.first = nn.Conv2d(code_width, widths[-1], 3, padding=1)
        layers: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            width = widths[level]
            layers += [ResidualBlock(width) for _ in range(blocks)]
            if level > 0:
                upsample = nn.Conv2d(width, 4 * widths[level - 1], 3, padding=1)
                layers += [upsample, nn.PixelShuffle(2)]
        self.body = Body(*layers, _norm(widths[0]), nn.SiLU())
        self.last = nn.Conv2d(widths[0], 3 * patch**2, 3, padding=1)
        self.patch = patch

    def forward(self, quantized: Tensor) -> Tensor:
        """Decodes to images, unclamped."""
        return functional.pixel_shuffle(self.last(self.body(self.first(quantized))), self.patch)


def _round(width: float) -> int:
    return round(width / _GROUP_WIDTH) * _GROUP_WIDTH


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // _GROUP_WIDTH), width)
