"""Colours: a picture of any mode and colour profile becomes sRGB on white.

    1, L, P, CMYK, YCbCr, HSV, I, F, … ─ profile ─▶ RGB, blended with white where transparent

Cameras and phones name the colours that their numbers mean by an ICC profile. Without it (200, 120,
60) in Display P3 would be read as a paler orange than it is.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile

from tessella.images.formats import ImageError

if TYPE_CHECKING:
    from PIL import ImageCms

_GRAY_MODES = {"1", "L", "LA", "La"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}

# Those of printers take up to some 2 MB.
_MAX_PROFILE_BYTES = 8_000_000
# A profile that changes no colour by more is one of the many ways to write sRGB.
_NO_CHANGE = 2


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow mode to RGB in sRGB; transparent pixels are blended with white.

    A colour profile is followed, a broken one ignored. 16-bit integers are scaled to 8 bits.
    Floats mean 0..1 if none is above 1, else 0..255.

    Args:
        image: of any mode.

    Raises:
        DataError: integers or floats outside these ranges: it is not known which value is white.
    """
    profile = image.info.get("icc_profile")
    if image.mode == "RGB" and "transparency" not in image.info and not profile:
        return image.copy() if isinstance(image, ImageFile.ImageFile) else image
    if image.mode == "LAB":
        return _from_lab(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_integers(image)
    elif image.mode == "F":
        image = _from_floats(image)
    colors, alpha = _split_alpha(image)
    transform = _read_profile(profile, colors.mode).transform if profile else None
    rgb = colors.convert("RGB") if transform is None else transform.apply(colors)
    # What is in sRGB must not be converted again.
    rgb.info.pop("icc_profile", None)
    if alpha is None:
        return rgb
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgb, mask=alpha)
    return white


def ignores_profile(image: Image.Image) -> bool:
    """Whether `to_rgb` ignores a picture's colour profile because it is broken."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "LAB":
        return False
    return _read_profile(profile, _choose_color_mode(image.mode)).is_broken


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Splits a picture into its colours (RGB, L or CMYK) and its opacity, if it has any."""
    mode = _choose_color_mode(image.mode)
    if "transparency" not in image.info and image.mode not in _ALPHA_MODES:
        return (image if image.mode == mode else image.convert(mode)), None
    if image.mode == "La":
        image = image.convert("LA")
    shown = image.convert("RGBA")
    colors = shown.getchannel("R") if mode == "L" else shown.convert("RGB")
    return colors, shown.getchannel("A")


def _choose_color_mode(mode: str) -> str:
    """Returns the mode that a picture's profile speaks of."""
    if mode in _GRAY_MODES or mode[0] in "IF":
        return "L"
    return "CMYK" if mode == "CMYK" else "RGB"


@dataclass(frozen=True)
class _Profile:
    """A colour profile, read for pictures of one mode."""

    transform: "ImageCms.ImageCmsTransform | None"  # to sRGB; None: nothing to convert
    is_broken: bool = False


@lru_cache(maxsize=16)
def _read_profile(content: bytes, mode: str) -> _Profile:
    """Reads a profile; most pictures of a data set share one."""
    from PIL import ImageCms

    if len(content) > _MAX_PROFILE_BYTES:
        return _Profile(None, is_broken=True)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        srgb = ImageCms.createProfile("sRGB")
        # Fails if the profile is of another colour space, such as gray for RGB.
        transform = ImageCms.buildTransform(profile, srgb, mode, "RGB")
        probe = _draw_probe(mode)
        changed = np.asarray(transform.apply(probe)).astype(int)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, SyntaxError):
        return _Profile(None, is_broken=True)
    difference = np.abs(changed - np.asarray(probe.convert("RGB"))).max()
    return _Profile(None if difference <= _NO_CHANGE else transform)


def _draw_probe(mode: str) -> Image.Image:
    """Draws colours from the whole range of a mode."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    levels = np.linspace(0, 255, 256 if bands == 1 else 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * bands, indexing="ij"), axis=-1).reshape(-1, bands)
    return Image.frombytes(mode, (len(grid), 1), grid.tobytes())


def _from_integers(image: Image.Image) -> Image.Image:
    """Scales 16-bit gray to 8 bits: 65535 is white, rounded to the nearest."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"Integer pixels must lie in 0..65535: got {values.min()}..{values.max()}. "
            "Convert the picture to 8 or 16 bits."
        )
    gray = ((values * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray)


def _from_floats(image: Image.Image) -> Image.Image:
    """Scales float gray, 0..1 or 0..255, to 8 bits."""
    values = np.asarray(image)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise ImageError(
            f"Float pixels must lie in 0..1 or 0..255: got {values.min()}..{values.max()}. "
            "Convert the picture to 8 bits."
        )
    scale = 255 if values.max() <= 1 else 1
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))


def _from_lab(image: Image.Image) -> Image.Image:
    """Converts CIE LAB to sRGB, which Pillow's `convert` cannot do."""
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB").apply(image)


def find_alpha(image: Image.Image) -> Image.Image | None:
    """Returns how opaque a picture is (mode L), 255 wholly; None: it has no transparency."""
    if not {"A", "a"} & set(image.getbands()) and "transparency" not in image.info:
        return None
    premultiplied = image.mode == "La"
    return (image.convert("LA") if premultiplied else image).convert("RGBA").getchannel("A")
