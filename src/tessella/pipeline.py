"""TextToImage: prompts in, pictures out; the model folder that holds all it needs.

prompt ─ text ─▶ text tokens ─ transformer + objective ─▶ codes ─ tokenizer ─▶ picture
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from tessella import config
from tessella.config import Settings
from tessella.errors import CheckpointError, ConfigError, GenerationError
from tessella.files import new_folder, read_tensors, write_json, write_tensors, write_text
from tessella.images import Pixels, fit_square, save_png, to_float, to_uint8
from tessella.objectives import (
    AnyOrderSettings,
    GenerationRequest,
    GenerationSettings,
    Objective,
    ObjectiveSettings,
    StepCallback,
    create_objective,
)
from tessella.text import TextTokenizer
from tessella.tokenizer import ImageTokenizer, TokenizerSettings
from tessella.transformer import Transformer, TransformerSettings, TransformerShape

FORMAT = 1
"""Of the model folder; goes up when an older tessella could no longer read it."""

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.safetensors"
TRANSFORMER_FILE = "transformer.safetensors"
TEXT_FILE = "text_tokenizer.json"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"
SAMPLES_FILE = "samples.png"

MAX_COUNT = 10_000
MAX_SEED = 2**63 - 1
_BATCH = 16


class ModelConfig(Settings):
    """All settings that a model folder needs to be loaded again."""

    format: int = FORMAT
    """Format of the model folder."""
    image_size: int = Field(64, ge=8)
    """Side of the pictures, in pixels."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """The image tokenizer."""
    transformer: TransformerSettings = TransformerSettings()
    """The transformer."""
    objective: ObjectiveSettings = AnyOrderSettings()
    """The objective that it learned."""
    generation: GenerationSettings = GenerationSettings()
    """How it paints unless told otherwise."""

    @property
    def grid(self) -> tuple[int, int]:
        """Places of a picture, (h, w)."""
        side = self.image_size // self.tokenizer.downsampling
        return side, side


@dataclass(frozen=True)
class PaintedPixels:
    """Pictures as pixels, with the codes that they are made of."""

    pixels: Pixels  # (B, S, S, 3) uint8
    codes: Tensor | None  # (B, h, w) int64; None where the objective lays no codes


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
        config = _read_config(folder)
        with _damaged_config(folder):
            tokenizer = ImageTokenizer(config.tokenizer)
        _load_weights(tokenizer, folder / TOKENIZER_FILE)
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

    @torch.inference_mode()
    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Encodes pictures into codes and decodes them: what the tokenizer keeps of them.

        Args:
            images: of any size; cropped to the square in the middle and resized.
        """
        made = []
        for image in images:
            square = to_float(fit_square(image, self.config.image_size)[None])
            codes = self.tokenizer.encode(square.to(self.device))
            made.append(Image.fromarray(to_uint8(self.tokenizer.decode(codes))[0]))
        return made


