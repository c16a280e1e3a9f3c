"""The model folder: today's format, the one before, and weights that do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tessella.errors import CheckpointError
from tessella.model.folder import MODEL_FORMAT, TrainedTokenizer, load_weights
from tessella.model.pipeline import TextToImage
from untrained import create_untrained, save_untrained

# How the transformer's weights were called in format 2, by the names of format 3.
NAMES_IN_FORMAT_2 = {
    "self_decoder.": "reading.",
    "cross_decoder.": "asking.",
    "kv_norm.": "memory_norm.",
    "position_embedding.": "place_embedding.",
    "mask_token": "question",
    "text_decoder.": "writing.",
}


def to_format_2(folder: Path) -> Path:
    """Rewrites a model folder as an older tessella wrote it."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 2}))
    path = folder / "transformer.safetensors"
    older = {}
    for name, tensor in load_file(path).items():
        new = next((n for n in NAMES_IN_FORMAT_2 if name.startswith(n)), "")
        older[NAMES_IN_FORMAT_2.get(new, "") + name.removeprefix(new)] = tensor
    save_file(older, path)
    return folder


def test_a_saved_model_has_todays_format(tmp_path: Path) -> None:
    folder = save_untrained(create_untrained(), tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["format"] == MODEL_FORMAT == 4
    names = load_file(folder / "transformer.safetensors").keys()
    assert {"mask_token", "kv_norm.weight", "position_embedding.weight"} <= names
    assert not any(name.startswith(tuple(NAMES_IN_FORMAT_2.values())) for name in names)


@pytest.mark.parametrize("objective", ["any_order", "shared_latent"])
def test_a_model_of_format_2_loads_and_is_saved_as_today_s(objective: str, tmp_path: Path) -> None:
    model = create_untrained(objective)
    folder = to_format_2(save_untrained(model, tmp_path / "model"))
    assert "question" in load_file(folder / "transformer.safetensors")
    loaded = TextToImage.load(folder, device="cpu")
    expected, state = model.transformer.state_dict(), loaded.transformer.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert loaded.config == model.config
    [image], [other] = (one.generate("a red star", seed=3) for one in (model, loaded))
    assert np.array_equal(np.asarray(image), np.asarray(other))
    save_untrained(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["format"] == MODEL_FORMAT


def test_damaged_weights_of_the_transformer_are_named(tmp_path: Path) -> None:
    folder = to_format_2(save_untrained(create_untrained(), tmp_path / "model"))
    path, network = folder / "transformer.safetensors", create_untrained().transformer
    weights = load_file(path)
    save_file({name: t for name, t in weights.items() if name != "question"}, path)
    with pytest.raises(CheckpointError, match=r"fit the configuration .*Missing key.*mask_token"):
        load_weights(network, path)
    save_file(weights | {"answer": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"fit the configuration .*Unexpected key.*answer"):
        load_weights(network, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"transformer\.safetensors"):
        load_weights(network, path)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_image_tokenizer_of_every_format_loads(version: int, tmp_path: Path) -> None:
    model = create_untrained()
    folder = tmp_path / "tokenizer"
    TrainedTokenizer(model.config, model.tokenizer).save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": version}))
    loaded = TrainedTokenizer.load(folder, device="cpu").tokenizer
    assert torch.equal(loaded.codebook, model.tokenizer.codebook)
