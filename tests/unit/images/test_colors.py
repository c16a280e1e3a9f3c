"""Every mode and colour profile becomes sRGB on white."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawn import (
    black_ink_profile,
    display_p3_profile,
    encoded,
    gray_profile,
    png_chunk,
    read,
    srgb_profile,
)
from tessella.errors import DataError
from tessella.images import ignores_profile, to_rgb
from tessella.images.colors import _read_profile


def test_alpha_is_laid_over_white_exactly() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 100, 200, 128)])
    # 0.5 of 255 is 127.5: alpha 128 leaves 127/255 of the white.
    expected = [[(10, 20, 30), (255, 255, 255), (127, 177, 227)]]
    assert read(encoded(image)).tolist() == [[list(p) for p in row] for row in expected]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 0), (255, 255, 255)),
        ("LA", (77, 255), (77, 77, 77)),
        ("La", (0, 0), (255, 255, 255)),
        ("La", (77, 255), (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (255, 255, 255)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBa", (9, 8, 7, 255), (9, 8, 7)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32768, (128, 128, 128)),
        ("I;16", 257, (1, 1, 1)),
        ("I", 65535, (255, 255, 255)),
        ("I", 128, (0, 0, 0)),
        ("I", 129, (1, 1, 1)),
        ("F", 1.0, (255, 255, 255)),
        ("F", 0.5, (128, 128, 128)),
        ("F", 200.0, (200, 200, 200)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, value: object, expected: tuple[int, ...]) -> None:
    image = to_rgb(Image.new(mode, (4, 3), value))
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= (2 if mode == "LAB" else 0)


def test_a_palette_with_transparency_shows_white_there() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert read(encoded(image)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    for transparency in (1, bytes([255, 0])):
        content = encoded(image, transparency=transparency)
        assert read(content).tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_a_transparent_colour_shows_white(mode: str) -> None:
    black = {"L": 0, "RGB": (0, 0, 0), "1": 0}[mode]
    content = encoded(Image.new(mode, (2, 2), black), transparency=black)
    assert read(content).min() == 255


def test_sixteen_bit_files_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 32768, 65535]], dtype=np.uint16)
    expected = [0, 0, 1, 128, 255]
    for kind in ("PNG", "TIFF"):
        assert read(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == expected
    graymap = b"P5 5 1 65535\n" + values.byteswap().tobytes()
    assert read(graymap)[0, :, 0].tolist() == expected


def test_a_transparent_sixteen_bit_gray_shows_white() -> None:
    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HH", 300, 600))
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    content += png_chunk(b"tRNS", struct.pack(">H", 300)) + png_chunk(b"IDAT", pixels)
    content += png_chunk(b"IEND", b"")
    assert read(content)[0, :, 0].tolist() == [255, 2]


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_without_a_known_white_are_refused(value: int) -> None:
    with pytest.raises(DataError, match=r"Integer pixels must lie in 0\.\.65535: got"):
        to_rgb(Image.new("I", (2, 2), value))


@pytest.mark.parametrize("value", [-0.5, 256.0, float("nan")])
def test_floats_without_a_known_white_are_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"Float pixels must lie in 0\.\.1 or 0\.\.255: got"):
        to_rgb(Image.new("F", (2, 2), value))


# --- colour profiles -----------------------------------------------------------------------


# Of a phone's photo the numbers are Display P3's: read as sRGB, all oranges were paler.
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 1),
        ("TIFF", {}, 1),
        ("WEBP", {"lossless": True}, 1),
        ("JPEG", {"quality": 95}, 3),
        ("AVIF", {"quality": 95}, 3),
    ],
)
def test_display_p3_becomes_srgb(kind: str, options: dict[str, object], tolerance: int) -> None:
    image = Image.new("RGB", (16, 16), (200, 120, 60))
    shown = read(encoded(image, kind, icc_profile=display_p3_profile(), **options))
    assert np.abs(shown.astype(int) - (213, 115, 42)).max() <= tolerance


def test_a_large_jpeg_that_is_decoded_smaller_keeps_its_colours() -> None:
    image = Image.new("RGB", (640, 640), (200, 120, 60))
    content = encoded(image, "JPEG", quality=95, icc_profile=display_p3_profile())
    shown = read(content, fit_size=40)
    assert shown.shape == (80, 80, 3)
    assert np.abs(shown.astype(int) - (213, 115, 42)).max() <= 3


def test_srgb_by_any_name_changes_nothing() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    assert np.array_equal(read(encoded(image, icc_profile=srgb_profile())), np.asarray(image))


def test_transparency_and_palettes_keep_theirs_beside_a_profile() -> None:
    profile = display_p3_profile()
    image = Image.new("RGBA", (2, 1), (200, 120, 60, 255))
    image.putpixel((1, 0), (200, 120, 60, 0))
    shown = read(encoded(image, icc_profile=profile)).astype(int)
    assert np.abs(shown - [[(213, 115, 42), (255, 255, 255)]]).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 120, 60, 0, 0, 0])
    shown = read(encoded(palette, icc_profile=profile)).astype(int)
    assert np.abs(shown - (213, 115, 42)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_gray_profile_is_followed(mode: str) -> None:
    """Gamma 1: half of the light, which sRGB writes as 188."""
    image = Image.new("LA" if mode == "LA" else "L", (4, 4), (128, 255) if mode == "LA" else 128)
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    shown = read(encoded(image, icc_profile=gray_profile(1.0)))
    assert np.abs(shown.astype(int) - 188).max() <= 1


def test_a_printers_profile_is_followed() -> None:
    """Its cyan prints nothing; without it cyan is cyan."""
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert read(encoded(image, "JPEG", icc_profile=black_ink_profile())).min() >= 250
    assert np.abs(read(encoded(image, "JPEG")).astype(int) - (0, 255, 255)).max() <= 4


@pytest.mark.parametrize("profile", [b"no profile", gray_profile(1.0), srgb_profile()[:200]])
def test_a_broken_profile_is_ignored_and_told(profile: bytes) -> None:
    image = Image.new("RGB", (4, 4), (200, 120, 60))
    content = encoded(image, icc_profile=profile)
    assert (read(content) == (200, 120, 60)).all()
    with Image.open(io.BytesIO(content)) as opened:
        assert ignores_profile(opened)


def test_only_a_broken_profile_is_told() -> None:
    image = Image.new("RGB", (4, 4))
    for profile in (None, srgb_profile(), display_p3_profile()):
        with Image.open(io.BytesIO(encoded(image, icc_profile=profile))) as opened:
            assert not ignores_profile(opened)
    assert _read_profile(bytes(8_000_001), "RGB").is_broken


def test_a_picture_is_not_converted_twice() -> None:
    """What Python callers open themselves has its profile too, and is asked for RGB anywhere."""
    image = Image.new("RGB", (4, 4), (200, 120, 60))
    with Image.open(io.BytesIO(encoded(image, icc_profile=display_p3_profile()))) as opened:
        once = to_rgb(opened)
        twice = to_rgb(to_rgb(opened.copy()).resize((2, 2)))
    assert np.abs(np.asarray(once).astype(int) - (213, 115, 42)).max() <= 1
    assert (np.asarray(twice) == np.asarray(once)[:2, :2]).all()


def marked(color_space: int, index: str) -> bytes:
    """A JPEG of one colour, whose EXIF alone says what its numbers mean."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = color_space
    exif.get_ifd(0x8769)[0xA005] = {1: index}
    stream = io.BytesIO()
    picture = Image.new("RGB", (16, 16), (200, 120, 60))
    picture.save(stream, "JPEG", exif=exif, quality=100, subsampling=0)
    return stream.getvalue()


# A camera set to Adobe RGB: 224, 121, 53 in sRGB, by the matrices and curves of both standards.
@pytest.mark.parametrize(
    ("color_space", "index", "expected"),
    [
        (65535, "R03", (224, 121, 53)),
        (65535, "R98", (200, 120, 60)),
        (1, "R03", (200, 120, 60)),
        (1, "R98", (200, 120, 60)),
    ],
)
def test_adobe_rgb_that_only_exif_names_is_followed(
    color_space: int, index: str, expected: tuple[int, int, int]
) -> None:
    content = marked(color_space, index)
    with Image.open(io.BytesIO(content)) as image:
        interop = image.getexif().get_ifd(0xA005)
        assert interop[1] == index
        assert not ignores_profile(image)
    assert np.abs(read(content)[8, 8].astype(int) - expected).max() <= 2
