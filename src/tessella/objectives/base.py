"""What every objective has in common: a rule to learn and a rule to generate, in one file each."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tessella.config import Settings
from tessella.errors import GenerationError, ShapeError
from tessella.transformer import Transformer


class GenerationSettings(Settings):
    """How a picture is chosen from what the transformer predicts.

    Not every objective has a use for every setting:

        any_order, masked            all of them
        autoregressive, parallel     temperature, top_k, top_p, guidance_scale, guidance_schedule
        latent_mse, shared_latent    none: there is nothing to sample, to guide or to order
    """

    steps: int = Field(16, ge=1, le=4096)
    """Sets of places that are asked one after the other; at most one a place is used.
    Of `any_order` and `masked`: `autoregressive` always takes one place a step, the others all at
    once."""
    temperature: float = Field(0.6, ge=0.0, allow_inf_nan=False, le=100.0)
    """Divides the logits: below 1 the likely codes get likelier; 0 takes the likeliest. It and the
    next four are of no use to `latent_mse` and `shared_latent`, which neither sample nor are
    guided."""
    top_k: int | None = Field(None, ge=1)
    """Only so many of the likeliest codes are sampled from; left out: all."""
    top_p: float = Field(1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    """Only the likeliest codes that together have this probability are sampled from."""
    guidance_scale: float = Field(1.0, ge=0.0, le=100.0, allow_inf_nan=False)
    """How far the logits move from those of no prompt through those of the prompt; 1 is off."""
    guidance_schedule: Literal["constant", "linear"] = "constant"
    """How the guidance scale goes over the steps: `constant`, or `linear` from 1 up to it."""
    order: Literal["auto", "random", "halton", "confidence"] = "auto"
    """The order of places: `random`; `halton` (spread evenly from the start); `confidence` (what
    the transformer is surest of first). `auto` is the objective's own: random for `any_order`,
    confidence for `masked`. The others have one order, or none."""
    confidence_temperature: float = Field(4.5, ge=0.0, le=1000.0, allow_inf_nan=False)
    """Chance in the order by confidence: how much noise, which fades to none at the last step.
    Of `any_order` and `masked`."""
    step_schedule: Literal["cosine", "arccos"] = "cosine"
    """How many places each step fills: `cosine` few at first and many at the end, `arccos` about
    equally many but for more at the end. Of `any_order` and `masked`."""


@dataclass(frozen=True)
class ObjectiveLoss:
    """What an objective makes of a training batch."""

    loss: Tensor  # () what is minimised
    accuracy: Tensor  # () share of places where the likeliest code is the right one


@dataclass(frozen=True)
class GenerationRequest:
    """Pictures that are generated together."""

    text: Tensor  # (P, T) tokens or (P, T, F) features: the prompts, each once
    negative_text: Tensor  # (M, T') or (M, T', F): what guidance moves away from
    prompt_of: Tensor  # (B,) int64, each picture's prompt
    negative_of: Tensor  # (B,) int64, each picture's entry of negative_text
    seeds: Sequence[int]  # B seeds; a picture depends on its own alone
    settings: GenerationSettings
    known_codes: Tensor | None = None  # (B, N) int64, looked at where `known`
    known: Tensor | None = None  # (B, N) bool: places that keep their code; equally many a picture

    def __post_init__(self) -> None:
        """Checks what is known.

        Raises:
            ShapeError: pictures of the batch know unequally many places, or codes are missing.
        """
        if self.known is None or self.known_codes is None:
            if self.known is not self.known_codes:
                raise ShapeError("`known` and `known_codes` belong together: one is missing.")
            return
        if self.known.shape != self.known_codes.shape:
            raise ShapeError(
                "`known` and `known_codes` must have one shape (B, N): "
                f"`{tuple(self.known.shape)}` and `{tuple(self.known_codes.shape)}`."
            )
        counts = self.known.sum(1)
        if (counts != counts[0]).any():
            raise ShapeError(
                "The pictures of a batch must know equally many places: "
                f"`{counts.tolist()}`. Generate them one after the other."
            )


@dataclass(frozen=True)
class GenerationStep:
    """What a callback sees after each step."""

    step: int  # from 1
    steps: int
    codes: Tensor  # (B, N) int64, those laid so far, 0 elsewhere; of a larger picture (B, h, w)
    laid: Tensor  # bool of the same shape


@dataclass(frozen=True)
class Painted:
    """What an objective generates, ready for the decoder."""

    latent: Tensor  # (B, C, h, w) on the codebook's scale
    codes: Tensor | None  # (B, h, w) int64; None where the latent is no mosaic of codes


StepCallback = Callable[[GenerationStep], None]


class Objective(abc.ABC):
    """A rule to learn and the rule to generate that belongs to it."""

    name: str
    is_guided = True
    """Whether it generates by guidance; if not, `negative_text` is not looked at."""
    has_likelihood = True
    """Whether it computes the log-likelihood of pictures."""
    lays_codes = True
    """Whether what it generates is codes; else it is a latent, of which nothing can be kept."""
    has_steps = True
    """Whether a picture comes in steps; else it is there all at once."""

    @abc.abstractmethod
    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Scores the transformer on a training batch.

        Args:
            transformer: the network that learns.
            codebook: (K, C), the image tokenizer's, which does not learn.
            text: (B, T) int64 tokens padded at the end, or (B, T, F) features.
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

    def compute_log_likelihood(
        self,
        transformer: Transformer,
        text: Tensor,
        codes: Tensor,
        *,
        num_orders: int = 4,
        seed: int = 0,
    ) -> Tensor:
        """Scores pictures under their texts.

        Args:
            transformer: trained with this objective.
            text: (B, T) or (B, T, F), one a picture.
            codes: (B, h, w) int64.
            num_orders: orders or maskings that the estimate is the mean of; more are steadier.
            seed: of those; every row and every call sees the same ones, so that differences
                between texts are of the texts.

        Returns:
            (B,) nats: ln p(codes | text), or a lower bound of it.

        Raises:
            GenerationError: the objective has no likelihood.
        """
        raise GenerationError(
            f"The objective has no likelihood, so pictures cannot be scored: `{self.name}`. "
            "any_order, autoregressive, masked and parallel have one."
        )


def compute_accuracy(logits: Tensor, codes: Tensor) -> Tensor:
    """Returns the share of places where the likeliest code (of (..., K)) is the right one (...)."""
    return (logits.detach().argmax(-1) == codes).to(torch.float32).mean()


def score_logits(logits: Tensor, codes: Tensor) -> ObjectiveLoss:
    """Scores logits (B, N, K) by the mean cross-entropy of the right codes (B, N)."""
    loss = functional.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())
    return ObjectiveLoss(loss, compute_accuracy(logits, codes))


def to_painted(codes: Tensor, codebook: Tensor, grid: tuple[int, int]) -> Painted:
    """Looks up codes (B, N) in the codebook."""
    mosaic = codes.unflatten(1, grid)
    return Painted(functional.embedding(mosaic, codebook).movedim(-1, 1), mosaic)


def gather_log_probability(logits: Tensor, codes: Tensor) -> Tensor:
    """Takes the log-probability (...) of each code (...) under logits (..., K)."""
    return logits.float().log_softmax(-1).gather(-1, codes[..., None])[..., 0]
