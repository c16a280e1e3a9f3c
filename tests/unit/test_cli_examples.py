"""`tessella examples` and `tessella export`: what they print, and what is wrong usage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tessella.cli import app
from untrained import create_untrained, save_untrained

STAYS = "The weights are as before: what the model has learned stays."


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_untrained(create_untrained(neighbors=2), tmp_path / "model")


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    folder = tmp_path / "pics"
    folder.mkdir()
    for name, caption in {"a": "a red star\na star", "b": "a blue star"}.items():
        pixels = np.random.default_rng(ord(name)).integers(256, size=(16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    return folder


def run(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == status, done.output
    return done.output


def run_json(*words: object) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(run(*words, "--json"))
    return values


def test_add_list_and_remove(model: Path, pics: Path) -> None:
    text = run("examples", "add", model, pics)
    assert text == f"Added 2 examples.\nThe model in {model} has 2 examples. {STAYS}\n"
    text = run("examples", "add", model, pics)
    assert "Added 0 examples.\nNot added again, since they are there already: " in text
    assert "pics/a.png, pics/b.png." in text
    text = run("examples", "list", model)
    assert text == "0  pics/a.png  a red star | a star\n1  pics/b.png  a blue star\n2 examples.\n"
    assert run("examples", "list", model, "--caption", "blue").endswith("blue star\n1 example.\n")
    text = run("examples", "remove", model, "--name", "b.png", "--dry-run")
    assert text.startswith("Would take away 1 example: pics/b.png.\nThe model in")
    assert f"would have 1 example. {STAYS}" in text
    text = run("examples", "remove", model, "--source", "pics")
    assert text.startswith("Took away 2 examples: pics/a.png, pics/b.png.\n")
    text = run("examples", "remove", model, "--all")
    assert text.startswith("No example fits. `tessella examples list` shows them all.\n")


def test_json(model: Path, pics: Path, tmp_path: Path) -> None:
    (pics / "c.txt").write_text("no picture")
    out = tmp_path / "copy"
    values = run_json("examples", "add", model, pics, "--out", out)
    [skipped] = values.pop("skipped")
    assert skipped["name"].endswith("c.txt")
    added = [
        {"name": "pics/a.png", "captions": ["a red star", "a star"]},
        {"name": "pics/b.png", "captions": ["a blue star"]},
    ]
    assert values == {
        "dry_run": False,
        "model": str(out),
        "examples": added,
        "count": 2,
        "weights_changed": False,
        "known": [],
    }
    listed = run_json("examples", "list", out, "--name", "b.png")
    assert listed == {"model": str(out), "examples": [{"index": 1, **added[1]}]}
    values = run_json("examples", "remove", out, "--caption", "red")
    assert (values["examples"], values["count"]) == (added[:1], 1)
    values = run_json("export", out, "--out", tmp_path / "bare", "--without-examples")
    assert values == {
        "model": str(out),
        "out": str(tmp_path / "bare"),
        "form": "model",
        "count": 0,
    }


def test_what_is_skipped_is_said(model: Path, pics: Path) -> None:
    (pics / "c.txt").write_text("no picture")
    text = run("examples", "add", model, pics, "--dry-run")
    assert text.startswith("Would add 2 examples.\nSkipped, since they cannot be used: ")
    assert "c.txt: no picture of the same name lies beside it." in text
    assert "would have 2 examples." in text


def test_export(model: Path, pics: Path, tmp_path: Path) -> None:
    run("examples", "add", model, pics)
    text = run("export", model, "--out", tmp_path / "whole")
    assert text == f"The model is in {tmp_path / 'whole'}, with 2 examples.\n"
    text = run("export", model, "--out", tmp_path / "bare", "--without-examples")
    assert text == f"The model is in {tmp_path / 'bare'}, with 0 examples.\n{STAYS}\n"
    text = run("export", model, "--out", tmp_path / "bare", status=1)
    assert text.startswith("Error: Something of that name is there already: ")
    run("export", model, "--out", tmp_path / "bare", "--force")


@pytest.mark.parametrize("words", [(), ("--onnx",), ("--web", "a", "--out", "b")])
def test_where_an_export_goes_must_be_said_and_once(model: Path, words: tuple[str, ...]) -> None:
    text = run("export", model, *words, status=2)
    assert "Give --out FOLDER, with --onnx or without, or --web FOLDER." in " ".join(text.split())


def test_export_onnx(model: Path, pics: Path, tmp_path: Path) -> None:
    run("examples", "add", model, pics)
    text = run("export", model, "--onnx", "--out", tmp_path / "graphs")
    assert text.startswith(f"The ONNX graphs are in {tmp_path / 'graphs'}, with 2 examples.\nOf ")
    assert (
        "2 travel along, as codes with captions and file names: whoever has the model can" in text
    )
    graphs = {"text_encoder.onnx", "decoding_step.onnx", "image_decoder.onnx"}
    card = {"README.md", "samples.png"}
    notes = {"onnx.json", "text_tokenizer.json", "SHA256SUMS"} | card
    examples = {"examples.safetensors", "examples.jsonl"}
    assert {path.name for path in (tmp_path / "graphs").iterdir()} == graphs | notes | examples
    bare = ("--out", tmp_path / "bare", "--without-examples")
    assert run("export", model, "--onnx", *bare).endswith(f"with 0 examples.\n{STAYS}\n")
    assert {path.name for path in (tmp_path / "bare").iterdir()} == graphs | notes
    text = run("export", model, "--onnx", *bare, status=1)
    assert text.startswith("Error: Something of that name is there already: ")


@pytest.mark.parametrize("words", [(), ("--all", "--name", "a")])
def test_what_to_remove_must_be_said_and_once(model: Path, words: tuple[str, ...]) -> None:
    text = run("examples", "remove", model, *words, status=2)
    assert "Give --name, --caption or --source, or else --all." in text


def test_a_model_without_examples_and_a_bundled_one(tmp_path: Path, pics: Path) -> None:
    text = run("examples", "add", "scenes", pics, status=1)
    assert text.startswith("Error: The model looks at no examples: it was trained without")
