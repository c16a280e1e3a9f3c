"""Runs of a test: a few drawn pictures, and networks so small that both stages take seconds."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from tessella.training.fit import FitRequest, fit

# Without the image tokenizer's own.
TINY_TRANSFORMER = (
    "data.image_size=16",
    "data.workers=1",
    "transformer.width=16",
    "transformer.depth=2",
    "transformer.heads=2",
    "transformer_training.images=32",
    "transformer_training.batch_size=8",
    "generation.steps=2",
)
TINY = (
    *TINY_TRANSFORMER,
    "tokenizer.patch=2",
    "tokenizer.widths=[16,16]",
    "tokenizer.quantizer.codebook_size=16",
    "tokenizer_training.images=32",
    "tokenizer_training.batch_size=8",
)


def draw_pictures(folder: Path, count: int) -> Path:
    """Draws captioned pictures of 16×16 pixels; returns their folder."""
    rng = np.random.default_rng(0)
    for number in range(count):
        colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours.repeat(4, 0).repeat(4, 1)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number}\n")
    return folder


def train(out: Path, pictures: Path, *words: str, **changes: Any) -> tuple[Path, str]:
    """Trains with settings in words; returns what `fit` returns, and what it says."""
    said = io.StringIO()
    request = FitRequest(
        **{"sources": [str(pictures)], "out": out, "device": "cpu", "assignments": words} | changes
    )
    return fit(request, Console(file=said, width=200)), said.getvalue()
