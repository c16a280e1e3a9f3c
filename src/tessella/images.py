"""Pictures: the only module that converts between files, pixels and tensors.

On the data's way it stands at both ends: files become pixels for the cache, tensors become
pictures again. Three forms:

    file      JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM, QOI
    pixels    (B, H, W, 3) uint8 numpy, RGB
    image     (B, 3, H, W) float tensor in [-1, 1], RGB

torch is imported only by the two functions that need it, so that processes which only decode
start quickly and stay small.
"""

import contextlib
import importlib
import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFile, ImageFont, ImageOps

from tessella.errors import CheckpointError, DataError, ShapeError
from tessella.files import new_file

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpc", ".ppm", ".pgm", ".pbm", ".pnm",
    ".qoi",
})
# fmt: on

# The formats that are read, commonest first. Formats that run other programs (EPS), have no
# signature (TGA) or hide a second size inside (ICO) are left out on purpose.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")

# What EXIF calls orientation 2..8, as the operation that puts the picture upright (EXIF 2.32,
# tag 0x0112).
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Of a JPEG that strangers send; cameras and optimisers write a dozen at most, and a file of random
# bytes after its end has one in 65,536. Each scan goes over all pixels, and may have ten bytes.
_MAX_SCANS = 1000
_SCAN = b"\xff\xda"

_WHITE = (255, 255, 255)
_WARNINGS_LOCK = threading.Lock()


class ImageError(DataError):
    """One picture cannot be read; `kind` sorts it: empty, broken, too_large or missing."""

    def __init__(self, message: str, kind: Literal["empty", "broken", "too_large", "missing"]):
        """Keeps the message and the kind."""
        super().__init__(message)
        self.kind = kind


def read_image(
    source: Path | bytes, *, max_pixels: int, at_least: int | None = None
) -> Image.Image:
    """Reads one picture, upright and in RGB, whatever it was stored as.

    Transparency is laid over white, of an animation the first frame is taken, 16-bit values are
    scaled to 8 bits, and the EXIF orientation is applied.

    Args:
        source: a file, or its contents.
        max_pixels: a picture whose header names more is refused before it is decoded.
        at_least: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both
            sides keep this many pixels, which is several times faster for large photos.

    Raises:
        DataError: the file is missing, empty, broken, cut off, of an unknown format or too large.
    """
    with open_image(source, max_pixels=max_pixels) as opened:
        return decode_image(opened, at_least=at_least)


