"""The model folder: its files, its settings, and its image tokenizer.

A model is `config.json` with all settings, one file of weights for each network and the text
tokenizer. After `fit-tokenizer` the folder holds the image tokenizer alone.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

from tessella import config
from tessella.checksums import read_file, write_sums
from tessella.config import Settings
from tessella.errors import CheckpointError, ConfigError
from tessella.files import new_folder, write_json, write_tensors, write_text
from tessella.generation import MAX_NEIGHBORS, GenerationSettings
from tessella.images import Pixels, fit_square, save_png
from tessella.model.codec import decode_latent, encode_pixels
from tessella.model.folder_weights import align_examples, load_network
from tessella.model.published import open_published
from tessella.objectives import ObjectiveSettings, PlainObjectiveSettings, create_transformer
from tessella.retrieval import ExampleMemory
from tessella.text import TEXT_FILE, TextEncoder
from tessella.text.vocabulary import CaptionSummary
from tessella.tokenizer import TokenizerSettings, VQAutoencoder, count_latent_channels
from tessella.transformer import Transformer, TransformerSettings, TransformerShape
from tessella.untrusted import parse_json

MODEL_FORMAT = 6
"""Of the model folder; rises when an older tessella can no longer read it."""
_READ_FORMATS = (2, 3, 4, 5, MODEL_FORMAT)
_TOKENIZER_FORMATS = (1, *_READ_FORMATS)  # the image tokenizer's part is the same in all

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.safetensors"
TRANSFORMER_FILE = "transformer.safetensors"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"
SAMPLES_FILE = "samples.png"
CAPTIONS_FILE = "captions.json"
NOTES = (CARD_FILE, METRICS_FILE, SAMPLES_FILE)
"""For people: a model loads whatever has become of them, since cards are edited."""

# Of a configuration some 1,000, of the summary of a million captions some 200,000.
_MAX_CONFIG_BYTES, _MAX_CAPTIONS_BYTES = 1_000_000, 64_000_000


class ModelConfig(Settings):
    """All settings that a model folder needs to be loaded again."""

    format: int = MODEL_FORMAT
    """Format of the model folder."""
    image_size: int = Field(64, ge=8, le=2048)
    """Side of the pictures, in pixels."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """The image tokenizer."""
    transformer: TransformerSettings = TransformerSettings()
    """The transformer."""
    objective: ObjectiveSettings = PlainObjectiveSettings()
    """The objective that it learned."""
    neighbors: int = Field(0, ge=0, le=MAX_NEIGHBORS)
    """The most examples beside a prompt that it learned to look at; 0 is none."""
    generation: GenerationSettings = GenerationSettings()
    """How it generates by default."""

    @property
    def grid(self) -> tuple[int, int]:
        """Positions of a picture, (h, w)."""
        side = self.image_size // self.tokenizer.downsampling
        return side, side

    def create_tokenizer(self) -> VQAutoencoder:
        """Creates the untrained image tokenizer.

        Raises:
            ConfigError: the image size does not suit its downsampling.
        """
        factor = self.tokenizer.downsampling
        if self.image_size % factor:
            low = max(factor, self.image_size // factor * factor)
            raise ConfigError(
                f"Image size must be a multiple of {factor} (the tokenizer's downsampling): "
                f"`{self.image_size}`. Try {low} or {low + factor}."
            )
        return VQAutoencoder(self.tokenizer)

    def create_transformer(self, text_tokenizer: TextEncoder) -> Transformer:
        """Creates the untrained transformer.

        Raises:
            ConfigError: the objective cannot learn from such texts.
        """
        shape = TransformerShape(
            vocabulary_size=text_tokenizer.vocabulary_size,
            max_text_tokens=text_tokenizer.max_tokens,
            pad_id=text_tokenizer.pad_id,
            codebook_size=self.tokenizer.quantizer.codebook_size,
            grid=self.grid,
            code_width=count_latent_channels(self.tokenizer.quantizer),
            text_features=text_tokenizer.num_features,
            max_examples=self.neighbors,
            codes_per_position=self.tokenizer.quantizer.codes_per_position,
        )
        return create_transformer(self.objective, self.transformer, shape)


@dataclass(frozen=True)
class TrainedTokenizer:
    """A trained image tokenizer, alone or as a part of a model."""

    config: ModelConfig  # without a transformer, ignore its part
    tokenizer: VQAutoencoder  # in eval mode

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto") -> Self:
        """Loads the image tokenizer of a model folder, of `fit-tokenizer`'s, or one that is alone.

        Raises:
            CheckpointError: a file is missing, damaged, foreign or of another format.
            ConfigError: the device is not there.
        """
        folder = Path(folder)
        if published := open_published(folder):
            tokenizer = published.tokenizer
            config = ModelConfig(image_size=published.image_size, tokenizer=tokenizer.settings)
        else:
            config = read_model_config(folder, formats=_TOKENIZER_FORMATS)
            with damaged_config(folder):
                tokenizer = load_network(config.create_tokenizer, folder / TOKENIZER_FILE)
        return cls(config, tokenizer.eval().requires_grad_(False).to(choose_device(device)))

    def save(self, folder: Path) -> None:
        """Writes settings and weights, whole or not at all.

        Raises:
            CheckpointError: they cannot be written; what was there stays.
        """
        with new_folder(folder, what="the image tokenizer") as building:
            self.write(building)
            write_sums(building)

    def write(self, folder: Path) -> None:
        """Writes settings and weights into a folder that is being built."""
        write_json(folder / CONFIG_FILE, self.config.model_dump(mode="json"))
        write_tensors(folder / TOKENIZER_FILE, self.tokenizer.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the tokenizer is."""
        return self.tokenizer.codebook.device

    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Encodes pictures and decodes them again, to show what the codes keep.

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


