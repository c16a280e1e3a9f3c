"""Formats: what a file is, told by its first bytes, never by its name.

Read are JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM, QOI and, with an extra, HEIC. What
else is found among pictures is called by its name, with the way to a format that is read.
"""

import contextlib
import importlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, BinaryIO, Literal

from PIL import Image, ImageFile

from tessella.errors import DataError, first_line, needs_extra

ImageProblem = Literal["empty", "broken", "too_large", "missing", "unsupported"]

# fmt: off
READ_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpc", ".ppm", ".pgm", ".pbm", ".pnm",
    ".qoi", ".heic", ".heif", ".hif", ".heics", ".heifs",
}
_UNREAD_SUFFIXES = {
    ".jxl", ".psd", ".psb", ".svg", ".svgz", ".eps", ".ico", ".icns", ".tga", ".exr", ".hdr",
    ".dds", ".xcf",
    # Of cameras.
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srw", ".x3f",
}
# fmt: on
IMAGE_SUFFIXES = frozenset(READ_SUFFIXES | _UNREAD_SUFFIXES)
"""Of files that look like pictures. Those that are not read count too, so that they are named."""

# The formats that Pillow reads, commonest first. Formats that run other programs (EPS), have no
# signature (TGA) or contain a second size (ICO) are deliberately left out.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")

