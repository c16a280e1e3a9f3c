"""latent (B, C, h, w) → each channel rounded to one of a few levels → codes (B, h, w).

The codebook is the grid of all levels: nothing is learned, no code can die for good.

Source: arXiv:2309.15505.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from tessella.tokenizer.quantizer_base import CodesSettings, Quantized, Quantizer, check_channels

_MOST_CODES = 65536
# Widens the bound, so that its outermost levels can be reached.
_MARGIN = 1e-3


class FiniteScalarSettings(CodesSettings):
    """A fixed grid (FSQ); a latent is rounded to it, channel by channel."""

    name: Literal["fsq"] = "fsq"
    """The quantizer's name."""
    levels: tuple[Annotated[int, Field(ge=3)], ...] = Field((8, 8, 8), min_length=1)
    """Levels of each channel; their product is the number of codes. The paper advises five or
    more: 8 6 5 (240 codes), 8 5 5 5 (1000), 7 5 5 5 5 (4375), 8 8 8 6 5 (15360)."""

    @model_validator(mode="after")
    def _no_residuals(self) -> "FiniteScalarSettings":
        if self.codes_per_position > 1 and self.composition == "residual":
            raise ValueError(
                "a fixed grid has no residual codebooks. Set "
                "tokenizer.quantizer.composition=product, or tokenizer.quantizer.name=vq"
            )
        return self

    @field_validator("levels")
    @classmethod
    def _not_too_many(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if (size := math.prod(levels)) > _MOST_CODES:
            raise ValueError(f"these levels make {size} codes, at most {_MOST_CODES} are possible")
        return levels

    @property
    def codebook_size(self) -> int:
        """Number of codes (K): the product of the levels."""
        return math.prod(self.levels)

    @property
    def code_width(self) -> int:
        """Channels of a code (C): as many as there are numbers of levels."""
        return len(self.levels)


class FiniteScalarQuantizer(Quantizer):
    """A grid of levels in [-1, 1], to which latents are rounded."""

    _levels: Tensor  # (C,) int64
    _strides: Tensor  # (C,) int64, by how much one more level of a channel raises the code

    def __init__(self, settings: FiniteScalarSettings) -> None:
        """Creates the grid; from each code to the next the first channel's level changes."""
        super().__init__(settings.codebook_size)
        self.settings = settings
        levels = torch.tensor(settings.levels)
        strides = torch.tensor([math.prod(settings.levels[:i]) for i in range(len(levels))])
        codes = torch.arange(settings.codebook_size)[:, None]
        vectors = (codes // strides % levels - levels // 2) / (levels // 2)
        # Not in the model's file: the settings determine it.
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("_levels", levels, persistent=False)
        self.register_buffer("_strides", strides, persistent=False)

    def encode(self, latent: Tensor) -> Tensor:
        """Turns latents (B, C, h, w) into codes (B, h, w)."""
        return self._to_codes(self._bound(latent).round())

    def forward(self, latent: Tensor) -> Quantized:
        """Rounds; in training also counts which codes are in use.

        Args:
            latent: (B, C, h, w) of any finite scale.

        Raises:
            ShapeError: the latent's channels are not as many as there are numbers of levels.

        Source:
            Section 3.1 and appendix A of arXiv:2309.15505.
        """
        bounded = self._bound(latent)
        rounded = bounded.detach().round()
        codes = self._to_codes(rounded)
        if self.training:
            self._count_use(codes)
        # The gradient passes straight through the rounding, not through the bound.
        steps = bounded + (rounded - bounded).detach()
        quantized = (steps / (self._levels // 2)).movedim(-1, 1)
        return Quantized(quantized, codes, quantized.new_zeros(()))

    def _bound(self, latent: Tensor) -> Tensor:
        """Squeezes latents into (B, h, w, C) steps from the middle level, not yet whole."""
        check_channels(latent, len(self._levels))
        reach = (self._levels - 1) * (1 + _MARGIN) / 2
        # An even number of levels has no middle: the lower half has one more.
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        shift = (offset / reach).atanh()  # so that 0 stays 0
        return (latent.float().movedim(1, -1) + shift).tanh() * reach - offset

    def _to_codes(self, steps: Tensor) -> Tensor:
        """Turns whole steps (B, h, w, C) from the middle level into codes (B, h, w)."""
        return ((steps.long() + self._levels // 2) * self._strides).sum(-1)
