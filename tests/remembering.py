"""Untrained models that look things up."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tessella.images import Pixels
from tessella.model.codec import encode_stored
from tessella.model.pipeline import TextToImage
from tessella.retrieval import ExampleMemory
from tessella.retrieval.examples import ExampleRow
from untrained import create_untrained

SIZE = 16


def draw_noise(count: int, seed: int = 0) -> Pixels:
    """Pictures (count, 16, 16, 3) that share nothing."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def remember(
    pixels: Pixels,
    captions: Sequence[str],
    names: Sequence[str] | None = None,
    neighbors: int = 2,
    **changes: Any,
) -> TextToImage:
    """A model that has these pictures in its memory; by default their names are `0.png` and on."""
    model = create_untrained(captions=captions, neighbors=neighbors, **changes)
    names = names or [f"{number}.png" for number in range(len(pixels))]
    rows = [ExampleRow(name, [text]) for name, text in zip(names, captions, strict=True)]
    codes = encode_stored(model.tokenizer, pixels)
    return model.with_parts(memory=ExampleMemory.build(codes, rows, model.tokenizer.hash_encoder()))
