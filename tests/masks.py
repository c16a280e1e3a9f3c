"""Masks of one hole, of every kind that people draw and programs write."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

SIDE = 32
HOLE = np.zeros((SIDE, SIDE), dtype=bool)
HOLE[8:16, 10:26] = True

_NEAR_EDGE = np.asarray(
    Image.fromarray(HOLE).convert("L").filter(ImageFilter.MaxFilter(5))
) != np.asarray(Image.fromarray(HOLE).convert("L").filter(ImageFilter.MinFilter(5)))


@dataclass(frozen=True)
class MaskKind:
    """A kind of mask."""

    draw: Callable[[], Image.Image]
    read_by: str
    file: tuple[str, dict[str, object]] = ("PNG", {})  # how it is saved
    is_soft: bool = False

    @property
    def is_certain(self) -> np.ndarray:
        """Where the mask is of one mind; its soft edge may count as either."""
        return ~_NEAR_EDGE if self.is_soft else np.ones_like(HOLE)

    def save(self) -> bytes:
        """Writes the file."""
        stream = io.BytesIO()
        form, options = self.file
        self.draw().save(stream, form, **options)
        return stream.getvalue()


def draw_hole(image: Image.Image) -> Image.Image:
    """The picture with the hole in it."""
    made = image.convert("RGBA")
    made.putalpha(Image.fromarray(np.where(HOLE, 0, 255).astype(np.uint8)))
    return made


def _white(dtype: type = np.uint8, white: int = 255) -> np.ndarray:
    return np.where(HOLE, white, 0).astype(dtype)


def _soften(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values).filter(ImageFilter.GaussianBlur(1))


def _alpha(color: str = "black", alpha: Image.Image | None = None) -> Image.Image:
    made = Image.new("RGBA", (SIDE, SIDE), color)
    made.putalpha(alpha or Image.fromarray(255 - _white()))
    return made


def _photo() -> Image.Image:
    noise = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _erased() -> Image.Image:
    """A photo of which a brush took the colours too, as editors do."""
    made = draw_hole(_photo())
    made.paste((0, 0, 0, 0), mask=Image.fromarray(_white()))
    return made


def _compress(image: Image.Image, form: str, **options: object) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    opened = Image.open(stream)
    opened.load()
    return opened


def _palette_with_transparency() -> Image.Image:
    made = Image.fromarray(_white(white=1)).convert("P")
    made.putpalette([255, 255, 255, 0, 0, 0])
    made.info["transparency"] = 1
    return made


def _gray_that_is_transparent() -> Image.Image:
    made = Image.fromarray(np.where(HOLE, 7, 200).astype(np.uint8))
    made.info["transparency"] = 7
    return made


def _la() -> Image.Image:
    return Image.merge("LA", (Image.new("L", (SIDE, SIDE)), Image.fromarray(255 - _white())))


KINDS: dict[str, MaskKind] = {
    # Read by their transparency.
    "black, hole transparent": MaskKind(_alpha, "transparency"),
    "white, hole transparent": MaskKind(lambda: _alpha("white"), "transparency"),
    "photo, hole transparent": MaskKind(lambda: draw_hole(_photo()), "transparency"),
    "photo, hole erased": MaskKind(_erased, "transparency"),
    "soft-edged hole": MaskKind(
        lambda: _alpha(alpha=_soften(255 - _white())), "transparency", is_soft=True
    ),
    "half-erased hole": MaskKind(
        lambda: _alpha("white", Image.fromarray(np.where(HOLE, 90, 255).astype(np.uint8))),
        "transparency",
    ),
    "gray with alpha": MaskKind(_la, "transparency"),
    "palette with transparency": MaskKind(_palette_with_transparency, "transparency"),
    "gray that is transparent": MaskKind(_gray_that_is_transparent, "transparency"),
    "WebP with alpha": MaskKind(
        lambda: _compress(_alpha(), "WEBP", quality=60),
        "transparency",
        ("WEBP", {"quality": 60}),
    ),
    "GIF with transparency": MaskKind(
        lambda: _compress(_alpha(), "GIF"), "transparency", ("GIF", {})
    ),
    # Opaque: read by their brightness.
    "white on black": MaskKind(lambda: Image.fromarray(_white()), "brightness"),
    "one bit": MaskKind(lambda: Image.fromarray(HOLE), "brightness"),
    "RGB": MaskKind(lambda: Image.fromarray(_white()).convert("RGB"), "brightness"),
    "opaque RGBA": MaskKind(lambda: Image.fromarray(_white()).convert("RGBA"), "brightness"),
    "palette": MaskKind(lambda: Image.fromarray(_white()).convert("P"), "brightness"),
    "16 bits": MaskKind(lambda: Image.fromarray(_white(np.uint16, 65535)), "brightness"),
    "soft white": MaskKind(lambda: _soften(_white()), "brightness", is_soft=True),
    "JPEG": MaskKind(
        lambda: _compress(Image.fromarray(_white()), "JPEG", quality=30),
        "brightness",
        ("JPEG", {"quality": 30}),
        is_soft=True,
    ),
    "red on black": MaskKind(
        lambda: Image.merge(
            "RGB", (Image.fromarray(_white()), *[Image.new("L", (SIDE, SIDE))] * 2)
        ),
        "brightness",
    ),
    "nearly opaque RGBA": MaskKind(
        lambda: Image.merge(
            "RGBA",
            (*[Image.fromarray(_white())] * 3, Image.new("L", (SIDE, SIDE), 253)),
        ),
        "brightness",
    ),
}
"""By name: transparent there, or white on black; whatever else they are."""