@contextlib.contextmanager
def open_image(source: Path | bytes, *, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """Opens a picture by its header, for `decode_image`; closes it again.

    Args:
        source: a file, or its contents.
        max_pixels: a header that names more pixels is refused.

    Raises:
        DataError: the file is missing, empty, of an unknown format or too large.
    """
    with _stream(source) as stream:
        opened = _identify(stream)
        width, height = opened.size
        if width * height > max_pixels:
            raise ImageError(
                f"The picture is too large: {width}x{height} = {width * height:,} pixels, at most "
                f"{max_pixels:,} are read. Make it smaller or raise data.max_image_pixels.",
                "too_large",
            )
        yield opened


def _stream(source: Path | bytes) -> BinaryIO:
    """Opens a file, or contents as if they were one."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except FileNotFoundError:
        raise ImageError(f"There is no such picture: `{source}`.", "missing") from None
    except OSError as error:
        reason = f"Cannot open the picture: `{source}`. {error.strerror}."
        raise ImageError(reason, "broken") from None


def decode_image(opened: ImageFile.ImageFile, *, at_least: int | None = None) -> Image.Image:
    """Decodes a picture from `open_image`: upright, RGB.

    Args:
        opened: what `open_image` gave.
        at_least: as for `read_image`.

    Raises:
        DataError: the contents are broken or cut off.
    """
    if at_least is not None and opened.format in ("JPEG", "MPO"):
        opened.draft(None, (at_least, at_least))
    try:
        opened.load()
        image = to_rgb(opened)
    except DataError:
        raise
    except Exception as error:
        # Decoders raise whatever the damaged bytes led them to: OSError, ValueError,
        # struct.error, zlib.error, EOFError, SyntaxError, MemoryError from a lying header.
        reason = f"The picture is broken or cut off: {_reason(error)}."
        raise ImageError(reason, "broken") from error
    # Only now: Pillow turns a TIFF itself while loading, and PNG may keep EXIF after the pixels.
    turn = _UPRIGHT.get(_orientation(opened))
    return image if turn is None else image.transpose(turn)


def read_with_transparency(
    source: bytes, *, max_pixels: int
) -> tuple[Image.Image, "npt.NDArray[np.bool_] | None"]:
    """Reads one picture that a stranger sent, and where it is fully transparent.

    Args:
        source: a file's contents; a JPEG of so many scans that it would take minutes is refused.
        max_pixels: as for `read_image`.

    Returns:
        The picture, as `read_image` gives it; and (H, W), True where nothing of it shows, or None
        if it shows everywhere.

    Raises:
        DataError: as for `read_image`.
    """
    with open_image(source, max_pixels=max_pixels) as opened:
        if opened.format in ("JPEG", "MPO") and source.count(_SCAN) > _MAX_SCANS:
            reason = f"The picture has too many scans: at most {_MAX_SCANS:,} are read."
            raise ImageError(reason, "broken")
        image = decode_image(opened)
        if "A" not in opened.getbands() and "transparency" not in opened.info:
            return image, None
        alpha = opened.convert("RGBA").getchannel("A")
        turn = _UPRIGHT.get(_orientation(opened))
        hidden = np.asarray(alpha if turn is None else alpha.transpose(turn)) == 0
        return image, hidden if hidden.any() else None


def _identify(stream: BinaryIO) -> ImageFile.ImageFile:
    """Finds the format by the first bytes and reads the header.

    Not `Image.open`: that checks sizes against Pillow's process-wide limit, and warns.
    """
    prefix = stream.read(16)
    if not prefix:
        raise ImageError("The file is empty.", "empty")
    for accept, factory in _readers():
        if not accept(prefix):
            continue
        stream.seek(0)
        try:
            with _no_warnings():
                opened = factory(stream, "")
        except Exception as error:
            reason = f"The picture's header is broken: {_reason(error)}."
            raise ImageError(reason, "broken") from error
        if not isinstance(opened, ImageFile.ImageFile):
            break
        return opened
    raise ImageError(
        f"Not a picture of a known format; known are: {', '.join(_FORMATS)}.", "broken"
    )


@cache
def _readers() -> tuple[tuple[Callable[[bytes], Any], Callable[..., Any]], ...]:
    """Loads Pillow's readers of the known formats, once; an older Pillow may lack AVIF."""
    Image.preinit()
    for name in ("Tiff", "WebP", "Avif", "Jpeg2K", "Qoi"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{name}ImagePlugin")
    return tuple(
        (accept, factory)
        for factory, accept in (Image.OPEN[name] for name in _FORMATS if name in Image.OPEN)
        if accept is not None
    )


def _reason(error: Exception) -> str:
    """Says a decoder's complaint in one line, without a closing stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _orientation(opened: Image.Image) -> int:
    """Reads the EXIF orientation; damaged EXIF counts as none, the pixels are still right."""
    if "exif" not in opened.info and opened.format not in ("PNG", "TIFF", "MPO"):
        return 1
    try:
        with _no_warnings():
            return int(opened.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error):
        return 1


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Keeps Pillow's remarks about odd metadata to itself.

    The lock is needed because Python's warning filters are one list for all threads.
    """
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow mode to RGB; transparency is laid over white.

    Integers of 16 bits are scaled to 8. Floats are taken as 0..1 if none is above 1, else as
    0..255.

    Args:
        image: any mode.

    Raises:
        DataError: integers or floats outside these ranges: which value is white is not known.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if isinstance(image, ImageFile.ImageFile) else image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_integers(image)
    if image.mode == "F":
        return _from_floats(image)
    if image.mode == "LAB":
        return _from_lab(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if image.mode == "La":
            image = image.convert("LA")
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Lays an RGBA picture over white."""
    white = Image.new("RGB", image.size, _WHITE)
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return white


def _from_integers(image: Image.Image) -> Image.Image:
    """Scales 16-bit gray to 8 bits: 65535 is white, rounded to the nearest."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"Integer pixels must lie in 0..65535: got {values.min()}..{values.max()}. "
            "Convert the picture to 8 or 16 bits.",
            "broken",
        )
    gray = ((values * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _from_floats(image: Image.Image) -> Image.Image:
    """Scales float gray, 0..1 or 0..255, to 8 bits."""
    values = np.asarray(image)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise ImageError(
            f"Float pixels must lie in 0..1 or 0..255: got {values.min()}..{values.max()}. "
            "Convert the picture to 8 bits.",
            "broken",
        )
    scale = 255 if values.max() <= 1 else 1
    return Image.fromarray(np.rint(values * scale).astype(np.uint8)).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    """Converts CIE LAB to sRGB, which Pillow's `convert` does not know."""
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    if converted is None:
        raise ImageError("The picture's LAB colours cannot be converted to RGB.", "broken")
    return converted


def fit_square(image: Image.Image, size: int) -> Pixels:
    """Crops the middle square out of a picture and resizes it (Lanczos), up or down.

    Args:
        image: RGB, any size.
        size: side of the result in pixels, >= 1.

    Returns:
        (size, size, 3) uint8.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    # The gap averages very large pictures down before Lanczos; under 6:1 it changes nothing.
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.asarray(square)


def to_float(pixels: "Pixels | Tensor") -> "Tensor":
    """Turns pixels into an image.

    Args:
        pixels: (B, H, W, 3) uint8, numpy or tensor (its device is kept).

    Returns:
        (B, 3, H, W) float32 in [-1, 1]: 0 becomes -1, 255 becomes 1.

    Raises:
        ShapeError: another shape or another type of number.
    """
    import torch

    given = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels
    if given.ndim != 4 or given.shape[-1] != 3 or given.dtype != torch.uint8:
        raise ShapeError(
            f"Pixels must be (B, H, W, 3) uint8: `{tuple(given.shape)} {given.dtype}`. "
            "For one picture add a first axis: pixels[None]."
        )
    return given.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)


def to_uint8(image: "Tensor") -> Pixels:
    """Turns an image into pixels; the exact inverse of `to_float`.

    Args:
        image: (B, 3, H, W) float; clamped to [-1, 1].

    Returns:
        (B, H, W, 3) uint8.

    Raises:
        ShapeError: another shape.
        CheckpointError: the image holds values that are not numbers.
    """
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ShapeError(
            f"An image must be (B, 3, H, W) float: `{tuple(image.shape)} {image.dtype}`. "
            "For one picture add a first axis: image[None]."
        )
    values = image.detach().float().clamp(-1.0, 1.0)
    if bool(values.isnan().any()):
        raise CheckpointError(
            "The image holds values that are not numbers (NaN): the weights that made it are "
            "damaged or diverged in training. Use an earlier checkpoint or a lower learning rate."
        )
    scaled = values.add(1.0).mul(127.5).round().byte()
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


def save_png(path: Path, pixels: Pixels) -> None:
    """Writes one picture as PNG; folders on the way are made.

    Args:
        path: the file to write.
        pixels: (H, W, 3) uint8.

    Raises:
        ShapeError: another shape or another type of number.
        CheckpointError: the disk is full, or writing there is not allowed.
    """
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise ShapeError(
            f"A picture must be (H, W, 3) uint8: `{pixels.shape} {pixels.dtype}`. "
            "Several pictures go on one sheet with make_sheet."
        )
    with new_file(path, what="the picture") as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def encode_picture(
    pixels: Pixels, size: tuple[int, int] | None = None, kind: str = "png", quality: int = 100
) -> bytes:
    """Returns one picture as the contents of a file.

    Args:
        pixels: (H, W, 3) uint8.
        size: (width, height) that it is resized to; of another shape the middle is taken.
        kind: png, jpeg or webp.
        quality: of jpeg and webp, 0 to 100.
    """
    image = Image.fromarray(pixels)
    if size is not None and size != image.size:
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    # A PNG is as exact at any level; at 1 it is a quarter larger and twice as soon there as at 6.
    options = {"compress_level": 1} if kind == "png" else {"quality": quality}
    image.save(stream, format=kind.upper(), **options)
    return stream.getvalue()


def make_sheet(
    pixels: Pixels,
    columns: int,
    labels: Sequence[str] | None = None,
    scale: int = 1,
) -> Pixels:
    """Lays pictures out on one white sheet, row by row, with captions underneath if given.

    Args:
        pixels: (B, H, W, 3) uint8, B >= 1.
        columns: pictures in a row, >= 1; fewer pictures make a narrower sheet.
        labels: B captions; long ones are wrapped to the picture's width.
        scale: each pixel is drawn as scale x scale, without smoothing.

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
        raise ShapeError(f"A sheet needs one label a picture: `{len(labels)}` for {len(pixels)}.")
    large = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = large.shape
    columns = min(columns, count)
    gap = max(2, width // 32)
    texts = [] if labels is None else [_wrap(label, width) for label in labels]
    captions = [_draw_caption(text, width, gap) for text in texts]

    bands: list[Pixels] = [_white(gap, columns * (width + gap) + gap)]
    for start in range(0, count, columns):
        row = range(start, min(start + columns, count))
        below = max((captions[i].shape[0] for i in row), default=0) if captions else 0
        band = _white(height + below + gap, bands[0].shape[1])
        for place, i in enumerate(row):
            left = gap + place * (width + gap)
            band[:height, left : left + width] = large[i]
            if captions:
                text = captions[i]
                band[height : height + text.shape[0], left : left + width] = text
        bands.append(band)
    return np.concatenate(bands)


def _white(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 255, dtype=np.uint8)


_FONT_SIZE = 11


def _wrap(text: str, width: int) -> list[str]:
    """Breaks a caption into lines that fit the width; a word that is too long is cut."""
    font = ImageFont.load_default(_FONT_SIZE)
    lines: list[str] = [""]
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
    """Draws wrapped lines in black on white, centred."""
    font = ImageFont.load_default(_FONT_SIZE)
    pitch = _FONT_SIZE + 3
    caption = Image.new("RGB", (width, len(lines) * pitch + gap), _WHITE)
    draw = ImageDraw.Draw(caption)
    for number, line in enumerate(lines):
        position = (width / 2, gap / 2 + number * pitch)
        draw.text(position, line, fill=(0, 0, 0), font=font, anchor="ma")
    return np.asarray(caption)
