"""`init_from`: a stage begins with the weights of another model instead of random ones."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tessella.config import Settings, changed_settings
from tessella.errors import ConfigError
from tessella.model.find import find_model, find_tokenizer
from tessella.model.folder import TrainedTokenizer
from tessella.model.pipeline import TextToImage
from tessella.text import TextEncoder, TextSettings, TextTokenizer, load_text
from tessella.text.frozen import FrozenTextEncoder
from tessella.tokenizer import VQAutoencoder
from tessella.transformer import Transformer

# Of any transformer: names of weights (V, …).
_ROWS_OF_TOKENS = {"text_embedding.weight", "text_out.weight", "text_out.bias"}


def initialize_tokenizer(tokenizer: VQAutoencoder, folder: str | Path) -> bool:
    """Copies the encoder and codebook of a model, and its decoder if its pictures are as large.

    Args:
        tokenizer: takes the weights.
        folder: the model's, or its name.

    Returns:
        Whether the decoder was copied too; otherwise it is unchanged.

    Raises:
        ConfigError: the model's tokenizer has other settings; only `upsampling`, and what is known
            of where the weights come from, may differ.
        CheckpointError: the model cannot be read.
    """
    old = TrainedTokenizer.load(find_tokenizer(folder), "cpu").tokenizer
    new = tokenizer.settings
    upsampling = new.upsampling
    known = {"upsampling": upsampling, "origin": new.origin, "licence": new.licence}
    _require_same("tokenizer", old.settings.replace(**known), new)
    tokenizer.encoder.load_state_dict(old.encoder.state_dict())
    tokenizer.quantizer.load_state_dict(old.quantizer.state_dict())
    if old.settings.upsampling != upsampling:
        return False
    tokenizer.decoder.load_state_dict(old.decoder.state_dict())
    return True


def initialize_transformer(
    transformer: Transformer,
    folder: str | Path,
    text_encoder: TextEncoder,
    codebook: Tensor | None = None,
) -> None:
    """Copies the transformer of a model.

    What embeds examples is copied where both have it; otherwise it begins untrained. A token that
    the model's vocabulary lacks begins as the mean of the tokens that the model read instead.

    Args:
        transformer: takes the weights.
        folder: the model's, or its name.
        text_encoder: what the transformer will read; the model's, or its vocabulary grown.
        codebook: (M, K, C) that the transformer has to fit, if it will not train; None if it will.

    Raises:
        ConfigError: the model's transformer has other settings, another shape or codebook, or
            belongs to another kind of objective.
        CheckpointError: the model cannot be read.
    """
    model = TextToImage.load(find_model(folder), "cpu")
    old = model.transformer
    if type(old) is not type(transformer):
        raise ConfigError(
            f"The transformer to start from is of another kind: `{type(old).__name__}`, trained "
            f"with objective `{model.config.objective.name}`, not `{type(transformer).__name__}`. "
            "Set objective to the same, or leave out transformer_training.init_from."
        )
    dropout = transformer.settings.dropout  # has no weights
    _require_same("transformer", old.settings.replace(dropout=dropout), transformer.settings)
    size, examples = transformer.shape.vocabulary_size, transformer.shape.max_examples
    if replace(old.shape, max_examples=examples, vocabulary_size=size) != transformer.shape:
        raise ConfigError(
            f"The transformer to start from has another shape: {old.shape}, not "
            f"{transformer.shape}. Codebook size and number of codes must be the same: "
            "set tokenizer and data as in that model's config.json."
        )
    if codebook is not None and not torch.equal(model.tokenizer.codebook, codebook.cpu()):
        raise ConfigError(
            f"The transformer to start from was trained on another codebook: `{folder}`, and with "
            "0 images it cannot adapt. Set tokenizer_training.init_from to the same model and "
            ".learn to decoder, or give transformer_training.images."
        )
    copied = old.state_dict()
    before = model.text_tokenizer
    if isinstance(text_encoder, TextTokenizer) and isinstance(before, TextTokenizer):
        _add_tokens(copied, text_encoder, before)
    weights = transformer.state_dict()
    weights.update((name, value) for name, value in copied.items() if name in weights)
    transformer.load_state_dict(weights)


def _add_tokens(
    weights: dict[str, Tensor], text_encoder: TextTokenizer, before: TextTokenizer
) -> None:
    """Adds rows for the tokens that `before` lacks to all weights that have a row a token."""
    new = text_encoder.split_new_tokens(before)
    for name in _ROWS_OF_TOKENS & weights.keys() if new else ():
        rows = weights[name]
        added = torch.stack([rows[tokens].mean(0) for tokens in new])
        weights[name] = torch.cat([rows, added])


def load_text_encoder(folder: str | Path, encoder: str | None = None) -> TextEncoder:
    """Loads the text encoder that a model's transformer was trained with.

    Args:
        folder: the model's, or its name.
        encoder: `text.encoder` of the run. A folder counts by its name: the model has a copy.

    Raises:
        ConfigError: the run names another one.
        CheckpointError: it cannot be read.
    """
    text_encoder = load_text(find_model(folder))
    name = text_encoder.name if isinstance(text_encoder, FrozenTextEncoder) else None
    model_encoder = None if name is None else Path(name).name
    run_encoder = None if encoder is None else Path(encoder).expanduser().resolve().name
    if model_encoder != run_encoder:
        raise ConfigError(
            f"The transformer to start from has another text encoder: text.encoder is `{name}` "
            f"there, here `{encoder}`. Set it to the same; leave it out for `None`."
        )
    return text_encoder


def grow_text_encoder(
    text_encoder: TextEncoder, captions: Iterable[str], settings: TextSettings
) -> TextEncoder:
    """Adds tokens for the words of new captions; a frozen encoder stays as it is."""
    if isinstance(text_encoder, TextTokenizer):
        return text_encoder.grow(captions, settings)
    return text_encoder


def _require_same(section: str, old: Settings, new: Settings) -> None:
    for name, (before, after) in changed_settings(old.model_dump(), new.model_dump()).items():
        raise ConfigError(
            f"The {section} to start from has other settings: {section}.{name} is `{before}` "
            f"there, here `{after}`. Set it to the same."
        )
