"""pixels ↔ codes with a trained image tokenizer, in batches of any size.

How a convolution rounds depends on the size of its batch. Decoding therefore always uses the same
size, so that a picture's pixels don't depend on the pictures that it is decoded with.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessella.images import Pixels, to_float, to_uint8
from tessella.tokenizer import VQAutoencoder

_ENCODED_TOGETHER = 16
# Padded to 4, one picture of 64 pixels takes 1.5 ms longer on 2 cores, and sixteen 1.4 ms. An
# accelerator has more to fill, and its number is not measured.
_DECODED_TOGETHER = {"cpu": 4, "accelerator": 16}


@torch.inference_mode()
def encode_pixels(tokenizer: VQAutoencoder, pixels: Pixels) -> Tensor:
    """Encodes pictures (B, S, S, 3) into codes (B, M, h, w) on the tokenizer's device."""
    device = tokenizer.codebook.device
    return torch.cat(
        [
            tokenizer.encode(to_float(pixels[start : start + _ENCODED_TOGETHER]).to(device))
            for start in range(0, len(pixels), _ENCODED_TOGETHER)
        ]
    )


def encode_stored(tokenizer: VQAutoencoder, pixels: Pixels) -> npt.NDArray[np.uint16]:
    """Encodes pictures (B, S, S, 3) as a memory holds them: codes (B, M, h, w)."""
    return encode_pixels(tokenizer, pixels).cpu().numpy().astype(np.uint16)


@torch.inference_mode()
def decode_latent(tokenizer: VQAutoencoder, latent: Tensor, grid: tuple[int, int]) -> Pixels:
    """Decodes latents (B, C, h', w') into pictures (B, H, W, 3).

    Args:
        tokenizer: decodes them.
        latent: on the codebook's scale.
        grid: (h, w) that the model was trained on; larger latents are decoded fewer at a time.
    """
    together = _DECODED_TOGETHER.get(latent.device.type, _DECODED_TOGETHER["accelerator"])
    together = max(1, together * grid[0] * grid[1] // latent[0, 0].numel())
    pixels = []
    for part in latent.split(together):
        missing = together - len(part)
        padded = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
        pixels.append(to_uint8(tokenizer.decode_latent(padded))[: len(part)])
    return np.concatenate(pixels)


def blank_out(latent: Tensor, is_decoded: Tensor, codebook: Tensor) -> Tensor:
    """Shows the mean of the codebook, which is close to gray, where there is no code yet.

    Args:
        latent: (B, C, h, w).
        is_decoded: (B, h, w) or (B, N) bool.
        codebook: (M, K, C).

    Returns:
        (B, C, h, w).
    """
    blank = codebook.mean(1).sum(0).view(-1, 1, 1)
    return latent.where(is_decoded.to(latent.device).view(-1, 1, *latent.shape[2:]), blank)
