"""Models as ONNX graphs: onnxruntime paints what PyTorch paints, by the script in examples/."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import ConfigError
from tessella.model.onnx_export import describe_onnx, export_onnx
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from untrained import create_untrained, create_with_examples, describe_tokenizer, save_untrained

SCRIPT = Path(__file__).resolve().parent.parent / "examples/paint_by_onnx.py"
CAPTIONS = ["a red star", "a green star with a very long tail", "a blue moon"]
PROMPTS = ["a red star", "a moon", ""]
SEEDS = [0, 7, 2**32 + 7]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paint_by_onnx", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up by name
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32 + 5, 2**63 - 1])
def test_the_script_draws_what_torch_draws(script: ModuleType, seed: int) -> None:
    ours, theirs = script.TorchGenerator(seed), torch.Generator().manual_seed(seed)
    for count in (1, 7, 700):  # past the 624 numbers that the twister makes at once
        assert ours.randperm(count).tolist() == torch.randperm(count, generator=theirs).tolist()
        assert np.array_equal(ours.rand(count), torch.rand(count, generator=theirs).numpy())


def two_codes(**generation: Any) -> dict[str, Any]:
    return {
        "tokenizer": describe_tokenizer(2),
        "generation": {"steps": 4, "temperature": 1.0, "guidance_scale": 3.0, **generation},
    }


def create(kind: str) -> TextToImage:
    match kind:
        case "plain":
            return create_untrained(captions=CAPTIONS)
        case "certain":
            settings = {"steps": 16, "temperature": 0.0, "order": "halton"}
            return create_untrained(captions=CAPTIONS, generation=settings)
        case "cut":
            cut = {"top_k": 5, "top_p": 0.8, "guidance_schedule": "linear"}
            return create_untrained(captions=CAPTIONS, **two_codes(**cut))
        case _:
            return create_with_examples(CAPTIONS, **two_codes())


@pytest.mark.parametrize("kind", ["plain", "certain", "cut", "examples"])
def test_the_same_codes_for_the_same_seed(script: ModuleType, tmp_path: Path, kind: str) -> None:
    model = create(kind)
    folder, out = save_untrained(model, tmp_path / "model"), tmp_path / "graphs"
    assert export_onnx(folder, out) == (3 if kind == "examples" else 0)
    painter = script.OnnxPainter(out, threads=1)
    asked = [ImageRequest(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    requests = model.examples.complete(asked, None)
    expected = model.generate_images(requests)
    assert expected.codes is not None
    assert len(expected.codes.unique()) > 2
    examples = [[(e.codes, e.caption) for e in one.examples or ()] for one in requests]
    painted = painter.paint(PROMPTS, SEEDS, examples)
    assert np.array_equal(painted.codes, expected.codes.numpy())
    # Of the pixels, those that lie between two values may round to either.
    assert np.abs(painted.pixels.astype(int) - expected.pixels).max() <= 1
    alone = painter.paint(PROMPTS[1:2], SEEDS[1:2], examples[1:2])
    assert np.array_equal(alone.codes, painted.codes[1:2])
    if kind == "examples":
        assert any(examples)
        assert not np.array_equal(painter.paint(PROMPTS, SEEDS).codes, painted.codes)
        found = script.find_examples(out, "a red star", 2)
        assert [caption for _, caption in found] == [caption for _, caption in examples[0]]


def test_the_card_comes_along_and_says_which_pictures_are_inside(tmp_path: Path) -> None:
    card = "# A card\n<!-- examples -->\n3 pictures are inside.\n<!-- /examples -->\n"
    folder = save_untrained(create("examples"), tmp_path / "model", card)
    export_onnx(folder, tmp_path / "whole")
    assert (tmp_path / "whole" / "README.md").read_text() == card
    samples = (tmp_path / "whole" / "samples.png").read_bytes()
    assert samples == (folder / "samples.png").read_bytes()
    export_onnx(folder, tmp_path / "bare", without_examples=True)
    assert "no picture is inside" in (tmp_path / "bare" / "README.md").read_text()
    (folder / "README.md").unlink()
    export_onnx(folder, tmp_path / "none")
    assert not (tmp_path / "none" / "README.md").exists()


def test_the_script_paints_a_file(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = create("examples"), tmp_path / "graphs"
    export_onnx(save_untrained(model, tmp_path / "model"), out)
    png = tmp_path / "star.png"
    words = ["script", str(out), "a red star", "--seed", "5", "--out", str(png)]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    [expected] = model.generate("a red star", seed=5)
    with script.Image.open(png) as image:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= 1


def test_a_prompt_is_refused_and_a_caption_cut(script: ModuleType, tmp_path: Path) -> None:
    model, out = create("examples"), tmp_path / "graphs"
    export_onnx(save_untrained(model, tmp_path / "model"), out)
    painter, long = script.OnnxPainter(out), "star " * 100
    with pytest.raises(ValueError, match=r"The prompt has \d+ tokens, at most 64"):
        painter.paint([long], [0])
    texts = [long, "<end> a Ünïcode  ⭐"]
    expected = model.text_tokenizer.encode_training(texts).text_tokens
    assert np.array_equal(painter.tokenize(texts, cut=True), expected.numpy())


def test_what_is_not_exported() -> None:
    with pytest.raises(ConfigError, match=r"objective any_order .*: `masked`\. Train one with"):
        describe_onnx(create_untrained("masked"))
    confident = {"steps": 3, "order": "confidence"}
    with pytest.raises(ConfigError, match=r"order `confidence` predicts every open position"):
        describe_onnx(create_untrained(generation=confident))
    frozen = create_untrained()
    frozen.transformer.shape = replace(frozen.transformer.shape, text_features=8)
    with pytest.raises(ConfigError, match=r"A model with a frozen text encoder is not exported"):
        describe_onnx(frozen)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = save_untrained(create_untrained(), tmp_path / "model"), tmp_path / "graphs"
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"ONNX graphs needs the package `onnx`.*tessella\[onnx"):
        export_onnx(folder, out)
    assert not out.exists()
