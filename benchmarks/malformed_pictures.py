"""Pictures that are wrong, too large or odd: what `malformed_requests.py` uploads.

Nothing is measured here; run by itself, this file does nothing.
"""

import io
import random
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

# fmt: off
SIGNATURES = (
    b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBPVP8 ",
    b"II*\0", b"BM",
)
NO_PICTURES = (b"", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"PK\3\4", b"<html>")
# fmt: on


@cache
def good_picture(form: str, size: tuple[int, int] = (96, 96)) -> bytes:
    """Draws noise, which no format makes small."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return save(Image.fromarray(noise), form)


def black_mask() -> bytes:
    """Draws a mask that marks nothing."""
    return save(Image.new("L", (96, 96), 0), "PNG")


def save(image: Image.Image, form: str, **options: object) -> bytes:
    """Encodes a picture."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def draw_broken(rng: random.Random) -> bytes:
    """Cuts a good picture off, or makes up something that is none."""
    whole = good_picture(rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")))
    cut = whole[: int(len(whole) * rng.uniform(0.01, 0.6))]
    junk = rng.randbytes(rng.randrange(1, 3_000))
    zero = encode_png(*rng.choice(((0, 0), (0, 64), (64, 0))))
    lying = encode_png(64, 64, zlib.compress(bytes(100)), 16, 9)
    no_picture = rng.choice(NO_PICTURES)
    return rng.choice((cut, cut, cut, rng.choice(SIGNATURES) + junk, junk, no_picture, zero, lying))


@cache
def encode_png(width: int, height: int, data: bytes = b"", bits: int = 8, kind: int = 2) -> bytes:
    """Writes a PNG that says of itself what it likes, with these compressed contents."""

    def chunk(name: bytes, inner: bytes) -> bytes:
        return struct.pack(">I", len(inner)) + name + inner + struct.pack(">I", crc(name + inner))

    crc = zlib.crc32
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def bombs() -> tuple[bytes, ...]:
    """Makes small files that would decode to much."""
    bits = zlib.compress(bytes(30_000 * 3_751), 9)  # 30000 rows of 30000 bits, all black
    gif = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x4c\x01\x00;"
    jpeg = bytearray(good_picture("JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 65_000, 65_000)
    bmp = struct.pack("<IIIIiiHHII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0)
    return (
        encode_png(30_000, 30_000, bits, 1, 0),
        encode_png(30_000, 30_000, zlib.compress(b"")),
        encode_png(2**31 - 1, 2**31 - 1),
        encode_png(100_000, 10_000, zlib.compress(bytes(10_000_000), 9)),
        gif,
        bytes(jpeg),
        b"BM" + bmp + bytes(16),
    )


def draw_odd(rng: random.Random) -> bytes:
    """Draws a picture that is unusual but whole."""
    noise = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    kinds = (
        lambda: save(Image.new("RGB", (1, 100_000), "red"), "PNG"),
        lambda: save(image.convert("I;16"), "PNG"),
        lambda: save(image.convert("CMYK"), "JPEG"),
        lambda: save(image.quantize(16), "PNG", transparency=3),
        lambda: save(image, "WEBP", save_all=True, append_images=[image.rotate(90)]),
        lambda: save(image.convert("1"), "TIFF"),
        lambda: save(image.convert("LA"), "PNG"),
    )
    return rng.choice(kinds)()
