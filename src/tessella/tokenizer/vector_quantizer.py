"""latent (B, C, h, w) → the nearest of K codebook vectors → codes (B, h, w).

The codebook is learned by gradient or by exponential moving averages. It is initialized by k-means
on the first batch; dead codes are revived.

Source: arXiv:1711.00937 (rule, losses and moving averages); arXiv:2110.04627 (l2-normalised,
low-width codes); arXiv:2410.06424 (rotation trick).
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tessella.batch import pick_rows, sum_over_batch
from tessella.tokenizer.quantizer_base import CodesSettings, Quantized, Quantizer, check_channels

_KMEANS_STEPS = 10
_EPSILON = 1e-5
_TINY = 1e-6
GradientRule = Literal["straight_through", "rotation"]
# Scores that are computed at once: few enough on a CPU to stay in a core's cache (2 MiB), enough
# elsewhere to keep a device busy (64 MiB).
_SCORES_AT_ONCE = {"cpu": 2**19}
_SCORES_AT_ONCE_ELSEWHERE = 2**24


class VectorQuantizerSettings(CodesSettings):
    """A learned codebook; a latent takes the nearest vector."""

    name: Literal["vq"] = "vq"
    """The quantizer's name."""
    codebook_size: int = Field(512, ge=2, le=65536)
    """Number of codes (K), of each codebook."""
    code_width: int = Field(8, ge=1)
    """Channels of a code (C). Few channels keep more of the codebook in use."""
    normalize: bool = True
    """Puts latents and codebook on the unit sphere, so that the nearest code is the one with the
    highest cosine similarity. Of residual codes only the latents: what is left over has a length
    that matters."""
    learning: Literal["gradient", "ema"] = "gradient"
    """How the codebook follows the latents: `gradient` of the codebook loss, or `ema` (moving
    averages of the latents that chose each code)."""
    gradient: GradientRule = "straight_through"
    """How the decoder's gradient reaches a latent: `straight_through` as it is, or turned and
    scaled back by the `rotation` that took the latent to its code."""
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0)
    """Fraction that the moving averages keep at each step (learning = `ema` only)."""
    commitment_weight: float = Field(0.25, ge=0.0)
    """Weight of the loss that pulls a latent to its code."""
    revive_after_images: int = Field(4096, ge=1)
    """Images after which a code that no latent has chosen is moved to a random latent of the
    batch."""


