"""What every quantizer has in common: latent (B, C, h, w) ⇄ codes (B, h, w), one codebook (K, C).

On the data's way it stands between the encoder and the decoder of the image tokenizer: one of them,
or several (`quantizer.py`).
"""

import abc
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tessella.batch import count_processes, sum_over_batch
from tessella.config import Settings
from tessella.errors import ShapeError


class CodesSettings(Settings):
    """How many codes a position has: settings of every quantizer."""

    codes_per_position: int = Field(1, ge=1, le=16)
    """Codes at a position (M), each of a codebook of its own."""
    composition: Literal["product", "residual"] = "product"
    """How several codes make one latent: `product`, side by side, each for channels of its own;
    `residual`, one upon the other, each for what those before leave over."""
    tail_dropout: float = Field(0.25, ge=0.0, le=1.0)
    """Fraction of the training pictures that are decoded without their last codes, of which a
    random number is left out, so that the first ones say what is coarse (composition = `residual`
    only)."""


@dataclass(frozen=True)
class Quantized:
    """A latent, quantized."""

    quantized: Tensor  # (B, C, h, w) codebook vectors, with a gradient for the latent
    codes: Tensor  # (B, h, w) int64 in [0, K); (B, M, h, w) of several codebooks
    loss: Tensor  # () the quantizer's own loss, weighted; 0 if it has none


class Quantizer(nn.Module, abc.ABC):
    """A codebook and the rule by which latents are assigned to its vectors."""

    vectors: Tensor  # (K, C), of each code
    idle_images: Tensor  # (K,) int64, images of training since each code was last chosen

    def __init__(self, codebook_size: int) -> None:
        """Creates the count of how long each code has been idle."""
        super().__init__()
        self.register_buffer("idle_images", torch.zeros(codebook_size, dtype=torch.int64))

    @property
    def codebook(self) -> Tensor:
        """(K, C) the vectors to which latents are compared."""
        return self.vectors

    @abc.abstractmethod
    def encode(self, latent: Tensor) -> Tensor:
        """Turns latents (B, C, h, w) of any finite scale into codes (B, h, w) int64.

        Raises:
            ShapeError: the latent's channels are not the codebook's.
        """

    @abc.abstractmethod
    def forward(self, latent: Tensor) -> Quantized:
        """Quantizes latents (B, C, h, w) of any finite scale; in training also counts and learns.

        Raises:
            ShapeError: the latent's channels are not the codebook's.
        """

    @torch.no_grad()
    def _count_use(self, codes: Tensor) -> Tensor:
        """Counts (K,) int64 how often each code was chosen, over all processes.

        A code that was not chosen has been idle for the images of this batch too.
        """
        # Not `bincount`: on CUDA it waits for the device.
        flat = codes.flatten()
        counts = torch.zeros_like(self.idle_images).scatter_add_(0, flat, torch.ones_like(flat))
        sum_over_batch(counts)
        self.idle_images.add_(len(codes) * count_processes()).masked_fill_(counts > 0, 0)
        return counts


def check_channels(latent: Tensor, width: int) -> None:
    """Refuses a latent (B, C, …) whose channels are not the codebook's `width`.

    Raises:
        ShapeError: says both.
    """
    if latent.shape[1] != width:
        raise ShapeError(
            f"The latent has {latent.shape[1]} channels, the codebook {width}: "
            "they must be equal. Is this latent another tokenizer's?"
        )
