"""image (B, 3, H, W) ⇄ codes (B, h, w): encoder, quantizer, decoder.

On the data's way: `data` hands it images, the transformer learns and chooses its codes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tessella.config import Settings
from tessella.errors import ShapeError
from tessella.tokenizer.quantizer import Quantized, QuantizerSettings, VectorQuantizer
from tessella.tokenizer.report2021 import DOWNSAMPLING, ReportDecoder, ReportEncoder
from tessella.tokenizer.residual import ResidualDecoder, ResidualEncoder


class TokenizerSettings(Settings):
    """The image tokenizer's network."""

    network: Literal["residual", "report2021"] = "residual"
    """`residual`, the modern network, or `report2021`, the founding report's."""
    patch: int = Field(4, ge=1, le=8)
    """Pixels a side that the residual network's stem folds into one place."""
    widths: tuple[Annotated[int, Field(ge=16, multiple_of=16)], ...] = Field((48, 96), min_length=1)
    """Channels of the residual network's levels, finest first; each level after the first halves
    height and width."""
    blocks: int = Field(1, ge=1)
    """Residual blocks a level."""
    nhid: int = Field(256, ge=8, multiple_of=8)
    """Channels at the end of the report's encoder; there also the width of a code."""
    quantizer: QuantizerSettings = QuantizerSettings()
    """The codebook and its rule."""

    @property
    def downsampling(self) -> int:
        """Pixels a side of one code."""
        if self.network == "report2021":
            return DOWNSAMPLING
        return self.patch * int(2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _one_code_width(self) -> "TokenizerSettings":
        if self.network == "report2021" and self.quantizer.code_width != self.nhid:
            raise ValueError(
                f"the report's network has codes as wide as `nhid`: {self.nhid}, not "
                f"{self.quantizer.code_width}. Set tokenizer.quantizer.code_width={self.nhid} too"
            )
        return self


@dataclass(frozen=True)
class Reconstruction:
    """What the tokenizer makes of an image in training."""

    image: Tensor  # (B, 3, H, W) unclamped
    quantized: Quantized  # its codes and the quantizer's loss


class ImageTokenizer(nn.Module):
    """Encoder, quantizer and decoder under one roof."""

    def __init__(self, settings: TokenizerSettings) -> None:
        """Creates an untrained tokenizer."""
        super().__init__()
        self.settings = settings
        width = settings.quantizer.code_width
        self.encoder: ResidualEncoder | ReportEncoder
        self.decoder: ResidualDecoder | ReportDecoder
        if settings.network == "report2021":
            self.encoder = ReportEncoder(settings.nhid)
            self.decoder = ReportDecoder(settings.nhid)
        else:
            shape = (settings.patch, settings.widths, settings.blocks, width)
            self.encoder = ResidualEncoder(*shape)
            self.decoder = ResidualDecoder(*shape)
        self.quantizer = VectorQuantizer(settings.quantizer)
        # Channels last is faster, but oneDNN of torch 2.13 crashes in the backward pass of a
        # strided 1×1 convolution of four channels then, as small versions of `report2021` have.
        is_report = settings.network == "report2021"
        self._memory_format = torch.contiguous_format if is_report else torch.channels_last
        self.to(memory_format=self._memory_format)  # type: ignore[call-overload]

    @property
    def codebook(self) -> Tensor:
        """(K, C)."""
        return self.quantizer.codebook

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the convolutions between the first and the last: what Muon trains."""
        inside = [*self.encoder.body.parameters(), *self.decoder.body.parameters()]
        return [parameter for parameter in inside if parameter.ndim == 4]

    def forward(self, image: Tensor) -> Reconstruction:
        """Reconstructs images (B, 3, H, W) in [-1, 1], with what training needs.

        Raises:
            ShapeError: a side is not a multiple of the downsampling.
        """
        quantized = self.quantizer(self.encoder(self._checked(image)))
        return Reconstruction(self.decoder(quantized.quantized), quantized)

    def encode(self, image: Tensor) -> Tensor:
        """Turns images (B, 3, H, W) in [-1, 1] into codes (B, h, w) int64.

        Raises:
            ShapeError: a side is not a multiple of the downsampling.
        """
        return self.quantizer.encode(self.encoder(self._checked(image)))

    def decode(self, codes: Tensor) -> Tensor:
        """Turns codes (B, h, w) into images (B, 3, H, W) in [-1, 1]."""
        return self.decode_latent(self.quantizer.look_up(codes))

    def decode_latent(self, quantized: Tensor) -> Tensor:
        """Turns latents on the codebook's scale (B, C, h, w) into images in [-1, 1]."""
        image: Tensor = self.decoder(quantized)
        return image.clamp(-1.0, 1.0)

    def _checked(self, image: Tensor) -> Tensor:
        factor = self.settings.downsampling
        for side in image.shape[-2:]:
            if side == 0 or side % factor:
                low = max(factor, side // factor * factor)
                raise ShapeError(
                    f"Image size must be a multiple of {factor} (the tokenizer's downsampling): "
                    f"`{side}`. Try {low} or {low + factor}."
                )
        return image.contiguous(memory_format=self._memory_format)
