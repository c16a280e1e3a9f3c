"""How much of a codebook is in use: numbers, a plot, and what to try when it is too little.

Beside the data's way: it reads a quantizer and the codes of some images, and changes nothing.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from tessella.images import Pixels
from tessella.tokenizer.finite_scalar import FiniteScalarSettings
from tessella.tokenizer.quantizer import AnyQuantizerSettings, Codebooks, number_codes

# A codebook has not settled earlier; with fewer positions per code, chance may leave one out.
_SETTLED_AFTER_IMAGES = 10_000
_POSITIONS_PER_CODE = 4
_ENOUGH = 0.5

_LEFT, _RIGHT = 90, 880  # of the plot's panels, in pixels
_INK, _BLUE, _GRAY, _PALE, _PINK = "#222222", "#1f77b4", "#7f7f7f", "#e4e4e4", "#f6d4d4"


@dataclass(frozen=True)
class CodebookHealth:
    """How often each code is used, and how long ago it was chosen in training."""

    use: npt.NDArray[np.int64]  # (M · K,) how often each code occurs in the measured images
    idle_images: npt.NDArray[np.int64]  # (M · K,) images trained on since it was chosen or revived

    @property
    def codes_used(self) -> int:
        """Number of codes that occur in the measured images."""
        return int((self.use > 0).sum())

    @property
    def fraction_used(self) -> float:
        """Fraction of the codebooks that occurs in the measured images, in [0, 1]."""
        return self.codes_used / len(self.use)

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy of use, in [1, M · K]: as good as so many even codes."""
        frequency = self.use[self.use > 0] / self.use.sum()
        return float(np.exp(-(frequency * np.log(frequency)).sum()))

    def metrics(self) -> dict[str, float]:
        """Returns the numbers by name."""
        median, most, longest = np.percentile(self.idle_images, (50, 90, 100))
        return {
            "codes_used": float(self.codes_used),
            "codes_used_share": self.fraction_used,
            "perplexity": self.perplexity,
            "idle_images_median": float(median),
            "idle_images_90_percent": float(most),
            "idle_images_max": float(longest),
        }


def measure_codebook_health(quantizer: Codebooks, codes: npt.NDArray[np.int64]) -> CodebookHealth:
    """Counts how the codebooks are used.

    Args:
        quantizer: has counted in training how long each code has been idle.
        codes: (B, M, h, w) in [0, K), B >= 1, of representative images: validation images.
    """
    idle_images = quantizer.idle_images.flatten().cpu().numpy()
    numbers = number_codes(torch.from_numpy(codes), quantizer.settings.codebook_size)
    return CodebookHealth(
        use=np.bincount(numbers.flatten().numpy(), minlength=len(idle_images)),
        idle_images=idle_images,
    )


def describe_codebook_problem(
    health: CodebookHealth,
    settings: AnyQuantizerSettings,
    images_seen: int,
) -> str | None:
    """Returns a warning with what to try when less than half of the codebook is in use.

    Args:
        health: from `measure_codebook_health`.
        settings: the quantizer's.
        images_seen: images trained on.

    Returns:
        None if all is well, or it is too early or there are too few codes to tell.
    """
    size, positions = len(health.use), int(health.use.sum())
    too_early = images_seen < _SETTLED_AFTER_IMAGES or positions < _POSITIONS_PER_CODE * size
    if too_early or health.fraction_used >= _ENOUGH:
        return None
    return (
        f"Only {health.codes_used} of {size} codes ({health.fraction_used:.0%}) are in use after "
        f"{images_seen:,} images; perplexity {health.perplexity:.1f}. The others cost and add "
        f"nothing. Try {', or '.join(_remedies(settings))}."
    )


def _remedies(settings: AnyQuantizerSettings) -> list[str]:
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


def plot_codebook_use(health: CodebookHealth) -> Pixels:
    """Draws each code's use, the most used first, and below it how long it has been idle.

    Both scales are logarithmic. Codes that do not occur are marked.

    Returns:
        (600, 900, 3) uint8.
    """
    order, used = np.argsort(-health.use, kind="stable"), health.codes_used
    image = Image.new("RGB", (900, 600), "white")
    draw = ImageDraw.Draw(image)
    title = (
        f"{used} of {len(order)} codes in use ({health.fraction_used:.0%}), "
        f"perplexity {health.perplexity:.1f}"
    )
    draw.text((_LEFT, 12), title, _INK, font_size=20)
    marked = "red: unused" if used < len(order) else ""
    draw.text((_RIGHT, 50), marked, _INK, font_size=14, anchor="ra")
    _draw_panel(draw, (72, 350), "times chosen", health.use[order], used, _BLUE)
    _draw_panel(draw, (402, 550), "images idle", health.idle_images[order], used, _GRAY)
    draw.text((_RIGHT, 574), "code, the most used first", _INK, font_size=14, anchor="ra")
    return np.asarray(image).copy()


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    rows: tuple[int, int],
    heading: str,
    values: npt.NDArray[np.int64],
    codes_used: int,
    color: str,
) -> None:
    """Draws values (K,) as bars between two rows of pixels, with a scale at the left."""
    top, bottom = rows
    highest = max(int(values.max()), 1)
    edges = np.linspace(_LEFT, _RIGHT, len(values) + 1)

    def to_row(value: float) -> float:
        return bottom - (bottom - top) * math.log1p(value) / math.log1p(highest)

    draw.text((_LEFT, top - 22), heading, _INK, font_size=14)
    if codes_used < len(values):
        draw.rectangle((edges[codes_used], top, _RIGHT, bottom), _PINK)
    for tick in [0, *(10**power for power in range(len(str(highest))))]:
        draw.line((_LEFT - 5, to_row(tick), _RIGHT, to_row(tick)), _PALE)
        draw.text((_LEFT - 10, to_row(tick)), f"{tick:,}", _INK, font_size=12, anchor="rm")
    for x in range(_LEFT, _RIGHT):
        # Where codes are narrower than a pixel, it shows the highest of its codes.
        first, end = np.searchsorted(edges, x, side="right") - 1, np.searchsorted(edges, x + 1)
        if value := values[first:end].max():
            draw.line((x, to_row(value), x, bottom), color)
    draw.line((_LEFT, top, _LEFT, bottom, _RIGHT, bottom), _INK)
