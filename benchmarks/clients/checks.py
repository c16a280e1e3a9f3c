"""What the clients' scripts share: calls that are tried one by one, and what they should give.

Each script runs in an environment of its own, with its client as it is on the registry and Pillow,
and prints a line of JSON for each call: its name, whether it worked, and why not. It knows nothing
of tessella but the address.
"""

import base64
import inspect
import io
import json
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, ImageDraw

PROMPT = "a large red circle on a white background"
OTHER = "a large blue circle on a white background"
SIDE = 64  # of the bundled model `scenes`


def attempt(name: str, call: Callable[[], object]) -> None:
    """Makes one call and prints what came of it; a call that returns has worked."""
    line: dict[str, object] = {"call": name, "works": True}
    try:
        call()
    except Exception as error:  # noqa: BLE001  whatever a client raises is the result
        line |= {"works": False, "why": f"{type(error).__name__}: {str(error)[:300]}"}
    print(json.dumps(line), flush=True)


def keep_known(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the options if this version of a client has them all; None: it has not."""
    known = inspect.signature(function).parameters
    return dict(options) if set(options) <= set(known) else None


def expect(is_so: object, what: object) -> None:
    """Fails a call whose answer is not as it should be."""
    if not is_so:
        raise AssertionError(f"unexpected: {what}")


def open_picture(
    one: Any, size: tuple[int, int] = (SIDE, SIDE), kind: str = "PNG", *, by: str = ""
) -> Image.Image:
    """Opens a picture of an answer and looks at it.

    Args:
        one: with `b64_json` and `url`, of which it has one.
        size: (width, height) that it should have.
        kind: Pillow's name of its format.
        by: which of the two it should come by; any unless given.
    """
    text, url = getattr(one, "b64_json", None), getattr(one, "url", None)
    expect(bool(text) != bool(url), "both b64_json and url, or neither")
    expect(not by or (by == "url") == bool(url), f"not by {by}")
    return look(fetch(url) if url else base64.b64decode(text), size, kind)


def fetch(url: str) -> bytes:
    """Reads what is at an address."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def look(content: bytes, size: tuple[int, int] = (SIDE, SIDE), kind: str = "PNG") -> Image.Image:
    """Opens a file: a picture of that size and format, which is not blank."""
    image = Image.open(io.BytesIO(content))
    image.load()
    expect(image.size == size, f"size {image.size}")
    expect(image.format == kind, f"format {image.format}")
    pixels = image.convert("RGB")
    expect(any(low != high for low, high in pixels.getextrema()), "a blank picture")
    return pixels


def draw_disc() -> Image.Image:
    """Draws a picture to change."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 55, 55), fill=(220, 30, 30))
    return image


def draw_mask() -> Image.Image:
    """Draws OpenAI's kind of mask: the left half is to be repainted."""
    mask = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, SIDE // 2, SIDE))
    return mask


def to_png(image: Image.Image) -> bytes:
    """Writes a picture's file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def expect_right_half(image: Image.Image) -> None:
    """Checks that an edit left what the mask did not mark."""
    half = (SIDE // 2, 0, SIDE, SIDE)
    expect(image.crop(half).tobytes() == draw_disc().crop(half).tobytes(), "the rest has changed")
