"""latent (B, C, h, w) ⇄ codes (B, M, h, w): M codebooks, and the settings of each.

With `product` the channels are cut into M groups, each with a codebook of its own; with `residual`
each codebook quantizes what those before it leave over, so that the first codes say what is coarse.
Either way the latent is the sum of a vector of each codebook (M, K, C): a group's vectors are zero
outside of its channels.

Source: product quantization, Jégou et al. 2011; residual quantization arXiv:2203.01941; tails
dropped in training, arXiv:2107.03312.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Discriminator
from torch import Tensor, nn
from torch.nn import functional

from tessella.batch import draw_rows
from tessella.errors import ShapeError
from tessella.tokenizer.finite_scalar import FiniteScalarQuantizer, FiniteScalarSettings
from tessella.tokenizer.quantizer_base import Quantized, Quantizer, check_channels
from tessella.tokenizer.vector_quantizer import (
    VectorQuantizer,
    VectorQuantizerSettings,
    attach_gradient,
)


def _with_name(value: Any) -> Any:
    """Reads a bare name as settings, and takes settings without a name for a `vq`'s."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "vq", **value} if isinstance(value, Mapping) else value


AnyQuantizerSettings = VectorQuantizerSettings | FiniteScalarSettings
QuantizerSettings = Annotated[
    AnyQuantizerSettings, Discriminator("name"), BeforeValidator(_with_name)
]


class Codebooks(nn.Module):
    """One quantizer for each of the M codes of a position."""

    def __init__(self, settings: AnyQuantizerSettings) -> None:
        """Creates them; a vector quantizer's codebooks are initialized in training."""
        super().__init__()
        self.settings = settings
        # One code leaves nothing over that another could take.
        is_residual = settings.composition == "residual" and settings.codes_per_position > 1
        self._residual: VectorQuantizerSettings | None = None
        if is_residual and isinstance(settings, VectorQuantizerSettings):
            self._residual = settings
            # What these are for is done once, for all codebooks together.
            settings = settings.replace(normalize=False, gradient="straight_through")
        self.parts = nn.ModuleList(
            FiniteScalarQuantizer(settings)
            if isinstance(settings, FiniteScalarSettings)
            else VectorQuantizer(settings)
            for _ in range(settings.codes_per_position)
        )

    @property
    def codebook(self) -> Tensor:
        """(M, K, C): the latent of a position is the sum of one vector of each codebook."""
        each = [part.codebook for part in self._quantizers()]
        if self._residual:
            return torch.stack(each)
        width, total = each[0].shape[1], count_latent_channels(self.settings)
        return torch.stack(
            [
                functional.pad(vectors, (m * width, total - (m + 1) * width))
                for m, vectors in enumerate(each)
            ]
        )

    @property
    def idle_images(self) -> Tensor:
        """(M, K) int64, images of training since each code was last chosen."""
        return torch.stack([part.idle_images for part in self._quantizers()])

    def encode(self, latent: Tensor) -> Tensor:
        """Turns latents (B, C, h, w) of any finite scale into codes (B, M, h, w) int64.

        Raises:
            ShapeError: the latent's channels are not the codebook's.
        """
        check_channels(latent, count_latent_channels(self.settings))
        parts = self._quantizers()
        if not self._residual:
            groups = latent.chunk(len(parts), 1)
            return torch.stack(
                [part.encode(group) for part, group in zip(parts, groups, strict=True)], 1
            )
        latent, codes = _prepare(latent, self._residual), []
        before = torch.zeros_like(latent)
        for part in parts:
            codes.append(part.encode(latent - before))
            before = before + functional.embedding(codes[-1], part.codebook).movedim(-1, 1)
        return torch.stack(codes, 1)

    def forward(self, latent: Tensor) -> Quantized:
        """Quantizes latents (B, C, h, w); in training the codebooks also learn.

        Raises:
            ShapeError: the latent's channels are not the codebook's.
        """
        check_channels(latent, count_latent_channels(self.settings))
        parts = self._quantizers()
        if self._residual:
            return self._quantize_residuals(_prepare(latent, self._residual), self._residual)
        groups = latent.chunk(len(parts), 1)
        each = [part(group) for part, group in zip(parts, groups, strict=True)]
        return Quantized(
            torch.cat([one.quantized for one in each], 1),
            torch.stack([one.codes for one in each], 1),
            torch.stack([one.loss for one in each]).mean(),
        )

    def look_up(self, codes: Tensor) -> Tensor:
        """Turns codes (B, M, h, w) into quantized latents (B, C, h, w).

        Of residual codes the first few are enough: (B, m, h, w) gives the coarser latent.

        Raises:
            ShapeError: there are more codes at a position than codebooks, or none.
        """
        return look_up_codes(self.codebook, codes)

    def _quantize_residuals(self, latent: Tensor, settings: VectorQuantizerSettings) -> Quantized:
        parts = self._quantizers()
        kept = torch.full((len(latent),), len(parts), device=latent.device)
        if self.training:
            kept = _drop_tails(kept, len(parts), settings.tail_dropout)
        kept = kept[:, None, None, None]
        codes, losses = [], []
        before, decoded = torch.zeros_like(latent), torch.zeros_like(latent)
        for m, part in enumerate(parts):
            one = part(latent - before)
            vectors = one.quantized.detach()
            before = before + vectors
            decoded = decoded + vectors * (kept > m)
            codes.append(one.codes)
            losses.append(one.loss)
        vectors, decoded = latent.movedim(1, -1), decoded.movedim(1, -1)
        quantized = attach_gradient(vectors, decoded, settings.gradient).movedim(-1, 1)
        return Quantized(quantized, torch.stack(codes, 1), torch.stack(losses).mean())

    def _quantizers(self) -> list[Quantizer]:
        """Tells the type checker what a ModuleList holds."""
        return [part for part in self.parts if isinstance(part, Quantizer)]


