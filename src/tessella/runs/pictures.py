"""Pictures inside of the report of a run: as they are if small enough, else smaller copies."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tessella.images import read_image

_MAX_PIXELS = 100_000_000
_QUALITY = 90

T = TypeVar("T")


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture that is part of a page."""

    uri: str  # data:…
    width: int  # in pixels, of what is shown
    height: int
    is_exact: bool  # whether it is the file itself


def embed_picture(path: Path, max_bytes: int) -> EmbeddedPicture:
    """Puts a PNG into a `data:` address.

    Args:
        path: the picture.
        max_bytes: a larger file is compressed with loss, then halved until it is small enough.

    Raises:
        DataError: it cannot be read.
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
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return EmbeddedPicture(uri, *image.size, is_exact)


def choose_evenly(items: Sequence[T], count: int) -> list[T]:
    """Chooses so many items, the first and the last among them, evenly spaced between.

    Args:
        items: in order.
        count: at least 2.
    """
    if len(items) <= count:
        return list(items)
    return [items[round(number * (len(items) - 1) / (count - 1))] for number in range(count)]
