"""The models that a server has loaded, each under a name."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessella.errors import CheckpointError, ConfigError
from tessella.model.find import find_model
from tessella.model.folder import (
    CARD_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    read_captions,
)
from tessella.model.pipeline import TextToImage
from tessella.text.vocabulary import CaptionSummary, Vocabulary

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded model, and what its folder says of it: nothing is read there later."""

    name: str
    model: TextToImage
    created: int  # seconds since 1970
    captions: CaptionSummary | None  # that it learned from; None: an older model does not say
    words: Vocabulary  # of these captions
    card: str  # Markdown, without its front matter
    metrics: Mapping[str, Any]
    samples: bytes | None  # a PNG; None: there is none

    @classmethod
    def load(cls, name: str, folder: Path, model: TextToImage) -> "ServedModel":
        """Reads what a folder says of its model.

        Raises:
            CheckpointError: a file is damaged or missing.
        """
        samples = folder / SAMPLES_FILE
        try:
            captions = read_captions(folder)
            return cls(
                name=name,
                model=model,
                created=int((folder / CONFIG_FILE).stat().st_mtime),
                captions=captions,
                words=Vocabulary(model.text_tokenizer, captions),
                card=_FRONT_MATTER.sub("", (folder / CARD_FILE).read_text("utf-8")).strip(),
                # What could not be measured is NaN in the file, which is no JSON.
                metrics=json.loads(
                    (folder / METRICS_FILE).read_text("utf-8"), parse_constant=lambda _: None
                ),
                samples=samples.read_bytes() if samples.is_file() else None,
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"The model's card or metrics are damaged: `{folder}`; {error}. Copy the model "
                "folder again."
            ) from None


def load_models(models: Sequence[str], device: str = "auto") -> Mapping[str, ServedModel]:
    """Loads models for serving, each folder once.

    Args:
        models: each as `find_model` takes it, named after its folder (a run's model after the
            run), or NAME=MODEL.
        device: auto, cpu, cuda or mps.

    Raises:
        ConfigError: two have one name, or a name has other characters than an address takes.
        CheckpointError: there is no such model, or it is damaged.
    """
    found: dict[str, Path] = {}
    for said in models:
        name, folder = _read_name(said)
        if name in found:
            raise ConfigError(
                f"Two models have one name: `{name}`. Name one of them: OTHER=`{said}`."
            )
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"A model's name has letters, digits, `.`, `_` and `-`: `{name}`. Name it: "
                "NAME=MODEL."
            )
        found[name] = folder
    loaded = {folder: TextToImage.load(folder, device) for folder in dict.fromkeys(found.values())}
    return {name: ServedModel.load(name, folder, loaded[folder]) for name, folder in found.items()}


def _read_name(said: str) -> tuple[str, Path]:
    """Reads NAME=MODEL, or finds the name of a model."""
    name, equals, path = said.partition("=")
    if equals and not Path(said).exists():
        return name, find_model(path).resolve()
    folder = find_model(said).resolve()
    is_in_run = folder.name == "model" and (folder.parent / "run.json").exists()
    return (folder.parent if is_in_run else folder).name, folder
