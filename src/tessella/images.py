"""Pictures: the only module that converts between files, pixels and tensors.

On the data's way: at both ends. Files become pixels for the cache; tensors become pictures again.
Three forms:

    file      JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM, QOI
    pixels    (B, H, W, 3) uint8 numpy, RGB
    image     (B, 3, H, W) float tensor in [-1, 1], RGB

Only the function that needs torch imports it, so that reading pictures starts quickly.
"""

import contextlib
import importlib
import io
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, PngImagePlugin

from tessella.errors import CheckpointError, DataError, ShapeError, first_line
from tessella.files import new_file

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]
ImageProblem = Literal["empty", "broken", "too_large", "missing"]

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpc", ".ppm", ".pgm", ".pbm", ".pnm",
    ".qoi",
})
# fmt: on

# The formats that are read, commonest first. Formats that run other programs (EPS), have no
# signature (TGA) or contain a second size (ICO) are deliberately left out.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")

# EXIF's orientations 2..8 (EXIF 2.32, tag 0x0112), as the operation that turns a picture upright.
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

# In an uploaded JPEG. Each scan visits all pixels and may take only ten bytes of the file. Cameras
# and optimisers write a dozen at most; random bytes after the end look like one in 65,536.
_MAX_SCANS = 1000
_SCAN = b"\xff\xda"

_WARNINGS_LOCK = threading.Lock()


class ImageError(DataError):
    """A picture cannot be read because it is empty, broken, too large or missing."""

    def __init__(self, message: str, kind: ImageProblem = "broken"):
        """Stores the message and the kind."""
        super().__init__(message)
        self.kind = kind


def read_image(
    source: Path | bytes, *, max_pixels: int, at_least: int | None = None
) -> Image.Image:
    """Reads one picture, upright and in RGB, however it was stored.

    Transparent pixels are blended with white, an animation gives its first frame, 16-bit values
    are scaled to 8 bits, and the EXIF orientation is applied.

    Args:
        source: a file, or its contents.
        max_pixels: a picture with more is refused before it is decoded.
        at_least: if not None, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as
            both sides keep this many pixels: several times faster for large photos.

    Raises:
        DataError: the file is missing, empty, broken, cut off, of an unknown format or too large.
    """
    with open_image(source, max_pixels=max_pixels) as opened:
        return decode_image(opened, at_least=at_least)


