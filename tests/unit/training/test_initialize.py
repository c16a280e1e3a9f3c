"""Weights to begin with: what fits is taken, what does not is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tessella.errors import CheckpointError, ConfigError
from tessella.model.find import find_model
from tessella.model.pipeline import TextToImage
from tessella.text.frozen import FrozenTextEncoder
from tessella.tokenizer import VQAutoencoder
from tessella.training import initialize
from tessella.training.initialize import (
    initialize_tokenizer,
    initialize_transformer,
    load_text_encoder,
)
from tessella.transformer import Transformer
from untrained import create_untrained, save_untrained

MODEL = create_untrained()
CONFIG = MODEL.config
TOKENIZER = CONFIG.tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(MODEL, tmp_path_factory.mktemp("models") / "model")


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_a_tokenizer_begins_as_the_model_s(model: Path) -> None:
    tokenizer, old = VQAutoencoder(TOKENIZER), TextToImage.load(model, "cpu").tokenizer
    assert not same(tokenizer, old)
    assert initialize_tokenizer(tokenizer, model)
    assert same(tokenizer, old)


def test_a_larger_decoder_begins_afresh_on_the_same_codes(model: Path) -> None:
    larger = VQAutoencoder(TOKENIZER.replace(upsampling=1)).eval()
    old = TextToImage.load(model, "cpu").tokenizer
    assert not initialize_tokenizer(larger, model)
    assert same(larger.encoder, old.encoder)
    assert same(larger.quantizer, old.quantizer)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    enlarged = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    codes = old.encode(image)
    assert torch.equal(larger.encode(enlarged), codes)
    assert larger.decode(codes).shape == (2, 3, 32, 32)


def test_another_network_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.blocks is `1` there, here `2`.*the same"):
        initialize_tokenizer(VQAutoencoder(TOKENIZER.replace(blocks=2)), model)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_transformer_begins_as_the_model_s(dropout: float, model: Path) -> None:
    """Whatever it drops in training: that has no weights."""
    old = TextToImage.load(model, "cpu")
    assert load_text_encoder(model).vocabulary_size == old.text_tokenizer.vocabulary_size
    transformer = Transformer(CONFIG.transformer.replace(dropout=dropout), old.transformer.shape)
    initialize_transformer(transformer, model, MODEL.text_tokenizer)
    assert same(transformer, old.transformer)


def test_examples_may_be_learned_by_a_model_that_had_none(model: Path) -> None:
    """And given up again: the layers are the same, only what embeds examples is there or not."""
    old = TextToImage.load(model, "cpu").transformer
    shape = dataclasses.replace(old.shape, max_examples=2)
    transformer = Transformer(CONFIG.transformer, shape)
    untrained = {n: w.clone() for n, w in transformer.state_dict().items() if "example" in n}
    assert untrained
    initialize_transformer(transformer, model, MODEL.text_tokenizer)
    for name, weight in transformer.state_dict().items():
        assert torch.equal(weight, {**old.state_dict(), **untrained}[name]), name


def test_a_transformer_over_other_codes_is_refused(model: Path) -> None:
    shape = dataclasses.replace(TextToImage.load(model, "cpu").transformer.shape, grid=(8, 8))
    with pytest.raises(ConfigError, match=r"another shape.*grid=\(4, 4\).*grid=\(8, 8\)"):
        initialize_transformer(Transformer(CONFIG.transformer, shape), model, MODEL.text_tokenizer)
    deeper = Transformer(CONFIG.transformer.replace(depth=4), shape)
    with pytest.raises(ConfigError, match=r"transformer\.depth is `2` there, here `4`"):
        initialize_transformer(deeper, model, MODEL.text_tokenizer)


def test_a_transformer_that_will_not_learn_needs_its_codebook(model: Path) -> None:
    old = TextToImage.load(model, "cpu")
    transformer = Transformer(CONFIG.transformer, old.transformer.shape)
    initialize_transformer(transformer, model, old.text_tokenizer, old.tokenizer.codebook)
    with pytest.raises(ConfigError, match=r"another codebook.*with 0 images it cannot.*decoder"):
        initialize_transformer(
            transformer, model, old.text_tokenizer, old.tokenizer.codebook.roll(1, 1)
        )


# Its weights have other names, so that loading them ended in a bare error of torch.
@pytest.mark.parametrize(("before", "now"), [(0, 1), (1, 0)])
def test_a_transformer_of_another_kind_is_refused(
    before: int, now: int, model: Path, tmp_path: Path
) -> None:
    configs = [CONFIG, CONFIG.replace(objective={"name": "shared_latent"})]
    text = load_text_encoder(model)
    old, new = (TextToImage.create(configs[which], text) for which in (before, now))
    save_untrained(old, tmp_path / "old")
    kind = ("Transformer", "SharedLatentTransformer")[before]
    message = rf"another kind: `{kind}`, trained with objective `.*Set objective to the same"
    with pytest.raises(ConfigError, match=message):
        initialize_transformer(new.transformer, tmp_path / "old", text)


# `text.encoder` was ignored without a word: the model's own goes with its transformer.
def test_another_text_encoder_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"text\.encoder is `None` there, here `clip`. Set it to"):
        load_text_encoder(model, "clip")
    frozen = FrozenTextEncoder.__new__(FrozenTextEncoder)
    frozen.name = "openai/clip"
    monkeypatch.setattr(initialize, "load_text", lambda _: frozen)
    for same_one in ("clip", "openai/clip", "/elsewhere/clip", "~/clip/"):
        assert load_text_encoder(model, same_one) is frozen
    for other in (None, "t5"):
        with pytest.raises(ConfigError, match=f"is `openai/clip` there, here `{other}`"):
            load_text_encoder(model, other)


def test_a_bundled_model_is_named() -> None:
    bundled = TextToImage.load(find_model("scenes"), "cpu")
    tokenizer = VQAutoencoder(bundled.config.tokenizer)
    assert initialize_tokenizer(tokenizer, "scenes")
    assert same(tokenizer, bundled.tokenizer)


def test_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model"):
        initialize_tokenizer(VQAutoencoder(TOKENIZER), tmp_path / "nothing")
