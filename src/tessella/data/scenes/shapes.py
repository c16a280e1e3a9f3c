"""Shapes: the backgrounds, colours, shapes and textures of scenes, and how one object is drawn.

All lengths are fractions of the picture's side S, x to the right and y down. Objects are drawn on a
canvas of twice the size, which Lanczos reduces.
"""

import math
from collections.abc import Collection, Mapping
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from tessella.errors import DataError, ShapeError

Color: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

BACKGROUNDS: Final[Mapping[str, Color]] = {
    "white": (250, 250, 250),
    "gray": (150, 150, 150),
    "pink": (255, 190, 205),
    "navy": (20, 25, 70),
}
COLORS: Final[Mapping[str, Color]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "black": (25, 25, 25),
    "cyan": (60, 200, 220),
}
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES: Final = ("solid", "striped", "dotted")
# Stripes and dots have the colour that every other colour differs from the most.
MARKS: Final[Color] = (250, 250, 250)

_NUM_STAR_POINTS: Final = 5
_STAR_INNER_RADIUS: Final = 0.45
_CROSS_HALF_WIDTH: Final = 0.35
_RING_WIDTH: Final = 0.4
# Unit star (radius 1, first point up), outer and inner corners in turn.
_STAR_CORNERS: Final = tuple(
    (
        radius * math.sin(math.pi * corner / _NUM_STAR_POINTS),
        -radius * math.cos(math.pi * corner / _NUM_STAR_POINTS),
    )
    for corner, radius in enumerate((1.0, _STAR_INNER_RADIUS) * _NUM_STAR_POINTS)
)
# Of a unit shape: y and half the width of two stripes, and the part of the shape in which they lie:
# its rim is left, so that the outline is seen on white.
_STRIPES: Final = (-0.4, 0.4)
_STRIPE_HALF_WIDTH: Final = 0.2
_STRIPED_RADIUS: Final = 0.85
# Of a unit shape: (x, y) of its dots, and their radius.
_DOTS: Final[Mapping[str, tuple[tuple[Point, ...], float]]] = {
    "circle": (((-0.4, -0.4), (0.4, -0.4), (0.4, 0.4), (-0.4, 0.4)), 0.26),
    "square": (((-0.45, -0.45), (0.45, -0.45), (0.45, 0.45), (-0.45, 0.45)), 0.28),
    "triangle": (((0.0, -0.25), (-0.45, 0.6), (0.45, 0.6)), 0.26),
    "star": (((0.0, 0.0),), 0.3),  # more would lie where its stripes are
    "cross": (((0.0, -0.65), (0.65, 0.0), (0.0, 0.65), (-0.65, 0.0)), 0.24),
    "ring": (((-0.57, -0.57), (0.57, -0.57), (0.57, 0.57), (-0.57, 0.57)), 0.22),
}
_SMALLEST: Final = 16  # pixels


def draw_picture(background: str, size: int) -> Image.Image:
    """Creates the canvas of a picture of S × S pixels: an image of 2S × 2S.

    Raises:
        ShapeError: the size is too small to tell the shapes apart; names the smallest.
    """
    return Image.new("RGB", _canvas_size(size), BACKGROUNDS[background])


def draw_object(
    canvas: Image.Image, shape: str, texture: str, color: str, radius: float, centre: Point
) -> None:
    """Draws an object on a canvas of `draw_picture`.

    Args:
        canvas: 2S × 2S.
        shape: one of SHAPES.
        texture: one of TEXTURES.
        color: one of COLORS.
        radius: fraction of S.
        centre: (x, y), fractions of S.
    """
    _fill(ImageDraw.Draw(canvas), shape, radius, centre, canvas.width, COLORS[color])
    if texture != "solid":
        canvas.paste(MARKS, mask=_draw_marks(texture, shape, radius, centre, canvas.width))


def reduce_picture(canvas: Image.Image) -> NDArray[np.uint8]:
    """Reduces a canvas to its picture (S, S, 3) uint8 RGB in [0, 255]."""
    size = canvas.width // 2
    # A copy: Pillow's buffer is read-only, and torch warns about that.
    return np.array(canvas.resize((size, size), Image.Resampling.LANCZOS))


