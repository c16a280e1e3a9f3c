"""Sheets: several pictures on one, in rows, with captions underneath.

On the data's way: after the last step, wherever people look at pictures side by side.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tessella.errors import ShapeError
from tessella.images import Pixels

_FONT_SIZE = 11


def make_sheet(
    pixels: Pixels,
    columns: int,
    labels: Sequence[str] | None = None,
    scale: int = 1,
) -> Pixels:
    """Arranges pictures on one white sheet, row by row.

    Args:
        pixels: (B, H, W, 3) uint8, B >= 1.
        columns: pictures per row, >= 1; fewer pictures make a narrower sheet.
        labels: B captions, wrapped to the width of a picture; None for no captions.
        scale: each pixel becomes scale x scale, without smoothing.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ShapeError: no pictures, another shape, or another number of labels.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not len(pixels):
        raise ShapeError(
            f"A sheet is made of (B, H, W, 3) uint8 with B >= 1: `{pixels.shape} {pixels.dtype}`."
        )
    if columns < 1 or scale < 1:
        raise ShapeError(f"A sheet needs columns >= 1 and scale >= 1: `{columns}`, `{scale}`.")
    if labels is not None and len(labels) != len(pixels):
        raise ShapeError(f"A sheet needs one label per picture: `{len(labels)}` for {len(pixels)}.")
    large = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    count, _, width, _ = large.shape
    columns = min(columns, count)
    gap = max(2, width // 32)
    pictures = list(large)
    if labels is not None:
        pictures = [
            np.concatenate([picture, _draw_caption(_wrap(label, width), width, gap)])
            for picture, label in zip(pictures, labels, strict=True)
        ]
    rows = [pictures[start : start + columns] for start in range(0, count, columns)]
    height = gap + sum(max(map(len, row)) + gap for row in rows)
    sheet = np.full((height, gap + columns * (width + gap), 3), 255, dtype=np.uint8)
    top = gap
    for row in rows:
        for column, picture in enumerate(row):
            left = gap + column * (width + gap)
            sheet[top : top + len(picture), left : left + width] = picture
        top += max(map(len, row)) + gap
    return sheet


def make_labelled_sheet(
    pictures: Sequence[Pixels], labels: Sequence[str], columns: int, shown_px: int = 192
) -> Pixels:
    """Makes a sheet of pictures that are enlarged to about `shown_px`: their captions are legible.

    Args:
        pictures: (H, W, 3) uint8, at least one.
        labels: as for `make_sheet`.
        columns: as for `make_sheet`.
        shown_px: height of a picture on the sheet.
    """
    return make_sheet(np.stack(pictures), columns, labels, max(1, shown_px // len(pictures[0])))


def _wrap(text: str, width: int) -> list[str]:
    """Breaks a caption into lines that fit the width; breaks a word that is too long."""
    font = ImageFont.load_default(_FONT_SIZE)
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _draw_caption(lines: list[str], width: int, gap: int) -> Pixels:
    """Draws lines in black on white, centred."""
    font = ImageFont.load_default(_FONT_SIZE)
    pitch = _FONT_SIZE + 3
    caption = Image.new("RGB", (width, len(lines) * pitch + gap), "white")
    draw = ImageDraw.Draw(caption)
    for number, line in enumerate(lines):
        position = (width / 2, gap / 2 + number * pitch)
        draw.text(position, line, fill="black", font=font, anchor="ma")
    return np.asarray(caption)
