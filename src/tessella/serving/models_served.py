"""The models that a server has loaded, each under a name."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessella.checksums import check_own
from tessella.errors import CheckpointError, ConfigError
from tessella.model import folder as model_folder
from tessella.model.find import find_model, name_model
from tessella.model.pipeline import TextToImage
from tessella.precision import PaintingPrecision
from tessella.serving.examples_served import ServedExamples
from tessella.text.vocabulary import CaptionSummary, Vocabulary

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a model may be called."""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded model and its folder's contents; only its examples are read there later."""

    name: str
    model: TextToImage
    examples: ServedExamples
    created: int  # seconds since 1970
    captions: CaptionSummary | None  # of its training; None: an older model does not list them
    words: Vocabulary  # of these captions
    card: str  # Markdown, without its front matter
    metrics: Mapping[str, Any]
    samples: bytes | None  # a PNG; None: there is none

    @classmethod
    def load(cls, name: str, folder: Path, model: TextToImage) -> "ServedModel":
        """Reads a model's folder, beside the model itself.

        Raises:
            CheckpointError: a file is damaged or missing, or the examples are not the model's.
        """
        samples = folder / model_folder.SAMPLES_FILE
        examples = ServedExamples(folder, model)
        try:
            for note in model_folder.NOTES:
                check_own(folder / note)  # what is served must not be a link to a secret
            card = (folder / model_folder.CARD_FILE).read_text("utf-8")
            metrics = (folder / model_folder.METRICS_FILE).read_text("utf-8")
            captions = model_folder.read_captions(folder)
            return cls(
                name=name,
                model=model,
                examples=examples,
                created=int((folder / model_folder.CONFIG_FILE).stat().st_mtime),
                captions=captions,
                words=Vocabulary(model.text_tokenizer, captions),
                card=_FRONT_MATTER.sub("", card).strip(),
                # A metric that could not be measured is NaN in the file, which JSON does not have.
                metrics=json.loads(metrics, parse_constant=lambda _: None),
                samples=samples.read_bytes() if samples.is_file() else None,
            )
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"The model's card or metrics are damaged: `{folder}`; {error}. Copy the model "
                "folder again."
            ) from None


def load_models(
    models: Sequence[str], device: str = "auto", precision: PaintingPrecision = "auto"
) -> Mapping[str, ServedModel]:
    """Loads models for serving, each folder once.

    Args:
        models: each as `find_model` takes it, named after its folder (a run's model after the
            run) or its repository on the hub, or NAME=MODEL.
        device: auto, cpu, cuda or mps.
        precision: as for `tessella.load`.

    Raises:
        ConfigError: two have one name, a name does not fit into an address, or the device does not
            paint in the precision.
        CheckpointError: a model is missing or damaged.
    """
    folders: dict[str, Path] = {}
    for word in models:
        name, folder = _read_name(word)
        if name in folders:
            raise ConfigError(
                f"Two models have one name: `{name}`. Name one of them: OTHER=`{word}`."
            )
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"A model's name has letters, digits, `.`, `_` and `-`: `{name}`. Name it: "
                "NAME=MODEL."
            )
        folders[name] = folder
    loaded = {
        path: TextToImage.load(path, device, precision) for path in dict.fromkeys(folders.values())
    }
    return {name: ServedModel.load(name, path, loaded[path]) for name, path in folders.items()}


def _read_name(word: str) -> tuple[str, Path]:
    """Reads NAME=MODEL, or finds the name of a model."""
    name, equals, path = word.partition("=")
    if equals and not Path(word).exists():
        return name, find_model(path).resolve()
    folder = find_model(word).resolve()
    return name_model(folder), folder
