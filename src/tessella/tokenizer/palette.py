"""pixels → a palette of K colours; image (B, 3, H, W) ⇄ codes (B, H, W), one a pixel.

Image GPT's tokenizer: only the palette is learned, the colours that represent all others. It is
the quantizer's codebook; encoder and decoder pass their input on unchanged.

Source: Chen et al., "Generative Pretraining from Pixels" (2020): k-means with 512 colours;
Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding" (2007).
"""

import numpy as np
import torch
from torch import Tensor

from tessella.errors import ShapeError
from tessella.images import Pixels
from tessella.tokenizer.vector_quantizer import nearest_codes

_SAMPLED_PIXELS = 2**18  # about 500 per colour for the usual 512
_MAX_STEPS = 50
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709


def fit_palette(pixels: Pixels, size: int, seed: int) -> Tensor:
    """Chooses the colours that represent some pictures, by k-means.

    The same pixels, size and seed give the same palette. If the pictures have fewer distinct
    colours than the palette, it holds exactly these, some of them more than once.

    Args:
        pixels: (N, H, W, 3) uint8; about a quarter of a million pixels are sampled at most.
        size: K, the number of colours, >= 1.
        seed: of the sample and the first palette.

    Returns:
        (K, 3) float32 in [-1, 1], from the darkest to the brightest.

    Raises:
        ShapeError: the pixels are not (N, H, W, 3) uint8, or there are none.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ShapeError(
            f"Pixels must be (N, H, W, 3) uint8, one or more: `{pixels.shape} {pixels.dtype}`. "
            "For one picture add a first axis: pixels[None]."
        )
    flat = pixels.reshape(-1, 3)
    if len(flat) > _SAMPLED_PIXELS:
        flat = flat[np.random.default_rng(seed).integers(len(flat), size=_SAMPLED_PIXELS)]
    # k-means over distinct colours, weighted: the same result as over pixels, faster. In fp64 the
    # sums of 8-bit values are exact, whatever their order.
    distinct, counts = np.unique(flat, axis=0, return_counts=True)
    colours, weights = torch.from_numpy(distinct).double(), torch.from_numpy(counts).double()
    if len(colours) <= size:
        palette = colours[torch.arange(size) % len(colours)]
    else:
        generator = torch.Generator().manual_seed(seed)
        palette = refine_palette(colours, weights, _start(colours, weights, size, generator))
    luminance = palette @ palette.new_tensor(_LUMINANCE)
    return (palette[luminance.argsort(stable=True)] / 127.5 - 1).float()


def refine_palette(colours: Tensor, weights: Tensor, palette: Tensor) -> Tensor:
    """Moves palette colours to the mean of the colours nearest to them, until none moves.

    At most 50 times. One that no colour is nearest to moves to the colour that is farthest from
    its own palette colour.

    Args:
        colours: (M, 3), distinct, more than K.
        weights: (M,) how often each occurs, > 0.
        palette: (K, 3) the first one.

    Returns:
        (K, 3); the weighted squared distance of the colours to it is not higher than at the start.

    Source:
        Lloyd, "Least squares quantization in PCM" (1982).
    """
    for _ in range(_MAX_STEPS):
        codes = nearest_codes(colours.T[None, :, None], palette).flatten()
        mass = torch.bincount(codes, weights, minlength=len(palette))
        sums = torch.zeros_like(palette).index_add_(0, codes, colours * weights[:, None])
        empty = mass == 0
        moved = sums / mass.masked_fill(empty, 1.0)[:, None]
        distance = (colours - palette[codes]).square().sum(1)
        moved[empty] = colours[distance.topk(int(empty.sum())).indices]
        if torch.equal(moved, palette):
            break
        palette = moved
    return palette


def _start(colours: Tensor, weights: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draws colours (k-means++): each as likely as its squared distance to those before it."""
    indices = [torch.multinomial(weights, 1, generator=generator)]
    distance = torch.full_like(weights, torch.inf)
    for _ in range(size - 1):
        distance = distance.minimum((colours - colours[indices[-1]]).square().sum(1))
        indices.append(torch.multinomial(weights * distance, 1, generator=generator))
    return colours[torch.cat(indices)]
