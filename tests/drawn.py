"""Pictures drawn for a test, as the contents of a file, and read back."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from tessella.images import read_image

LIMIT = 1_000_000


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def read(content: bytes | Path, **options: int) -> np.ndarray:
    return np.asarray(read_image(content, max_pixels=LIMIT, **options))


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 9, y * 14, (x + y) * 5], axis=-1).astype(np.uint8))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large and holds no pixels at all."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def display_p3_profile() -> bytes:
    """sRGB's curve with the primaries of Display P3, adapted to D50 (SMPTE EG 432-1)."""
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    profile = bytearray(srgb_profile())
    [count] = struct.unpack(">I", profile[128:132])
    for entry in range(132, 132 + 12 * count, 12):
        tag, offset, _ = struct.unpack(">4sII", profile[entry : entry + 12])
        if tag in primaries:
            numbers = [round(value * 65536) for value in primaries[tag]]
            profile[offset + 8 : offset + 20] = struct.pack(">3i", *numbers)
    return bytes(profile)


def make_profile(color_space: bytes, connection_space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """The least that is an ICC profile: a header (ICC.1:2001-04, 6.1) and its tags."""
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    white = b"XYZ \0\0\0\0" + d50
    tags = {b"wtpt": white, **tags}
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    size = start + len(content)
    kind = b"scnr" if color_space == b"GRAY" else b"prtr"
    header = struct.pack(
        ">I4sI4s4s4s", size, b"lcms", 0x02400000, kind, color_space, connection_space
    )
    header += bytes(12) + b"acsp" + bytes(28) + d50 + bytes(48)
    return header + table + content


def gray_profile(gamma: float) -> bytes:
    curve = struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256))
    return make_profile(b"GRAY", b"XYZ ", {b"kTRC": curve})


def black_ink_profile() -> bytes:
    """Of a printer whose black alone prints: CIE LAB by a table of 2^4 inks (lut8Type)."""
    same = bytes(range(256))
    matrix = struct.pack(">9i", *[65536 if i % 4 == 0 else 0 for i in range(9)])
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + same * 4
    table += bytes([255, 128, 128, 0, 128, 128]) * 2**3 + same * 3
    return make_profile(b"CMYK", b"Lab ", {b"A2B0": table})
