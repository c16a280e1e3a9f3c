"""What a notebook shows of a model and its pictures."""

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

import tessella
from tessella.model.notebook import show_pictures
from tessella.model.pictures import Pictures

MODEL = tessella.load("scenes", "cpu", "fp32")


def embedded(html: str) -> list[Image.Image]:
    """The pictures in HTML."""
    found = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_a_model_shows_what_it_is_and_paints() -> None:
    html = MODEL._repr_html_()
    assert repr(MODEL).removeprefix("<TextToImage: ").removesuffix(">") in html
    assert MODEL.captions is not None
    assert MODEL.captions.examples[0] in html
    [sheet] = embedded(html)
    assert max(sheet.size) == 384
    assert len(html) < 60_000


def test_a_model_without_samples_shows_itself_too(tmp_path: Path) -> None:
    """A model that is trained in this moment, or a folder that was passed on without them."""
    assert not embedded(MODEL.with_parts()._repr_html_())
    moved = MODEL.with_parts()
    for content in (None, b"no picture"):
        moved.samples = tmp_path / "samples.png"
        if content:
            moved.samples.write_bytes(content)
        assert "64×64 pixels" in moved._repr_html_()


def test_pictures_show_themselves_with_prompt_and_seed() -> None:
    pictures = MODEL.generate(["a red star", "a blue ring"], count=2, seed=7, steps=1)
    assert pictures.labels == [
        *("a red star (seed 7)", "a red star (seed 8)"),
        *("a blue ring (seed 7)", "a blue ring (seed 8)"),
    ]
    html = pictures._repr_html_()
    assert [one.tobytes() for one in embedded(html)] == [one.tobytes() for one in pictures]
    assert all(label in html for label in pictures.labels)
    assert "pixelated" in html
    assert len(embedded(MODEL.reconstruct(pictures)._repr_html_())) == 4


def test_a_label_stays_with_its_picture() -> None:
    pictures = MODEL.generate(["a red star", "a blue ring"], seed=7, steps=1)
    pictures.reverse()
    pictures.append(Image.new("RGB", (8, 8)))
    assert pictures.labels == ["a blue ring (seed 7)", "a red star (seed 7)", ""]
    pictures.pop(0)
    assert pictures.labels == ["a red star (seed 7)", ""]
    assert len(embedded(pictures._repr_html_())) == 2


def test_what_others_wrote_is_escaped() -> None:
    bad = '<script>alert("x")</script>'
    html = Pictures([Image.new("RGB", (8, 8))], [bad], labels=[f'"{bad}'])._repr_html_()
    assert "<script" not in html
    assert '""' not in html


@pytest.mark.parametrize("count", [64, 65])
def test_many_and_large_pictures_do_not_fill_the_notebook(count: int) -> None:
    html = show_pictures([Image.new("RGB", (600, 300), "red")] * count, [""] * count, [])
    shown = embedded(html)
    assert len(shown) == 64
    assert {one.size for one in shown} == {(512, 256)}
    assert ("1 more pictures" in html) is (count == 65)
