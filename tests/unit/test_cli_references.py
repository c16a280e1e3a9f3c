"""`--reference` and `--neighbors`: what is looked at, what says so, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from commands import invoke as run
from commands import succeeded
from tessella.cli import app
from tessella.cli.pictures import name_examples
from tessella.images import read_png_texts
from tessella.model.pipeline import TextToImage
from tessella.retrieval.examples import remove_memory
from untrained import create_memory, create_untrained, create_with_examples, save_untrained

CAPTIONS = ["octopus, flat emoji", "octopus, noto emoji", "squid, 3d emoji", "a red square"]
PROMPT = "octopus, 3d emoji"
SQUID = {"name": "2.png", "caption": "squid, 3d emoji", "index": 2}
OCTOPUS = {"name": "0.png", "caption": "octopus, flat emoji", "index": 0}
PHOTO = {"name": "photo.png", "caption": "", "index": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model that looks at two examples."""
    return str(
        save_untrained(create_with_examples(CAPTIONS), tmp_path_factory.mktemp("model") / "mine")
    )


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture, and what is none, in the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.png")
    Path("words.txt").write_text("no picture", encoding="utf-8")


def succeed(*arguments: object) -> str:
    return succeeded(run(*arguments))


def fail(*arguments: object) -> str:
    """Runs a command that has to fail and write nothing; returns what it says."""
    before = sorted(Path().rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert sorted(Path().rglob("*")) == before
    return str(result.stderr)


def read_pixels(path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_comment(path: str | Path) -> Any:
    return json.loads(read_png_texts(Path(path))["Comment"])


COMMANDS = {
    "generate": ["generate", PROMPT],
    "edit": ["edit", "photo.png", PROMPT, "--mask", "upper"],
    "outpaint": ["edit", "photo.png", PROMPT, "--outpaint", "0,0,8,0"],
    "vary": ["vary", "photo.png", "--prompt", PROMPT],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command_looks_up_its_prompt_and_says_so(model: str, words: list[str]) -> None:
    words = [*words, "--model", model]
    told = succeed(*words, "--out", "x.png")
    assert told.endswith("\nLooked at: squid, 3d emoji; octopus, flat emoji\n")
    told = json.loads(succeed(*words, "--out", "same.png", "--json"))
    assert [picture["examples"] for picture in told["pictures"]] == [[SQUID, OCTOPUS]]
    assert Path("same.png").read_bytes() == Path("x.png").read_bytes()
    told = succeed(*words, "--neighbors", 0, "--out", "y.png")
    assert "Looked at" not in told
    assert not np.array_equal(read_pixels("x.png"), read_pixels("y.png"))
    assert read_comment("y.png")["examples"] == []


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_references_are_looked_at_first(model: str, words: list[str]) -> None:
    words = [*words, "--model", model, "--json", "--reference", "photo.png"]

    def list_examples(*more: object) -> list[dict[str, Any]]:
        [picture] = json.loads(succeed(*words, *more, "--dry-run"))["pictures"]
        examples: list[dict[str, Any]] = picture["examples"]
        return examples

    assert list_examples() == [PHOTO, SQUID]
    assert list_examples("--neighbors", 2) == [PHOTO, SQUID]
    for number in (0, 1):
        assert list_examples("--neighbors", number) == [PHOTO]
    assert list_examples("--reference", "photo.png") == [PHOTO, PHOTO]


def test_a_picture_beside_references_is_that_of_python(model: str) -> None:
    Image.effect_noise((32, 20), 90).save("gray.bmp")
    words = ["--reference", "photo.png", "--reference", "gray.bmp", "--seed", 7]
    told = succeed("generate", PROMPT, "--model", model, *words, "--out", "x.png")
    assert "Looked at: photo.png; gray.bmp\n" in told
    loaded = TextToImage.load(model, "cpu")
    with Image.open("photo.png") as photo, Image.open("gray.bmp") as gray:
        references = [photo.convert("RGB"), gray.convert("RGB")]
        [image] = loaded.generate(PROMPT, seed=7, references=references)
    assert np.array_equal(read_pixels("x.png"), np.asarray(image))


def test_a_reference_is_turned_upright(model: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    with Image.open("photo.png") as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    for name in ("photo", "turned"):
        words = ["--reference", f"{name}.png", "--model", model]
        succeed("generate", PROMPT, *words, "--out", f"beside-{name}.png")
    assert np.array_equal(read_pixels("beside-photo.png"), read_pixels("beside-turned.png"))


def test_a_blank_prompt_looks_nothing_up(model: str) -> None:
    words = ["vary", "photo.png", "--model", model]
    assert "Looked at" not in succeed(*words, "--out", "x.png")
    told = json.loads(succeed(*words, "--out", "y.png", "--reference", "photo.png", "--json"))
    assert told["pictures"][0]["examples"] == [PHOTO]
    succeed(*words, "--neighbors", 0, "--out", "z.png")
    assert np.array_equal(read_pixels("x.png"), read_pixels("z.png"))
    # It has no description either.
    assert read_png_texts(Path("x.png")).keys() == {"Software", "Comment"}


def test_a_folder_says_what_each_of_its_pictures_looked_at(model: str) -> None:
    words = ["generate", PROMPT, "a red thing", "xyzzy", "--count", 2, "--model", model]
    told = succeed(*words, "--out", "out")
    assert told.endswith("\nLooked at: see `examples` in out/prompts.jsonl\n")
    lines = [json.loads(line) for line in Path("out/prompts.jsonl").read_text().splitlines()]
    found = [[example["index"] for example in line["examples"]] for line in lines]
    assert found == [[2, 0]] * 2 + [[3]] * 2 + [[]] * 2
    for line in lines:
        comment = read_comment(f"out/{line['file']}")
        assert {**line, **comment} == {**line, "command": "generate", "model": "mine"}
    # A picture that is painted alone says the same.
    succeed("generate", "a red thing", "--seed", 1, "--model", model, "--out", "x.png")
    assert Path("x.png").read_bytes() == Path("out/0003.png").read_bytes()


def test_a_sheet_says_what_its_pictures_looked_at(model: str) -> None:
    told = succeed("generate", PROMPT, "a \N{OCTOPUS}", "--model", model, "--out", "x.png")
    assert "\nLooked at: see `examples` in the sheet's own comment, or run with --json\n" in told
    comment = read_comment("x.png")
    assert [(one["prompt"], one["seed"], one["examples"]) for one in comment["pictures"]] == [
        (PROMPT, 0, [SQUID, OCTOPUS]),
        ("a \N{OCTOPUS}", 0, [{"name": "3.png", "caption": "a red square", "index": 3}]),
    ]
    assert comment["settings"]["neighbors"] is None
    assert read_png_texts(Path("x.png"))["Description"] == f"{PROMPT}\na \N{OCTOPUS}"


def test_a_dry_run_says_what_would_be_looked_at(model: str) -> None:
    words = ["--model", model, "--dry-run", "--reference", "photo.png"]
    told = succeed("generate", PROMPT, *words, "--count", 2)
    assert told.endswith("\nWould look at: photo.png; squid, 3d emoji\n")
    told = succeed("generate", PROMPT, "xyzzy", "--model", model, "--dry-run")
    assert told.endswith(
        f"\nWould look at for {PROMPT}: squid, 3d emoji; octopus, flat emoji\n"
        "Would look at for xyzzy: nothing\n"
    )
    assert sorted(path.name for path in Path().iterdir()) == ["photo.png", "words.txt"]


def test_a_published_picture_names_no_folder(model: str) -> None:
    photo = Path("photo.png").resolve()
    words = ["generate", PROMPT, "--model", model, "--reference", photo]
    told = json.loads(succeed(*words, "--out", "x.png", "--json"))
    assert told["pictures"][0]["examples"][0]["name"] == str(photo)
    assert told["model"] == model
    assert read_comment("x.png")["examples"][0] == PHOTO
    assert str(Path(model).parent) not in str(read_png_texts(Path("x.png")))


def test_long_captions_are_cut_on_the_line_that_names_several() -> None:
    examples = [{"name": "a.png", "caption": "word " * 40}, {"name": "b" * 70, "caption": " "}]
    first, second = name_examples(examples).split("; ")
    assert first == ("word " * 12).strip() + "…"
    assert second == "b" * 59 + "…"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "nowhere.png"], "Cannot look at the reference: `nowhere.png`. There is"),
        (["--reference", "words.txt"], "`words.txt`. Not a picture of a known format"),
        (["--reference", "."], "Cannot look at the reference: `.`"),
        (["--reference", "photo.png"] * 3, "looks at 2 pictures at most: `3` references. Give"),
        (["--neighbors", "3"], "look at 2 examples at most: neighbors `3`. Give fewer."),
    ],
)
def test_what_cannot_be_looked_at_is_refused_before_the_work(
    model: str, command: str, words: list[str], message: str
) -> None:
    assert message in fail(*COMMANDS[command], "--model", model, *words)
    assert message in fail(*COMMANDS[command], "--model", model, *words, "--dry-run")


