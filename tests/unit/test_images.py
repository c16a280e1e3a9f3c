"""Pictures in, pictures out: every mode, every way a file can be wrong, exact pixels."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessella.errors import CheckpointError, DataError, ShapeError
from tessella.images import (
    ImageError,
    encode_picture,
    find_alpha,
    fit_square,
    read_image,
    read_png_texts,
    read_with_transparency,
    save_png,
    to_float,
    to_rgb,
    to_uint8,
)

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
    small = read(content, at_least=128)
    assert small.shape == (160, 200, 3)
    assert read(content, at_least=600).shape == (640, 800, 3)
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


def test_a_broken_file_says_so() -> None:
    content = bytearray(encoded(gradient()))
    content[60:80] = bytes(20)
    with pytest.raises(DataError, match=r"The picture is broken or cut off: .+\."):
        read(bytes(content))


def test_a_broken_header_says_so() -> None:
    with pytest.raises(DataError, match="The picture's header is broken"):
        read(b"\x89PNG\r\n\x1a\n" + bytes(40))


@pytest.mark.parametrize("content", [b"not a picture at all", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="Not a picture of a known format; known are: JPEG, PNG"):
        read(content)


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
    with pytest.raises(
        ImageError, match=r"The picture is too large: .* at most 1,000,000"
    ) as caught:
        read(png_header(side, side))
    assert caught.value.kind == "too_large"


def test_pillows_own_limit_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert np.array_equal(read(encoded(gradient())), np.asarray(gradient()))
    assert fit_square(read_image(encoded(gradient()), max_pixels=LIMIT), 8).shape == (8, 8, 3)


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_without_a_known_white_are_refused(value: int) -> None:
    with pytest.raises(DataError, match=r"Integer pixels must lie in 0\.\.65535: got"):
        to_rgb(Image.new("I", (2, 2), value))


@pytest.mark.parametrize("value", [-0.5, 256.0, float("nan")])
def test_floats_without_a_known_white_are_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"Float pixels must lie in 0\.\.1 or 0\.\.255: got"):
        to_rgb(Image.new("F", (2, 2), value))


@given(st.binary(max_size=200), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_any_damage_is_a_data_error_or_a_picture(noise: bytes, place: int) -> None:
    content = bytearray(encoded(gradient(), "GIF"))
    content[place : place + len(noise)] = noise
    try:
        assert read(bytes(content)).shape[2] == 3
    except DataError as error:
        assert str(error).endswith(".")


# --- squares -------------------------------------------------------------------------------


def test_the_middle_square_is_taken() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (100, 0, 200, 100))
    for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
        assert (fit_square(turned, 100) == (0, 0, 255)).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 50), (64, 64), (900, 700)])
def test_any_size_fits(size: tuple[int, int]) -> None:
    square = fit_square(Image.new("RGB", size, (7, 8, 9)), 64)
    assert square.shape == (64, 64, 3) and square.dtype == np.uint8
    assert (square == (7, 8, 9)).all()


def test_a_square_of_the_right_size_is_left_as_it_is() -> None:
    image = gradient(16, 16)
    assert np.array_equal(fit_square(image, 16), np.asarray(image))


# --- tensors -------------------------------------------------------------------------------


def test_float_and_back_is_exact_for_all_256_values() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    image = to_float(pixels)
    assert image.shape == (1, 3, 16, 16) and image.dtype == torch.float32
    assert (image.min(), image.max()) == (-1.0, 1.0)
    assert image.is_contiguous()
    assert np.array_equal(to_uint8(image), pixels)
    assert np.array_equal(to_uint8(to_float(torch.from_numpy(pixels))), pixels)


def test_read_only_pixels_are_fine() -> None:
    pixels = np.asarray(gradient())[None]
    pixels.flags.writeable = False
    assert np.array_equal(to_uint8(to_float(pixels)), pixels)


def test_values_outside_are_clamped_and_rounded() -> None:
    image = torch.tensor([-7.0, 7.0, 0.0]).reshape(1, 3, 1, 1)
    assert to_uint8(image).tolist() == [[[[0, 255, 128]]]]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"Pixels must be \(B, H, W, 3\) uint8"):
        to_float(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ShapeError, match=r"uint8: .* torch\.float32"):
        to_float(torch.zeros(1, 4, 4, 3))
    with pytest.raises(ShapeError, match=r"An image must be \(B, 3, H, W\) float"):
        to_uint8(torch.zeros(3, 4, 4))
    with pytest.raises(ShapeError, match=r"A picture must be \(H, W, 3\) uint8"):
        save_png(Path("x.png"), np.zeros((1, 4, 4, 3), np.uint8))


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not numbers"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))


# --- files ----------------------------------------------------------------------


def test_png_round_trip(tmp_path: Path) -> None:
    pixels = np.asarray(gradient())
    save_png(tmp_path / "new" / "a.png", pixels)
    assert np.array_equal(read(tmp_path / "new" / "a.png"), pixels)


def test_a_png_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Cannot write the picture"):
        save_png(tmp_path / "file" / "a.png", np.asarray(gradient()))


def test_a_png_says_what_it_is_told_in_any_letters(tmp_path: Path) -> None:
    pixels = np.asarray(gradient())
    texts = {"Description": "h\u00e9\n\N{OCTOPUS}", "Comment": '{"seed": 1}', "Title": "a\0b"}
    expected = {**texts, "Title": "a b"}  # a zero would end it
    save_png(tmp_path / "a.png", pixels, texts)
    assert read_png_texts(tmp_path / "a.png") == expected
    assert np.array_equal(read(tmp_path / "a.png"), pixels)
    with Image.open(tmp_path / "a.png") as image:  # others find it where the standard says
        assert image.info["Description"] == "h\u00e9\n\N{OCTOPUS}"
    (tmp_path / "b.png").write_bytes(encode_picture(pixels, texts=texts))
    assert read_png_texts(tmp_path / "b.png") == expected
    assert encode_picture(pixels, texts={}) == encode_picture(pixels)
    assert encode_picture(pixels, kind="jpeg", texts=texts) == encode_picture(pixels, kind="jpeg")


def test_what_is_no_png_says_nothing(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.jpg", comment=b"a text")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"cut")
    for name in ("a.jpg", "broken.png", "nowhere.png"):
        assert read_png_texts(tmp_path / name) == {}


# --- as the contents of a file -------------------------------------------------------------


def test_a_png_is_exact() -> None:
    pixels = np.asarray(gradient())
    assert np.array_equal(read(encode_picture(pixels)), pixels)
    # Quality is nothing that a PNG has.
    assert encode_picture(pixels, quality=0) == encode_picture(pixels)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_quality_costs_bytes_and_saves_pixels(kind: str) -> None:
    pixels = np.asarray(gradient(64, 64))
    files = [encode_picture(pixels, kind, quality) for quality in (0, 50, 100)]
    assert len(files[0]) < len(files[1]) < len(files[2])
    errors = [np.abs(read(file).astype(int) - pixels).mean() for file in files]
    assert errors[0] > errors[1] > errors[2]
    assert encode_picture(pixels, kind=kind) == files[2]
    assert Image.open(io.BytesIO(files[0])).format == kind.upper()


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
