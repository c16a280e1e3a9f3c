"""Does a picture show what was asked? It must rank its own prompt first among a hundred.

    pictures, prompts ─ judge ─▶ scores (B, P) ─▶ share of pictures whose own prompt is highest

Three judges:

    SqueezeNet   a prompt's score is how near the prompt's real picture is, by features
    CLIP         cosine of the embeddings of picture and prompt, by a model of your choice
    the model    pointwise mutual information, by its own likelihood

The first two did not make the picture.

Source: CLIP arXiv:2103.00020; ranking by it as R-precision, arXiv:1711.10485.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tessella.errors import ConfigError
from tessella.evaluation.distributions import compute_distances
from tessella.images import Pixels, to_float
from tessella.model.pipeline import TextToImage

NUM_CHOICES = 100
"""Prompts that a picture chooses from, its own among them."""

_BATCH = 32


@dataclass(frozen=True)
class Retrieval:
    """How often pictures find their own prompt."""

    share: float  # of the pictures
    chance: float  # of one that chooses blindly
    num_pictures: int
    num_choices: int  # prompts for each picture


def measure_retrieval(scores: Tensor, own: Tensor, *, seed: int = 0) -> Retrieval:
    """Counts the pictures whose own prompt is higher than all others that it is given.

    Args:
        scores: (B, P), B >= 1, P >= 2 different prompts; of more than a hundred each picture is
            given its own and 99 others, drawn.
        own: (B,) int64 in [0, P), the prompt that each picture was painted of.
        seed: of what is drawn.
    """
    num_choices = min(NUM_CHOICES, scores.shape[1])
    rng = np.random.default_rng(seed)
    right = 0
    for row, asked in zip(scores.cpu(), own.tolist(), strict=True):
        others = np.delete(np.arange(len(row)), asked)
        drawn = rng.permutation(others)[: num_choices - 1]
        right += bool((row[asked] > row[drawn]).all())
    return Retrieval(right / len(scores), 1 / num_choices, len(scores), num_choices)


def score_by_features(painted: Tensor, real: Tensor) -> Tensor:
    """Scores prompts by their real pictures.

    Args:
        painted: (B, F) features.
        real: (P, F) features of one real picture a prompt.

    Returns:
        (B, P) negative distances.
    """
    return -compute_distances(painted, real)


def score_by_likelihood(model: TextToImage, pixels: Pixels, prompts: Sequence[str]) -> Tensor:
    """Scores prompts by a model's own likelihood of pictures (B, S, S, 3).

    Returns:
        (B, P) pointwise mutual information in nats.

    Raises:
        GenerationError: the model's objective has no likelihood.
    """
    return torch.from_numpy(model.score(pixels, prompts).pmi)


class Clip:
    """A CLIP that `transformers` loads: scores pictures under prompts.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        device: where it computes.

    Raises:
        ConfigError: `transformers` is not installed, there is no such CLIP, or what is there
            lacks weights.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError:
            raise ConfigError(
                f"A CLIP is loaded by the package transformers, which is not installed: `{name}`. "
                "Install it with pip install 'tessella[text]'."
            ) from None
        try:
            network: Any
            network, report = CLIPModel.from_pretrained(
                name, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
            if report["missing_keys"]:  # transformers would draw them at random
                raise ValueError(f"its weights lack `{min(report['missing_keys'])}`")
            self._network = network.eval().to(device)
            self._text_tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # many libraries, each with errors of its own
            raise ConfigError(
                f"Cannot load a CLIP: `{name}`; {error}. Name a folder of a CLIP of transformers "
                "with safetensors, or one on the Hugging Face hub, such as "
                "openai/clip-vit-base-patch32."
            ) from error
        self.name = name.rstrip("/").rpartition("/")[2]
        """For protocols."""

    @torch.inference_mode()
    def score(self, pixels: Pixels, prompts: Sequence[str]) -> Tensor:
        """Computes the cosine (B, P) of the embeddings of pictures (B, S, S, 3) and prompts."""
        starts = range(0, max(len(pixels), len(prompts)), _BATCH)
        looks = [self._look(pixels[s : s + _BATCH]) for s in starts if s < len(pixels)]
        reads = [self._read(prompts[s : s + _BATCH]) for s in starts if s < len(prompts)]
        look, read = (functional.normalize(torch.cat(parts)) for parts in (looks, reads))
        return (look @ read.T).cpu()

    def _look(self, pixels: Pixels) -> Tensor:
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        side = self._network.config.vision_config.image_size
        image = functional.interpolate(
            to_float(pixels).add(1).div(2), (side, side), mode="bicubic", antialias=True
        )
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        normalised = ((image.clamp(0, 1) - mean) / std).to(self._network.device)
        return self._project("vision", pixel_values=normalised)

    def _read(self, prompts: Sequence[str]) -> Tensor:
        length = self._network.config.text_config.max_position_embeddings
        tokens = self._text_tokenizer(
            list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self._network.device)
        return self._project(
            "text", input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )

    def _project(self, side: str, **inputs: Tensor) -> Tensor:
        """Embeds pictures or prompts in the space that they share."""
        pooled = getattr(self._network, f"{side}_model")(**inputs).pooler_output
        projection = "visual_projection" if side == "vision" else "text_projection"
        embedded: Tensor = getattr(self._network, projection)(pooled)
        return embedded