def cover(
    shape: str,
    radius: float,
    centre: Point,
    size: int,
    window: tuple[slice, slice] | None = None,
) -> NDArray[np.float32]:
    """Draws how much of each pixel an object covers.

    Up to rounding and clipping to [0, 255], the picture of a solid object is
    ``background + coverage * (color - background)``.

    Args:
        shape: one of SHAPES.
        radius: fraction of S.
        centre: (x, y), fractions of S.
        size: side S of the picture in pixels, at least 16.
        window: the (rows, columns) to return, as slices with start and stop; None for all.

    Returns:
        (S, S) float32, or its window: 0 outside and 1 inside; Lanczos overshoots both a little at
        edges.

    Raises:
        DataError: an unknown shape; names the known ones.
        ShapeError: the picture's size is too small; names the smallest.
    """
    check_name("shape", shape, SHAPES)
    canvas = Image.new("F", _canvas_size(size), 0.0)
    _fill(ImageDraw.Draw(canvas), shape, radius, centre, 2 * size, 1.0)
    rows, columns = window or (slice(0, size), slice(0, size))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    box = (2 * columns.start, 2 * rows.start, 2 * columns.stop, 2 * rows.stop)
    return np.array(canvas.resize((width, height), Image.Resampling.LANCZOS, box))


def cover_marks(
    texture: str, shape: str, radius: float, centre: Point, size: int
) -> NDArray[np.float32]:
    """Draws how much of each pixel an object's stripes or dots cover, (S, S) float32.

    The picture of an object of coverage c with marks m is, up to rounding and clipping,
    ``background + (c - m) * (color - background) + m * (MARKS - background)``.

    Args:
        texture: `striped` or `dotted`.
        shape: as for `cover`, as are the others.
        radius: of the object.
        centre: of the object.
        size: side S of the picture in pixels.
    """
    marks = _draw_marks(texture, shape, radius, centre, _canvas_size(size)[0])
    reduced = marks.convert("F").resize((size, size), Image.Resampling.LANCZOS)
    return np.array(reduced, np.float32) / np.float32(255)


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Raises a DataError that names the known ones if a name is not one of them."""
    if name not in known:
        raise DataError(f"Unknown scene {what}: `{name}`. Expected one of: {', '.join(known)}.")


def _canvas_size(size: int) -> tuple[int, int]:
    if size < _SMALLEST:
        raise ShapeError(
            f"A scene's size must be at least {_SMALLEST} pixels: `{size}`. Below that its shapes "
            "cannot be told apart; try 32 or 64."
        )
    return 2 * size, 2 * size


def _fill(
    draw: ImageDraw.ImageDraw,
    shape: str,
    radius: float,
    centre: Point,
    canvas_side: int,
    fill: Color | float,
) -> None:
    """Fills one shape on a canvas of canvas_side × canvas_side pixels."""
    radius *= canvas_side
    x, y = _place(centre, canvas_side)
    if shape == "circle":
        draw.ellipse(_box(x, y, radius, radius), fill)
    elif shape == "square":
        draw.rectangle(_box(x, y, radius, radius), fill)
    elif shape == "triangle":
        corners = [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)]
        draw.polygon(corners, fill)
    elif shape == "star":
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _STAR_CORNERS], fill)
    elif shape == "cross":
        half_width = _CROSS_HALF_WIDTH * radius
        draw.rectangle(_box(x, y, radius, half_width), fill)
        draw.rectangle(_box(x, y, half_width, radius), fill)
    else:
        width = max(1, round(_RING_WIDTH * radius))
        draw.ellipse(_box(x, y, radius, radius), outline=fill, width=width)


def _draw_marks(
    texture: str, shape: str, radius: float, centre: Point, canvas_side: int
) -> Image.Image:
    """Draws the part of a shape that its stripes or dots cover: 255 there, else 0."""
    marks = Image.new("L", (canvas_side, canvas_side))
    draw = ImageDraw.Draw(marks)
    x, y = _place(centre, canvas_side)
    length = radius * canvas_side
    parts = [(shape, radius)]
    if texture == "dotted":
        dots, dot = _DOTS[shape][0], _DOTS[shape][1] * length
        for dx, dy in dots:
            draw.ellipse(_box(x + length * dx, y + length * dy, dot, dot), 255)
    else:
        for dy in _STRIPES:
            draw.rectangle(_box(x, y + length * dy, length, _STRIPE_HALF_WIDTH * length), 255)
        # A smaller ring would lie in the hole of the larger one.
        parts.append(("circle" if shape == "ring" else shape, _STRIPED_RADIUS * radius))
    for part, part_radius in parts:
        covered = Image.new("L", marks.size)
        _fill(ImageDraw.Draw(covered), part, part_radius, centre, canvas_side, 255)
        marks = ImageChops.darker(marks, covered)
    return marks


def _place(centre: Point, canvas_side: int) -> Point:
    # Pillow counts from the centre of the first pixel and includes both ends of a box.
    x, y = (coordinate * canvas_side - 0.5 for coordinate in centre)
    return x, y


def _box(x: float, y: float, half_width: float, half_height: float) -> tuple[int, int, int, int]:
    """Rounds a box to the pixels whose centres lie in it, both ends included."""
    return (
        math.ceil(x - half_width),
        math.ceil(y - half_height),
        math.floor(x + half_width),
        math.floor(y + half_height),
    )
