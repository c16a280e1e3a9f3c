"""Pictures in: every way a file can be wrong, every limit, exact pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drawn import LIMIT, encoded, gradient, png_header, read
from tessella.errors import DataError
from tessella.images import (
    ImageError,
    find_alpha,
    fit_square,
    opening,
    read_image,
    read_with_transparency,
)
from tessella.images.opening import _has_one_scan

# --- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_lossless_formats_come_back_exactly(kind: str, tmp_path: Path) -> None:
    image = gradient()
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "ünï 🎨.bin"
    path.write_bytes(encoded(image, kind, **options))
    assert np.array_equal(read(path), np.asarray(image))
    assert np.array_equal(read(path.read_bytes()), np.asarray(image))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "JPEG2000", "GIF"])
def test_lossy_formats_come_back_nearly(kind: str) -> None:
    flat = Image.new("RGB", (32, 32), (200, 100, 50))
    assert np.abs(read(encoded(flat, kind)).astype(int) - (200, 100, 50)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    # By the standard: which corner of the shown picture the stored row 0, column 0 is.
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = (255, 0, 0)
    corner = {
        1: (0, 0),
        2: (0, 1),
        3: (1, 1),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (1, 1),
        8: (1, 0),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    shown = read(encoded(Image.fromarray(stored), kind, exif=exif, **options))
    assert shown.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    bottom, right = corner[orientation]
    red = shown[-4 if bottom else 3, -4 if right else 3]
    assert red[0] > 200 and red[1] < 60
    assert (shown[..., 0] > 128).sum() == pytest.approx(128, abs=24)


def test_damaged_exif_does_not_cost_the_picture() -> None:
    content = encoded(gradient(), "PNG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff")
    assert np.array_equal(read(content), np.asarray(gradient()))


def test_cmyk_jpeg() -> None:
    red = read(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (read(content) == (255, 0, 0)).all()


def test_a_large_jpeg_is_decoded_smaller_only_if_asked() -> None:
    content = encoded(gradient(20, 12).resize((800, 640)), "JPEG")
    assert read(content).shape == (640, 800, 3)
    small = read(content, fit_size=64)
    assert small.shape == (160, 200, 3)
    assert read(content, fit_size=300).shape == (640, 800, 3)
    exact = np.asarray(read_image(content, max_pixels=LIMIT).resize((200, 160)))
    assert np.abs(small.astype(int) - exact).mean() < 2


# --- what cannot be read -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    for part in (0.05, 0.5, 0.9):
        with pytest.raises(DataError, match="broken") as caught:
            read(content[: int(part * len(content))])
        assert caught.value.kind == "broken"


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    """Ten bytes a scan, and each goes over all pixels."""
    image = gradient()
    content = encoded(image, "JPEG", progressive=True)
    begin = content.rindex(b"\xff\xda")
    scan = content[begin:-2]
    many = content[:begin] + scan * 1100 + content[-2:]
    for format_ in (content, content[:begin] + scan * 100 + content[-2:]):
        seen, _ = read_with_transparency(format_, max_pixels=LIMIT)
        assert seen.size == image.size
    with pytest.raises(DataError, match="too many scans: at most 1,000 are read"):
        read_with_transparency(many, max_pixels=LIMIT)


def test_the_larger_a_jpeg_the_fewer_scans_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_MAX_SCANNED_PIXELS", 24 * 16 * 5)
    content = encoded(gradient(), "JPEG", progressive=True)
    with pytest.raises(DataError, match="too many scans: at most 5 are read"):
        read_with_transparency(content, max_pixels=LIMIT)
    seen, _ = read_with_transparency(encoded(gradient(), "JPEG"), max_pixels=LIMIT)
    assert seen.size == (24, 16)


def test_a_broken_file_says_so() -> None:
    content = bytearray(encoded(gradient()))
    content[60:80] = bytes(20)
    with pytest.raises(DataError, match=r"The picture is broken or cut off: .+\."):
        read(bytes(content))


def test_a_broken_header_says_so() -> None:
    with pytest.raises(DataError, match="The picture's header is broken"):
        read(b"\x89PNG\r\n\x1a\n" + bytes(40))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for source in (tmp_path / "empty.png", b""):
        with pytest.raises(ImageError, match=r"The file is empty\.") as caught:
            read(source)
        assert caught.value.kind == "empty"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"There is no such picture: `.*nowhere\.png`") as caught:
        read(tmp_path / "nowhere.png")
    assert caught.value.kind == "missing"


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot open the picture: .*directory"):
        read(tmp_path)


# Pillow has a limit of its own for the whole process, and warns or raises on passing it: ours
# must hold above and below Pillow's, without a warning (warnings are errors here).
@pytest.mark.parametrize("side", [1_001, 10_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(ImageError) as caught:
        read(png_header(side, side), setting="data.max_image_pixels")
    assert caught.value.kind == "too_large"
    assert str(caught.value) == (
        f"The picture is too large: {side}x{side} = {side**2:,} pixels, at most 1,000,000 are "
        "decoded. Make it smaller, or raise data.max_image_pixels."
    )
    with pytest.raises(ImageError, match=r"are decoded\. Make it smaller\.$"):
        read(png_header(side, side))


# 24 and 48 megapixels of a phone were refused where 16 are allowed.
@pytest.mark.parametrize(("side", "decoded"), [(100, 100), (101, 51), (201, 51), (800, 100)])
def test_a_jpeg_above_the_limit_is_decoded_smaller(side: int, decoded: int) -> None:
    content = encoded(Image.new("L", (side, side), 90), "JPEG")
    shown = np.asarray(read_image(content, max_pixels=10_000))
    assert shown.shape == (decoded, decoded, 3)
    assert np.abs(shown.astype(int) - 90).max() <= 1


def test_a_jpeg_that_is_too_large_at_an_eighth_is_refused() -> None:
    content = encoded(Image.new("L", (808, 800)), "JPEG")
    with pytest.raises(ImageError, match=r"808x800 = 646,400 pixels, at most 10,000 are decoded"):
        read_image(content, max_pixels=10_000)


def test_a_jpeg_is_not_decoded_smaller_than_it_is_needed() -> None:
    content = encoded(gradient().resize((1200, 1000)), "JPEG")
    # Twice the side where that is allowed; less if it would be too large; never less than once.
    assert read(content, fit_size=100).shape[:2] == (250, 300)
    assert read(content, fit_size=400).shape[:2] == (500, 600)
    assert read(content, fit_size=500).shape[:2] == (500, 600)
    with pytest.raises(ImageError, match="too large"):
        read(content, fit_size=501)


@pytest.mark.parametrize(("width", "is_read"), [(198, True), (206, False)])
def test_a_jpeg_of_several_scans_is_held_whole_and_may_be_less_large(
    width: int, is_read: bool
) -> None:
    image = Image.new("RGB", (width, 200))
    assert read_image(encoded(image, "JPEG"), max_pixels=10_000).size[0] < 100
    content = encoded(image, "JPEG", progressive=True)
    if is_read:
        assert read_image(content, max_pixels=10_000).size == (99, 100)
    else:
        with pytest.raises(ImageError, match="at most 10,000 are decoded"):
            read_image(content, max_pixels=10_000)


def test_a_jpeg_says_itself_whether_it_has_one_scan() -> None:
    """Components one after the other are held too, without being progressive."""
    content = encoded(gradient(), "JPEG")
    assert _has_one_scan(io.BytesIO(content))
    scan = content.index(b"\xff\xda")
    apart = content[:scan] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + content[scan + 14 :]
    assert not _has_one_scan(io.BytesIO(apart))
    for damaged in (content[:scan], content[:30], b"\xff\xd8" + b"junk" * 9):
        assert not _has_one_scan(io.BytesIO(damaged))


def test_pillows_own_limit_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert np.array_equal(read(encoded(gradient())), np.asarray(gradient()))
    assert fit_square(read_image(encoded(gradient()), max_pixels=LIMIT), 8).shape == (8, 8, 3)


@given(st.binary(max_size=200), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_any_damage_is_a_data_error_or_a_picture(noise: bytes, place: int) -> None:
    content = bytearray(encoded(gradient(), "GIF"))
    content[place : place + len(noise)] = noise
    try:
        assert read(bytes(content)).shape[2] == 3
    except DataError as error:
        assert str(error).endswith(".")


# --- transparency --------------------------------------------------------------------------

HIDDEN = np.zeros((16, 24), dtype=bool)
HIDDEN[2:5, 7:20] = True


def see(content: bytes | Path) -> "np.ndarray | None":
    """How opaque a file is."""
    alpha = read_with_transparency(content, max_pixels=LIMIT)[1]
    return None if alpha is None else np.asarray(alpha)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_where_nothing_shows(kind: str) -> None:
    image = gradient().convert("RGBA")
    image.putalpha(Image.fromarray(np.where(HIDDEN, 0, 255).astype(np.uint8)))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    content = encoded(image, kind, **options)
    seen, alpha = read_with_transparency(content, max_pixels=LIMIT)
    assert np.array_equal(np.asarray(alpha) == 0, HIDDEN)
    assert np.array_equal(np.asarray(seen), read(content))


def test_how_opaque_a_picture_is(tmp_path: Path) -> None:
    opacity = np.where(HIDDEN, 1, 254).astype(np.uint8)
    image = gradient().convert("RGBA")
    image.putalpha(Image.fromarray(opacity))
    assert np.array_equal(see(encoded(image)), opacity)
    (tmp_path / "a.png").write_bytes(encoded(image))
    assert np.array_equal(see(tmp_path / "a.png"), opacity)
    assert (see(encoded(gradient().convert("RGBA"))) == 255).all()
    for kind in ("PNG", "JPEG", "BMP"):
        assert see(encoded(gradient(), kind)) is None


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_every_mode_with_alpha_says_how_opaque_it_is(mode: str) -> None:
    image = gradient().convert("RGBA")
    image.putalpha(Image.fromarray(np.where(HIDDEN, 0, 255).astype(np.uint8)))
    image = image.convert("LA") if mode in ("LA", "La") else image
    alpha = find_alpha(image if image.mode == mode else image.convert(mode))
    assert np.array_equal(np.asarray(alpha) == 0, HIDDEN)
    assert find_alpha(gradient()) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "I;16", "RGB"])
def test_every_way_to_say_that_nothing_shows(mode: str) -> None:
    gray = np.where(HIDDEN, 0, 200).astype(np.uint8)
    image: Image.Image
    options: dict[str, object] = {}
    if mode == "LA":
        image = Image.merge("LA", (Image.fromarray(gray), Image.fromarray(gray)))
    elif mode == "PA":
        image = Image.fromarray(gray).convert("RGBA")
        image.putalpha(Image.fromarray(gray))
        image = image.quantize()
    elif mode == "I;16":
        image, options = Image.fromarray(gray.astype(np.uint16)), {"transparency": 0}
    elif mode == "1":
        image, options = Image.fromarray(gray > 0), {"transparency": 0}
    else:
        image = Image.fromarray(gray).convert(mode)
        options = {"transparency": (0, 0, 0) if mode == "RGB" else image.getpixel((7, 2))}
    alpha = see(encoded(image, **options))
    assert alpha is not None
    assert np.array_equal(alpha == 0, HIDDEN)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_is_hidden_turns_with_the_picture(orientation: int) -> None:
    image = gradient().convert("RGBA")
    image.putalpha(Image.fromarray(np.where(HIDDEN, 0, 255).astype(np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen, alpha = read_with_transparency(encoded(image, exif=exif), max_pixels=LIMIT)
    hidden = np.asarray(alpha) == 0
    # White shows through where nothing does.
    assert (np.asarray(seen)[hidden] == 255).all()
    assert hidden.shape == np.asarray(seen).shape[:2]
    assert hidden.sum() == HIDDEN.sum()


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "empty"), (b"no picture", "broken"), (png_header(30_000, 30_000), "too_large")],
)
def test_unreadable_pictures_hide_nothing(content: bytes, kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_with_transparency(content, max_pixels=LIMIT)
    assert caught.value.kind == kind