def test_a_model_without_examples_says_so(tmp_path: Path) -> None:
    folder = save_untrained(create_untrained(captions=CAPTIONS), tmp_path / "plain")
    words = ["generate", PROMPT, "--model", folder]
    for more in (["--reference", "photo.png"], ["--neighbors", 1]):
        message = fail(*words, *more)
        assert message.startswith("Error: The model does not look at examples: it was trained")
    told = json.loads(succeed(*words, "--neighbors", 0, "--json", "--out", "x.png"))
    assert told["pictures"][0]["examples"] == []
    succeed(*words, "--out", "y.png")
    assert np.array_equal(read_pixels("x.png"), read_pixels("y.png"))


def test_a_model_whose_memory_was_left_out_paints_beside_references(
    model: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "without")
    remove_memory(folder)
    words = ["generate", PROMPT, "--model", folder, "--reference", "photo.png"]
    assert "Looked at: photo.png\n" in succeed(*words, "--out", "x.png")


def test_neighbors_outside_of_their_range_are_wrong_usage(model: str) -> None:
    for number in (-1, 17):
        result = run("generate", PROMPT, "--model", model, "--neighbors", number)
        assert result.exit_code != 0
        assert str(number) in result.stderr


def test_the_help_says_how_many_and_that_references_repeat() -> None:
    told = " ".join(CliRunner().invoke(app, ["generate", "--help"]).stdout.split())
    assert "--reference IMAGE" in told
    assert "A picture of your own that the model looks at beside the prompt" in told
    assert "0 paints from the weights alone." in told


# Words of an example that was added after the training were called unknown.
def test_a_word_that_an_example_explains_is_not_unknown(tmp_path: Path) -> None:
    made = create_with_examples(CAPTIONS)
    newer = made.with_parts(memory=create_memory(made, [*CAPTIONS, "a xyzzy"]))
    model = save_untrained(newer, tmp_path / "newer")
    assert run("generate", "a xyzzy", "--model", model, "--dry-run").stderr == ""
    hint = run("generate", "a xyzzy", "a plugh", "--model", model, "--dry-run").stderr
    assert "`plugh`" in hint
    assert "`xyzzy`" not in hint
    bare = run("generate", "a xyzzy", "--model", model, "--neighbors", 0, "--dry-run").stderr
    assert "`xyzzy`" in bare
