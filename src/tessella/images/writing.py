"""Writing: pixels become files, which may say what they show; reading that back."""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from tessella.errors import DataError, ShapeError
from tessella.files import new_file
from tessella.images.opening import open_image
from tessella.images.pixels import Pixels


def save_png(path: Path, pixels: Pixels, texts: Mapping[str, str] | None = None) -> None:
    """Writes one picture as PNG, and creates the folders above it.

    Args:
        path: the file to write.
        pixels: (H, W, 3) uint8.
        texts: what the file says of the picture, by keyword.

    Raises:
        ShapeError: another shape or another type of number.
        CheckpointError: the disk is full, or writing there is not allowed.
    """
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise ShapeError(
            f"A picture must be (H, W, 3) uint8: `{pixels.shape} {pixels.dtype}`. "
            "Put several pictures on one sheet with make_sheet."
        )
    with new_file(path, what="the picture") as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=_create_png_info(texts))


def read_png_texts(path: Path) -> dict[str, str]:
    """Reads what a PNG says of its picture before the pixels, by keyword; nothing if it can't."""
    try:
        with open_image(path, max_pixels=sys.maxsize) as opened:
            texts = opened.file.info if opened.format == "PNG" else {}
            return {str(name): text for name, text in texts.items() if isinstance(text, str)}
    except DataError:
        return {}


def _create_png_info(texts: Mapping[str, str] | None) -> PngImagePlugin.PngInfo | None:
    """Creates the text chunks of a PNG: tEXt, or iTXt where Latin-1 lacks a letter."""
    if not texts:
        return None
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text.replace("\0", " "))  # a zero would end the text
    return info


def encode_picture(
    pixels: Pixels,
    kind: str = "png",
    quality: int = 100,
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """Returns one picture as the contents of a file.

    Args:
        pixels: (H, W, 3) uint8.
        kind: png, jpeg or webp.
        quality: of jpeg and webp, 0 to 100.
        texts: what a png says of the picture, by keyword.
    """
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    # PNG is lossless at any level; level 1 is a quarter larger than 6 and twice as fast.
    options: dict[str, Any] = {"quality": quality}
    if kind == "png":
        options = {"compress_level": 1, "pnginfo": _create_png_info(texts)}
    image.save(stream, format=kind.upper(), **options)
    return stream.getvalue()