def choose_device(name: str) -> torch.device:
    """Finds a device by name: auto, cpu, cuda or mps; auto prefers CUDA, then Apple's MPS.

    Raises:
        ConfigError: there is no such device here.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    if name.partition(":")[0] not in available:
        raise ConfigError(
            f"There is no such device here: `{name}`. Choose auto, {', '.join(available)}."
        )
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
        values = parse_json(read_file(path, most_bytes=_MAX_CONFIG_BYTES))
        version = values["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"This is not a model folder: `{folder}`. A readable {CONFIG_FILE} with a `format` was "
            "expected. Name the folder that `tessella fit` wrote, RUN/model."
        ) from None
    if version not in formats:
        *rest, last = formats
        readable = f"{', '.join(map(str, rest))} and {last}"
        raise CheckpointError(
            f"The model folder has format `{version}`; this tessella reads {readable}: `{folder}`. "
            "Install the tessella that wrote it, or train again; the image tokenizer "
            "of an older folder can be kept: tokenizer_training.init_from."
        )
    with damaged_config(folder):
        return config.build(ModelConfig, {**values, "format": MODEL_FORMAT})


def read_captions(folder: Path) -> CaptionSummary | None:
    """Reads the summary of a model's training captions; None if an older model has none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / CAPTIONS_FILE
    if not path.exists():  # whoever passes a model on may remove it
        return None
    try:
        content = read_file(path, most_bytes=_MAX_CAPTIONS_BYTES)
        return TypeAdapter(CaptionSummary).validate_json(content, strict=True)
    except (OSError, ValidationError):
        raise CheckpointError(
            f"The summary of the captions is damaged: `{path}`. The numbers, words and examples "
            "that `tessella fit` wrote were expected. Copy the whole model folder again."
        ) from None


def write_transformer(folder: Path, text_tokenizer: TextEncoder, transformer: Transformer) -> None:
    """Writes the parts of stage 2 into a model folder that is being built."""
    write_tensors(folder / TRANSFORMER_FILE, transformer.state_dict())
    text_tokenizer.save(folder / TEXT_FILE)


def write_notes(
    folder: Path,
    card: str,
    metrics: Mapping[str, Any],
    samples: Pixels,
    captions: CaptionSummary | None,
) -> None:
    """Writes what people read into a model folder that is being built: see `TextToImage.save`."""
    write_text(folder / CARD_FILE, card)
    write_json(folder / METRICS_FILE, metrics)
    save_png(folder / SAMPLES_FILE, samples)
    if captions is not None:
        write_json(folder / CAPTIONS_FILE, asdict(captions))


def load_transformer(folder: Path, config: ModelConfig, text_tokenizer: TextEncoder) -> Transformer:
    """Loads the transformer of a model folder, onto the CPU.

    Raises:
        CheckpointError: its file is missing, damaged, or of another network.
    """
    with damaged_config(folder):
        transformer = load_network(
            lambda: config.create_transformer(text_tokenizer),
            folder / TRANSFORMER_FILE,
            align_examples,
        )
    return transformer.eval().requires_grad_(False)


def load_memory(
    folder: Path, config: ModelConfig, tokenizer: VQAutoencoder
) -> ExampleMemory | None:
    """Maps the examples of a model folder; None if it has none.

    Raises:
        CheckpointError: a file is missing or damaged, or another image tokenizer wrote the codes.
    """
    memory = ExampleMemory.open(folder) if config.neighbors else None
    if memory is None:
        return None
    num_codes, size, _ = tokenizer.codebook.shape
    shapes = (memory.codes.shape[1:], (num_codes, *config.grid))
    grid, own_grid = ("×".join(map(str, one)) for one in shapes)
    fault = ""
    if memory.tokenizer != tokenizer.hash_encoder():
        fault = "their codes are of another image tokenizer"
    elif grid != own_grid:
        fault = f"they have `{grid}` codes each, the model's pictures {own_grid}"
    elif (largest := int(memory.codes.max(initial=0))) >= size:
        fault = f"one has the code `{largest}`, the largest of the image tokenizer is {size - 1}"
    if fault:
        raise CheckpointError(
            f"The examples are not this model's: `{folder}`; {fault}. Copy the whole model folder "
            "again; or leave the examples out (`tessella export --without-examples`), and add the "
            "pictures again."
        )
    return memory


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
