"""image (B, 3, H, W) ⇄ codes (B, M, h, w): encoder, quantizer, decoder.

On the data's way: images come from `data`; the transformer learns to generate the codes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tessella.config import Settings
from tessella.errors import ConfigError, ShapeError
from tessella.files import hash_tensors
from tessella.images import Pixels
from tessella.tokenizer.body import Network
from tessella.tokenizer.finite_scalar import FiniteScalarSettings
from tessella.tokenizer.palette import fit_palette
from tessella.tokenizer.quantizer import Codebooks, QuantizerSettings, count_latent_channels
from tessella.tokenizer.quantizer_base import Quantized
from tessella.tokenizer.report2021 import DOWNSAMPLING, ReportDecoder, ReportEncoder
from tessella.tokenizer.residual import ResidualDecoder, ResidualEncoder
from tessella.tokenizer.taming import Attention, TamingDecoder, TamingEncoder, TamingShape
from tessella.tokenizer.vector_quantizer import VectorQuantizerSettings
from tessella.untrusted import to_line


class TokenizerSettings(Settings):
    """The image tokenizer's network."""

    network: Literal["residual", "report2021", "taming", "palette"] = "residual"
    """`residual`, the modern network; `report2021`, the founding report's; `taming`, that of
    Taming Transformers; `palette`, one colour a pixel as in Image GPT."""
    patch: int = Field(4, ge=1, le=8)
    """Side, in pixels, of the squares that the residual network's stem folds into one position."""
    widths: tuple[Annotated[int, Field(ge=16, multiple_of=16)], ...] = Field((48, 96), min_length=1)
    """Channels of the levels of `residual` and `taming`, finest first; each level after the first
    halves height and width."""
    blocks: int = Field(1, ge=1)
    """Residual blocks per level, in `residual` and `taming`."""
    nhid: int = Field(256, ge=8, multiple_of=8)
    """Channels at the end of the report's encoder, and the width of its codes."""
    attention: Attention = "coarsest"
    """Where `taming` attends: at the `coarsest` level and in the middle behind it, as published
    first; in the `middle` alone; or nowhere (`none`)."""
    latent_width: int | None = Field(None, ge=1)
    """Channels of `taming` beside the 1×1 convolution that makes codes of them; the codes' own
    width unless given."""
    pixel_range: Literal["signed", "unit"] = "signed"
    """What the network reads and paints: pixels in [-1, 1], or in [0, 1] (`unit`), as aMUSEd's."""
    origin: str | None = Field(None, max_length=1000)
    """Where weights that were trained before come from, for the model card."""
    licence: str | None = Field(None, min_length=1, max_length=1000)
    """Licence of such weights, for the model card."""
    upsampling: int = Field(0, ge=0, le=3)
    """Levels that the decoder has beyond the encoder's. Each doubles the picture: the encoder reads
    it at a half, a quarter, … of data.image_size, the decoder paints it at full size."""
    quantizer: QuantizerSettings = VectorQuantizerSettings()
    """The codebook and its rule; `--set tokenizer.quantizer=fsq` replaces `vq`."""

    @property
    def downsampling(self) -> int:
        """Side of a code, in pixels of the decoded picture."""
        patch = self.patch if self.network == "residual" else 1
        by_levels = patch << len(self.widths) - 1
        encoder = {"report2021": DOWNSAMPLING, "palette": 1}.get(self.network, by_levels)
        return encoder << self.upsampling

    @property
    def source(self) -> str:
        """Where the weights come from and under which licence, in words; empty for new ones."""
        licence = self.licence or "unknown: ask whose they are before you pass them on"
        return f"{self.origin}; licence: {licence}" if self.origin else ""

    @field_validator("origin", "licence", mode="before")
    @classmethod
    def _is_one_line(cls, text: object) -> object:
        """Others wrote them; terminals, cards and YAML read them."""
        return to_line(text) if isinstance(text, str) else text

    @model_validator(mode="after")
    def _fits_the_network(self) -> Self:
        match self.network:
            case "report2021":
                if (channels := count_latent_channels(self.quantizer)) != self.nhid:
                    width = self.nhid * self.quantizer.code_width // channels
                    how = f"Set tokenizer.quantizer.code_width={width} too"
                    if isinstance(self.quantizer, FiniteScalarSettings):
                        how = "Set tokenizer.quantizer=vq"
                    raise ValueError(
                        f"the report's network has codes as wide as `nhid`: {self.nhid}, not "
                        f"{channels}. {how}"
                    )
                factor = DOWNSAMPLING * 2**self.upsampling
                if self.nhid % factor:
                    raise ValueError(
                        f"`nhid` halves with every upsampling: it must be a multiple of {factor}, "
                        f"not {self.nhid}"
                    )
            case "taming":
                wrong = [width for width in self.widths if width % 32]
                if wrong:
                    raise ValueError(
                        f"taming's widths are multiples of 32: not {wrong[0]}. Try "
                        "tokenizer.widths=[128,128,256,512]"
                    )
            case "palette":
                codes = self.quantizer
                is_vq = isinstance(codes, VectorQuantizerSettings) and not codes.normalize
                if not is_vq or codes.code_width != 3 or codes.codes_per_position != 1:
                    raise ValueError(
                        "a palette's codes are colours, one a pixel. Set "
                        "tokenizer.quantizer.name=vq, .code_width=3, .normalize=false and "
                        ".codes_per_position=1, as the preset `palette` does"
                    )
                if self.upsampling:
                    raise ValueError(
                        "a palette has no decoder that could upsample. Set upsampling=0"
                    )
        return self