def count_latent_channels(settings: AnyQuantizerSettings) -> int:
    """Counts the channels of the latent that the codes of a position make."""
    groups = 1 if settings.composition == "residual" else settings.codes_per_position
    return groups * settings.code_width


def look_up_codes(codebook: Tensor, codes: Tensor) -> Tensor:
    """Adds up the vectors (M, K, C) of codes (B, M, …), or of the first few: (B, C, …).

    Raises:
        ShapeError: there are more codes at a position than codebooks, or none.
    """
    if not 1 <= codes.shape[1] <= len(codebook):
        raise ShapeError(
            f"Codes must be (B, M, …), with M from 1 to the number of codebooks, {len(codebook)}: "
            f"`{tuple(codes.shape)}`. Did you leave out an axis? codes[:, None] adds it."
        )
    vectors = functional.embedding(codes[:, 0], codebook[0])
    for m in range(1, codes.shape[1]):
        vectors = vectors + functional.embedding(codes[:, m], codebook[m])
    return vectors.movedim(vectors.ndim - 1, 1)  # ONNX has no dimension -1


def number_codes(codes: Tensor, codebook_size: int, dim: int = 1) -> Tensor:
    """Numbers codes [0, K) of M codebooks, which `dim` counts, as [0, M · K)."""
    books = torch.arange(codes.shape[dim], device=codes.device) * codebook_size
    return codes + books.view(-1, *[1] * (codes.ndim - dim % codes.ndim - 1))


def _drop_tails(kept: Tensor, num_codes: int, fraction: float) -> Tensor:
    """Lowers how many codes are kept (B,) to fewer than all, for a fraction of the pictures."""
    device = kept.device
    fewer = draw_rows(
        len(kept),
        lambda rows, own: torch.randint(1, num_codes, (rows,), device=device, generator=own),
    )
    chance = draw_rows(len(kept), lambda rows, own: torch.rand(rows, device=device, generator=own))
    return torch.where(chance < fraction, fewer, kept)


def _prepare(latent: Tensor, settings: VectorQuantizerSettings) -> Tensor:
    """Puts latents (B, C, h, w) on the unit sphere, if so set, before any residual is taken."""
    latent = latent.float()
    return functional.normalize(latent, dim=1) if settings.normalize else latent
