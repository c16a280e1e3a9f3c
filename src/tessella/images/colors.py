"""Colours: a picture of any mode and colour profile becomes sRGB on white.

    1, L, P, CMYK, YCbCr, HSV, I, F, … ─ profile ─▶ RGB, blended with white where transparent

Cameras and phones name the colours that their numbers mean by an ICC profile. Without it (200, 120,
60) in Display P3 would be read as a paler orange than it is. Cameras that are set to Adobe RGB may
name it in EXIF alone.

Source: Adobe RGB (1998) Color Image Encoding, 2005-05; DCF 2.0 (JEITA CP-3461), "R03".
"""

import io
import struct
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile

from tessella.images.formats import ImageError, no_warnings

if TYPE_CHECKING:
    from PIL import ImageCms

# EXIF's ColorSpace and where it lies, the index of interoperability and where that lies.
_EXIF, _COLOR_SPACE, _INTEROP, _INTEROP_INDEX = 0x8769, 0xA001, 0xA005, 1
_UNCALIBRATED = 65535
# Adobe RGB's red, green and blue as XYZ adapted to D50, its white, and its gamma of 2 + 51/256.
_ADOBE_PRIMARIES = {
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
    b"wtpt": (0.9642, 1.0, 0.8249),
}
_ADOBE_GAMMA = 0x0233

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
    profile = _find_profile(image)
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


def _find_profile(image: Image.Image) -> bytes | None:
    """Returns a picture's profile; Adobe RGB's where only EXIF names it."""
    profile: bytes | None = image.info.get("icc_profile")
    if profile or image.mode != "RGB" or "exif" not in image.info:
        return profile
    try:
        with no_warnings():
            exif = image.getexif()
            is_other = exif.get_ifd(_EXIF).get(_COLOR_SPACE) == _UNCALIBRATED
            index = str(exif.get_ifd(_INTEROP).get(_INTEROP_INDEX)) if is_other else ""
    # Of damaged EXIF nothing is known; the pixels are still right.
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error):
        return None
    return _build_adobe_rgb() if index.startswith("R03") else None


@cache
def _build_adobe_rgb() -> bytes:
    """Builds a profile (ICC.1:2001-04) of Adobe RGB (1998): three primaries and a gamma."""
    name = b"Adobe RGB (1998)\0"
    description = b"desc" + struct.pack(">II", 0, len(name)) + name + bytes(78)
    tags = {b"desc": description, b"cprt": b"text" + bytes(4) + b"public domain\0"}
    for tag, values in _ADOBE_PRIMARIES.items():
        tags[tag] = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))
    curve = b"curv" + struct.pack(">IIH", 0, 1, _ADOBE_GAMMA)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    white = struct.pack(">3i", *(round(v * 65536) for v in _ADOBE_PRIMARIES[b"wtpt"]))
    header = struct.pack(
        ">I4x4s4s4s4s", start + len(content), b"\2\x20\0\0", b"mntr", b"RGB ", b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + white
    return header.ljust(128, b"\0") + table + content


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
