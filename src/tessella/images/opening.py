"""Opening: a file becomes a picture, upright and in sRGB, however it was stored.

    file ─ header ─▶ OpenedImage ─ decoder ─▶ picture

Limits hold for the pixels that are decoded. A JPEG's own decoder can decode it at 1/2, 1/4 or 1/8
of its size in a fraction of the time and memory, so that a phone's 48 megapixels are read where 16
are allowed.
"""

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile

from tessella.errors import DataError, first_line
from tessella.images.colors import find_alpha, to_rgb
from tessella.images.formats import ImageError, identify, no_warnings

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
_MAX_SCANNED_PIXELS = 16_777_216 * _MAX_SCANS
_SCAN = b"\xff\xda"

_REDUCTIONS = (1, 2, 4, 8)  # of a JPEG's sides
# A JPEG of several scans is held as coefficients, at full size, in up to 6 bytes a pixel: 600 MB.
_MAX_HELD_PIXELS = 100_000_000
_MAX_HELD_RATIO = 4  # to the limit
# Frames of a JPEG that is sequential and coded by Huffman (ITU T.81, table B.1), and of all others.
_SEQUENTIAL = {0xC0, 0xC1}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA


@dataclass(frozen=True)
class OpenedImage:
    """A picture of which only the header was read."""

    file: ImageFile.ImageFile
    size: tuple[int, int]  # (width, height) as stored
    reduction: int  # 1, 2, 4 or 8: how many times smaller each side is decoded

    @property
    def format(self) -> str:
        """The format's name, as Pillow has it."""
        return self.file.format or ""


def read_image(
    source: Path | bytes,
    *,
    max_pixels: int,
    setting: str | None = None,
    fit_size: int | None = None,
) -> Image.Image:
    """Reads one picture, upright and in RGB, however it was stored.

    Colours are converted to sRGB, transparent pixels are blended with white, an animation gives its
    first frame, 16-bit values are scaled to 8 bits, and the EXIF orientation is applied.

    Args:
        source: a file, or its contents.
        max_pixels: most pixels that are decoded. A larger JPEG is decoded smaller; of any other
            format it is refused before it is decoded.
        setting: the limit's name, for the message.
        fit_size: side in pixels of the square that it is for: a JPEG is then decoded as small as
            that allows, several times faster for large photos. None keeps all pixels.

    Raises:
        DataError: the file is missing, empty, broken, cut off, of an unknown format or too large.
    """
    with open_image(source, max_pixels=max_pixels, setting=setting, fit_size=fit_size) as opened:
        return decode_image(opened)


@contextlib.contextmanager
def open_image(
    source: Path | bytes,
    *,
    max_pixels: int,
    setting: str | None = None,
    fit_size: int | None = None,
) -> Iterator[OpenedImage]:
    """Opens a picture by its header, for `decode_image`, and closes it afterwards.

    Args:
        source: a file, or its contents.
        max_pixels: as for `read_image`.
        setting: as for `read_image`.
        fit_size: as for `read_image`.

    Raises:
        DataError: the file is missing, empty, of an unknown format or too large.
    """
    with _stream(source) as stream:
        file = identify(stream)
        reduction = _choose_reduction(file, stream, max_pixels, fit_size)
        if reduction is None:
            width, height = file.size
            advice = f", or raise {setting}" if setting else ""
            raise ImageError(
                f"The picture is too large: {width}x{height} = {width * height:,} pixels, at most "
                f"{max_pixels:,} are decoded. Make it smaller{advice}.",
                "too_large",
            )
        yield OpenedImage(file, file.size, reduction)