_PREFIX_BYTES = 256
# ISO media files name what may read them: brands of four letters.
_AVIF_BRANDS = {b"avif", b"avis"}
# The container's own brands last: it may hold AVIF as well.
_HEIF_BRANDS = {
    *(b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"),
}
_RAW_BRANDS = {b"crx "}

_DEVELOP = "Develop it to JPEG or TIFF first"
_CONVERT = "Convert it to PNG or JPEG first"
_RAW = "a camera's raw file"
# Where the bytes are, the bytes, what the file is, the way out.
_UNREAD = (
    (0, b"\xff\x0a", "JPEG XL", f"{_CONVERT}: djxl FILE FILE.png"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", f"{_CONVERT}: djxl FILE FILE.png"),
    (8, b"CR\x02\0", _RAW, _DEVELOP),
    (0, b"IIU\0", _RAW, _DEVELOP),
    (0, b"IIRO", _RAW, _DEVELOP),
    (0, b"IIRS", _RAW, _DEVELOP),
    (0, b"MMOR", _RAW, _DEVELOP),
    (0, b"FUJIFILMCCD-RAW", _RAW, _DEVELOP),
    (0, b"\0MRM", _RAW, _DEVELOP),
    (0, b"FOVb", _RAW, _DEVELOP),
    (0, b"8BPS", "a Photoshop file", _CONVERT),
    (0, b"gimp xcf", "a GIMP file", _CONVERT),
    (0, b"%PDF", "a PDF", _CONVERT),
    (0, b"%!PS", "PostScript", _CONVERT),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript", _CONVERT),
    (0, b"\0\0\1\0", "an icon (ICO)", _CONVERT),
    (0, b"icns", "an icon (ICNS)", _CONVERT),
    (0, b"v/1\x01", "OpenEXR", _CONVERT),
    (0, b"#?RADIANCE", "Radiance HDR", _CONVERT),
    (0, b"DDS ", "DDS", _CONVERT),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "Fetch the file itself: git lfs pull"),
)
# TIFF: the tag that makes it a DNG, and the two by which its first picture is only a thumbnail.
_DNG_VERSION, _SUBFILE_TYPE, _SUBFILES = 50706, 254, 330

_WARNINGS_LOCK = threading.Lock()


class ImageError(DataError):
    """A picture cannot be read because it is empty, broken, too large, missing or unsupported."""

    def __init__(self, message: str, kind: ImageProblem = "broken"):
        """Stores the message and the kind."""
        super().__init__(message)
        self.kind = kind


def identify(stream: BinaryIO) -> ImageFile.ImageFile:
    """Finds a file's format and reads its header.

    Unlike `Image.open`, it ignores Pillow's process-wide limit on sizes and its warnings.

    Raises:
        ImageError: the file is empty, its header is broken, or it has another format.
    """
    prefix = stream.read(_PREFIX_BYTES)
    if not prefix:
        raise ImageError("The file is empty.", "empty")
    factory = _find_reader(prefix)
    stream.seek(0)
    try:
        with no_warnings():
            opened: ImageFile.ImageFile = factory(stream, "")
            is_raw = opened.format == "TIFF" and _is_raw(opened)
    except DataError:
        raise
    except Exception as error:
        raise ImageError(f"The picture's header is broken: {first_line(error)}.") from error
    if is_raw:
        raise _refuse(_RAW, _DEVELOP)
    return opened


def _find_reader(prefix: bytes) -> Callable[[BinaryIO, str], Any]:
    """Returns what reads a file that begins with these bytes."""
    for offset, signature, name, way_out in _UNREAD:
        if prefix[offset:].startswith(signature):
            raise _refuse(name, way_out)
    readers = _load_readers()
    brands = _read_brands(prefix)
    if brands & _AVIF_BRANDS:
        if "AVIF" not in readers:
            raise _refuse("AVIF", "Update Pillow to 11.3 or newer: pip install -U pillow")
        return readers["AVIF"][0]
    if brands & _HEIF_BRANDS:
        return _open_heif
    if brands & _RAW_BRANDS:
        raise _refuse(_RAW, _DEVELOP)
    if brands:
        raise _refuse("a video", "Save a picture of it first")
    for factory, accept in readers.values():
        if accept is not None and accept(prefix[:16]):
            return factory
    text = prefix.lower()
    if b"<svg" in text:
        raise _refuse("SVG", _CONVERT)
    if b"<html" in text or b"<!doctype html" in text:
        raise _refuse("a web page", "Its download has failed; load the picture itself")
    raise ImageError(f"Not a picture of a known format; known are: {', '.join(_FORMATS)}, HEIC.")


def _refuse(name: str, way_out: str) -> ImageError:
    return ImageError(f"This is {name}, which is not read. {way_out}.", "unsupported")


@cache
def _load_readers() -> dict[str, tuple[Callable[..., Any], Callable[[bytes], Any] | None]]:
    """Loads Pillow's readers of the known formats once, by name; it may lack AVIF."""
    Image.preinit()
    for name in ("Tiff", "WebP", "Avif", "Jpeg2K", "Qoi"):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(f"PIL.{name}ImagePlugin")
            if name == "Avif" and not module.SUPPORTED:
                Image.OPEN.pop("AVIF", None)
    return {name: Image.OPEN[name] for name in _FORMATS if name in Image.OPEN}


def _read_brands(prefix: bytes) -> set[bytes]:
    """Reads the brands of an ISO media file; none if it is not one."""
    if prefix[4:8] != b"ftyp":
        return set()
    box = prefix[8 : int.from_bytes(prefix[:4], "big")]
    # After the major brand comes its version.
    return {box[start : start + 4] for start in (0, *range(8, len(box) - 3, 4))}


def _open_heif(stream: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Opens HEIC with the package that reads it."""
    with needs_extra("heic", "HEIC", _Unsupported):
        from pillow_heif import HeifImageFile
    # It reads the whole file at once, and from bytes even after the stream is closed.
    opened: ImageFile.ImageFile = HeifImageFile(io.BytesIO(stream.read()), name)
    return opened


class _Unsupported(ImageError):
    """A format that an extra reads."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message} Or convert the pictures to JPEG.", "unsupported")


def _is_raw(opened: ImageFile.ImageFile) -> bool:
    """Whether a TIFF is a camera's raw file: Pillow would read the thumbnail as the picture."""
    tags: Any = getattr(opened, "tag_v2", {})
    is_thumbnail = bool(tags.get(_SUBFILE_TYPE, 0) & 1) and _SUBFILES in tags
    return _DNG_VERSION in tags or is_thumbnail


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Silences Pillow's warnings about odd metadata.

    The lock is needed because all threads share Python's list of warning filters.
    """
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
