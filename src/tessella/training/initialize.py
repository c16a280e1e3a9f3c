"""Begins a stage with weights that were learned before, instead of random ones."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessella.config import Settings
from tessella.errors import ConfigError
from tessella.model.find import find_model, find_tokenizer
from tessella.model.folder import TrainedTokenizer
from tessella.model.pipeline import TextToImage
from tessella.text import TextEncoder, load_text
from tessella.text.frozen import FrozenTextEncoder
from tessella.tokenizer import ImageTokenizer
from tessella.transformer import Transformer


def initialize_tokenizer(tokenizer: ImageTokenizer, folder: str | Path) -> bool:
    """Copies encoder and codebook of a model, and its decoder if it paints as large.

    Returns:
        Whether the decoder came too; else it is as it was.

    Raises:
        ConfigError: the model's tokenizer has other settings; `upsampling` alone may differ.
        CheckpointError: the model cannot be read.
    """
    old = TrainedTokenizer.load(find_tokenizer(folder), "cpu").tokenizer
    upsampling = tokenizer.settings.upsampling
    _require_same("tokenizer", old.settings.replace(upsampling=upsampling), tokenizer.settings)
    tokenizer.encoder.load_state_dict(old.encoder.state_dict())
    tokenizer.quantizer.load_state_dict(old.quantizer.state_dict())
    if old.settings.upsampling != upsampling:
        return False
    tokenizer.decoder.load_state_dict(old.decoder.state_dict())
    return True


def initialize_transformer(
    transformer: Transformer, folder: str | Path, codebook: Tensor | None = None
) -> None:
    """Copies the transformer of a model.

    Args:
        transformer: takes the weights.
        folder: the model's, or its name.
        codebook: (K, C) of the codes that it is to choose from, if it will not learn them anew.

    Raises:
        ConfigError: the model's transformer has other settings, is of another objective's kind,
            or has other codes to choose from.
        CheckpointError: the model cannot be read.
    """
    model = TextToImage.load(find_model(folder), "cpu")
    old = model.transformer
    if type(old) is not type(transformer):
        raise ConfigError(
            f"The transformer to start from is of another kind: `{type(old).__name__}`, which "
            f"learned `{model.config.objective.name}`, not `{type(transformer).__name__}`. Set "
            "objective to the same, or leave out transformer_training.init_from."
        )
    _require_same("transformer", old.settings, transformer.settings)
    if old.shape != transformer.shape:
        raise ConfigError(
            f"The transformer to start from has another shape: {old.shape}, not "
            f"{transformer.shape}. Codebook size, number of codes and captions' vocabulary must be "
            "the same: set tokenizer and data as that model's config.json has them."
        )
    if codebook is not None and not torch.equal(model.tokenizer.codebook, codebook.cpu()):
        raise ConfigError(
            f"The transformer to start from chooses from another codebook: `{folder}`, and 0 "
            "images leave it so. Set tokenizer_training.init_from to the same model and .learn to "
            "decoder, or give transformer_training.images."
        )
    transformer.load_state_dict(old.state_dict())


def load_text_tokenizer(folder: str | Path, encoder: str | None = None) -> TextEncoder:
    """Loads the text encoder that a model's transformer was trained with.

    Args:
        folder: the model's, or its name.
        encoder: `text.encoder` of the run. A folder goes by its name: the model has a copy of it.

    Raises:
        ConfigError: the run asks for another one.
        CheckpointError: it cannot be read.
    """
    found = load_text(find_model(folder))
    old = found.name if isinstance(found, FrozenTextEncoder) else None
    before = None if old is None else Path(old).name
    now = None if encoder is None else Path(encoder).expanduser().resolve().name
    if before != now:
        raise ConfigError(
            f"The transformer to start from reads other texts: text.encoder is `{old}` there, here "
            f"`{encoder}`. Set it to the same; `None` is to leave it out."
        )
    return found


def _require_same(section: str, old: Settings, new: Settings) -> None:
    before, now = _flatten(section, old), _flatten(section, new)
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        raise ConfigError(
            f"The {section} to start from has other settings: {name} is `{before.get(name)}` "
            f"there, here `{now.get(name)}`. Set it to the same."
        )


def _flatten(prefix: str, settings: Settings) -> dict[str, Any]:
    """Names every setting of a section and of the sections in it."""
    flat: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        inner = isinstance(value, Settings)
        flat |= _flatten(f"{prefix}.{name}", value) if inner else {f"{prefix}.{name}": value}
    return flat