def _stream(source: Path | bytes) -> BinaryIO:
    """Opens a file, or contents as a file."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except (FileNotFoundError, ValueError):  # a zero or half a character is in no name
        raise ImageError(f"There is no such picture: `{source}`.", "missing") from None
    except OSError as error:
        raise ImageError(f"Cannot open the picture: `{source}`. {error.strerror}.") from None


def _choose_reduction(
    file: ImageFile.ImageFile, stream: BinaryIO, max_pixels: int, fit_size: int | None
) -> int | None:
    """Chooses how many times smaller a picture is decoded; None if it is too large all the same.

    Twice the side that is wanted leaves Lanczos enough to work with; only a picture that would be
    too large may have less.
    """
    width, height = file.size
    if not _is_jpeg(file):
        return 1 if width * height <= max_pixels else None
    most_held = max(max_pixels, min(_MAX_HELD_RATIO * max_pixels, _MAX_HELD_PIXELS))
    if width * height > most_held and not _has_one_scan(stream):
        return None
    fitting = [
        reduction
        for reduction in _REDUCTIONS
        if -(-width // reduction) * -(-height // reduction) <= max_pixels
        and (reduction == 1 or min(width, height) // reduction >= (fit_size or 1))
    ]
    if fit_size is None:
        return min(fitting, default=None)
    fine = [one for one in fitting if min(width, height) // one >= 2 * fit_size]
    return max(fine, default=min(fitting, default=None))


def _is_jpeg(file: Image.Image) -> bool:
    return file.format in ("JPEG", "MPO")


def _has_one_scan(stream: BinaryIO) -> bool:
    """Whether a JPEG is decoded as it is read: its first scan is the only one.

    If it is not known for sure, it counts as several.
    """
    position = stream.tell()
    try:
        stream.seek(2)
        num_components = 0
        while True:
            start = stream.read(4)
            if len(start) < 4 or start[0] != 0xFF:
                return False
            kind, length = start[1], int.from_bytes(start[2:], "big")
            content = stream.read(max(0, length - 2))
            if kind in _FRAMES:
                if kind not in _SEQUENTIAL or len(content) < 6:
                    return False
                num_components = content[5]
            elif kind == _START_OF_SCAN:
                return bool(content) and content[0] == num_components
    finally:
        stream.seek(position)


def decode_image(opened: OpenedImage) -> Image.Image:
    """Decodes a picture from `open_image` to upright RGB.

    Raises:
        DataError: the contents are broken or cut off.
    """
    file, reduction = opened.file, opened.reduction
    if reduction > 1:
        width, height = opened.size
        file.draft(None, (max(1, width // reduction), max(1, height // reduction)))
    try:
        file.load()
        image = to_rgb(file)
    except DataError:
        raise
    except Exception as error:
        # On damaged bytes decoders raise anything: OSError, ValueError, struct.error, zlib.error,
        # EOFError, SyntaxError, or MemoryError if the header is wrong.
        raise ImageError(f"The picture is broken or cut off: {first_line(error)}.") from error
    return _turn_upright(image, file)


def read_with_transparency(
    source: Path | bytes, *, max_pixels: int, setting: str | None = None
) -> tuple[Image.Image, Image.Image | None]:
    """Reads a picture that somebody sent, and how opaque it is.

    Args:
        source: a file, or its contents; a JPEG with so many scans that it takes minutes is refused.
        max_pixels: as for `read_image`.
        setting: as for `read_image`.

    Returns:
        The picture as from `read_image`, and its opacity as from `find_alpha`.

    Raises:
        DataError: as for `read_image`.
    """
    with _stream(source) as stream:
        content = stream.read()
    with open_image(content, max_pixels=max_pixels, setting=setting) as opened:
        if _is_jpeg(opened.file):
            most = min(_MAX_SCANS, _MAX_SCANNED_PIXELS // (opened.size[0] * opened.size[1]))
            if content.count(_SCAN) > most:
                raise ImageError(f"The picture has too many scans: at most {most:,} are read.")
        image = decode_image(opened)
        alpha = find_alpha(opened.file)
        return image, None if alpha is None else _turn_upright(alpha, opened.file)


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
        with no_warnings():
            return int(opened.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error):
        return 1
