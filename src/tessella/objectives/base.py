"""What every objective has in common: a rule to learn and a rule to generate, in one file each."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tessella.config import Settings
from tessella.transformer import Transformer


class GenerationSettings(Settings):
    """How a picture is chosen from what the transformer predicts."""

    steps: int = Field(16, ge=1, le=4096)
    """Sets of places that are asked one after the other; at most one a place is used."""
    temperature: float = Field(0.6, ge=0.0, allow_inf_nan=False, le=100.0)
    """Divides the logits: below 1 the likely codes get likelier; 0 takes the likeliest."""
    top_k: int | None = Field(None, ge=1)
    """Only so many of the likeliest codes are sampled from; left out: all."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Only the likeliest codes that together have this probability are sampled from."""
    guidance_scale: float = Field(1.0, ge=0.0, le=100.0, allow_inf_nan=False)
    """How far the logits move from those of no prompt through those of the prompt; 1 is off."""
    order: Literal["random", "halton"] = "random"
    """The order of places: `random`, or `halton` (spread evenly from the start)."""


@dataclass(frozen=True)
class ObjectiveLoss:
    """What an objective makes of a training batch."""

    loss: Tensor  # () what is minimised
    accuracy: Tensor  # () share of places where the likeliest code is the right one


@dataclass(frozen=True)
class GenerationRequest:
    """Pictures that are generated together."""

    text_tokens: Tensor  # (P, T) the prompts, each once
    empty_tokens: Tensor  # (1, T') the empty prompt, which guidance moves away from
    prompt_of: Tensor  # (B,) int64, each picture's prompt
    seeds: Sequence[int]  # B seeds; a picture depends on its own alone
    settings: GenerationSettings


@dataclass(frozen=True)
class GenerationStep:
    """What a callback sees after each step."""

    step: int  # from 1
    steps: int
    codes: Tensor  # (B, N) int64, those laid so far, 0 elsewhere
    laid: Tensor  # (B, N) bool


@dataclass(frozen=True)
class Painted:
    """What an objective generates, ready for the decoder."""

    latent: Tensor  # (B, C, h, w) on the codebook's scale
    codes: Tensor | None  # (B, h, w) int64; None where the latent is no mosaic of codes


StepCallback = Callable[[GenerationStep], None]


class Objective(abc.ABC):
    """A rule to learn and the rule to generate that belongs to it."""

    @abc.abstractmethod
    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text_tokens: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Scores the transformer on a training batch.

        Args:
            transformer: the network that learns.
            codebook: (K, C), the image tokenizer's, which does not learn.
            text_tokens: (B, T) int64, padded at the end.
            codes: (B, h, w) int64 in [0, K).
        """

    @abc.abstractmethod
    def generate(
        self,
        transformer: Transformer,
        codebook: Tensor,
        grid: tuple[int, int],
        request: GenerationRequest,
        watch: StepCallback | None = None,
    ) -> Painted:
        """Paints the pictures of a request on a grid of (h, w) places."""


def compute_accuracy(logits: Tensor, codes: Tensor) -> Tensor:
    """Returns the share of places where the likeliest code (of (..., K)) is the right one (...)."""
    return (logits.detach().argmax(-1) == codes).to(torch.float32).mean()
