"""The model folder: its files, its settings, and the image tokenizer alone.

A model is `config.json` with all settings, one file of weights for each network and the text
tokenizer; `fit-tokenizer` leaves a folder that has the tokenizer's part only.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from tessella import config
from tessella.config import Settings
from tessella.errors import CheckpointError, ConfigError
from tessella.files import new_folder, read_tensors, write_json, write_tensors
from tessella.generation import GenerationSettings
from tessella.images import fit_square
from tessella.model.codec import decode_latent, encode_pixels
from tessella.objectives import ObjectiveSettings, PlainObjectiveSettings
from tessella.text.vocabulary import CaptionSummary
from tessella.tokenizer import ImageTokenizer, TokenizerSettings
from tessella.transformer import TransformerSettings

MODEL_FORMAT = 3
"""Of the model folder; goes up when an older tessella could no longer read it."""
_READ_FORMATS = (2, MODEL_FORMAT)
_TOKENIZER_FORMATS = (1, *_READ_FORMATS)  # the image tokenizer's part has not changed since

# Names of the transformer's weights in format 2, and what they are called since.
_RENAMED_IN_FORMAT_3 = {
    "reading.": "self_decoder.",
    "asking.": "cross_decoder.",
    "memory_norm.": "kv_norm.",
    "place_embedding.": "position_embedding.",
    "question": "mask_token",
    "writing.": "text_decoder.",
}

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.safetensors"
TRANSFORMER_FILE = "transformer.safetensors"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"
SAMPLES_FILE = "samples.png"
CAPTIONS_FILE = "captions.json"


class ModelConfig(Settings):
    """All settings that a model folder needs to be loaded again."""

    format: int = MODEL_FORMAT
    """Format of the model folder."""
    image_size: int = Field(64, ge=8)
    """Side of the pictures, in pixels."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """The image tokenizer."""
    transformer: TransformerSettings = TransformerSettings()
    """The transformer."""
    objective: ObjectiveSettings = PlainObjectiveSettings()
    """The objective that it learned."""
    generation: GenerationSettings = GenerationSettings()
    """How it paints unless told otherwise."""

    @property
    def grid(self) -> tuple[int, int]:
        """Places of a picture, (h, w)."""
        side = self.image_size // self.tokenizer.downsampling
        return side, side


@dataclass(frozen=True)
class TrainedTokenizer:
    """An image tokenizer as training left it, alone or as a part of a model."""

    config: ModelConfig  # of which the transformer's part means nothing where there is none
    tokenizer: ImageTokenizer  # in eval mode

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto") -> "TrainedTokenizer":
        """Loads the tokenizer of a model folder, or of what `fit-tokenizer` left.

        Raises:
            CheckpointError: a file is missing, damaged, foreign or of another format.
            ConfigError: the device is not there.
        """
        folder = Path(folder)
        config = read_model_config(folder, formats=_TOKENIZER_FORMATS)
        with damaged_config(folder):
            tokenizer = ImageTokenizer(config.tokenizer)
        load_weights(tokenizer, folder / TOKENIZER_FILE)
        return cls(config, tokenizer.eval().requires_grad_(False).to(choose_device(device)))

    def save(self, folder: Path) -> None:
        """Writes settings and weights, whole or not at all.

        Raises:
            CheckpointError: they cannot be written; what was there stays.
        """
        with new_folder(folder, what="the image tokenizer") as building:
            write_json(building / CONFIG_FILE, self.config.model_dump(mode="json"))
            write_tensors(building / TOKENIZER_FILE, self.tokenizer.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the tokenizer is."""
        return self.tokenizer.codebook.device

    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Encodes pictures into codes and decodes them: what the tokenizer keeps of them.

        Args:
            images: of any size; cropped to the square in the middle and resized.
        """
        if not images:
            return []
        pixels = np.stack([fit_square(image, self.config.image_size) for image in images])
        latent = self.tokenizer.quantizer.look_up(encode_pixels(self.tokenizer, pixels))
        return [
            Image.fromarray(image)
            for image in decode_latent(self.tokenizer, latent, self.config.grid)
        ]


def choose_device(name: Literal["auto", "cpu", "cuda", "mps"] | str) -> torch.device:
    """Finds a device by name; auto takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    there["mps"] = torch.backends.mps.is_available()
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there.get(name.partition(":")[0], False):
        known = ", ".join(kind for kind, here in there.items() if here)
        raise ConfigError(f"There is no such device here: `{name}`. Choose auto, {known}.")
    return torch.device(name)


def read_model_config(folder: Path, *, formats: Sequence[int] = _READ_FORMATS) -> ModelConfig:
    """Reads the settings of a model folder.

    Args:
        folder: of a model, or of an image tokenizer.
        formats: that the caller understands.

    Raises:
        CheckpointError: they are missing, damaged or of another format.
    """
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["format"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        raise CheckpointError(
            f"This is no model folder: `{folder}`. A readable {CONFIG_FILE} with a `format` was "
            "expected. Name the folder that `tessella fit` wrote, RUN/model."
        ) from None
    if found not in formats:
        readable = " and ".join(map(str, formats))
        raise CheckpointError(
            f"The model folder has format `{found}`; this tessella reads {readable}: `{folder}`. "
            "Install the tessella that wrote it, or train again; the image tokenizer "
            "of an older folder can be kept: tokenizer_training.init_from."
        )
    with damaged_config(folder):
        return config.build(ModelConfig, {**values, "format": MODEL_FORMAT})


def read_captions(folder: Path) -> CaptionSummary | None:
    """Reads what a model was trained to hear; None where an older one does not say.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / CAPTIONS_FILE
    if not path.exists():
        return None
    try:
        return TypeAdapter(CaptionSummary).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError):
        raise CheckpointError(
            f"The summary of the captions is damaged: `{path}`. The numbers, words and examples "
            "that `tessella fit` wrote were expected. Copy the whole model folder again."
        ) from None


@contextlib.contextmanager
def damaged_config(folder: Path) -> Iterator[None]:
    """Re-raises an invalid setting as a damaged model folder."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(
            f"The model folder's configuration is damaged: `{folder / CONFIG_FILE}`. {error} Copy "
            "the whole model folder again."
        ) from None


def load_transformer_weights(network: nn.Module, path: Path) -> None:
    """Loads the transformer's weights, those of format 2 under their new names.

    Raises:
        CheckpointError: as `load_weights`.
    """
    _load(network, {_rename(name): tensor for name, tensor in read_tensors(path).items()}, path)


def _rename(name: str) -> str:
    for old, new in _RENAMED_IN_FORMAT_3.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a file of weights into the network that the settings beside it describe.

    Raises:
        CheckpointError: it is missing, damaged, or of another network.
    """
    _load(network, read_tensors(path), path)


def _load(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"The weights do not fit the configuration beside them: `{path}`. {first} Copy the "
            "whole model folder again."
        ) from None
