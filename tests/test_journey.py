"""The whole way, as a person goes it.

Pictures → doctor → fit → generate → reconstruct → Python → serve → post.
"""

import base64
import importlib.util
import io
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from starlette.testclient import TestClient
from typer.testing import CliRunner

import tessella
from tessella.cli import app
from tessella.serving.app import create_app
from tessella.serving.models_served import load_models

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHAPES = ("square", "circle")
COLORS = ("red", "green", "blue", "orange")
SETTINGS = (
    "data.image_size=32",
    "data.workers=1",
    "tokenizer.widths=[16,16]",
    "tokenizer.quantizer.codebook_size=32",
    "tokenizer_training.images=384",
    "tokenizer_training.batch_size=16",
    "tokenizer_training.warmup_images=32",
    "tokenizer_training.ema_half_life_images=32",
    "transformer.width=32",
    "transformer.depth=2",
    "transformer_training.images=384",
    "transformer_training.batch_size=16",
)


def tessella_command(*words: str) -> str:
    """Runs a command that has to succeed; returns its stdout."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture."""
    with Image.open(path) as image:
        return image.size


def draw_pictures(folder: Path) -> None:
    """Draws squares and circles in four colours, each with a caption beside it."""
    rng = np.random.default_rng(0)
    for number in range(48):
        color = COLORS[number % 4]
        left, top = (int(n) for n in rng.integers(2, 16, size=2))
        image = Image.new("RGB", (40, 40), "white")
        draw = ImageDraw.Draw(image)
        shape = "square" if number % 8 < 4 else "circle"
        paint = draw.rectangle if shape == "square" else draw.ellipse
        paint((left, top, left + 20, top + 20), fill=color)
        place = folder / shape
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"a {color} {shape}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures in `shapes` and, trained on them by the command line, `run`."""
    folder = tmp_path_factory.mktemp("journey")
    draw_pictures(folder / "shapes")
    tessella_command(*fit_words(folder))
    return folder


def fit_words(home: Path) -> list[str]:
    words = ["fit", str(home / "shapes"), "--out", str(home / "run"), "--seed", "3"]
    return words + [word for setting in SETTINGS for word in ("--set", setting)]


def test_the_doctor_finds_the_pictures_in_order(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "shapes")
    report = json.loads(tessella_command("doctor", str(tmp_path / "shapes"), "--json"))
    assert report["is_usable"]
    assert report["images"] == 48
    assert report["different_captions"] == 8


