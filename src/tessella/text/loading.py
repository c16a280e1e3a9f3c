"""Chooses the text encoder: the run's own vocabulary, or a frozen, pretrained one."""

from collections.abc import Iterable
from pathlib import Path

from tessella.checksums import read_file
from tessella.text.base import TEXT_FILE, TextEncoder
from tessella.text.bpe import TextTokenizer
from tessella.text.settings import TextSettings
from tessella.untrusted import parse_json

_MAX_NOTE_BYTES = 3_000  # of a frozen encoder's; the bytes of a vocabulary alone take more


def create_text_encoder(settings: TextSettings, captions: Iterable[str]) -> TextEncoder:
    """Reads the frozen encoder that the settings name, or learns a vocabulary from captions.

    Raises:
        ConfigError: the frozen encoder cannot be read.
    """
    if settings.encoder is None:
        return TextTokenizer.train(captions, settings)
    from tessella.text.frozen import FrozenTextEncoder

    return FrozenTextEncoder.create(settings)


def load_text(folder: Path) -> TextEncoder:
    """Reads the text encoder of a model folder or a run.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        ConfigError: a frozen encoder needs a package that is missing.
    """
    path = folder / TEXT_FILE
    try:
        # A vocabulary is longer, and parsed once.
        note = parse_json(read_file(path)) if path.stat().st_size <= _MAX_NOTE_BYTES else None
    except (OSError, ValueError):
        note = None  # TextTokenizer.load says what is wrong
    if not (isinstance(note, dict) and note.get("kind") == "frozen"):
        return TextTokenizer.load(path)
    from tessella.text.frozen import FrozenTextEncoder

    return FrozenTextEncoder.load(path)