def nearest_codes(latent: Tensor, codebook: Tensor) -> Tensor:
    """Finds the nearest codebook vector of each latent, in fp32 or better under any autocast.

    If two codes are equally near but for rounding, the rest of the batch may decide between them.

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
    check_channels(latent, codebook.shape[1])
    vectors = latent.movedim(1, -1)
    return _nearest(vectors.flatten(0, -2), codebook).view(vectors.shape[:-1])


@torch.no_grad()
def _nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """Finds the nearest codebook vector of each row (N, C); never holds all N·K scores."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    rows, codebook = rows.to(dtype), codebook.to(dtype)
    # -|row - code|² / 2 without |row|², which is the same for every code: (row, 1) times
    # (code, -|code|² / 2). As one product: a term added to it would be one more pass over all.
    rows = functional.pad(rows, (0, 1), value=1.0)
    weights = torch.cat([codebook, codebook.square().sum(1, keepdim=True) / -2], 1).T
    at_once = _SCORES_AT_ONCE.get(rows.device.type, _SCORES_AT_ONCE_ELSEWHERE)
    size = max(1, at_once // len(codebook))
    # Made first: small results between the large scores would break the memory into pieces.
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        for part, part_codes in zip(rows.split(size), codes.split(size), strict=True):
            torch.argmax(part @ weights, 1, out=part_codes)  # the first of the highest
    return codes


class VectorQuantizer(Quantizer):
    """A codebook of learned vectors; each latent takes the nearest."""

    cluster_size: Tensor
    cluster_sum: Tensor
    started: Tensor

    def __init__(self, settings: VectorQuantizerSettings) -> None:
        """Creates a codebook that the first training batch will initialize by k-means."""
        super().__init__(settings.codebook_size)
        self.settings = settings
        size, width = settings.codebook_size, settings.code_width
        vectors = self._on_sphere(torch.randn(size, width))
        self.vectors = nn.Parameter(vectors, requires_grad=settings.learning == "gradient")
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._is_known_started = False  # reading `started` waits for the device
        if settings.learning == "ema":
            self.register_buffer("cluster_size", torch.ones(size))
            self.register_buffer("cluster_sum", vectors.clone())

    @property
    def codebook(self) -> Tensor:
        """(K, C) the vectors to which latents are compared."""
        return self._on_sphere(self.vectors)

    def encode(self, latent: Tensor) -> Tensor:
        """Turns latents (B, C, h, w) into codes (B, h, w)."""
        return nearest_codes(self._on_sphere(latent.float(), dim=1), self.codebook)

    def forward(self, latent: Tensor) -> Quantized:
        """Quantizes; in training also initializes, moves and revives the codebook.

        Args:
            latent: (B, C, h, w) of any finite scale.

        Raises:
            ShapeError: the latent's channels are not the codebook's.
        """
        # Codes are chosen and learned in fp32 under any autocast.
        with torch.autocast(latent.device.type, enabled=False):
            return self._quantize(self._on_sphere(latent.float(), dim=1))

    def _quantize(self, latent: Tensor) -> Quantized:
        check_channels(latent, self.settings.code_width)
        vectors = latent.movedim(1, -1)  # (B, h, w, C)
        rows = vectors.detach().flatten(0, -2)  # (B·h·w, C)
        if self.training:
            if not self._is_known_started:
                if not self.started:
                    self._start(rows)
                self._is_known_started = True
            self._revive(rows)
        # Of a copy: another batch may revive codes before this one's gradients are taken.
        codebook = self._on_sphere(self.vectors.clone())
        codes = _nearest(rows, codebook).view(vectors.shape[:-1])
        quantized = functional.embedding(codes, codebook)  # (B, h, w, C)
        loss = self.settings.commitment_weight * functional.mse_loss(vectors, quantized.detach())
        if self.settings.learning == "gradient":
            loss = loss + functional.mse_loss(quantized, vectors.detach())
        if self.training:
            counts = self._count_use(codes)
            if self.settings.learning == "ema":
                self._update_averages(rows, codes.flatten(), counts)
        quantized = attach_gradient(vectors, quantized, self.settings.gradient)
        return Quantized(quantized.movedim(-1, 1), codes, loss)

    @torch.no_grad()
    def _start(self, rows: Tensor) -> None:
        """Initializes the codebook by k-means (Lloyd's steps) on the latents of one batch."""
        size = len(self.vectors)
        vectors = pick_rows(rows, size)
        for _ in range(_KMEANS_STEPS):
            codes = _nearest(rows, vectors)
            counts = _sum_clusters(torch.ones_like(rows[:, :1]), codes, size)
            means = _sum_clusters(rows, codes, size) / counts.clamp(min=1)
            vectors = self._on_sphere(torch.where(counts > 0, means, vectors))
        self.vectors.copy_(vectors)
        if self.settings.learning == "ema":
            self.cluster_sum.copy_(vectors)
        self.started.fill_(True)

    @torch.no_grad()
    def _update_averages(self, rows: Tensor, codes: Tensor, counts: Tensor) -> None:
        """Moves the averages towards the latents of each code, and the codebook with them."""
        decay = self.settings.ema_decay
        self.cluster_size.lerp_(counts.to(self.cluster_size), 1 - decay)
        self.cluster_sum.lerp_(_sum_clusters(rows, codes, len(counts)), 1 - decay)
        # Laplace smoothing keeps the mean of a rare code finite.
        total = self.cluster_size.sum()
        smooth = (self.cluster_size + _EPSILON) * total / (total + len(counts) * _EPSILON)
        self.vectors.copy_(self._on_sphere(self.cluster_sum / smooth[:, None]))

    @torch.no_grad()
    def _revive(self, rows: Tensor) -> None:
        """Moves every code that has long been unused to a random latent of the batch.

        Before the codebook is used, not after: autograd must find it as the forward pass saw it.
        Computed at every step, even if no code is dead: to ask would be to wait for the device.
        """
        dead = self.idle_images >= self.settings.revive_after_images
        random_rows = pick_rows(rows, len(dead))
        self.vectors.copy_(torch.where(dead[:, None], random_rows, self.vectors))
        self.idle_images.masked_fill_(dead, 0)
        if self.settings.learning == "ema":
            self.cluster_sum.copy_(torch.where(dead[:, None], random_rows, self.cluster_sum))
            self.cluster_size.masked_fill_(dead, 1.0)

    def _on_sphere(self, vectors: Tensor, dim: int = -1) -> Tensor:
        return functional.normalize(vectors, dim=dim) if self.settings.normalize else vectors

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        super()._load_from_state_dict(*arguments, **named)
        self._is_known_started = False


def attach_gradient(vectors: Tensor, quantized: Tensor, gradient: GradientRule) -> Tensor:
    """Gives quantized vectors (…, C) a gradient for the vectors (…, C) that they stand for.

    Their values stay as they are, to the last bit; their own gradient is cut off.
    """
    quantized = quantized.detach()
    carrier = _rotate(vectors, quantized) if gradient == "rotation" else vectors
    return quantized + (carrier - carrier.detach())


def _rotate(vectors: Tensor, quantized: Tensor) -> Tensor:
    """Rotates and scales vectors (…, C) onto the quantized ones, by factors without gradient.

    So the gradient is rotated back and scaled, and keeps its angle to the vector.

    Source:
        Section 4.2 of arXiv:2410.06424.
    """
    source = functional.normalize(vectors.detach(), dim=-1, eps=_TINY)
    target = functional.normalize(quantized, dim=-1, eps=_TINY)
    middle = functional.normalize(source + target, dim=-1, eps=_TINY)
    length = torch.linalg.vector_norm(vectors.detach(), dim=-1, keepdim=True)
    scale = torch.linalg.vector_norm(quantized, dim=-1, keepdim=True) / length.clamp(min=_TINY)
    mirrored = (vectors * middle).sum(-1, keepdim=True) * middle
    restored = (vectors * source).sum(-1, keepdim=True) * target
    rotated: Tensor = scale * (vectors + 2 * (restored - mirrored))
    return rotated


def _sum_clusters(rows: Tensor, codes: Tensor, codebook_size: int) -> Tensor:
    """Sums the rows of each code (K, C), over all processes."""
    return sum_over_batch(rows.new_zeros(codebook_size, rows.shape[1]).index_add_(0, codes, rows))
