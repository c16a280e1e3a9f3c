"""The pictures of a page about a run: embedded in a file, or linked by an address."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tessella.images import open_image, read_image

_MAX_PIXELS = 100_000_000
_QUALITY = 90

T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """A picture on a page."""

    address: str  # data:… if it is embedded
    width: int  # in pixels, as shown
    height: int
    is_exact: bool = True  # whether it is the file itself
    problem: str = ""  # why it cannot be read


def link_picture(path: Path, address: str) -> Picture:
    """Links to a picture that the server sends; only its size is read.

    Raises:
        DataError: the file is not a picture.
    """
    with open_image(path, max_pixels=_MAX_PIXELS) as opened:
        return Picture(address, *opened.size)


def embed_picture(path: Path, max_bytes: int) -> Picture:
    """Turns a PNG into a `data:` address.

    Args:
        path: the picture.
        max_bytes: larger files are compressed with loss, then halved until they fit.

    Raises:
        DataError: the file cannot be read.
    """
    image = read_image(path, max_pixels=_MAX_PIXELS)
    content, kind = path.read_bytes(), "png"
    is_exact = len(content) <= max_bytes
    while len(content) > max_bytes:
        if kind == "webp":
            image = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
        compressed = io.BytesIO()
        image.save(compressed, "WEBP", quality=_QUALITY)
        content, kind = compressed.getvalue(), "webp"
        if image.size == (1, 1):
            break
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return Picture(address, *image.size, is_exact)


def choose_evenly(items: Sequence[T], count: int) -> list[T]:
    """Chooses up to `count` evenly spaced items, always including the first and the last.

    Args:
        items: in order.
        count: at least 2.
    """
    if len(items) <= count:
        return list(items)
    return [items[round(number * (len(items) - 1) / (count - 1))] for number in range(count)]