def test_fit_leaves_a_whole_model_folder(home: Path) -> None:
    names = {path.name for path in (home / "run" / "model").iterdir()}
    assert names == {
        "config.json",
        "tokenizer.safetensors",
        "transformer.safetensors",
        "text_tokenizer.json",
        "README.md",
        "metrics.json",
        "samples.png",
        "captions.json",
        "SHA256SUMS",
    }
    metrics = json.loads((home / "run" / "model" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["reconstruction_psnr"]["value"] > 10  # white paper with a shape on it


def test_the_same_fit_again_trains_nothing_and_says_so(home: Path) -> None:
    weights = home / "run" / "model" / "transformer.safetensors"
    metrics = home / "run" / "transformer" / "metrics.jsonl"
    before = weights.read_bytes(), metrics.read_bytes()
    told = tessella_command(*fit_words(home))
    assert "There was nothing left to train" in told
    assert (weights.read_bytes(), metrics.read_bytes()) == before
    assert "Would resume" in tessella_command(*fit_words(home), "--dry-run")


def test_fit_tells_the_next_command_and_it_works(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = json.loads(tessella_command(*fit_words(home), "--json"))
    assert result["model"] == str(home / "run" / "model")
    assert result["metrics"]["reconstruction_psnr"]["value"] > 10
    found = re.fullmatch(r"tessella generate '(a \w+ \w+)' --model (\S+)", result["next"])
    assert found, result["next"]
    monkeypatch.chdir(tmp_path)
    tessella_command("generate", found[1], "--model", found[2])
    [picture] = tmp_path.glob("a-*.png")
    assert size_of(picture) == (32, 32)


def test_the_stages_one_by_one_are_the_same_as_both(home: Path, tmp_path: Path) -> None:
    words = [*fit_words(home)[1:], "--out", str(tmp_path / "run")]
    told = json.loads(tessella_command("fit-tokenizer", *words, "--json"))
    assert told["model"] is None
    assert told["next"].startswith("tessella fit-transformer ")
    assert "--set tokenizer.widths=" in told["next"].replace("'", "")
    tessella_command("fit-transformer", *words)
    for name in ("tokenizer.safetensors", "transformer.safetensors"):
        whole, apart = home / "run" / "model" / name, tmp_path / "run" / "model" / name
        assert whole.read_bytes() == apart.read_bytes()


def test_other_settings_in_the_same_run_are_refused(home: Path) -> None:
    result = CliRunner().invoke(app, [*fit_words(home), "--set", "transformer.depth=4"])
    assert result.exit_code == 1
    assert "The run began with other settings" in result.stderr
    assert "transformer.depth = `2`, now it is `4`" in result.stderr


def test_a_picture_is_reconstructed(home: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    picture = home / "shapes" / "square" / "0.png"
    told = tessella_command(
        *("reconstruct", str(picture), "--model", str(home / "run"), "--out", str(sheet))
    )
    assert float(told.split()[0]) > 10
    assert sheet.exists()


def test_the_model_is_loaded_and_moved_in_python(home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    (home / "run" / "model").rename(moved)
    try:
        model = tessella.load(moved)
        images = model.generate(["a red square", "a blue circle"], count=2, seed=7)
    finally:
        moved.rename(home / "run" / "model")
    assert isinstance(model, tessella.TextToImage)
    assert [image.size for image in images] == [(32, 32)] * 4
    [again] = model.generate("a blue circle", seed=8)
    assert np.array_equal(np.asarray(again), np.asarray(images[3]))


def test_the_run_is_served(home: Path) -> None:
    models = load_models([str(home / "run")], "cpu")
    with TestClient(create_app(models), base_url="http://localhost") as client:
        [served] = client.get("/v1/models").json()["data"]
        assert (served["id"], served["image_size"]) == ("run", 32)
        assert set(served["examples"]) <= {f"a {c} {s}" for c in COLORS for s in SHAPES}
        body = {"prompt": "a red square", "seed": 7}
        answer = client.post("/v1/images/generations", json=body).json()
    content = base64.b64decode(answer["data"][0]["b64_json"])
    [expected] = tessella.load(home / "run" / "model").generate("a red square", seed=7)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), expected)


def test_posts_are_painted_by_the_run(home: Path, tmp_path: Path) -> None:
    asked = ("--business", "Blocks", "--about", "Red squares.", "--count", "2", "--offline")
    tessella_command("post", *asked, "--model", str(home / "run"), "--out", str(tmp_path / "posts"))
    posts = json.loads((tmp_path / "posts" / "posts.json").read_text(encoding="utf-8"))
    assert len(posts["posts"]) == 2
    assert posts["posts"][0]["label"] == "a red square"
    assert size_of(tmp_path / "posts" / "1.png") == (32, 32)


# --- the bundled model ----------------------------------------------------------------------


def load_demo() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_demo_paints_with_the_bundled_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = load_demo()
    assert demo.main(["--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    right = re.search(r"(\d+) of 16 pictures match their prompt", told)
    assert right
    # Chance is far below one; a model that has learned paints most of them.
    assert int(right[1]) >= 8
    assert re.search(r"\d+ ms a picture on \w+, in a batch of 16", told)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == page.count("data:image/png;base64,") == 16
    assert not re.search(r"https?:|<script|<link|url\(", page)
    assert size_of(tmp_path / "sheet.png")[0] > 4 * 3 * 64


def test_the_demo_says_that_there_is_no_such_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_demo().main(["--model", "nowhere", "--out", str(tmp_path)]) == 1
    assert "Error: There is no such model: `nowhere`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_page_shows_prompts_as_text(tmp_path: Path) -> None:
    demo = load_demo()
    picture = demo.DemoPicture("<b>&\"'{note}", 0, Image.new("RGB", (2, 2)), None, None)
    demo.write_page(tmp_path / "index.html", [picture], "<i>")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;&quot;&#x27;{note}" in page
    assert "<b>" not in page
    assert "<i>" not in page
