"""The model folder: today's format, those before, and weights that do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tessella.checksums import SUMS_FILE
from tessella.errors import CheckpointError
from tessella.files import hash_tensors
from tessella.model.folder import MODEL_FORMAT, TrainedTokenizer
from tessella.model.folder_weights import load_network
from tessella.model.pipeline import TextToImage
from tessella.retrieval.examples import EXAMPLES_FILE
from tessella.retrieval.mapped import map_arrays, write_arrays
from untrained import (
    CAPTIONS,
    create_untrained,
    create_with_examples,
    describe_tokenizer,
    save_untrained,
)

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
    (folder / SUMS_FILE).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 2}))
    path = folder / "transformer.safetensors"
    older = {}
    for name, tensor in load_file(path).items():
        new = next((n for n in NAMES_IN_FORMAT_2 if name.startswith(n)), "")
        older[NAMES_IN_FORMAT_2.get(new, "") + name.removeprefix(new)] = tensor
    save_file(older, path)
    return folder


def to_format_4(folder: Path) -> Path:
    """Rewrites a model folder as it was when a position had one code."""
    (folder / SUMS_FILE).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    quantizer = config["tokenizer"]["quantizer"]
    for name in ("codes_per_position", "composition", "tail_dropout"):
        quantizer.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config | {"format": 4}))
    path = folder / "tokenizer.safetensors"
    weights = load_file(path).items()
    older = {name.replace("quantizer.parts.0.", "quantizer."): tensor for name, tensor in weights}
    save_file(older, path)
    return folder


def to_older_examples(folder: Path) -> None:
    """Rewrites the examples of a model folder as they were then."""
    path = folder / EXAMPLES_FILE
    arrays, metadata = map_arrays(path)
    arrays["codes"] = arrays["codes"][:, 0]
    write_arrays(folder / "older", arrays, metadata)
    (folder / "older").replace(path)
    path = folder / "transformer.safetensors"
    weights = load_file(path)
    for name in ("prompt_query", "caption_key", "relevance", "aligned"):  # came with format 6
        del weights[f"example_encoder.{name}.weight"]
    save_file(weights, path)


def paint(model: TextToImage) -> bytes:
    return model.generate("a red star", seed=3)[0].tobytes()


def test_a_saved_model_has_todays_format(tmp_path: Path) -> None:
    folder = save_untrained(create_untrained(), tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["format"] == MODEL_FORMAT == 6
    names = load_file(folder / "transformer.safetensors").keys()
    assert {"mask_token", "kv_norm.weight", "position_embedding.weight"} <= names
    assert not any(name.startswith(tuple(NAMES_IN_FORMAT_2.values())) for name in names)


@pytest.mark.parametrize("objective", ["any_order", "shared_latent"])
def test_a_model_of_format_2_loads_and_is_saved_as_today_s(objective: str, tmp_path: Path) -> None:
    model = create_untrained(objective)
    folder = to_format_2(to_format_4(save_untrained(model, tmp_path / "model")))
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


LEARNING: dict[str, dict[str, Any]] = {
    "gradient": {"code_width": 4},
    "ema": {"code_width": 4, "normalize": False, "learning": "ema"},
    "fsq": {"name": "fsq", "levels": (4, 4)},
}


@pytest.mark.parametrize("learning", LEARNING)
def test_a_model_of_format_4_loads_and_paints_the_same(learning: str, tmp_path: Path) -> None:
    """One code a position: the codebook's weights were called otherwise, and examples (E, h, w)."""
    quantizer = LEARNING[learning]
    if learning != "fsq":
        quantizer = quantizer | {"codebook_size": 16}
    tokenizer = describe_tokenizer() | {"quantizer": quantizer}
    model = create_with_examples(CAPTIONS, tokenizer=tokenizer)
    encoder = model.transformer.example_encoder
    assert encoder is not None
    encoder.aligned.weight.zero_()
    folder = to_format_4(save_untrained(model, tmp_path / "model"))
    older = load_file(folder / "tokenizer.safetensors")
    assert "quantizer.idle_images" in older
    assert ("quantizer.vectors" in older) is (learning != "fsq")
    assert not any("parts" in name for name in older)
    # By this its examples are known to be its own.
    is_hashed = ("encoder.", "quantizer.vectors")
    hashed = {name: older[name] for name in older if name.startswith(is_hashed)}
    assert hash_tensors(hashed) == model.tokenizer.hash_encoder()
    to_older_examples(folder)
    loaded = TextToImage.load(folder, device="cpu")
    assert loaded.config == model.config
    assert torch.equal(loaded.tokenizer.codebook, model.tokenizer.codebook)
    assert model.memory is not None
    assert loaded.memory is not None
    assert np.array_equal(loaded.memory.codes, model.memory.codes)
    assert paint(loaded) == paint(model)
    save_untrained(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["format"] == MODEL_FORMAT
    assert paint(TextToImage.load(tmp_path / "again", device="cpu")) == paint(model)


@pytest.mark.parametrize("composition", ["product", "residual"])
def test_a_model_of_two_codes_a_position_is_saved_and_loaded(
    composition: str, tmp_path: Path
) -> None:
    tokenizer = describe_tokenizer(2, composition)
    model = create_with_examples(CAPTIONS, tokenizer=tokenizer)
    folder = save_untrained(model, tmp_path / "model")
    names = load_file(folder / "tokenizer.safetensors").keys()
    assert {"quantizer.parts.0.vectors", "quantizer.parts.1.vectors"} <= names
    loaded = TextToImage.load(folder, device="cpu")
    assert loaded.config == model.config
    assert loaded.transformer.shape.codes_per_position == 2
    assert loaded.transformer.shape.code_width == (8 if composition == "product" else 4)
    for mine, other in (
        (loaded.tokenizer, model.tokenizer),
        (loaded.transformer, model.transformer),
    ):
        states = mine.state_dict(), other.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    assert paint(loaded) == paint(model)


def test_damaged_weights_of_the_transformer_are_named(tmp_path: Path) -> None:
    folder = to_format_2(save_untrained(create_untrained(), tmp_path / "model"))
    path, network = folder / "transformer.safetensors", create_untrained().transformer
    weights = load_file(path)
    save_file({name: t for name, t in weights.items() if name != "question"}, path)
    with pytest.raises(CheckpointError, match=r"fit the configuration .*Missing key.*mask_token"):
        load_network(lambda: network, path)
    save_file(weights | {"answer": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"fit the configuration .*Unexpected key.*answer"):
        load_network(lambda: network, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"transformer\.safetensors"):
        load_network(lambda: network, path)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_the_image_tokenizer_of_every_format_loads(version: int, tmp_path: Path) -> None:
    model = create_untrained()
    folder = tmp_path / "tokenizer"
    TrainedTokenizer(model.config, model.tokenizer).save(folder)
    config = json.loads((to_format_4(folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": version}))
    loaded = TrainedTokenizer.load(folder, device="cpu").tokenizer
    assert torch.equal(loaded.codebook, model.tokenizer.codebook)
