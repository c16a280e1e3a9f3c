"""What a size means: pixels of the picture that was asked for, wherever it is asked.

    size, canvas ─ plan_size ─▶ what is painted ─ sampler ─▶ picture ─ fit ─▶ the size

A model paints best what it learned: pictures of its own size, each with all of the prompt. So that
is what it paints, and the result is resized. A size of another shape pads the picture where its
edges are mostly of one colour, which goes on unseen, and crops it where they aren't. A canvas that
is larger than the model's own picture has to be asked for by name: the model then looks at it
window by window, and reads the whole prompt in each.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from tessella.errors import GenerationError
from tessella.images import Pixels
from tessella.model.canvas import MAX_SIDE, find_grid

MIN_SIDE = 16
"""Pixels a side of the smallest picture."""

WIDE = "wide"
"""The canvas that has the shape of the size."""

CanvasShape = str | tuple[float, float]
"""`wide`, or WIDTHxHEIGHT in the model's own pictures: `2x1`, or (2, 1)."""

MAX_ASPECT = 4.0
"""Of the canvas `wide`; a longer size is filled as one of another shape is."""

Fit = Literal["resized", "padded", "cropped"]
Edge = npt.NDArray[np.int16]

_NUMBER = r"\s*([0-9]{1,4}(?:\.[0-9]{1,4})?)\s*"
_TWO_NUMBERS = re.compile(f"{_NUMBER}[xX×]{_NUMBER}")
_SAME_SHAPE = 0.02  # of a side: what nobody misses, and canvases of whole positions differ by
_EDGE_TOLERANCE = 24  # of 255, around the edge's median: decoders leave noise
_EDGE_FRACTION = 0.75  # of the edges within it, for a background that can go on


