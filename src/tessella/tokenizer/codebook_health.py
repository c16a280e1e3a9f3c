"""How much of a codebook is in use: numbers, a plot, and what to try when it is too little.

Beside the data's way: it looks at a quantizer and at the codes of some images, and changes
nothing.
"""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tessella.images import Pixels
from tessella.tokenizer.finite_scalar import FiniteScalarSettings
from tessella.tokenizer.quantizer_base import Quantizer
from tessella.tokenizer.vector_quantizer import VectorQuantizerSettings

# Before so many images a codebook has not settled; of fewer places a code too few may miss one.
_SETTLED_AFTER_IMAGES = 10_000
_PLACES_A_CODE = 4
_ENOUGH = 0.5


@dataclass(frozen=True)
class CodebookHealth:
    """How often each code was chosen, and how long ago."""

    use: npt.NDArray[np.int64]  # (K,) how often each code stands in the codes looked at
    idle_images: npt.NDArray[np.int64]  # (K,) images trained on since each was chosen or revived

    @property
    def codes_used(self) -> int:
        """Number of codes that stand in the codes looked at."""
        return int((self.use > 0).sum())

    @property
    def share_used(self) -> float:
        """Share of the codebook that stands in the codes looked at, in [0, 1]."""
        return self.codes_used / len(self.use)

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy of use, in [1, K]: as many codes, used evenly, say as much."""
        share = self.use[self.use > 0] / self.use.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    def metrics(self) -> dict[str, float]:
        """Returns the numbers by name."""
        median, most, longest = np.percentile(self.idle_images, (50, 90, 100))
        return {
            "codes_used": float(self.codes_used),
            "codes_used_share": self.share_used,
            "perplexity": self.perplexity,
            "idle_images_median": float(median),
            "idle_images_90_percent": float(most),
            "idle_images_max": float(longest),
        }


def measure_codebook_health(quantizer: Quantizer, codes: npt.NDArray[np.int64]) -> CodebookHealth:
    """Counts how a codebook is used.

    Args:
        quantizer: has counted in training how long each code has been idle.
        codes: (B, h, w) in [0, K), B >= 1, of images that represent all: validation images.
    """
    return CodebookHealth(
        use=np.bincount(codes.ravel(), minlength=len(quantizer.idle_images)),
        idle_images=quantizer.idle_images.cpu().numpy(),
    )


def describe_codebook_problem(
    health: CodebookHealth,
    settings: VectorQuantizerSettings | FiniteScalarSettings,
    images_seen: int,
) -> str | None:
    """Says what to try when less than half of the codebook is in use.

    Args:
        health: from `measure_codebook_health`.
        settings: the quantizer's.
        images_seen: how many images it has been trained on.

    Returns:
        A warning; None while all is well, or too early or from too few codes to say.
    """
    size, places = len(health.use), int(health.use.sum())
    too_early = images_seen < _SETTLED_AFTER_IMAGES or places < _PLACES_A_CODE * size
    if too_early or health.share_used >= _ENOUGH:
        return None
    return (
        f"Only {health.codes_used} of {size} codes ({health.share_used:.0%}) are in use after "
        f"{images_seen:,} images; perplexity {health.perplexity:.1f}. The others cost and add "
        f"nothing. Try {_join(_remedies(settings))}."
    )


def _remedies(settings: VectorQuantizerSettings | FiniteScalarSettings) -> list[str]:
    """Lists the settings to try, the one most likely to help first."""
    if isinstance(settings, FiniteScalarSettings):
        return ["smaller `tokenizer.quantizer.levels`", "`tokenizer.quantizer=vq`"]
    remedies = []
    if not settings.normalize:
        remedies.append("`tokenizer.quantizer.normalize=true`")
    if settings.code_width > 8:
        remedies.append("a lower `tokenizer.quantizer.code_width` (8 is low)")
    if settings.revive_after_images > 1:
        soon = max(1, settings.revive_after_images // 4)
        remedies.append(f"`tokenizer.quantizer.revive_after_images={soon}`")
    remedies.append("`tokenizer.quantizer=fsq`, which has no codes to lose")
    if settings.codebook_size > 2:
        remedies.append(f"`tokenizer.quantizer.codebook_size={settings.codebook_size // 2}`")
    return remedies


def _join(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if words[1:] else words[0]


def plot_codebook_use(health: CodebookHealth) -> Pixels:
    """Draws each code's use, the most used first, and below it how long it has been idle.

    Codes that stand nowhere in the codes looked at are marked.

    Returns:
        (600, 900, 3) uint8.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained", facecolor="white")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    order = np.argsort(-health.use, kind="stable")
    use, idle = health.use[order], health.idle_images[order]
    size, used = len(use), health.codes_used
    upper.set_title(
        f"{used} of {size} codes in use ({health.share_used:.0%}), "
        f"perplexity {health.perplexity:.1f}"
    )
    upper.stairs(use[:used], np.arange(used + 1) - 0.5, baseline=0.5, fill=True, color="tab:blue")
    upper.axhline(use.sum() / size, color="black", linestyle="--", label="all used alike")
    upper.set_yscale("log")
    upper.set_ylim(bottom=0.5)
    upper.set_ylabel("times chosen (log scale)")
    lower.scatter(np.arange(size), idle, s=4, color="tab:gray")
    lower.set_yscale("symlog")
    lower.set_ylim(bottom=0)
    lower.set_ylabel("images idle")
    lower.set_xlabel("code, the most used first")
    lower.set_xlim(-0.5, size - 0.5)
    if used < size:
        for panel in (upper, lower):
            panel.axvspan(used - 0.5, size - 0.5, color="tab:red", alpha=0.15, linewidth=0)
        upper.plot([], [], color="tab:red", alpha=0.3, linewidth=8, label=f"{size - used} unused")
    upper.legend(loc="upper right", frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="rgba", dpi=100)
    return np.frombuffer(drawn.getvalue(), np.uint8).reshape(600, 900, 4)[..., :3].copy()
