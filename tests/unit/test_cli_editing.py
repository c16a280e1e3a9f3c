"""`tessella edit` and `tessella vary`: what they keep, what they write, what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import invoke as run
from commands import succeeded
from masks import HOLE, KINDS, draw_hole
from tessella.model.canvas import fit_images
from tessella.model.mask import half_mask
from tessella.model.pipeline import TextToImage
from untrained import create_untrained, save_untrained

PROMPT = "a red square"
SIZE = 16  # of the model's pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder; untrained, which makes no difference to the command line."""
    model = create_untrained(captions=["a red square", "a blue circle"])
    return str(save_untrained(model, tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of the model's size, masks for it, and what is none, in the current folder."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    half_mask((SIZE, SIZE), keep="left").save("right.png")
    Image.new("L", (SIZE, SIZE)).save("black.png")
    Image.new("L", (SIZE, SIZE + 1), 255).save("large.png")
    Path("words.txt").write_text("no picture")


def succeed(*arguments: object) -> str:
    return succeeded(run(*arguments))


def refuse(status: int, *arguments: object) -> str:
    """Runs a command that has to fail and write nothing; returns what it says."""
    before = files()
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert files() == before
    return " ".join(result.stderr.split())


def files() -> list[str]:
    return sorted(path.as_posix() for path in Path().rglob("*"))


def read_pixels(path: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- edit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "rows", "columns"),
    [
        ("upper", slice(0, 8), slice(None)),
        ("lower", slice(8, 16), slice(None)),
        ("top", slice(0, 8), slice(None)),
        ("bottom", slice(8, 16), slice(None)),
        ("left", slice(None), slice(0, 8)),
        ("right", slice(None), slice(8, 16)),
    ],
)
def test_a_word_names_the_half_that_is_painted_anew(
    model: str, word: str, rows: slice, columns: slice
) -> None:
    succeed("edit", "photo.png", PROMPT, "--mask", word, "--model", model, "--out", "x.png")
    changed = (read_pixels("x.png") != read_pixels("photo.png")).any(-1)
    assert changed[rows, columns].mean() > 0.5
    changed[rows, columns] = False
    assert not changed.any()


def test_a_mask_is_a_picture_whose_white_is_painted_anew(model: str) -> None:
    words = ["edit", "photo.png", PROMPT, "--model", model, "--seed", 7, "--steps", 2]
    told = succeed(*words, "--mask", "right.png")
    assert "Painted 1 picture" in told
    assert "a-red-square.png" in told
    with Image.open("photo.png") as photo:
        mask = half_mask(photo.size, keep="left")
        [image] = TextToImage.load(model, "cpu").edit(photo, PROMPT, mask, seed=7, steps=2)
    assert np.array_equal(read_pixels("a-red-square.png"), np.asarray(image))
    succeed(*words, "--mask", "right", "--out", "word.png")
    assert Path("word.png").read_bytes() == Path("a-red-square.png").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mask_keeps_what_it_does_not_touch(model: str, kind: str) -> None:
    """OpenAI's kind of mask and every soft one once repainted the whole picture."""
    noise = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save("large.png")
    Path("mask").write_bytes(KINDS[kind].save())
    words = ["edit", "large.png", PROMPT, "--model", model, "--out", "x.png", "--force"]
    told = json.loads(succeed(*words, "--mask", "mask", "--json"))
    assert told["mask_read"]["read_by"] == KINDS[kind].read_by
    changed = (read_pixels("x.png") != fit_images([Image.fromarray(noise)], SIZE)[0]).any(-1)
    touched = (HOLE | ~KINDS[kind].is_certain).reshape(SIZE, 2, SIZE, 2).any((1, 3))
    assert not changed[~touched].any()
    assert changed.any()


def test_a_picture_with_a_hole_needs_no_mask(model: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    draw_hole(Image.fromarray(noise)).save("hole.png")
    told = succeed("edit", "hole.png", PROMPT, "--model", model, "--out", "x.png")
    assert "\nRepainted, by the picture's own transparency: 12% of the picture.\n" in told
    kept = ~HOLE.reshape(SIZE, 2, SIZE, 2).any((1, 3))
    expected = fit_images([draw_hole(Image.fromarray(noise))], SIZE)[0]
    assert np.array_equal(read_pixels("x.png")[kept], expected[kept])


def test_what_an_edit_was_asked_is_written_down(model: str) -> None:
    words = ["edit", "photo.png", PROMPT, "--mask", "right.png", "--model", model]
    words += ["--count", "3", "--best-of", "2", "--seed", "5"]
    told = json.loads(succeed(*words, "--out", "out", "--json"))
    assert [picture["seed"] for picture in told["pictures"]] == [5, 7, 9]
    lines = Path("out/prompts.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[2])
    assert last["file"] == "0002.png"
    assert last["seed"] == 9
    assert last["image"] == told["image"] == "photo.png"
    assert last["mask"] == "right.png"
    assert last["outpaint"] is None
    assert last["best_of"] == 2
    # The last picture, painted alone from what is written down, is the same.
    succeed(*words[:7], "--best-of", 2, "--seed", 9, "--out", "x.png")
    assert Path("x.png").read_bytes() == Path("out/0002.png").read_bytes()


def test_a_picture_is_painted_on_around_its_edges(model: str) -> None:
    succeed("edit", "photo.png", PROMPT, "--outpaint", "8,0,16, 8", "--model", model)
    pixels = read_pixels("a-red-square.png")
    assert pixels.shape == (SIZE + 8, 8 + SIZE + 16, 3)
    assert np.array_equal(pixels[:SIZE, 8 : 8 + SIZE], read_pixels("photo.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--mask, --outpaint: Give one of the two: IMAGE has no transparency"),
        (["--mask", "upper", "--outpaint", "8,0,0,0"], "Give one of the two."),
        (["--outpaint", "8,0,0"], "Write LEFT,TOP,RIGHT,BOTTOM in pixels"),
        (["--outpaint", "-8,0,0,0"], "such as 0,0,64,0: `-8,0,0,0`."),
        (["--outpaint", "a,b,c,d"], "`a,b,c,d`"),
        (["--mask", "upper", "--best-of", "0"], "--best-of"),
        (["--mask", "upper", "--count", "0"], "--count"),
        (["--mask", "upper", "--count", "1000000"], "--count"),
        (["--mask", "upper", "--size", "32x32"], "--size"),
    ],
)
def test_a_wrong_edit_is_wrong_usage(model: str, words: list[str], message: str) -> None:
    assert message in refuse(2, "edit", "photo.png", PROMPT, "--model", model, *words)


@pytest.mark.parametrize(
    ("picture", "prompt", "words", "message"),
    [
        ("nowhere.png", PROMPT, ["--mask", "upper"], "Cannot edit: `nowhere.png`. There is no"),
        ("words.txt", PROMPT, ["--mask", "upper"], "Cannot edit: `words.txt`. Not a picture"),
        ("photo.png", "  ", ["--mask", "upper"], "A prompt must say something"),
        ("photo.png", "word " * 100, ["--mask", "upper"], "at most 64 can be read"),
        ("photo.png", PROMPT, ["--mask", "middle"], "Cannot use the mask: `middle`. There is no"),
        ("photo.png", PROMPT, ["--mask", "words.txt"], "Cannot use the mask: `words.txt`. Not a"),
        ("photo.png", PROMPT, ["--mask", "black.png"], "The mask marks nothing"),
        (
            "photo.png",
            PROMPT,
            ["--mask", "large.png"],
            "must have the picture's size, 16x16: `16x17`",
        ),
        ("photo.png", PROMPT, ["--outpaint", "0,0,0,0"], "0"),
        ("photo.png", PROMPT, ["--outpaint", "3,0,0,0"], "multiple"),
        ("photo.png", PROMPT, ["--outpaint", "999992,0,0,0"], "at most 4096"),
        ("photo.png", PROMPT, ["--mask", "upper", "--model", "nowhere"], "There is no such model"),
        ("photo.png", PROMPT, ["--mask", "upper", "--temperature", "nan"], "`temperature`: got"),
        ("photo.png", PROMPT, ["--mask", "upper", "--steps", "0"], "`steps`: got: `0`"),
        ("photo.png", PROMPT, ["--mask", "upper", "--steps", "1000000"], "`steps`: got: `1000000`"),
        ("photo.png", PROMPT, ["--mask", "upper", "--out", "photo.png"], "The file already exists"),
        ("photo.png", PROMPT, ["--mask", "upper", "--negative-prompt", "x"], "works by guidance"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_cannot_be_edited_is_refused_also_by_a_dry_run(
    model: str, picture: str, prompt: str, words: list[str], message: str, dry_run: list[str]
) -> None:
    said = refuse(1, "edit", picture, prompt, "--model", model, *words, *dry_run)
    assert said.startswith("Error: ")
    assert message in said


def test_a_dry_run_of_edit_writes_nothing(model: str) -> None:
    before = files()
    words = ["edit", "photo.png", PROMPT, "--mask", "upper", "--model", model, "--dry-run"]
    assert "Would paint 1 picture: a-red-square.png\n" in succeed(*words)
    assert json.loads(succeed(*words, "--json"))["mask"] == "upper"
    assert files() == before


# --- vary -----------------------------------------------------------------------------------


def test_variations_are_those_of_python_and_named_after_the_picture(model: str) -> None:
    told = succeed("vary", "photo.png", "--strength", 0.25, "--count", 2, "--model", model)
    assert told.rstrip().endswith("photo-2.png")
    succeed(
        *("vary", "photo.png", "--strength", 0.25, "--count", 2, "--model", model, "--out", "x")
    )
    with Image.open("photo.png") as photo:
        made = TextToImage.load(model, "cpu").vary(photo, strength=0.25, count=2)
    assert np.array_equal(read_pixels("x/0000.png"), np.asarray(made[0]))
    assert np.array_equal(read_pixels("x/0001.png"), np.asarray(made[1]))
    line = json.loads(Path("x/prompts.jsonl").read_text().splitlines()[1])
    assert line["prompt"] == ""
    assert (line["image"], line["strength"], line["seed"]) == ("photo.png", 0.25, 1)


def test_a_variation_may_have_a_prompt(model: str) -> None:
    told = json.loads(succeed("vary", "photo.png", "--prompt", PROMPT, "--model", model, "--json"))
    assert told["out"] == "a-red-square.png"
    assert told["pictures"][0]["prompt"] == PROMPT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png", "--strength", "0"], "above 0 and at most 1: `0.0`"),
        (["photo.png", "--strength", "2"], "above 0 and at most 1: `2.0`"),
        (["photo.png", "--strength", "nan"], "above 0 and at most 1: `nan`"),
        (["words.txt"], "Cannot vary: `words.txt`. Not a picture"),
        (["photo.png", "--prompt", "word " * 100], "at most 64 can be read"),
        (["photo.png", "--best-of", "2"], "chosen by the prompt, and there is none"),
        (["photo.png", "--temperature", "nan"], "`temperature`: got: `nan`"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_cannot_be_varied_is_refused_also_by_a_dry_run(
    model: str, words: list[str], message: str, dry_run: list[str]
) -> None:
    assert message in refuse(1, "vary", *words, "--model", model, *dry_run)


@pytest.mark.parametrize("words", [[], ["photo.png", "--strength", "much"]])
def test_a_wrong_variation_is_wrong_usage(words: list[str]) -> None:
    refuse(2, "vary", *words)
