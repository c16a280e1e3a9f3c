"""Sizes: what is painted, and how the picture gets the size that was asked for."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessella.errors import GenerationError
from tessella.images import Pixels
from tessella.model.size import CanvasShape, PictureSize, plan_size
from untrained import create_untrained

MODEL = create_untrained()
NAVY, RED, WHITE = (20, 25, 70), (220, 40, 40), (250, 250, 250)


def plan(size: tuple[int, int] | None, canvas: CanvasShape | None = None) -> PictureSize:
    return plan_size(size, canvas, image_size=64, downsampling=8)


def draw(noise: int = 0, edge: tuple[int, int, int] = NAVY) -> Pixels:
    """A red square on a background."""
    image = Image.new("RGB", (64, 64), edge)
    image.paste(RED, (20, 20, 44, 44))
    added = np.random.default_rng(0).integers(-noise, noise + 1, (64, 64, 3))
    return np.clip(np.asarray(image) + added, 0, 255).astype(np.uint8)


def texture() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


# What is painted.


@pytest.mark.parametrize("size", [None, (64, 64), (256, 256), (32, 48), (1792, 1024), (16, 4096)])
def test_any_size_is_painted_at_the_models_own(size: tuple[int, int] | None) -> None:
    assert plan(size) == PictureSize((64, 64), size or (64, 64))


@pytest.mark.parametrize(
    ("size", "canvas", "painted"),
    [
        ((1536, 1024), "wide", (96, 64)),
        ((1024, 1536), "wide", (64, 96)),
        ((1792, 1024), "wide", (112, 64)),
        ((2048, 16), "wide", (256, 64)),
        ((128, 64), "wide", (128, 64)),
        (None, "2x1", (128, 64)),
        (None, (2, 1.5), (128, 96)),
        ((100, 100), "1.5X1", (96, 64)),
        (None, " 1 × 4 ", (64, 256)),
        (None, (1.1, 1), (72, 64)),
    ],
)
def test_a_larger_canvas_is_asked_for_by_name(
    size: tuple[int, int] | None, canvas: CanvasShape, painted: tuple[int, int]
) -> None:
    assert plan(size, canvas) == PictureSize(painted, size or painted)


@pytest.mark.parametrize(
    ("size", "canvas"), [(None, "wide"), ((512, 512), "wide"), (None, "1x1"), ((65, 64), "wide")]
)
def test_a_canvas_that_changes_nothing_is_told(
    size: tuple[int, int] | None, canvas: CanvasShape
) -> None:
    planned = plan(size, canvas)
    assert planned.painted == (64, 64)
    assert planned.list_warnings(["resized"])[0].startswith("No effect: `canvas`. A canvas of")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((8, 16), r"16 to 4096 pixels a side: `8x16`\. Try 16x16\."),
        ((16, 999_999), r"`16x999999`\. Try 16x4096\."),
        ((-8, 0), r"`-8x0`\. Try 16x16\."),
    ],
)
def test_sizes_that_no_picture_has(size: tuple[int, int], said: str) -> None:
    with pytest.raises(GenerationError, match=said):
        plan(size)


@pytest.mark.parametrize(
    ("canvas", "said"),
    [
        ("big", r"is `wide`, .* or WIDTHxHEIGHT in the model's own pictures, .*: `big`\. Try 2x1"),
        ("2", "`2`"),
        ("0.5x1", "each at least 1: `0.5x1`"),
        ((1, 0), "each at least 1: `1x0`"),
        ((1, float("nan")), "each at least 1: `1xnan`"),
        ((1, float("inf")), "each at least 1: `1xinf`"),
        ((1, 2, 3), "`1x2x3`"),
        ((65, 1), r"at most 4096: `4160x64`\. Try 4096x64\."),
    ],
)
def test_canvases_that_cannot_be_painted(canvas: CanvasShape, said: str) -> None:
    with pytest.raises(GenerationError, match=said):
        plan(None, canvas)


@settings(deadline=None)
@given(st.integers(16, 4096), st.integers(16, 4096))
def test_every_size_has_a_wide_canvas_of_about_its_shape(width: int, height: int) -> None:
    planned = plan((width, height), "wide")
    assert min(planned.painted) == 64
    ratio = min(4, max(width, height) / min(width, height))
    assert abs(max(planned.painted) / 64 - ratio) <= 1 / 16 + 1e-9


# How it is fitted.


@pytest.mark.parametrize("noise", [0, 10])
@pytest.mark.parametrize("asked", [(256, 64), (64, 256), (1792, 1024), (1024, 1792), (100, 31)])
def test_a_background_of_one_colour_goes_on(noise: int, asked: tuple[int, int]) -> None:
    size = plan(asked)
    pixels = draw(noise)
    assert size.choose_fit(pixels) == "padded"
    fitted = size.fit(pixels)
    assert fitted.shape == (asked[1], asked[0], 3)
    assert (np.abs(fitted[[0, -1]].astype(int) - NAVY) <= 24).all()
    assert (np.abs(fitted[:, [0, -1]].astype(int) - NAVY) <= 24).all()
    # The whole square is there, as a square.
    rows, columns = np.nonzero(fitted[..., 0] > 128)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(height - width) <= 2
    assert abs(height - min(asked) * 24 / 64) <= 0.1 * min(asked)


def test_both_sides_go_on_in_their_own_colour() -> None:
    pixels = draw()
    pixels[:, 32:] = WHITE
    fitted = plan((128, 64)).fit(pixels)
    assert (fitted[:, :32] == NAVY).all()
    assert (fitted[:, -32:] == WHITE).all()
    assert np.array_equal(fitted[:, 32:96], pixels)


def test_what_touches_the_edge_a_little_is_padded_all_the_same() -> None:
    pixels = draw()
    pixels[25:39, :20] = RED
    assert plan((128, 64)).choose_fit(pixels) == "padded"
    pixels[:48, :20] = RED
    pixels[:48, 44:] = (40, 170, 70)
    pixels[48:] = WHITE
    pixels[:16] = (0, 0, 0)
    assert plan((128, 64)).choose_fit(pixels) == "cropped"


def test_a_texture_is_cropped() -> None:
    pixels = texture()
    size = plan((128, 64))
    assert size.choose_fit(pixels) == "cropped"
    box = (0, 16, 64, 48)
    middle = Image.fromarray(pixels).resize((128, 64), Image.Resampling.LANCZOS, box)
    assert np.array_equal(size.fit(pixels), np.asarray(middle))
    # A gradient has no colour that could go on.
    slope = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], 64, 1).repeat(3, 2)
    assert size.choose_fit(slope) == "cropped"


@pytest.mark.parametrize("asked", [(64, 64), (256, 256), (16, 16), (130, 128)])
def test_the_same_shape_is_resized(asked: tuple[int, int]) -> None:
    for pixels in (draw(), texture()):
        size = plan(asked)
        assert size.choose_fit(pixels) == "resized"
        assert size.fit(pixels).shape == (asked[1], asked[0], 3)
        assert size.list_warnings(["resized"]) == []
    assert plan((64, 64)).fit(pixels) is pixels


@settings(deadline=None, max_examples=40)
@given(st.integers(16, 400), st.integers(16, 400), st.booleans())
def test_every_size_comes_out_exactly(width: int, height: int, is_plain: bool) -> None:
    pixels = draw() if is_plain else texture()
    assert plan((width, height)).fit(pixels).shape == (height, width, 3)


def test_what_was_done_is_told() -> None:
    wide, tall = plan((1792, 1024)), plan((1024, 1536))
    assert wide.list_warnings(["padded"]) == [
        "The picture was painted at 64x64 and padded to 1792x1024: the background goes on at the "
        "left and right. The canvas `wide` paints one of that shape."
    ]
    assert tall.list_warnings(["cropped", "cropped"]) == [
        "The pictures were painted at 64x64 and cropped to 1024x1536: 33%, at the left and right, "
        "is cut off. The canvas `wide` paints one of that shape."
    ]
    padded, cropped = wide.list_warnings(["padded", "cropped", "padded"])
    assert padded.startswith("Pictures 1, 3 were painted")
    assert cropped.startswith("Picture 2 was painted at 64x64 and cropped to 1792x1024: 43%, at th")


# Python.


def test_a_size_changes_no_more_than_the_size() -> None:
    """Sizes other than the model's own once painted other pictures, of many scraps."""
    [own] = MODEL.generate("a red star", seed=3)
    for asked in ((64, 64), (48, 16), (20, 100)):
        [image] = made = MODEL.generate("a red star", seed=3, size=asked)
        fitted = PictureSize((16, 16), asked)
        assert np.array_equal(np.asarray(image), fitted.fit(np.asarray(own)))
        told = [one for one in made.warnings if re.search("padded|cropped", one)]
        assert len(told) == (asked != (64, 64))


def test_a_canvas_in_python() -> None:
    [image] = MODEL.generate("a red star", canvas=(2, 1))
    assert image.size == (32, 16)
    [wide] = MODEL.generate("a red star", size=(320, 160), canvas="wide")
    resized = image.resize((320, 160), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(wide), np.asarray(resized))
