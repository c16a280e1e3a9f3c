"""What a stage of training is: its settings, its batches, its loss, how it is measured."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tessella.config import Settings
from tessella.images import Pixels
from tessella.training.optimizer import OptimizerSettings
from tessella.training.schedule import order_images


class TrainingSettings(Settings):
    """How long and how a stage trains."""

    images: int = Field(200_000, ge=0)
    """Images to train on, repetitions included; rounded up to whole batches. 0 keeps the weights
    of `init_from` as they are."""
    init_from: str | None = Field(None, min_length=1)
    """A model folder, a run's folder, a bundled model's name or hf:USER/NAME: the weights to start
    from, instead of random ones."""
    batch_size: int = Field(32, ge=1)
    """Images per step, over all processes. Many small steps beat few large ones: docs/log.md."""
    warmup_images: int = Field(2_000, ge=0)
    """Images until the learning rate reaches its peak."""
    decay_fraction: float = Field(0.4, ge=0.0, le=1.0)
    """Fraction of the training, at its end, in which the learning rate falls to 0."""
    ema_half_life_images: int = Field(5_000, ge=0)
    """Images after which a weight counts half in the averaged weights; 0 turns averaging off."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Learning rates and momentum."""
    evaluate_every_images: int = Field(20_000, ge=1)
    """Images between two evaluations with pictures."""
    save_every_seconds: float = Field(60.0, gt=0.0)
    """Seconds between two checkpoints."""
    sharding: Literal["none", "full"] = "none"
    """What each of several processes holds: `none` is all of the weights, their average, gradients
    and optimizer; `full` (FSDP) is its part of them, and gathers weights when they are needed."""
    recompute: bool = False
    """Keeps less of each step in memory and computes it again for the gradients (activation
    checkpointing): for larger pictures, networks or batches."""
    compile: bool = False
    """Compiles the larger parts of the network with `torch.compile`: a slow start, then faster
    steps where a compiler for the device is installed."""

    @model_validator(mode="after")
    def _is_sharded_or_compiled(self) -> Self:
        if self.compile and self.sharding != "none":
            raise ValueError(
                "what is compiled cannot gather its weights. Set compile=false or sharding=none"
            )
        return self

    @model_validator(mode="after")
    def _has_weights_to_keep(self) -> Self:
        if self.images == 0 and self.init_from is None:
            raise ValueError("with 0 images the weights stay random. Set images, or init_from")
        return self


@dataclass(frozen=True)
class StepLoss:
    """The loss of a training batch; an objective's `ObjectiveLoss` has the same two."""

    loss: Tensor  # () what is minimised
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # () each, logged beside it


@dataclass(frozen=True)
class Evaluation:
    """What a stage measures on the validation images."""

    metrics: Mapping[str, float]
    pictures: Mapping[str, Pixels]  # to look at, by name
    warnings: Sequence[str] = ()  # what goes wrong, and what to try


N = TypeVar("N", bound=nn.Module)
Batch = tuple[Any, ...]
"""Tensors, or tuples of them: the arguments of a stage's loss module."""


class Stage(abc.ABC, Generic[N]):
    """What differs between training the tokenizer and training the transformer."""

    name: str
    network: N  # what learns, is averaged, evaluated and saved
    hidden_matrices: Sequence[nn.Parameter]  # inside the network: Muon trains them, AdamW the rest
    loss_module: nn.Module  # holds the network; called on a batch, returns `.loss` and `.metrics`
    num_images: int  # images to train on
    compiled: Sequence[nn.Module] = ()  # parts of the network to compile with `torch.compile`
    replicated: Sequence[nn.Module] = ()  # parts of it that every process keeps whole
    steady_from_images: int = 0  # images seen from which all steps take equally long
    is_streamed: bool = (
        False  # each process reads every n-th image of n processes: shards of its own
    )

    def order(self, seed: int, start: int, count: int) -> npt.NDArray[np.int64]:
        """Returns which images the run sees, from the `start`-th on."""
        return order_images(self.num_images, seed, start, count)

    @abc.abstractmethod
    def load_batch(
        self, indices: npt.NDArray[np.int64], rngs: Sequence[np.random.Generator]
    ) -> Batch:
        """Reads training images by index, on the CPU; what is drawn afresh comes from `rngs`.

        Each image has a generator of its own, so that it does not matter who else is in the batch.
        """

    @abc.abstractmethod
    def evaluate(self, average: N, device: torch.device, images_seen: int) -> Evaluation:
        """Measures the averaged network on the validation images."""

    def before_step(self, images_seen: int) -> None:
        """Called before every step, with the progress so far."""

    def after_step(self) -> Mapping[str, Tensor]:
        """Called after every step of the network; returns more metrics, () each."""
        return {}

    def note_validation(self, metrics: Mapping[str, float]) -> str | None:
        """Called in every process after an evaluation; returns a line to log, if any."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what a resumed run needs beside the network, its average and its optimizer."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