@contextlib.contextmanager
def open_image(source: Path | bytes, *, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """Opens a picture by its header, for `decode_image`, and closes it afterwards.

    Args:
        source: a file, or its contents.
        max_pixels: a picture with more is refused.

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
    """Opens a file, or contents as a file."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except FileNotFoundError:
        raise ImageError(f"There is no such picture: `{source}`.", "missing") from None
    except OSError as error:
        raise ImageError(f"Cannot open the picture: `{source}`. {error.strerror}.") from None


def decode_image(opened: ImageFile.ImageFile, *, at_least: int | None = None) -> Image.Image:
    """Decodes a picture from `open_image` to upright RGB.

    Args:
        opened: from `open_image`.
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
        # On damaged bytes decoders raise anything: OSError, ValueError, struct.error, zlib.error,
        # EOFError, SyntaxError, or MemoryError if the header is wrong.
        raise ImageError(f"The picture is broken or cut off: {first_line(error)}.") from error
    return _turn_upright(image, opened)


def read_with_transparency(
    source: Path | bytes, *, max_pixels: int
) -> tuple[Image.Image, Image.Image | None]:
    """Reads a picture that somebody sent, and how opaque it is.

    Args:
        source: a file, or its contents; a JPEG with so many scans that it takes minutes is refused.
        max_pixels: as for `read_image`.

    Returns:
        The picture as from `read_image`, and its opacity as from `find_alpha`.

    Raises:
        DataError: as for `read_image`.
    """
    with _stream(source) as stream:
        content = stream.read()
    with open_image(content, max_pixels=max_pixels) as opened:
        if opened.format in ("JPEG", "MPO") and content.count(_SCAN) > _MAX_SCANS:
            raise ImageError(f"The picture has too many scans: at most {_MAX_SCANS:,} are read.")
        image = decode_image(opened)
        alpha = find_alpha(opened)
        return image, None if alpha is None else _turn_upright(alpha, opened)


def find_alpha(image: Image.Image) -> Image.Image | None:
    """Returns how opaque a picture is (mode L), 255 wholly; None: it has no transparency."""
    if not {"A", "a"} & set(image.getbands()) and "transparency" not in image.info:
        return None
    premultiplied = image.mode == "La"
    return (image.convert("LA") if premultiplied else image).convert("RGBA").getchannel("A")


def _identify(stream: BinaryIO) -> ImageFile.ImageFile:
    """Finds the format by the first bytes and reads the header.

    Unlike `Image.open`, it ignores Pillow's process-wide limit on sizes and its warnings.
    """
    prefix = stream.read(16)
    if not prefix:
        raise ImageError("The file is empty.", "empty")
    for factory, accept in _readers():
        if accept is None or not accept(prefix):
            continue
        stream.seek(0)
        try:
            with _no_warnings():
                opened: ImageFile.ImageFile = factory(stream, "")
        except Exception as error:
            raise ImageError(f"The picture's header is broken: {first_line(error)}.") from error
        return opened
    raise ImageError(f"Not a picture of a known format; known are: {', '.join(_FORMATS)}.")


@cache
def _readers() -> list[tuple[Callable[..., Any], Callable[[bytes], Any] | None]]:
    """Loads Pillow's readers of the known formats once; older versions may lack AVIF."""
    Image.preinit()
    for name in ("Tiff", "WebP", "Avif", "Jpeg2K", "Qoi"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{name}ImagePlugin")
    return [Image.OPEN[name] for name in _FORMATS if name in Image.OPEN]


def _turn_upright(image: Image.Image, opened: ImageFile.ImageFile) -> Image.Image:
    """Applies the EXIF orientation of a loaded file.

    It must be loaded because Pillow turns a TIFF itself, and PNG may have EXIF after the pixels.
    """
    turn = _UPRIGHT.get(_read_orientation(opened))
    return image if turn is None else image.transpose(turn)


def _read_orientation(opened: Image.Image) -> int:
    """Reads the EXIF orientation; damaged EXIF is ignored, since the pixels are still right."""
    if "exif" not in opened.info and opened.format not in ("PNG", "TIFF", "MPO"):
        return 1
    try:
        with _no_warnings():
            return int(opened.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error):
        return 1


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silences Pillow's warnings about odd metadata.

    The lock is needed because all threads share Python's list of warning filters.
    """
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow mode to RGB; transparent pixels are blended with white.

    16-bit integers are scaled to 8 bits. Floats mean 0..1 if none is above 1, else 0..255.

    Args:
        image: of any mode.

    Raises:
        DataError: integers or floats outside these ranges: it is not known which value is white.
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
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


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
    return Image.fromarray(gray).convert("RGB")


def _from_floats(image: Image.Image) -> Image.Image:
    """Scales float gray, 0..1 or 0..255, to 8 bits."""
    values = np.asarray(image)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise ImageError(
            f"Float pixels must lie in 0..1 or 0..255: got {values.min()}..{values.max()}. "
            "Convert the picture to 8 bits."
        )
    scale = 255 if values.max() <= 1 else 1
    return Image.fromarray(np.rint(values * scale).astype(np.uint8)).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    """Converts CIE LAB to sRGB, which Pillow's `convert` cannot do."""
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB").apply(image)


def fit_square(image: Image.Image, size: int) -> Pixels:
    """Crops a picture to its middle square and resizes it (Lanczos), up or down.

    Args:
        image: RGB, any size.
        size: side of the result in pixels, >= 1.

    Returns:
        (size, size, 3) uint8.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    # Very large pictures are averaged down before Lanczos; below 6:1 this changes nothing.
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.asarray(square)


def to_float(pixels: "Pixels | Tensor") -> "Tensor":
    """Turns pixels into an image.

    Args:
        pixels: (B, H, W, 3) uint8; numpy, or a tensor on any device.

    Returns:
        (B, 3, H, W) float32 in [-1, 1] on the same device: 0 becomes -1, 255 becomes 1.

    Raises:
        ShapeError: another shape or another type of number.
    """
    import torch

    tensor = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels
    if tensor.ndim != 4 or tensor.shape[-1] != 3 or tensor.dtype != torch.uint8:
        raise ShapeError(
            f"Pixels must be (B, H, W, 3) uint8: `{tuple(tensor.shape)} {tensor.dtype}`. "
            "For one picture add a first axis: pixels[None]."
        )
    return tensor.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)


def to_uint8(image: "Tensor") -> Pixels:
    """Turns an image into pixels; the exact inverse of `to_float`.

    Args:
        image: (B, 3, H, W) float; clamped to [-1, 1].

    Returns:
        (B, H, W, 3) uint8.

    Raises:
        ShapeError: another shape.
        CheckpointError: some values are NaN.
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
            texts = opened.info if opened.format == "PNG" else {}
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
