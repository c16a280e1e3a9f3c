"""VQGAN's network, for comparison: image → latent, quantized → image.

Each level has a width, a multiple of 32, and each but the last halves height and width. As
published first, attention follows every block of the coarsest level, and stands between the two
blocks of the middle; others have it in the middle alone, or nowhere. Published shapes: two blocks
per level, codes of width 256, widths (128, 128, 256, 256, 512) for 16 pixels per code,
(128, 128, 256, 512) for 8. `layouts.py` knows the names of published weights.

Source: Taming Transformers (arXiv:2012.09841) and its published configurations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from tessella.tokenizer.body import Network, NormalizedBlock

Attention = Literal["coarsest", "middle", "none"]

_GROUPS = 32
_EPSILON = 1e-6


@dataclass(frozen=True)
class TamingShape:
    """The sizes of encoder and decoder."""

    widths: Sequence[int]  # of the levels, finest first
    blocks: int  # a level of the encoder; the decoder's have one more
    code_width: int
    latent_width: int  # channels beside the 1×1 convolution that makes codes' widths of them
    attention: Attention = "coarsest"


class TamingAttention(nn.Module):
    """(B, width, H, W) → the same shape: every position attends to all, with one head."""

    def __init__(self, width: int) -> None:
        """Creates the layer."""
        super().__init__()
        self.norm = _norm(width)
        self.query_key_value = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Adds the attention's result to the input."""
        positions = self.query_key_value(self.norm(hidden)).flatten(2).mT  # (B, N, 3C)
        query, key, value = positions.unsqueeze(1).chunk(3, dim=-1)  # (B, 1, N, C) each
        update = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        summed: Tensor = hidden + self.out(update.mT.unflatten(-1, hidden.shape[-2:]))
        return summed


class TamingEncoder(Network):
    """image (B, 3, H, W) → latent (B, C, H / downsampling, W / downsampling)."""

    def __init__(self, shape: TamingShape) -> None:
        """Creates one level per width, from the finest to the coarsest."""
        widths = shape.widths
        first = nn.Conv2d(3, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        width_in = widths[0]
        for level, width in enumerate(widths):
            if level > 0:
                # Padded at the right and the bottom only, as published.
                halve = nn.Conv2d(width_in, width_in, 3, stride=2)
                layers += [nn.ZeroPad2d((0, 1, 0, 1)), halve]
            attends = shape.attention == "coarsest" and level == len(widths) - 1
            layers += _level(width_in, width, shape.blocks, attends)
            width_in = width
        layers += [*_middle(width_in, shape.attention), _norm(width_in), nn.SiLU()]
        last = nn.Sequential(
            nn.Conv2d(width_in, shape.latent_width, 3, padding=1),
            nn.Conv2d(shape.latent_width, shape.code_width, 1),
        )
        super().__init__(first, layers, last)


class TamingDecoder(Network):
    """quantized (B, C, h, w) → image (B, 3, h · downsampling, w · downsampling)."""

    def __init__(self, shape: TamingShape, upsampling: int = 0) -> None:
        """Creates one level per width of the encoder, each with one block more.

        Each of the `upsampling` levels after them doubles height and width at the finest width.
        """
        widths = [shape.widths[0]] * upsampling + list(shape.widths)
        width_in = widths[-1]
        first = nn.Sequential(
            nn.Conv2d(shape.code_width, shape.latent_width, 1),
            nn.Conv2d(shape.latent_width, width_in, 3, padding=1),
        )
        layers = _middle(width_in, shape.attention)
        for level, width in reversed(list(enumerate(widths))):
            coarsest = level == len(widths) - 1
            if not coarsest:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width_in, width_in, 3, padding=1)]
            attends = shape.attention == "coarsest" and coarsest
            layers += _level(width_in, width, shape.blocks + 1, attends)
            width_in = width
        layers += [_norm(width_in), nn.SiLU()]
        super().__init__(first, layers, nn.Conv2d(width_in, 3, 3, padding=1))


def _level(width_in: int, width_out: int, blocks: int, attends: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for index in range(blocks):
        layers.append(NormalizedBlock(width_out if index else width_in, width_out, _norm))
        if attends:
            layers.append(TamingAttention(width_out))
    return layers


def _middle(width: int, attention: Attention) -> list[nn.Module]:
    before = NormalizedBlock(width, width, _norm)
    attends = [] if attention == "none" else [TamingAttention(width)]
    return [before, *attends, NormalizedBlock(width, width, _norm)]


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width, _EPSILON)
