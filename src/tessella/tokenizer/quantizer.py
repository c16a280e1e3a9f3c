"""latent (B, C, h, w) → the nearest of K codebook vectors → codes (B, h, w).

Straight-through gradients, a commitment loss, a codebook learned by gradient or by exponential
moving averages, started by k-means on the first batch, its dead codes revived.

Source: arXiv:1711.00937 (rule, losses and moving averages); arXiv:2110.04627 (l2-normalised,
low-width codes).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tessella.config import Settings
from tessella.errors import ShapeError

_KMEANS_STEPS = 10
_EPSILON = 1e-5


class QuantizerSettings(Settings):
    """How latents become codes."""

    codebook_size: int = Field(512, ge=2, le=65536)
    """Number of codes (K)."""
    code_width: int = Field(8, ge=1)
    """Channels of a code (C). Few channels keep more of the codebook in use."""
    normalize: bool = True
    """Puts latents and codebook on the unit sphere, so that the nearest code is the one with the
    highest cosine similarity."""
    learning: Literal["gradient", "ema"] = "gradient"
    """How the codebook follows the latents: `gradient` of the codebook loss, or `ema` (moving
    averages of the latents that chose each code)."""
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0)
    """Share that the moving averages keep at each step (learning = `ema` only)."""
    commitment_weight: float = Field(0.25, ge=0.0)
    """Weight of the loss that pulls a latent to its code."""
    revive_after_images: int = Field(4096, ge=1)
    """A code that no latent has chosen for so many images is moved to a random latent of the
    batch."""


@dataclass(frozen=True)
class Quantized:
    """What the quantizer makes of a latent."""

    quantized: Tensor  # (B, C, h, w) the chosen vectors; gradients pass straight to the latent
    codes: Tensor  # (B, h, w) int64 in [0, K)
    loss: Tensor  # () commitment loss, weighted, plus the codebook loss where it is learned so


def nearest_codes(latent: Tensor, codebook: Tensor) -> Tensor:
    """Finds the nearest codebook vector of each latent.

    Args:
        latent: (B, C, h, w), any finite scale.
        codebook: (K, C), K >= 1.

    Returns:
        (B, h, w) int64 in [0, K): lowest squared distance; the lower index on a tie.

    Raises:
        ShapeError: the channel counts differ; says both.

    Source:
        Equation 1 of arXiv:1711.00937.
    """
    if latent.shape[1] != codebook.shape[1]:
        raise ShapeError(
            f"The latent has {latent.shape[1]} channels, the codebook {codebook.shape[1]}: "
            "they must be equal. Is this latent another tokenizer's?"
        )
    # |latent - code|² without |latent|², which is the same for every code.
    vectors = latent.movedim(1, -1)
    scores = codebook.square().sum(1) - 2.0 * (vectors @ codebook.T)  # (B, h, w, K)
    return scores.argmin(-1)


class VectorQuantizer(nn.Module):
    """A codebook and the rule by which latents choose from it."""

    idle_images: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    started: Tensor

    def __init__(self, settings: QuantizerSettings) -> None:
        """Creates a codebook that the first training batch will start by k-means."""
        super().__init__()
        self.settings = settings
        size, width = settings.codebook_size, settings.code_width
        vectors = self._on_sphere(torch.randn(size, width))
        self.vectors = nn.Parameter(vectors, requires_grad=settings.learning == "gradient")
        self.register_buffer("idle_images", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        if settings.learning == "ema":
            self.register_buffer("cluster_size", torch.ones(size))
            self.register_buffer("cluster_sum", vectors.clone())

    @property
    def codebook(self) -> Tensor:
        """(K, C) the vectors that latents are compared with."""
        return self._on_sphere(self.vectors)

    def look_up(self, codes: Tensor) -> Tensor:
        """Turns codes (B, h, w) into quantized latents (B, C, h, w)."""
        return functional.embedding(codes, self.codebook).movedim(-1, 1)

    def encode(self, latent: Tensor) -> Tensor:
        """Turns latents (B, C, h, w) into codes (B, h, w)."""
        return nearest_codes(self._normalize_latent(latent), self.codebook)

    def forward(self, latent: Tensor) -> Quantized:
        """Quantizes; in training also starts, moves and revives the codebook.

        Args:
            latent: (B, C, h, w) of any finite scale.

        Raises:
            ShapeError: the latent's channels are not the codebook's.
        """
        # The codebook is chosen and learned in fp32 under any autocast.
        with torch.autocast(latent.device.type, enabled=False):
            return self._quantize(self._normalize_latent(latent.float()))

    def _quantize(self, latent: Tensor) -> Quantized:
        rows = latent.detach().movedim(1, -1).flatten(0, -2)  # (B·h·w, C)
        if self.training:
            if not self.started:
                self._start(rows)
            self._revive(rows)
        codes = nearest_codes(latent.detach(), self.codebook.detach())
        chosen = self.look_up(codes)
        loss = self.settings.commitment_weight * functional.mse_loss(latent, chosen.detach())
        if self.settings.learning == "gradient":
            loss = loss + functional.mse_loss(chosen, latent.detach())
        if self.training:
            self._follow(rows, codes.flatten(), num_images=len(latent))
        return Quantized(latent + (chosen - latent).detach(), codes, loss)

    @torch.no_grad()
    def _start(self, rows: Tensor) -> None:
        """Starts the codebook by k-means (Lloyd's steps) on the latents of one batch."""
        vectors = rows[torch.randint(len(rows), (len(self.vectors),), device=rows.device)]
        self._broadcast(vectors)  # before the steps: they average over all processes
        for _ in range(_KMEANS_STEPS):
            codes = nearest_codes(rows.T[None, :, None], vectors).flatten()
            counts, sums = _gather_clusters(rows, codes, len(vectors))
            means = sums / counts.clamp(min=1)[:, None]
            vectors = self._on_sphere(torch.where(counts[:, None] > 0, means, vectors))
        self.vectors.copy_(vectors)
        if self.settings.learning == "ema":
            self.cluster_sum.copy_(vectors)
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, rows: Tensor, codes: Tensor, num_images: int) -> None:
        """Counts who was chosen and, if that is how it learns, moves the averages."""
        counts, sums = _gather_clusters(rows, codes, len(self.vectors))
        if self.settings.learning == "ema":
            decay = self.settings.ema_decay
            self.cluster_size.lerp_(counts, 1 - decay)
            self.cluster_sum.lerp_(sums, 1 - decay)
            # Laplace smoothing keeps the mean of a code that was hardly chosen finite.
            total = self.cluster_size.sum()
            smooth = (self.cluster_size + _EPSILON) * total / (total + len(counts) * _EPSILON)
            self.vectors.copy_(self._on_sphere(self.cluster_sum / smooth[:, None]))
        self.idle_images.add_(num_images * _world_size()).masked_fill_(counts > 0, 0)

    @torch.no_grad()
    def _revive(self, rows: Tensor) -> None:
        """Moves every code that has long been unused to a random latent of the batch.

        Before the codebook is used, not after: autograd must find it as the forward pass saw it.
        """
        dead = self.idle_images >= self.settings.revive_after_images
        if not dead.any():
            return
        fresh = rows[torch.randint(len(rows), (len(dead),), device=rows.device)]
        self._broadcast(fresh)
        self.vectors.copy_(torch.where(dead[:, None], fresh, self.vectors))
        self.idle_images.masked_fill_(dead, 0)
        if self.settings.learning == "ema":
            self.cluster_sum.copy_(torch.where(dead[:, None], fresh, self.cluster_sum))
            self.cluster_size.masked_fill_(dead, 1.0)

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1) if self.settings.normalize else vectors

    def _normalize_latent(self, latent: Tensor) -> Tensor:
        return functional.normalize(latent, dim=1) if self.settings.normalize else latent

    @staticmethod
    def _broadcast(vectors: Tensor) -> None:
        """Makes every process of a distributed run hold the first one's vectors."""
        if _world_size() > 1:
            torch.distributed.broadcast(vectors, src=0)


def _gather_clusters(rows: Tensor, codes: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Counts (K,) and sums (K, C) the rows that chose each code, over all processes."""
    counts = torch.bincount(codes, minlength=codebook_size).to(rows.dtype)
    sums = rows.new_zeros(codebook_size, rows.shape[1]).index_add_(0, codes, rows)
    if _world_size() > 1:
        torch.distributed.all_reduce(counts)
        torch.distributed.all_reduce(sums)
    return counts, sums


def _world_size() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1
