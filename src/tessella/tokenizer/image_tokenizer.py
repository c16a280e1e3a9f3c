"""image (B, 3, H, W) ⇄ codes (B, h, w): encoder, quantizer, decoder.

On the data's way: `data` hands it images, the transformer learns and chooses its codes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tessella.config import Settings
from tessella.errors import ConfigError, ShapeError
from tessella.images import Pixels
from tessella.tokenizer.body import Network
from tessella.tokenizer.finite_scalar import FiniteScalarSettings
from tessella.tokenizer.palette import PaletteNetwork, fit_palette
from tessella.tokenizer.quantizer import QuantizerSettings, create_quantizer
from tessella.tokenizer.quantizer_base import Quantized
from tessella.tokenizer.report2021 import DOWNSAMPLING, ReportDecoder, ReportEncoder
from tessella.tokenizer.residual import ResidualDecoder, ResidualEncoder
from tessella.tokenizer.taming import TamingDecoder, TamingEncoder
from tessella.tokenizer.vector_quantizer import VectorQuantizerSettings


class TokenizerSettings(Settings):
    """The image tokenizer's network."""

    network: Literal["residual", "report2021", "taming", "palette"] = "residual"
    """`residual`, the modern network; `report2021`, the founding report's; `taming`, that of
    Taming Transformers; `palette`, one colour a pixel as in Image GPT."""
    patch: int = Field(4, ge=1, le=8)
    """Pixels a side that the residual network's stem folds into one place."""
    widths: tuple[Annotated[int, Field(ge=16, multiple_of=16)], ...] = Field((48, 96), min_length=1)
    """Channels of the levels of `residual` and `taming`, finest first; each level after the first
    halves height and width."""
    blocks: int = Field(1, ge=1)
    """Residual blocks a level, in `residual` and `taming`."""
    nhid: int = Field(256, ge=8, multiple_of=8)
    """Channels at the end of the report's encoder; there also the width of a code."""
    upsampling: int = Field(0, ge=0, le=3)
    """Levels that the decoder has more than the encoder. Each doubles the picture: the encoder
    reads it at a half of data.image_size, a quarter, …, the decoder paints it whole."""
    quantizer: QuantizerSettings = VectorQuantizerSettings()
    """The codebook and its rule; `--set tokenizer.quantizer=fsq` names another than `vq`."""

    @property
    def downsampling(self) -> int:
        """Pixels a side of one code, in the picture that is painted."""
        if self.network == "report2021":
            encoder = DOWNSAMPLING
        elif self.network == "palette":
            encoder = 1
        else:
            patch = self.patch if self.network == "residual" else 1
            encoder = patch * 2 ** (len(self.widths) - 1)
        return int(encoder * 2**self.upsampling)

    @model_validator(mode="after")
    def _one_code_width(self) -> "TokenizerSettings":
        if self.network != "report2021" or self.quantizer.code_width == self.nhid:
            return self
        how = f"Set tokenizer.quantizer.code_width={self.nhid} too"
        if isinstance(self.quantizer, FiniteScalarSettings):
            how = "Set tokenizer.quantizer=vq"
        raise ValueError(
            f"the report's network has codes as wide as `nhid`: {self.nhid}, not "
            f"{self.quantizer.code_width}. {how}"
        )

    @model_validator(mode="after")
    def _taming_multiplies(self) -> "TokenizerSettings":
        wrong = [width for width in self.widths if width % 32 or width % self.widths[0]]
        if self.network == "taming" and wrong:
            raise ValueError(
                f"taming's widths are multiples of 32 and of the first one: not {wrong[0]}. Try "
                "tokenizer.widths=[128,128,256,512]"
            )
        return self

    @model_validator(mode="after")
    def _report_can_grow(self) -> "TokenizerSettings":
        least = DOWNSAMPLING * 2**self.upsampling
        if self.network == "report2021" and self.nhid % least:
            raise ValueError(
                f"`nhid` halves with every upsampling: it must be a multiple of {least}, not "
                f"{self.nhid}"
            )
        return self

    @model_validator(mode="after")
    def _palette_is_colours(self) -> "TokenizerSettings":
        if self.network != "palette":
            return self
        quantizer = self.quantizer
        if (
            not isinstance(quantizer, VectorQuantizerSettings)
            or quantizer.normalize
            or quantizer.code_width != 3
        ):
            raise ValueError(
                "a palette's codes are colours. Set tokenizer.quantizer.name=vq, .code_width=3 and "
                ".normalize=false, as the preset `palette` does"
            )
        if self.upsampling:
            raise ValueError("a palette has no decoder that could upsample. Set upsampling=0")
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
        self.encoder, self.decoder = _create_networks(settings)
        self.quantizer = create_quantizer(settings.quantizer)
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

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, where the strengths of losses are compared."""
        return self.decoder.get_parameter("last.weight")

    def learn_palette(self, pixels: Pixels, seed: int) -> None:
        """Takes the colours that stand best for those of some pictures: all that a palette learns.

        Args:
            pixels: (N, S, S, 3) uint8.
            seed: of the colours looked at and the start.
        """
        palette = fit_palette(pixels, len(self.codebook), seed)
        learned = {"vectors": palette, "cluster_sum": palette, "started": torch.tensor(True)}
        state = self.quantizer.state_dict()
        self.quantizer.load_state_dict({name: learned.get(name, state[name]) for name in state})

    def set_recompute(self, recompute: bool) -> None:
        """Switches activation checkpointing in training on or off.

        Raises:
            ConfigError: on, for a network whose batch normalization would count images twice.
        """
        if recompute and self.settings.network == "report2021":
            raise ConfigError(
                "The network `report2021` cannot be computed again: its batch normalization would "
                "count every image twice. Set tokenizer_training.recompute=false, or a smaller "
                "tokenizer_training.batch_size."
            )
        self.encoder.body.recompute = self.decoder.body.recompute = recompute

    def forward(self, image: Tensor) -> Reconstruction:
        """Reconstructs images (B, 3, H, W) in [-1, 1], with what training needs.

        Raises:
            ShapeError: a side is not a multiple of the downsampling.
        """
        quantized = self.quantizer(self._encode(image))
        return Reconstruction(self.decoder(quantized.quantized), quantized)

    def encode(self, image: Tensor) -> Tensor:
        """Turns images (B, 3, H, W) in [-1, 1] into codes (B, h, w) int64.

        Raises:
            ShapeError: a side is not a multiple of the downsampling.
        """
        return self.quantizer.encode(self._encode(image))

    def decode(self, codes: Tensor) -> Tensor:
        """Turns codes (B, h, w) into images (B, 3, H, W) in [-1, 1]."""
        return self.decode_latent(self.quantizer.look_up(codes))

    def decode_latent(self, quantized: Tensor) -> Tensor:
        """Turns latents on the codebook's scale (B, C, h, w) into images in [-1, 1]."""
        image: Tensor = self.decoder(quantized)
        return image.clamp(-1.0, 1.0)

    def _encode(self, image: Tensor) -> Tensor:
        """Reads images into latents (B, C, h, w), at the size that the encoder is made for."""
        image = self._checked(image)
        if self.settings.upsampling:
            image = functional.avg_pool2d(image, 2**self.settings.upsampling)
        latent: Tensor = self.encoder(image)
        return latent

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


def _create_networks(settings: TokenizerSettings) -> tuple[Network, Network]:
    """Creates the encoder and the decoder."""
    code_width, upsampling = settings.quantizer.code_width, settings.upsampling
    if settings.network == "report2021":
        return ReportEncoder(settings.nhid), ReportDecoder(settings.nhid, upsampling)
    if settings.network == "taming":
        multipliers = [width // settings.widths[0] for width in settings.widths]
        taming = (settings.widths[0], multipliers, settings.blocks, code_width)
        return TamingEncoder(*taming), TamingDecoder(*taming, upsampling)
    if settings.network == "palette":
        return PaletteNetwork(), PaletteNetwork()
    residual = (settings.patch, settings.widths, settings.blocks, code_width)
    return ResidualEncoder(*residual), ResidualDecoder(*residual, upsampling)