class TextToImage:
    """A trained model: paints prompts, reconstructs pictures."""

    def __init__(
        self,
        config: ModelConfig,
        text_tokenizer: TextTokenizer,
        tokenizer: ImageTokenizer,
        transformer: Transformer,
    ) -> None:
        """Joins parts that belong together; `TextToImage.load` does it from a folder."""
        self.config = config
        self.text_tokenizer = text_tokenizer
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.objective: Objective = create_objective(config.objective)

    @classmethod
    def create(cls, config: ModelConfig, text_tokenizer: TextTokenizer) -> "TextToImage":
        """Builds an untrained model.

        Raises:
            ConfigError: the image size does not suit the tokenizer's downsampling.
        """
        factor = config.tokenizer.downsampling
        if config.image_size % factor:
            low = max(factor, config.image_size // factor * factor)
            raise ConfigError(
                f"Image size must be a multiple of {factor} (the tokenizer's downsampling): "
                f"`{config.image_size}`. Try {low} or {low + factor}."
            )
        height, width = config.grid
        shape = TransformerShape(
            vocabulary_size=text_tokenizer.vocabulary_size,
            max_text_tokens=text_tokenizer.max_tokens,
            pad_id=text_tokenizer.pad_id,
            codebook_size=config.tokenizer.quantizer.codebook_size,
            num_places=height * width,
        )
        return cls(
            config,
            text_tokenizer,
            ImageTokenizer(config.tokenizer),
            Transformer(config.transformer, shape),
        )

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto") -> "TextToImage":
        """Loads a model folder.

        Args:
            folder: as `fit` writes it.
            device: auto, cpu, cuda or mps.

        Raises:
            CheckpointError: a file is missing, damaged, foreign or of another format.
            ConfigError: the device is not there.
        """
        folder = Path(folder)
        config = _read_config(folder)
        text_tokenizer = TextTokenizer.load(folder / TEXT_FILE)
        with _damaged_config(folder):
            model = cls.create(config, text_tokenizer)
        _load_weights(model.tokenizer, folder / TOKENIZER_FILE)
        _load_weights(model.transformer, folder / TRANSFORMER_FILE)
        model.tokenizer.eval().requires_grad_(False)
        model.transformer.eval().requires_grad_(False)
        return model.to(choose_device(device))

    def save(self, folder: Path, *, card: str, metrics: Mapping[str, Any], samples: Pixels) -> None:
        """Writes a model folder, whole or not at all.

        Args:
            folder: replaced if it is there.
            card: the text of the model card.
            metrics: plain values with their protocol.
            samples: (H, W, 3) a sheet of pictures.

        Raises:
            CheckpointError: it cannot be written; what was there stays.
        """
        with new_folder(folder, what="the model") as building:
            write_json(building / CONFIG_FILE, self.config.model_dump(mode="json"))
            write_tensors(building / TOKENIZER_FILE, self.tokenizer.state_dict())
            write_tensors(building / TRANSFORMER_FILE, self.transformer.state_dict())
            self.text_tokenizer.save(building / TEXT_FILE)
            write_text(building / CARD_FILE, card)
            write_json(building / METRICS_FILE, metrics)
            save_png(building / SAMPLES_FILE, samples)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.tokenizer.codebook.device

    def to(self, device: torch.device) -> "TextToImage":
        """Moves the model and returns it."""
        self.tokenizer.to(device)
        self.transformer.to(device)
        return self

    def with_transformer(self, transformer: Transformer) -> "TextToImage":
        """Returns a model that shares all but the transformer."""
        return TextToImage(self.config, self.text_tokenizer, self.tokenizer, transformer)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        count: int = 1,
        seed: int = 0,
        on_step: StepCallback | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Paints pictures.

        Args:
            prompts: one, or several.
            count: pictures a prompt.
            seed: of each prompt's first picture; its next ones have seed + 1, seed + 2, …
                The same prompt, seed and settings give the same picture.
            on_step: called after each step of a batch with the codes so far.
            **settings: those of `GenerationSettings` that differ from the model's own: steps,
                temperature, top_k, top_p, guidance_scale, order.

        Returns:
            The pictures, prompt after prompt.

        Raises:
            GenerationError: a prompt is blank or too long, the count or a seed is out of range.
            ConfigError: a setting is unknown or out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not 1 <= count <= MAX_COUNT:
            raise GenerationError(
                f"The count of pictures must be between 1 and {MAX_COUNT}: `{count}`."
            )
        wanted = [(prompt, seed + i) for prompt in prompts for i in range(count)]
        painted = self.paint(
            [prompt for prompt, _ in wanted],
            seeds=[picture_seed for _, picture_seed in wanted],
            on_step=on_step,
            settings=self.generation_settings(**settings),
        )
        return [Image.fromarray(pixels) for pixels in painted.pixels]

    def generation_settings(self, **changes: Any) -> GenerationSettings:
        """Returns the model's settings with some changed; None leaves one as it is.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        return self.config.generation.replace(
            **{name: value for name, value in changes.items() if value is not None}
        )

    def paint(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        settings: GenerationSettings | None = None,
        on_step: StepCallback | None = None,
    ) -> PaintedPixels:
        """Paints one picture a prompt and seed; equal prompts are read once a batch.

        Raises:
            GenerationError: there is no prompt, one is blank or too long, or a seed is out of
                range.
        """
        if not prompts:
            raise GenerationError("There is no prompt to paint. Give at least one.")
        for seed in seeds:
            if not 0 <= seed <= MAX_SEED:
                raise GenerationError(f"A seed must be between 0 and {MAX_SEED}: `{seed}`.")
        for prompt in prompts:
            if not prompt.strip():
                raise GenerationError(
                    f"A prompt must say something: `{prompt}`. Describe the picture as the "
                    "captions do."
                )
        pixels, codes = [], []
        for start in range(0, len(prompts), _BATCH):
            chosen = slice(start, start + _BATCH)
            painted = self._paint_batch(
                prompts[chosen], seeds[chosen], settings or self.config.generation, on_step
            )
            pixels.append(torch.from_numpy(painted.pixels))
            if painted.codes is not None:
                codes.append(painted.codes)
        return PaintedPixels(torch.cat(pixels).numpy(), torch.cat(codes) if codes else None)

    @torch.inference_mode()
    def _paint_batch(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: GenerationSettings,
        on_step: StepCallback | None,
    ) -> PaintedPixels:
        unique = list(dict.fromkeys(prompts))
        rows = torch.tensor([unique.index(prompt) for prompt in prompts])
        request = GenerationRequest(
            text_tokens=self.text_tokenizer.encode(unique).to(self.device),
            empty_tokens=self.text_tokenizer.encode([""]).to(self.device),
            prompt_of=rows.to(self.device),
            seeds=seeds,
            settings=settings,
        )
        painted = self.objective.generate(
            self.transformer, self.tokenizer.codebook, self.config.grid, request, on_step
        )
        return PaintedPixels(to_uint8(self.tokenizer.decode_latent(painted.latent)), painted.codes)

    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Encodes pictures into codes and decodes them: what the tokenizer keeps of them.

        Args:
            images: of any size; cropped to the square in the middle and resized.
        """
        return TrainedTokenizer(self.config, self.tokenizer).reconstruct(images)


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


def _read_config(folder: Path) -> ModelConfig:
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["format"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        raise CheckpointError(
            f"This is no model folder: `{folder}`. A readable {CONFIG_FILE} with a `format` was "
            "expected. Name the folder that `tessella fit` wrote, RUN/model."
        ) from None
    if found != FORMAT:
        raise CheckpointError(
            f"The model folder has format `{found}`; this tessella reads format {FORMAT}: "
            f"`{folder}`. Install the tessella that wrote it, or train again."
        )
    with _damaged_config(folder):
        return config.build(ModelConfig, values)


@contextlib.contextmanager
def _damaged_config(folder: Path) -> Iterator[None]:
    """Says of a setting that cannot be that it stands in a model folder."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(
            f"The model folder's configuration is damaged: `{folder / CONFIG_FILE}`. {error} Copy "
            "the whole model folder again."
        ) from None


def _load_weights(network: nn.Module, path: Path) -> None:
    tensors = read_tensors(path)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"The weights do not fit the configuration beside them: `{path}`. {first} Copy the "
            "whole model folder again."
        ) from None
