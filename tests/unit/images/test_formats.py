"""What a file is: told by its bytes, and called by its name where it is not read."""

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, TiffImagePlugin

from drawn import display_p3_profile, encoded, gradient, read
from tessella.images import IMAGE_SUFFIXES, ImageError, formats


def heic(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=95, **options)
    return stream.getvalue()


def refuse(content: bytes | Path) -> str:
    with pytest.raises(ImageError) as caught:
        read(content)
    assert caught.value.kind == "unsupported"
    return str(caught.value)


# --- HEIC ----------------------------------------------------------------------------------


def test_heic_is_read(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 48), (200, 120, 60))
    path = tmp_path / "photo.jpg"  # as some phones name it
    path.write_bytes(heic(image))
    for source in (path, path.read_bytes()):
        shown = read(source)
        assert shown.shape == (48, 64, 3)
        assert np.abs(shown.astype(int) - (200, 120, 60)).max() <= 4


def test_heic_of_a_phone_is_turned_and_converted() -> None:
    image = Image.new("RGB", (64, 32), (200, 120, 60))
    image.paste((0, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the first column is the top
    image.info["icc_profile"] = display_p3_profile()
    shown = read(heic(image, exif=exif.tobytes()))
    assert shown.shape == (64, 32, 3)
    assert shown[:28].max() < 20
    assert np.abs(shown[40:].astype(int) - (213, 115, 42)).max() <= 5


def test_heic_holds_to_the_limit() -> None:
    with pytest.raises(ImageError, match=r"1200x1000 = 1,200,000 pixels, at most 1,000,000"):
        read(heic(Image.new("RGB", (1200, 1000))))


def test_damaged_heic_is_broken() -> None:
    content = heic(gradient(64, 64))
    for part in (0.5, 0.9):
        with pytest.raises(ImageError, match="broken") as caught:
            read(content[: int(part * len(content))])
        assert caught.value.kind == "broken"


def test_without_the_extra_heic_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    content = heic(gradient())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = refuse(content)
    assert message.startswith("HEIC needs the package `pillow_heif`")
    assert message.endswith(
        "Install it with pip install 'tessella[heic]'. Or convert the pictures to JPEG."
    )


# Both may begin with the container's brand: Pillow took such HEIC for AVIF, and found it broken.
def test_the_brands_decide_between_avif_and_heic() -> None:
    flat = Image.new("RGB", (32, 32), (200, 100, 50))
    for content in (heic(flat), encoded(flat, "AVIF")):
        shown = read(content[:8] + b"mif1" + content[12:])
        assert np.abs(shown.astype(int) - (200, 100, 50)).max() <= 6


def test_without_avif_in_pillow_it_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(gradient(), "AVIF")
    readers = {name: one for name, one in formats._load_readers().items() if name != "AVIF"}
    monkeypatch.setattr(formats, "_load_readers", lambda: readers)
    assert refuse(content) == (
        "This is AVIF, which is not read. Update Pillow to 11.3 or newer: pip install -U pillow."
    )


# --- what is not read ----------------------------------------------------------------------


def media(major: bytes, *compatible: bytes) -> bytes:
    brands = b"".join(compatible)
    return struct.pack(">I4s4sI", 16 + len(brands), b"ftyp", major, 0) + brands + bytes(64)


@pytest.mark.parametrize(
    ("content", "name", "way_out"),
    [
        (b"\xff\x0a" + bytes(20), "JPEG XL", "djxl FILE FILE.png"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL", "djxl FILE FILE.png"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(99), "a camera's raw file", "Develop it to JPEG or"),
        (b"IIU\0\x18\0\0\0" + bytes(99), "a camera's raw file", "Develop it to JPEG or TIFF"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(99), "a camera's raw file", "Develop it to JPEG or TIFF"),
        (media(b"crx ", b"isom"), "a camera's raw file", "Develop it to JPEG or TIFF first"),
        (media(b"qt  "), "a video", "Save a picture of it first"),
        (media(b"isom", b"mp41"), "a video", "Save a picture of it first"),
        (b"8BPS\0\x01" + bytes(20), "a Photoshop file", "Convert it to PNG or JPEG first"),
        (b"%PDF-1.7", "a PDF", "Convert it to PNG or JPEG first"),
        (b"%!PS-Adobe-3.0 EPSF", "PostScript", "Convert it to PNG or JPEG first"),
        (b"\0\0\1\0\1\0", "an icon (ICO)", "Convert it to PNG or JPEG first"),
        (b"v/1\x01" + bytes(9), "OpenEXR", "Convert it to PNG or JPEG first"),
        (b'<?xml version="1.0"?>\n<svg width="1">', "SVG", "Convert it to PNG or JPEG first"),
        (b"\n<!DOCTYPE html><html>", "a web page", "Its download has failed"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(content: bytes, name: str, way_out: str) -> None:
    message = refuse(content)
    assert message.startswith(f"This is {name}, which is not read. ")
    assert way_out in message and message.endswith(".")


# A raw file is often a TIFF whose first picture is a thumbnail, which was read as the picture.
@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1, 330: 8}])
def test_a_raw_file_is_not_its_thumbnail(tags: dict[int, object]) -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    content = encoded(gradient(), "TIFF", tiffinfo=directory)
    assert "a camera's raw file" in refuse(content)
    assert read(encoded(gradient(), "TIFF")).shape == (16, 24, 3)


@pytest.mark.parametrize("content", [b"not a picture at all", b"RIFF\0\0\0\0WAVE", b"\0" * 40])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match="Not a picture of a known format; known are: JPEG, PNG"):
        read(content)


def test_what_looks_like_a_picture_counts_as_one() -> None:
    """So that it is named where it is not read; texts, tables and videos do not."""
    assert {".heic", ".jxl", ".nef", ".dng", ".psd", ".svg", ".jpg"} <= IMAGE_SUFFIXES
    assert not {".txt", ".json", ".csv", ".mp4", ".xmp", ".npz", ".tar", ""} & IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in IMAGE_SUFFIXES)
