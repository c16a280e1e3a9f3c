"""What every objective has in common; each has one file, with its rules to learn and to generate.

An objective is bound to its transformer and codebook once: calling it gives the training loss,
`generate` gives codes.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from tessella.config import Settings
from tessella.errors import GenerationError, ShapeError
from tessella.generation import GenerationSettings
from tessella.objectives.sampling import compute_accuracy
from tessella.tokenizer import look_up_codes
from tessella.transformer import Examples, Transformer


@dataclass(frozen=True)
class ObjectiveLoss:
    """The loss of a training batch."""

    loss: Tensor  # () what is minimised
    accuracy: Tensor  # () fraction of codes where the likeliest is the right one

    @classmethod
    def of_logits(cls, logits: Tensor, codes: Tensor) -> "ObjectiveLoss":
        """Scores logits (B, N, M, K) by the cross-entropy of the right codes (B, N, M).

        The loss is that of a position: the sum over its codes, and the mean over positions.
        """
        loss = functional.cross_entropy(logits.flatten(0, 2).float(), codes.flatten())
        return cls(loss * codes.shape[-1], compute_accuracy(logits, codes))

    @property
    def metrics(self) -> Mapping[str, Tensor]:
        """What training logs beside the loss."""
        return {"accuracy": self.accuracy}


@dataclass(frozen=True)
class GenerationBatch:
    """Pictures that are generated together."""

    text: Tensor  # (P, T) tokens or (P, T, F) features: each distinct prompt once
    negative_text: Tensor  # (P', T') or (P', T', F): what guidance moves away from
    prompt_of: Tensor  # (B,) int64, each picture's row of text
    negative_of: Tensor  # (B,) int64, each picture's row of negative_text
    seeds: Sequence[int]  # B seeds; a picture depends on its own alone
    settings: GenerationSettings
    known_codes: Tensor  # (B, N, M) int64, read where `known`
    known: Tensor  # (B, N) bool: positions that keep their code, equally many a picture
    examples: Examples | None = None  # P rows: what is looked at beside each row of text

    def __post_init__(self) -> None:
        """Checks the known codes.

        Raises:
            ShapeError: the pictures of the batch know different numbers of positions, or `known`
                and `known_codes` differ in pictures or positions.
        """
        if self.known.shape != self.known_codes.shape[:-1]:
            raise ShapeError(
                "`known` (B, N) and `known_codes` (B, N, M) must have the same pictures and "
                f"positions: `{tuple(self.known.shape)}` and `{tuple(self.known_codes.shape)}`."
            )
        counts = self.known.sum(1)
        if (counts != counts[0]).any():
            raise ShapeError(
                "The pictures of a batch must know equally many positions: "
                f"`{counts.tolist()}`. Generate them one after the other."
            )

    @property
    def num_known(self) -> int:
        """Positions of each picture that keep their code."""
        return int(self.known[0].sum())


@dataclass(frozen=True)
class GenerationStep:
    """What `on_step` receives after each step."""

    step: int  # from 1
    steps: int
    codes: Tensor  # (B, M, N) int64, 0 where not decoded yet; of a larger picture (B, M, h, w)
    is_decoded: Tensor  # (B, N) bool; of a larger picture (B, h, w)


@dataclass(frozen=True)
class Generated:
    """Generated pictures, ready for the image tokenizer's decoder."""

    latent: Tensor  # (B, C, h, w) on the codebook's scale
    codes: Tensor | None  # (B, M, h, w) int64; None where the latent is not made of codes


OnStep = Callable[[GenerationStep], None]


class Objective(nn.Module, abc.ABC):
    """A rule to learn and the rule to generate that belongs to it.

    Args:
        transformer: the network that learns.
        codebook: (M, K, C), the image tokenizer's as it is now; it does not learn.
        settings: the objective's own.
    """

    __call__: Callable[..., ObjectiveLoss]
    codebook: Tensor
    transformer: Transformer

    name: ClassVar[str]
    default_settings: ClassVar[Settings] = Settings()
    is_guided: ClassVar[bool] = True
    """Whether it generates with guidance; if not, `negative_text` is not read."""
    has_likelihood: ClassVar[bool] = True
    """Whether it computes the log-likelihood of pictures."""
    can_edit: ClassVar[bool] = True
    """Whether it continues a picture's own codes; otherwise a text gives one whole latent."""
    has_steps: ClassVar[bool] = True
    """Whether a picture comes in steps; otherwise all at once."""
    reads_codes: ClassVar[bool] = True
    """Whether positions are learned from the codes of others; otherwise from the text alone."""

    def __init__(
        self, transformer: Transformer, codebook: Tensor, settings: Settings | None = None
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.settings = settings or self.default_settings
        self.register_buffer("codebook", codebook.detach(), persistent=False)

    @abc.abstractmethod
    def forward(
        self, text: Tensor, codes: Tensor, examples: Examples | None = None
    ) -> ObjectiveLoss:
        """Computes the training loss.

        Args:
            text: (B, T) int64 tokens padded at the end, or (B, T, F) features.
            codes: (B, M, h, w) int64 in [0, K).
            examples: what each picture looks at beside its text; None is nothing.
        """

    def list_unused(self) -> list[nn.Parameter]:
        """Lists the transformer's parameters that the loss does not reach, so that none learns.

        Processes that train together would wait for their gradients.
        """
        network, unused = self.transformer, list[nn.Parameter]()
        if self.reads_codes:
            return unused
        if network.shape.codes_per_position == 1:  # else later codes read the ones before
            unused += network.code_embedding.parameters()
        if network.example_encoder is not None:  # its keys for the codes that are encoded
            unused += network.example_encoder.key_norms[0].parameters()
        return unused

    @abc.abstractmethod
    def generate(self, batch: GenerationBatch, on_step: OnStep | None = None) -> Generated:
        """Generates the pictures of a batch."""

    def compute_log_likelihood(
        self, text: Tensor, codes: Tensor, *, num_orders: int = 4, seed: int = 0
    ) -> Tensor:
        """Scores pictures under their texts.

        Args:
            text: (B, T) or (B, T, F), one a picture.
            codes: (B, M, h, w) int64.
            num_orders: random orders or maskings to average over; more are steadier.
            seed: of those; every row and every call sees the same ones, so that a difference
                between two texts comes from the texts.

        Returns:
            (B,) nats: ln p(codes | text), or a lower bound of it.

        Raises:
            GenerationError: the objective has no likelihood.
        """
        raise GenerationError(
            f"The objective has no likelihood, so pictures cannot be scored: `{self.name}`. "
            "any_order, autoregressive, masked and parallel have one."
        )

    def look_up(self, codes: Tensor) -> Generated:
        """Looks up codes (B, M, h, w), or (B, M, N) of the transformer's own grid."""
        if codes.ndim == 3:
            codes = codes.unflatten(2, self.transformer.shape.grid)
        return Generated(look_up_codes(self.codebook, codes), codes)