@dataclass(frozen=True)
class PictureSize:
    """How large a picture is painted, and how large it was asked for: (width, height) in pixels."""

    painted: tuple[int, int]
    asked: tuple[int, int]
    is_canvas_idle: bool = False  # a canvas was named, and is the model's own picture all the same

    def list_warnings(self, fits: Sequence[Fit]) -> list[str]:
        """Says of pictures, each by how it is fitted, what was not as asked."""
        idle = [
            "No effect: `canvas`. A canvas of this shape is the model's own picture. Give a size "
            "of another shape, or a canvas such as 2x1."
        ]
        return (idle if self.is_canvas_idle else []) + self._describe(fits)

    def choose_fit(self, pixels: Pixels) -> Fit:
        """Chooses how a painted picture (H, W, 3) gets the size that was asked for."""
        if self._is_same_shape:
            return "resized"
        edges = _take_edges(pixels, is_wider=self._is_wider)
        distances = [np.abs(edge - np.median(edge, 0)).max(1) for edge in edges]
        share = (np.concatenate(distances) <= _EDGE_TOLERANCE).mean()
        return "padded" if share >= _EDGE_FRACTION else "cropped"

    def fit(self, pixels: Pixels) -> Pixels:
        """Resizes a painted picture (H, W, 3), and pads or crops one of another shape."""
        if self.painted == self.asked:
            return pixels
        image = Image.fromarray(pixels)
        if self.choose_fit(pixels) != "padded":
            return np.asarray(ImageOps.fit(image, self.asked, Image.Resampling.LANCZOS))
        scale = min(new / old for new, old in zip(self.asked, image.size, strict=True))
        inner = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            Image.Resampling.LANCZOS,
        )
        first, last = (
            tuple(int(value) for value in np.median(edge, 0))
            for edge in _take_edges(pixels, is_wider=self._is_wider)
        )
        width, height = self.asked
        padded = Image.new("RGB", self.asked, last)
        half = (width // 2, height) if self._is_wider else (width, height // 2)
        padded.paste(first, (0, 0, *half))
        padded.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
        return np.asarray(padded)

    def _describe(self, fits: Sequence[Fit]) -> list[str]:
        """Says of pictures, each by how it was fitted, which were padded and which cropped."""
        (width, height), asked = self.painted, "x".join(map(str, self.asked))
        sides = "left and right" if self._is_wider else "top and bottom"
        cut = "top and bottom" if self._is_wider else "left and right"
        shown = min(self._aspect, 1 / self._aspect)
        done = {
            "padded": f"padded to {asked}: the background goes on at the {sides}",
            "cropped": f"cropped to {asked}: {1 - shown:.0%}, at the {cut}, is cut off",
        }
        said = []
        for fit, words in done.items():
            numbers = [str(number) for number, one in enumerate(fits, 1) if one == fit]
            if not numbers:
                continue
            several = len(numbers) > 1
            who = f"Picture{'s' if several else ''} {', '.join(numbers)}"
            if len(numbers) == len(fits):
                who = "The pictures" if several else "The picture"
            said.append(
                f"{who} {'were' if several else 'was'} painted at {width}x{height} and {words}. "
                f"The canvas `{WIDE}` paints one of that shape."
            )
        return said

    @property
    def _aspect(self) -> float:
        """How much wider the asked shape is than the painted one."""
        return self.asked[0] * self.painted[1] / (self.asked[1] * self.painted[0])

    @property
    def _is_wider(self) -> bool:
        return self._aspect > 1

    @property
    def _is_same_shape(self) -> bool:
        return max(self._aspect, 1 / self._aspect) <= 1 + _SAME_SHAPE


def plan_size(
    size: tuple[int, int] | None,
    canvas: CanvasShape | None,
    *,
    image_size: int,
    downsampling: int,
) -> PictureSize:
    """Plans how large a picture is painted.

    Args:
        size: (width, height) in pixels of what is asked for; None is that of the canvas.
        canvas: what is painted on; None is the model's own picture.
        image_size: side of the pictures that the model learned.
        downsampling: pixels a side of one position.

    Raises:
        GenerationError: the size is too small or too large, or the canvas is, or is written
            otherwise.
    """
    if size is not None:
        _check_size(size)
    own = (image_size, image_size)
    if canvas is None:
        return PictureSize(own, size or own)
    shape = _find_wide(size or own) if canvas == WIDE else _read_shape(canvas)
    painted = tuple(round(one * image_size / downsampling) * downsampling for one in shape)
    width, height = painted
    find_grid((width, height), downsampling, image_size)
    return PictureSize((width, height), size or (width, height), (width, height) == own)


def _find_wide(size: tuple[int, int]) -> tuple[float, float]:
    """Finds the smallest canvas of about a size's shape."""
    aspect = min(MAX_ASPECT, max(size) / min(size))
    return (aspect, 1.0) if size[0] >= size[1] else (1.0, aspect)


def _read_shape(canvas: CanvasShape) -> tuple[float, float]:
    """Reads how many of the model's own pictures a canvas is wide and high.

    Raises:
        GenerationError: it is written otherwise, or smaller than one.
    """
    if isinstance(canvas, str):
        match = _TWO_NUMBERS.fullmatch(canvas)
        numbers = [float(number) for number in match.groups()] if match else []
    else:
        numbers = [float(number) for number in canvas]
    if len(numbers) != 2 or not all(1 <= number <= MAX_SIDE for number in numbers):
        shown = canvas if isinstance(canvas, str) else "x".join(f"{one:g}" for one in numbers)
        raise GenerationError(
            f"A canvas is `{WIDE}`, the shape of the size, or WIDTHxHEIGHT in the model's own "
            f"pictures, each at least 1: `{shown}`. Try 2x1."
        )
    return numbers[0], numbers[1]


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < MIN_SIDE or max(size) > MAX_SIDE:
        nearest = "x".join(str(min(max(side, MIN_SIDE), MAX_SIDE)) for side in size)
        raise GenerationError(
            f"A picture has {MIN_SIDE} to {MAX_SIDE} pixels a side: `{size[0]}x{size[1]}`. Try "
            f"{nearest}."
        )


def _take_edges(pixels: Pixels, *, is_wider: bool) -> tuple[Edge, Edge]:
    """Takes the two edges (N, 3) beyond which a picture of another shape would go on."""
    along = pixels.swapaxes(0, 1) if is_wider else pixels
    return along[0].astype(np.int16), along[-1].astype(np.int16)
