"""The two kinds of text encoder: the run's own vocabulary, or one that others have trained."""

import json
from collections.abc import Iterable
from pathlib import Path

from tessella.text.base import TEXT_FILE, TextEncoder
from tessella.text.bpe import TextSettings, TextTokenizer
from tessella.text.frozen import KIND, FrozenTextEncoder


def create_text_encoder(settings: TextSettings, captions: Iterable[str]) -> TextEncoder:
    """Reads the frozen encoder that is named, or else learns a vocabulary from captions.

    Raises:
        ConfigError: the encoder that is named cannot be had.
    """
    if settings.encoder is not None:
        return FrozenTextEncoder.create(settings)
    return TextTokenizer.train(captions, settings)


def load_text(folder: Path) -> TextEncoder:
    """Reads the text encoder of a model folder, or of a run's.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        ConfigError: a frozen encoder needs a package that is missing.
    """
    path = folder / TEXT_FILE
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = None  # the tokenizer says what is wrong
    if isinstance(note, dict) and note.get("kind") == KIND:
        return FrozenTextEncoder.load(path)
    return TextTokenizer.load(path)
