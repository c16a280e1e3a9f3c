"""The command line: what it prints, what it writes, what it refuses, how it ends."""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image, features

import tessella
from commands import failed, succeeded
from commands import invoke as run
from tessella.cli import app, main
from tessella.cli.reporting import to_toml
from tessella.config import build, read_config
from tessella.generation import GenerationSettings
from tessella.model.folder import MODEL_FORMAT
from tessella.model.pipeline import TextToImage
from tessella.model.request import MAX_BEST_OF, MAX_COUNT, MAX_ORDERS, MAX_SEED
from tessella.training import precision as precision_module
from tessella.training.recipe import PRESETS, Recipe, resolve_recipe
from untrained import create_untrained, save_untrained

PROMPT = "a red square"
TINY = [
    *("--set", "data.image_size=16"),
    *("--set", "data.workers=1"),
    *("--set", "tokenizer.widths=[16,16]"),
    *("--set", "tokenizer.quantizer.codebook_size=16"),
    *("--set", "tokenizer_training.batch_size=8"),
    *("--set", "transformer.width=32"),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own: a command without --out writes to the current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder; untrained, which makes no difference to the command line."""
    model = create_untrained(captions=["a red square", "a blue circle"] * 2)
    return str(save_untrained(model, tmp_path_factory.mktemp("model") / "model"))


def succeed(*arguments: object) -> str:
    """Runs a command that has to succeed; returns its stdout."""
    return succeeded(run(*arguments))


def fail(*arguments: object) -> str:
    """Runs a command that has to fail with one line; returns it."""
    return failed(run(*arguments))


def files() -> list[str]:
    """All that lies in the current folder."""
    return sorted(path.as_posix() for path in Path().rglob("*"))


def read_pixels(path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Reads a picture and closes its file."""
    with Image.open(path) as image:
        return np.asarray(image)


def draw_data(folder: Path, number: int = 6) -> Path:
    """Draws captioned pictures, all different."""
    folder.mkdir(parents=True)
    for index in range(number):
        color = (40 * index, 250 - 40 * index, 128)
        Image.new("RGB", (20, 24), color).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture number {index}", encoding="utf-8")
    return folder


# --- usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "paint x",
        "generate",
        "generate x --sead 3",
        "generate x --count 0",
        "generate x --count 1000000",
        "generate x --count half",
        "generate x --seed -1",
        "generate x --steps many",
        "generate x --best-of 0",
        "generate x --best-of 1000000",
        "generate x --size big",
        "generate x --size 100",
        "generate x --size 64x64x64",
        "generate x --size -64x64",
        "reconstruct",
        "doctor",
        "fit data",
        "fit --out run",
    ],
)
def test_wrong_usage_is_status_2(line: str) -> None:
    result = run(*line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr
    assert not files()


def test_the_version_is_told() -> None:
    assert succeed("--version") == f"tessella {tessella.__version__}\n"


def test_help_shows_defaults() -> None:
    text = " ".join(succeed("generate", "--help").split())
    assert "[default: scenes]" in text
    assert "the model's" in text
    assert "a free name, after the prompt" in text


def command_names() -> list[str]:
    return list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def list_options(name: str) -> list[Any]:
    """All parameters of a command, those of its groups included."""
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    parameters: list[Any] = command.get_params(typer.Context(command))
    return parameters


def test_an_option_means_the_same_in_every_command() -> None:
    meanings: dict[str, set[str | None]] = {}
    for name in command_names():
        for option in list_options(name):
            for flag in option.opts:
                # Where a result goes, how large it is, and what is counted are each command's own.
                if flag.startswith("--") and flag not in ("--out", "--size", "--count"):
                    meanings.setdefault(flag, set()).add(option.help)
    assert {"--config", "--set", "--device", "--seed", "--json", "--debug"} <= meanings.keys()
    assert {name: texts for name, texts in meanings.items() if len(texts) > 1} == {}


def test_every_option_has_its_help() -> None:
    """That of a group is read from the docstrings of its fields."""
    for name in command_names():
        assert [option.name for option in list_options(name) if not option.help] == []
    [clip] = [option for option in list_options("evaluate") if option.name == "clip"]
    assert clip.help.startswith("A CLIP, loaded by transformers, also ranks 100 prompts")


def test_the_limits_of_options_are_those_of_python() -> None:
    text = "".join(succeed("generate", "--help").split())
    for most in (f"1<=x<={MAX_COUNT}", f"1<=x<={MAX_BEST_OF}"):
        assert f"[default:1;{most}]" in text
    assert f"[default:0;0<=x<={MAX_SEED}]" in text
    assert f"1<=x<={MAX_ORDERS}]" in "".join(succeed("score", "--help").split())


def test_help_answers_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "tessella", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, because other processes may keep this one waiting; 0.12 s as measured.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6


# --- how a command ends ---------------------------------------------------------------------


def break_loading(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(TextToImage, "load", load)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("out of luck\nsecond line"), "RuntimeError: out of luck Run again"),
        (ValueError(), "ValueError: no message Run again"),
        (OSError(28, "No space left on device", "/x"), "`/x`. No space left on device. Free some"),
        (FileNotFoundError(2, "No such file", "/x"), "`/x`. No such file. It was moved or removed"),
        (OSError(5, "Input/output error", "/x"), "`/x`. Input/output error. Run the same command"),
        (MemoryError(), "There is not enough memory. Close other programs"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory. Close"),
    ],
)
def test_an_unexpected_error_is_one_line(
    model: str, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    break_loading(monkeypatch, error)
    message = fail("generate", PROMPT, "--model", model)
    assert line in message
    assert "--debug" in message
    assert message.count("\n") == 1


def test_debug_lets_an_error_through(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_loading(monkeypatch, RuntimeError("out of luck"))
    with pytest.raises(RuntimeError, match="out of luck"):
        run("generate", PROMPT, "--model", model, "--debug")


def test_debug_is_a_traceback_and_status_1_for_the_shell() -> None:
    words = ["report", "nowhere", "--debug"]  # it loads no torch
    done = subprocess.run(
        [sys.executable, "-m", "tessella", *words], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Error: " in done.stderr
    assert "`nowhere`" in done.stderr


def test_an_interrupted_command_writes_nothing(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextToImage, "generate_images", interrupt)
    result = run("generate", PROMPT, "--model", model, "--out", "pictures")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted. Nothing was written.\n"
    assert not files()


ENDLESS = ["fit", "scenes:40", *TINY, "--set", "tokenizer_training.images=1000000000"]
ENDLESS += ["--set", "tokenizer_training.save_every_seconds=0.001"]
INTERRUPTED = "Interrupted. The state is saved; rerun the command to resume.\n"


def wait_for_checkpoint(out: str, goes_on: Callable[[], bool]) -> None:
    while goes_on() and not list((Path(out) / "tokenizer" / "checkpoints").glob("check*")):
        time.sleep(0.01)


def test_a_signal_saves_the_training_and_is_status_130() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tessella", *ENDLESS, "--out", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for_checkpoint("run", lambda: process.poll() is None)
            process.send_signal(signal.SIGTERM)
            stdout, stderr = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 130, stderr
    assert stderr.endswith(INTERRUPTED)
    assert "Traceback" not in stderr
    assert "40 images" in stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_status_130_in_any_process(number: signal.Signals) -> None:
    def interrupt() -> None:
        wait_for_checkpoint("run", lambda: not is_over.is_set())
        if not is_over.is_set():
            os.kill(os.getpid(), number)

    is_over = threading.Event()
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        result = run(*ENDLESS, "--out", "run")
    finally:
        is_over.set()
        interrupter.join()
    assert result.exit_code == 130, result.output
    assert result.stderr.endswith(INTERRUPTED)
    assert "40 images" in result.stdout


# --- doctor ---------------------------------------------------------------------------------


def test_doctor_tells_what_is_in_the_data_and_what_next() -> None:
    draw_data(Path("data"))
    told = succeed("doctor", "data")
    for part in ("data", "captions", "6", "20x24", "picture, number", "Warnings:"):
        assert part in told
    assert told.rstrip().endswith("tessella fit data --out RUN")
    assert files() == ["data", *sorted(f"data/{i}.{s}" for i in range(6) for s in ("png", "txt"))]


def test_doctor_tells_how_it_read_the_data() -> None:
    draw_data(Path("data/test"))
    draw_data(Path("data/train"))
    for path in Path("data").rglob("*.txt"):
        path.unlink()
    rows = [f"{side}/{n}.png;a dog; of {side}" for side in ("train", "test") for n in range(6)]
    table = Path("data/captions.csv")
    table.write_text("\n".join(["file;caption", *rows]), encoding="utf-8")
    told = succeed("doctor", "data").splitlines()
    origin = "captions from captions.csv, column caption (semicolons)"
    assert f"Read       data: {origin} (12 images)" in told
    assert "Note       data: 12 rows of captions.csv with unquoted text joined" in told
    assert any(line.startswith("Split      data: as the data names it: ") for line in told)
    assert f"#   {origin}" in succeed("fit", "data", "--out", "run", "--dry-run")


def test_doctor_tells_json() -> None:
    draw_data(Path("data"))
    report = json.loads(succeed("doctor", "data", "--json"))
    assert report["is_usable"]
    assert report["images"] == 6
    assert report["neighbors"]["tried"] == report["captions"]


def test_doctor_tells_for_how_many_captions_there_is_a_useful_neighbour() -> None:
    draw_data(Path("data"))
    captions = ("a red cat", "one red cat", "a mill", "the sea", "a kite", "two boats")
    for number, caption in enumerate(captions):
        Path(f"data/{number}.txt").write_text(caption, encoding="utf-8")
    told = succeed("doctor", "data")
    [line] = [line for line in told.splitlines() if line.startswith("Neighbours ")]
    assert "useful for 33% of 6 captions: another picture's caption has at least 50%" in line
    assert line.endswith("; `one red cat` for `a red cat`; none for `a mill`")
    # A picture is no neighbour of itself, however often it is there.
    shutil.copy("data/2.png", "data/twin.png")
    shutil.copy("data/2.txt", "data/twin.txt")
    assert json.loads(succeed("doctor", "data", "--json"))["neighbors"]["useful"] == 2
    assert json.loads(run("doctor", "nowhere", "--json").stdout)["neighbors"] is None


def test_doctor_names_bad_files_and_ends_with_status_1() -> None:
    draw_data(Path("data"))
    Path("data/0.png").write_bytes(b"no picture")
    result = run("doctor", "data")
    assert result.exit_code == 1
    assert "0.png: Not a picture" in result.stdout
    assert "Errors:" in result.stdout
    as_json = run("doctor", "data", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["is_usable"] is False
    assert succeed("doctor", "data", "--set", "data.max_skipped_fraction=0.5")


def test_doctor_says_that_there_is_no_data() -> None:
    result = run("doctor", "nowhere")
    assert result.exit_code == 1
    assert "not readable" in result.stdout
    assert "There is no such data: `nowhere`" in result.stdout


# --- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "data.image_sise=3"], "`data.image_sise`; did you mean `data.image_size`?"),
        (["--set", "data.image_size=3"], "Setting `data.image_size`: got: `3`;"),
        (["--set", "data.image_size"], "A setting is written section.key=value"),
        (["--preset", "enormous"], "Unknown preset: `enormous`. Known are: tiny"),
        (["--config", "nowhere.toml"], "Cannot read the configuration: `nowhere.toml`"),
    ],
)
@pytest.mark.parametrize("command", ["doctor", "fit"])
def test_a_wrong_setting_is_explained(command: str, words: list[str], message: str) -> None:
    out = ["--out", "run", "--dry-run"] if command == "fit" else []
    assert message in fail(command, "scenes:10", *out, *words)
    assert not files()


@pytest.mark.parametrize("preset", ["tiny", "small", "base", "report2021"])
def test_a_recipe_as_toml_is_read_back(preset: str) -> None:
    recipe = resolve_recipe(preset, assignments=["data.licence='a \"b\" \\u00e9'"])
    Path("recipe.toml").write_text(to_toml(recipe.model_dump(mode="json")), encoding="utf-8")
    assert build(Recipe, read_config(Path("recipe.toml"))) == recipe


def test_a_dry_run_of_fit_writes_nothing_and_prints_its_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision_module, "measure_bf16_speedup", lambda: 0.5)
    told = succeed("fit", "scenes:40", "--out", "run", "--dry-run", *TINY)
    assert not files()
    assert told.startswith(
        "# Would start the run run\n# on scenes:40 (scenes, 40 images)\n# in fp32: bf16 takes"
    )
    Path("recipe.toml").write_text(told, encoding="utf-8")
    assert resolve_recipe(None, Path("recipe.toml")) == resolve_recipe(None, None, TINY[1::2])


def test_a_dry_run_of_fit_tells_json() -> None:
    told = json.loads(succeed("fit", "scenes:40", "--out", "run", "--dry-run", "--json"))
    assert told["dry_run"] is True
    assert told["is_new"] is True
    assert told["sources"] == [
        {
            "given": "scenes:40",
            "kind": "scenes",
            "images": 40,
            "readings": [],
            "notes": [],
        }
    ]
    assert build(Recipe, told["recipe"]) == Recipe()
    assert told["precision"]["name"] in ("fp32", "bf16")
    assert not files()


@pytest.mark.parametrize("minutes", ["nan", "0", "-1", "inf"])
def test_minutes_in_which_nothing_can_be_done_are_wrong_usage(minutes: str) -> None:
    """Nan was an error in the code after a minute of reading data; -1, seconds that were left."""
    result = run("fit", "nowhere", "--out", "run", "--minutes", minutes)
    assert result.exit_code == 2
    assert f"'--minutes': Expected a number above 0: `{minutes}`. Leave it out" in " ".join(
        result.stderr.replace("│", " ").split()
    )
    assert not files()


def test_a_dry_run_of_fit_refuses_what_fit_would() -> None:
    draw_data(Path("pictures"))
    words = ["fit", "pictures", "--out", "pictures/run", "--dry-run"]
    assert "inside the data: `pictures/run/data`" in fail(*words)
    words = ["fit", "pictures", "--out", "run", "--set", "data.image_size=66", "--dry-run"]
    assert "must be a multiple of" in fail(*words)
    words = ["fit-transformer", "pictures", "--out", "run", "--dry-run"]
    assert "image tokenizer is not trained yet" in fail(*words)


def test_fit_refuses_what_cannot_be_done() -> None:
    assert "no such data: `nowhere`" in fail("fit", "nowhere", "--out", "run", "--dry-run")
    assert "no such device here: `tpu`" in fail(
        "fit", "scenes:9", "--out", "run", "--device", "tpu"
    )
    Path("file").touch()
    assert "`file`" in fail("fit", "scenes:9", "--out", "file")
    draw_data(Path("data"))
    message = fail("fit", "scenes:9", "--out", "data", "--dry-run")
    assert "something other than a run: `data`" in message


# --- generate -------------------------------------------------------------------------------


def test_one_prompt_becomes_a_picture_with_a_free_name(model: str) -> None:
    assert "a-red-square.png" in succeed("generate", PROMPT, "--model", model)
    assert "a-red-square-2.png" in succeed("generate", PROMPT, "--model", model, "--seed", 1)
    assert files() == ["a-red-square-2.png", "a-red-square.png"]
    first, second = (read_pixels(name) for name in files())
    assert first.shape == (16, 16, 3)
    assert not np.array_equal(first, second)


def test_the_picture_is_that_of_python(model: str) -> None:
    succeed("generate", PROMPT, "--model", model, "--out", "x.png", "--seed", 7, "--steps", 2)
    [image] = TextToImage.load(model, "cpu").generate(PROMPT, seed=7, steps=2)
    assert np.array_equal(read_pixels("x.png"), np.asarray(image))


MAX_FRAMES = 12
"""Frames of this package between `main` and the first matrix product, both ends counted: the fewer,
the sooner a reader who follows one prompt arrives. Python 3.12 has one fewer, a comprehension."""


def test_a_prompt_reaches_the_transformer_through_few_frames(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = str(Path(tessella.__file__).parent)
    stacks: list[list[str]] = []
    for module, name in ((torch.nn.functional, "linear"), (torch, "matmul")):
        multiply = getattr(module, name)

        def record(*arguments: Any, multiply: Any = multiply, **options: Any) -> Any:
            frames = [f for f in traceback.extract_stack() if f.filename.startswith(package)]
            stacks.append([f"{Path(frame.filename).name}: {frame.name}" for frame in frames])
            return multiply(*arguments, **options)

        monkeypatch.setattr(module, name, record)
    monkeypatch.setattr(sys, "argv", ["tessella", "generate", PROMPT, "--model", model])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    assert stacks[0][:3] == ["__init__.py: main", "command.py: invoke", "generate.py: generate"]
    assert len(stacks[0]) <= MAX_FRAMES, stacks[0]


def test_several_pictures_share_a_sheet(model: str) -> None:
    told = succeed("generate", PROMPT, "b \N{OCTOPUS}", "--model", model, "--out", "x/sheet.png")
    assert "2 pictures" in told
    assert read_pixels("x/sheet.png").shape[1] > 2 * 192
    assert files() == ["x", "x/sheet.png"]


def test_several_pictures_a_prompt_make_a_row_each(model: str) -> None:
    succeed("generate", *"abcde", "--count", 2, "--model", model, "--out", "x.png")
    height, width, _ = read_pixels("x.png").shape
    assert 2 * 192 < width < 3 * 192
    assert height > 5 * 192


@pytest.mark.parametrize(
    ("words", "name", "why"),
    [
        ([], "fp32", "layers under 256 wide gain nothing"),
        (["--precision", "bf16"], "bf16", "as asked for"),
    ],
)
def test_a_picture_says_what_it_was_computed_in(
    model: str, words: list[str], name: str, why: str
) -> None:
    told = succeed(
        *("generate", PROMPT, "--model", model, "--device", "cpu", *words),
        *("--out", "out/pictures", "--json"),
    )
    [line] = Path("out/pictures/prompts.jsonl").read_text().splitlines()
    assert json.loads(told)["precision"] == {"name": name, "why": why}
    assert json.loads(line)["precision"] == {"name": name, "why": why}
    with Image.open("out/pictures/0000.png") as picture:
        assert json.loads(picture.info["Comment"])["precision"]["name"] == name
    refused = run("generate", PROMPT, "--model", model, "--precision", "fp16")
    assert refused.exit_code == 2
    assert "fp16" in refused.stderr


def test_a_folder_gets_every_picture_and_its_prompt(model: str) -> None:
    Path("prompts.txt").write_bytes("\N{BOM}one\r\n\r\n  \nzwei ü\n".encode())
    told = succeed(
        *("generate", PROMPT, "--prompts", "prompts.txt", "--model", model, "--count", 2),
        *("--seed", 5, "--top-k", 3, "--out", "out/pictures", "--json"),
    )
    lines = [
        json.loads(line) for line in Path("out/pictures/prompts.jsonl").read_text().splitlines()
    ]
    assert [line["file"] for line in lines] == [f"{number:04d}.png" for number in range(6)]
    assert [line["prompt"] for line in lines] == [PROMPT, PROMPT, "one", "one", "zwei ü", "zwei ü"]
    assert [line["seed"] for line in lines] == [5, 6] * 3
    assert lines[0]["settings"]["top_k"] == 3
    assert lines[0]["settings"]["steps"] == 3
    result = json.loads(told)
    assert result["settings"] == lines[0]["settings"]
    assert result["dry_run"] is False
    assert [Path(p["file"]).name for p in result["pictures"]] == [line["file"] for line in lines]
    assert all(read_pixels(picture["file"]).shape == (16, 16, 3) for picture in result["pictures"])
    # The first picture of the third prompt, painted alone, is the same.
    succeed("generate", "zwei ü", "--model", model, "--seed", 5, "--top-k", 3, "--out", "a.png")
    assert Path("a.png").read_bytes() == Path("out/pictures/0004.png").read_bytes()


def test_pictures_that_are_there_are_kept_unless_forced(model: str) -> None:
    words = ["generate", PROMPT, "--model", model]
    for out in ("x.png", "pictures"):
        succeed(*words, "--out", out)
        before = {name: Path(name).stat().st_ino for name in files()}
        assert "--force" in fail(*words, "--out", out, "--seed", 1)
        assert {name: Path(name).stat().st_ino for name in files()} == before
        succeed(*words, "--out", out, "--seed", 1, "--force")
        assert files() == list(before)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("data", "holds files that tessella did not paint: `data`"),
        ("data/0.txt", "A file has the name of the folder"),
        ("data/0.txt/x.png", "Cannot write the picture"),
        ("data/0.txt/x", "Cannot write the pictures"),
        (".", "The current folder"),
        ("empty/.", "The current folder"),
        ("x.gif", "Pictures are written as PNG, JPEG, WebP or AVIF: `x.gif`. Name it x.png"),
        ("folder.png", "A folder has the name of the file"),
    ],
)
def test_an_out_that_does_not_suit_is_refused(
    model: str, out: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_data(Path("data"))
    Path("folder.png").mkdir()
    before = files()
    if out == "empty/.":
        Path("empty").mkdir()
        monkeypatch.chdir("empty")
        out, before = ".", []
    assert message in fail("generate", PROMPT, "--model", model, "--out", out, "--force")
    assert files() == before


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".avif"])
def test_the_suffix_says_the_kind(model: str, suffix: str) -> None:
    kind = {".jpg": "JPEG", ".JPEG": "JPEG"}.get(suffix, suffix[1:].upper())
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    words = ["generate", PROMPT, "--model", model]
    succeed(*words, "--out", f"x{suffix}")
    succeed(*words, "--out", "x.png")
    with Image.open(f"x{suffix}") as image:
        assert (image.format, image.size) == (kind, (16, 16))
        shown = np.asarray(image.convert("L")).astype(int)
    with Image.open("x.png") as image:
        assert np.abs(shown - np.asarray(image.convert("L"))).mean() < 20
    assert "--force" in fail(*words, "--out", f"x{suffix}")


