"""Pictures become files, which say what they are told."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawn import gradient, read
from tessella.errors import CheckpointError
from tessella.images import encode_picture, read_png_texts, save_png

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
