"""Does a picture show its prompt? It must rank that prompt first among a hundred.

    pictures, prompts ─ scores (B, P) ─▶ fraction of pictures whose own prompt scores highest

Three scores:

    SqueezeNet   how near the prompt's real picture is, by features
    CLIP         cosine of the embeddings of picture and prompt, by a model of your choice
    the model    pointwise mutual information, by its own likelihood

The first two did not make the picture.

Source: CLIP arXiv:2103.00020; ranking by it as R-precision, arXiv:1711.10485.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tessella.errors import ConfigError, needs_extra
from tessella.evaluation.metric import Metric
from tessella.images import Pixels, to_float
from tessella.text.frozen import read_whole

NUM_CHOICES = 100
"""Prompts that a picture chooses from, its own among them."""

_BATCH = 32


def measure_retrieval(scores: Tensor, prompt_of: Tensor, by: str, *, seed: int = 0) -> Metric:
    """Computes the fraction of pictures whose own prompt scores higher than all others.

    Args:
        scores: (B, P), B >= 1, P >= 2 different prompts; of more than a hundred each picture
            compares its own with 99 others, drawn.
        prompt_of: (B,) int64 in [0, P), the prompt that each picture was generated from.
        by: what the scores are, for the protocol.
        seed: of the draw.
    """
    num_choices = min(NUM_CHOICES, scores.shape[1])
    rng = np.random.default_rng(seed)
    num_first = 0
    for row, prompt in zip(scores.cpu(), prompt_of.tolist(), strict=True):
        others = np.delete(np.arange(len(row)), prompt)
        drawn = rng.permutation(others)[: num_choices - 1]
        num_first += bool((row[prompt] > row[drawn]).all())
    return Metric(
        num_first / len(scores),
        f"share of {len(scores)} pictures whose own prompt is first of {num_choices}, chance "
        f"{1 / num_choices:.3g}; {by}",
    )


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
        with needs_extra("text", f"The CLIP `{name}`"):
            from transformers import AutoTokenizer, CLIPModel
        try:
            self._network = read_whole(CLIPModel, name).eval().to(device)
            self._text_tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # from many libraries, each with its own kinds
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
        sides: Any = ((self._embed_images, pixels), (self._embed_texts, prompts))
        first, second = (
            torch.cat([embed(side[i : i + _BATCH]) for i in range(0, len(side), _BATCH)])
            for embed, side in sides
        )
        return (functional.normalize(first) @ functional.normalize(second).T).cpu()

    def _embed_images(self, pixels: Pixels) -> Tensor:
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        side = self._network.config.vision_config.image_size
        image = functional.interpolate(
            to_float(pixels).add(1).div(2), (side, side), mode="bicubic", antialias=True
        )
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        normalised = ((image.clamp(0, 1) - mean) / std).to(self._network.device)
        pooled = self._network.vision_model(pixel_values=normalised).pooler_output
        embedded: Tensor = self._network.visual_projection(pooled)
        return embedded

    def _embed_texts(self, prompts: Sequence[str]) -> Tensor:
        length = self._network.config.text_config.max_position_embeddings
        tokens = self._text_tokenizer(
            list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self._network.device)
        names = ("input_ids", "attention_mask")
        pooled = self._network.text_model(**{name: tokens[name] for name in names}).pooler_output
        embedded: Tensor = self._network.text_projection(pooled)
        return embedded