def test_a_kind_that_this_pillow_lacks(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    said = fail("generate", PROMPT, "--model", model, "--out", "x.avif")
    assert "The Pillow that is installed cannot write AVIF: `x.avif`. Name it x.png, or" in said


def test_a_picture_on_the_standard_output(model: str) -> None:
    words = ["generate", PROMPT, "--model", model]
    result = run(*words, "--out", "-")
    assert result.exit_code == 0
    assert "Painted 1 picture" in result.stderr
    assert not files()
    succeed(*words, "--out", "x.png")
    with Image.open(io.BytesIO(result.stdout_bytes)) as image:
        assert np.array_equal(np.asarray(image), read_pixels("x.png"))
    assert run(*words, "--out", "-", "--json").exit_code == 2
    assert "A sheet is written to a file: `-`" in fail("reconstruct", "x.png", "--out", "-")
    assert "Would paint 1 picture: -\n" in succeed(*words, "--out", "-", "--dry-run")


def test_a_terminal_is_no_place_for_a_picture(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(typer, "get_binary_stream", lambda name: Terminal())
    result = run("generate", PROMPT, "--model", model, "--out", "-")
    assert result.exit_code == 2
    assert "The picture would go to the terminal." in result.stderr


def test_more_than_a_sheet_holds_needs_a_folder(model: str) -> None:
    words = ["generate", PROMPT, "--model", model, "--count", 1025, "--dry-run"]
    assert "Too many pictures for one sheet: `1025`" in fail(*words, "--out", "x.png")
    assert "Would paint 1,025 pictures: a-red-square/\n" in succeed(*words)


def test_a_dry_run_of_generate_writes_nothing(model: str) -> None:
    words = ["generate", PROMPT, "--model", model, "--count", 2, "--out", "x", "--dry-run"]
    told = succeed(*words)
    assert "Would paint 2 pictures: x/\n" in told
    assert "steps 3" in told
    assert "x/0001.png  seed 1  a red square" in told
    result = json.loads(succeed(*words, "--json"))
    assert result["dry_run"] is True
    assert result["seconds"] is None
    assert not files()


def test_settings_come_from_the_model_a_file_words_and_options(model: str) -> None:
    Path("c.toml").write_text(
        "[generation]\nsteps = 2\ntemperature = 0.5\ntop_p = 0.5\n[transformer]\ndepth = 8\n"
    )
    told = succeed(
        *("generate", PROMPT, "--model", model, "--config", "c.toml", "--dry-run", "--json"),
        *("--set", "generation.temperature=0.25", "--set", "generation.top_p=0.25"),
        *("--top-p", 0.125),
    )
    settings = json.loads(told)["settings"]
    assert settings["order"] == "auto"
    assert [settings[name] for name in ("steps", "temperature", "top_p")] == [2, 0.25, 0.125]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "`steps`: got: `0`"),
        (["--steps", "1000000"], "`steps`: got: `1000000`"),
        (["--guidance-schedule", "bent"], "`guidance_schedule`: got: `bent`"),
        (["--step-schedule", "bent"], "`step_schedule`: got: `bent`"),
        (["--size", "8x16"], "16 to 4096 pixels a side: `8x16`. Try 16x16."),
        (["--size", "16x999999"], "`16x999999`. Try 16x4096."),
        (["--canvas", "big"], "A canvas is `wide`, the shape of the size, or WIDTHxHEIGHT"),
        (["--canvas", "1x999"], "at most 4096"),
        (["--negative-prompt", "blue"], "A negative prompt works by guidance, which is off"),
        (["--negative-prompt", "word " * 100, "--guidance-scale", "2"], "at most 64 can be read"),
        (["--seed", str(2**63 - 1), "--count", "2"], "A seed must be between 0 and"),
        (["--temperature", "nan"], "`temperature`: got: `nan`"),
        (["--temperature", "inf"], "`temperature`: got: `inf`"),
        (["--temperature", "-1"], "`temperature`: got: `-1.0`"),
        (["--guidance-scale", "nan"], "`guidance_scale`: got: `nan`"),
        (["--top-k", "0"], "`top_k`: got: `0`"),
        (["--top-p", "0"], "`top_p`: got: `0.0`"),
        (["--order", "spiral"], "`order`: got: `spiral`; input should be 'auto', 'random', 'halt"),
        (["--set", "generation.stepz=3"], "`stepz`; did you mean `steps`?"),
        (["--set", "transformer.depth=8"], "section `generation` only: `transformer`"),
        (["--set", "generation=8"], "section `generation` only"),
        (["--device", "tpu"], "no such device here: `tpu`"),
        (["word " * 100], "tokens (begin and end included), at most 64 can be read"),
        (["  "], "A prompt must say something: `  `"),
        (["--prompts", "nowhere.txt"], "Cannot read the prompts: `nowhere.txt`. No such file"),
        (["--prompts", "blank.txt"], "The file holds no prompt: `blank.txt`"),
        (["--prompts", "latin.txt"], "not UTF-8: `latin.txt`, line 2"),
        (["--model", "nowhere"], "There is no such model: `nowhere`"),
        (["--model", "blank.txt"], "That is a file, not a model folder: `blank.txt`"),
        (["--model", "."], "This is not a model folder"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_cannot_be_painted_is_refused_also_by_a_dry_run(
    model: str, words: list[str], message: str, dry_run: list[str]
) -> None:
    Path("blank.txt").write_text("\n  \n")
    Path("latin.txt").write_bytes("one\nfünf\n".encode("latin-1"))
    before = files()
    assert message in fail("generate", PROMPT, "--model", model, *words, *dry_run)
    assert files() == before


def test_many_pictures_of_a_prompt_are_those_of_python(model: str) -> None:
    words = ["generate", PROMPT, "a blue circle", "--model", model, "--seed", 3, "--steps", 1]
    succeed(*words, "--count", 18, "--out", "x")  # more than are painted at once
    made = TextToImage.load(model, "cpu").generate(
        [PROMPT, "a blue circle"], seed=3, count=18, steps=1
    )
    for number in (0, 15, 16, 17, 18, 35):
        assert np.array_equal(read_pixels(f"x/{number:04d}.png"), np.asarray(made[number]))


def test_the_best_of_several_has_the_seed_that_paints_it_again(model: str) -> None:
    words = ["generate", PROMPT, "--model", model, "--best-of", 3, "--steps", 1]
    succeed(*words, "--count", 17, "--seed", 4, "--out", "x")
    lines = [json.loads(line) for line in Path("x/prompts.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [4 + 3 * number for number in range(17)]
    assert {line["best_of"] for line in lines} == {3}
    succeed(*words, "--seed", lines[16]["seed"], "--out", "one.png")
    assert Path("one.png").read_bytes() == Path("x/0016.png").read_bytes()
    candidates = TextToImage.load(model, "cpu").generate(PROMPT, count=3, seed=4, steps=1)
    kept = read_pixels("x/0000.png")
    assert any(np.array_equal(kept, np.asarray(candidate)) for candidate in candidates)


def test_a_size_is_that_of_the_picture(model: str) -> None:
    words = ["generate", PROMPT, "--model", model]
    result = run(*words, "--size", "100X50", "--json")
    told = json.loads(result.stdout)
    assert (told["size"], told["painted_size"], told["canvas"]) == ([100, 50], [16, 16], None)
    [image] = TextToImage.load(model, "cpu").generate(PROMPT, size=(100, 50))
    assert np.array_equal(read_pixels("a-red-square.png"), np.asarray(image))
    [said] = [one for one in told["warnings"] if "painted at 16x16" in one]
    assert f"Hint: {said}\n" in result.stderr
    told = succeed(*words, "--size", "32x32", "--out", "x.png")
    assert re.match(r"Painted 1 picture in [0-9.]+ s at 16x16, made 32x32: x\.png\n", told)
    told = succeed(*words, "--size", "32x32", "--dry-run")
    assert told.startswith("Would paint 1 picture at 16x16, made 32x32: a-red-square-2.png\n")


def test_a_larger_canvas_is_asked_for_by_name(model: str) -> None:
    words = ["generate", PROMPT, "--model", model]
    told = json.loads(succeed(*words, "--canvas", "2x1", "--json"))
    assert (told["size"], told["painted_size"], told["canvas"]) == (None, [32, 16], "2x1")
    assert read_pixels("a-red-square.png").shape == (16, 32, 3)
    succeed(*words, "--canvas", "wide", "--size", "32x16", "--out", "wide.png")
    assert np.array_equal(read_pixels("wide.png"), read_pixels("a-red-square.png"))


def test_what_had_no_effect_is_told(model: str) -> None:
    words = ["generate", PROMPT, "--model", model, "--dry-run", "--json", "--canvas", "1x1"]
    words += ["--guidance-schedule", "linear", "--top-k", "3", "--temperature", "0"]
    result = run(*words)
    warnings = json.loads(result.stdout)["warnings"]
    names = [one.partition(". ")[0] for one in warnings]
    assert names == ["No effect: `guidance_schedule`", "No effect: `top_k`", "No effect: `canvas`"]
    assert result.stderr == "".join(f"Hint: {one}\n" for one in warnings)


def test_guidance_moves_away_from_a_negative_prompt(model: str) -> None:
    words = ["generate", PROMPT, "--model", model, "--guidance-scale", 8]
    succeed(*words, "--out", "a.png")
    told = succeed(*words, "--negative-prompt", "a blue circle", "--out", "b.png", "--json")
    assert json.loads(told)["negative_prompt"] == "a blue circle"
    [image] = TextToImage.load(model, "cpu").generate(
        PROMPT, negative_prompt="a blue circle", guidance_scale=8
    )
    assert np.array_equal(read_pixels("b.png"), np.asarray(image))


def test_every_setting_of_generation_is_an_option_with_its_help() -> None:
    for command in ("generate", "edit", "vary"):
        options = {option.name: option for option in list_options(command)}
        text = succeed(command, "--help")
        for name, field in GenerationSettings.model_fields.items():
            assert options[name].opts == [f"--{name.replace('_', '-')}"]
            assert options[name].help.startswith(" ".join(str(field.description).split()))
            assert f"--{name.replace('_', '-')}" in text
    words = " ".join(succeed("generate", "--help").split())
    assert "--order auto|random|halton|confidence" in words
    assert "At least 1, at most 4096. [default: (the model's own)]" in words
    assert "Above 0, at most 1." in words


def test_the_help_names_every_preset() -> None:
    """`large` was once left out."""
    [preset] = [option for option in list_options("fit") if option.name == "preset"]
    assert [name for name in PRESETS if not re.search(rf"\b{name}\b", preset.help)] == []


def test_every_setting_can_be_changed(model: str) -> None:
    changes = {
        "steps": 2,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.75,
        "guidance_scale": 2.5,
        "guidance_schedule": "linear",
        "order": "confidence",
        "confidence_temperature": 1.5,
        "neighbors": 0,
        "step_schedule": "arccos",
    }
    words = [w for n, v in changes.items() for w in (f"--{n.replace('_', '-')}", v)]
    told = succeed("generate", PROMPT, "--model", model, *words, "--dry-run", "--json")
    assert json.loads(told)["settings"] == changes
    assert changes.keys() == GenerationSettings.model_fields.keys()


def test_unknown_words_are_painted_with_a_hint(model: str) -> None:
    words = ["--model", model, "--dry-run"]
    result = run("generate", "a red Xyzzy, (plugh)!", "xyzzy", "3d \N{OCTOPUS} don't!", *words)
    assert result.exit_code == 0
    assert result.stderr == (
        "Hint: Not in the model's vocabulary: `xyzzy`, `plugh`, `\N{OCTOPUS}`. Its captions rarely "
        "or never had these words, so results for them are unpredictable.\n"
    )
    many = run("generate", *(f"{chr(97 + n)}z" for n in range(22)), *words).stderr
    assert "`sz`, `tz` and 2 more. Its" in many
    assert run("generate", "A  red circle.", *words).stderr == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("transformer.safetensors", b"cut", "Cannot read the tensors"),
        ("tokenizer.safetensors", None, "Cannot read the tensors"),
        ("text_tokenizer.json", b"{}", "Not a text tokenizer of tessella"),
        ("config.json", b"{}", "This is not a model folder"),
        ("config.json", b'{"format": 99}', "has format `99`"),
        ("config.json", b'{"format": %d, "image_size": 18}' % MODEL_FORMAT, "multiple of 8"),
        ("config.json", b'{"format": %d, "image_size": 16}' % MODEL_FORMAT, "do not fit"),
        (
            "config.json",
            b'{"format": %d, "image_sise": 16}' % MODEL_FORMAT,
            "Unknown setting `image_sise`",
        ),
    ],
)
def test_a_damaged_model_is_refused(
    model: str, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in Path(model).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
        assert "SHA256SUMS says" in fail("generate", PROMPT, "--model", folder)
    (folder / "SHA256SUMS").unlink()
    assert message in fail("generate", PROMPT, "--model", folder)
    assert not files()


# --- reconstruct ----------------------------------------------------------------------------


def test_reconstruct_shows_pictures_beside_what_is_kept(model: str) -> None:
    draw_data(Path("data"), 2)
    words = ["reconstruct", "data/0.png", "data/1.png", "--model", model]
    told = succeed(*words)
    lines = told.splitlines()
    assert [line.split()[1:] for line in lines[:2]] == [["dB", "data/0.png"], ["dB", "data/1.png"]]
    assert lines[-1] == "Written: reconstruction.png"
    # Four pictures side by side, enlarged.
    assert read_pixels("reconstruction.png").shape[1] > 4 * 192
    result = json.loads(succeed(*words, "--json"))
    assert result["out"] == "reconstruction-2.png"
    assert [image["file"] for image in result["images"]] == ["data/0.png", "data/1.png"]
    assert f"{result['images'][0]['psnr']:.1f} dB" in lines[0]


def test_a_dry_run_of_reconstruct_writes_nothing(model: str) -> None:
    draw_data(Path("data"), 1)
    before = files()
    told = succeed("reconstruct", "data/0.png", "--model", model, "--dry-run")
    assert told == "data/0.png\nWould be written: reconstruction.png\n"
    assert files() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data/0.txt"], "Cannot reconstruct: `data/0.txt`. Not a picture of a known format"),
        (["data"], "Cannot reconstruct: `data`."),
        (["nowhere.png"], "There is no such picture: `nowhere.png`"),
        (["data/0.png", "--out", "x"], "A sheet is written to a file: `x`"),
        (["data/0.png", "--out", "data/0.png"], "The file already exists: `data/0.png`"),
        (["data/0.png"] * 600, "Too many pictures for one sheet: `600`, at most 512"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused(
    model: str, words: list[str], message: str
) -> None:
    draw_data(Path("data"), 1)
    before = files()
    assert message in fail("reconstruct", *words, "--model", model)
    assert files() == before


def test_only_the_first_of_several_processes_tells(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "RANK", "1")
    assert succeed("generate", PROMPT, "--model", model, "--dry-run", "--json") == ""
    assert succeed("generate", PROMPT, "--model", model, "--dry-run") == ""