@dataclass(frozen=True)
class Reconstruction:
    """A training image, encoded and decoded."""

    image: Tensor  # (B, 3, H, W) unclamped
    quantized: Quantized  # its codes and the quantizer's loss


class VQAutoencoder(nn.Module):
    """The image tokenizer's network, a vector-quantized autoencoder.

    `tessella.ImageTokenizer` is one that has been trained, on pictures instead of tensors.

    Source:
        arXiv:1711.00937 (VQ-VAE).
    """

    def __init__(self, settings: TokenizerSettings) -> None:
        """Creates an untrained network."""
        super().__init__()
        self.settings = settings
        self.encoder, self.decoder = _create_networks(settings)
        self.quantizer = Codebooks(settings.quantizer)
        # Channels last is faster, but oneDNN of torch 2.13 crashes in the backward pass of a
        # strided 1×1 convolution of four channels then, as small versions of `report2021` have.
        is_report = settings.network == "report2021"
        self._memory_format = torch.contiguous_format if is_report else torch.channels_last
        self.to(memory_format=self._memory_format)  # type: ignore[call-overload]

    @property
    def codebook(self) -> Tensor:
        """(M, K, C): a position's latent is the sum of a vector of each."""
        return self.quantizer.codebook

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the convolutions between the first and the last, which Muon trains."""
        parameters = [*self.encoder.body.parameters(), *self.decoder.body.parameters()]
        return [parameter for parameter in parameters if parameter.ndim == 4]

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, where the strengths of losses are compared."""
        return self.decoder.get_parameter("last.weight")

    def hash_encoder(self) -> str:
        """Computes the SHA-256 of the weights that say which code means what.

        Another decoder on the same encoder and codebook leaves it as it is. A first codebook is
        named as it was when it was the only one: examples of older models stay theirs.
        """
        weights = {
            name.replace("quantizer.parts.0.", "quantizer."): tensor
            for name, tensor in self.state_dict().items()
            if name.startswith("encoder.") or name.endswith(".vectors")
        }
        return hash_tensors(weights)

    def learn_palette(self, pixels: Pixels, seed: int) -> None:
        """Chooses the colours that represent some pictures best: all that a palette learns.

        Args:
            pixels: (N, S, S, 3) uint8.
            seed: of the sampled pixels and the first palette.
        """
        palette = fit_palette(pixels, self.codebook.shape[1], seed)
        learned = {"vectors": palette, "cluster_sum": palette, "started": torch.tensor(True)}
        [quantizer] = self.quantizer.parts
        state = quantizer.state_dict()
        quantizer.load_state_dict({name: learned.get(name, state[name]) for name in state})

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
        painted: Tensor = self.decoder(self._to_layout(quantized.quantized))
        return Reconstruction(self._to_signed(painted), quantized)

    def encode(self, image: Tensor) -> Tensor:
        """Turns images (B, 3, H, W) in [-1, 1] into codes (B, M, h, w) int64.

        Raises:
            ShapeError: a side is not a multiple of the downsampling.
        """
        return self.quantizer.encode(self._encode(image))

    def decode(self, codes: Tensor) -> Tensor:
        """Turns codes (B, M, h, w) into images (B, 3, H, W) in [-1, 1]."""
        return self.decode_latent(self.quantizer.look_up(codes))

    def decode_latent(self, quantized: Tensor) -> Tensor:
        """Turns latents on the codebook's scale (B, C, h, w) into images in [-1, 1]."""
        image: Tensor = self.decoder(quantized)
        return self._to_signed(image).clamp(-1.0, 1.0)

    def _encode(self, image: Tensor) -> Tensor:
        """Encodes images into latents (B, C, h, w), at the size that the encoder reads."""
        image = self._check_size(image)
        if self.settings.pixel_range == "unit":
            image = (image + 1) / 2
        if self.settings.upsampling:
            image = functional.avg_pool2d(image, 2**self.settings.upsampling)
        latent: Tensor = self.encoder(image)
        if latent.requires_grad:
            # However it was quantized, its gradient comes back in the layout of the network.
            latent.register_hook(self._to_layout)
        return latent

    def _to_signed(self, image: Tensor) -> Tensor:
        return 2 * image - 1 if self.settings.pixel_range == "unit" else image

    def _to_layout(self, latent: Tensor) -> Tensor:
        return latent.contiguous(memory_format=self._memory_format)

    def _check_size(self, image: Tensor) -> Tensor:
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
    code_width, upsampling = count_latent_channels(settings.quantizer), settings.upsampling
    if settings.network == "report2021":
        return ReportEncoder(settings.nhid), ReportDecoder(settings.nhid, upsampling)
    if settings.network == "taming":
        shape = TamingShape(
            settings.widths,
            settings.blocks,
            code_width,
            settings.latent_width or code_width,
            settings.attention,
        )
        return TamingEncoder(shape), TamingDecoder(shape, upsampling)
    if settings.network == "palette":
        identity = Network(nn.Identity(), (), nn.Identity())  # a pixel is its own latent
        return identity, identity
    residual = (settings.patch, settings.widths, settings.blocks, code_width)
    return ResidualEncoder(*residual), ResidualDecoder(*residual, upsampling)
