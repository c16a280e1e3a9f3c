"""The training loop, one for both stages: what differs between them is their `Stage`.

Every step is a pure function of the state and of (seed, rank, images seen): a run that is stopped
at any moment and resumed ends in the same weights as one that was not.
"""

import abc
import contextlib
import datetime
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from pydantic import Field, model_validator
from rich.console import Console
from torch import Tensor, nn

from tessella.config import Settings
from tessella.errors import CheckpointError, ConfigError, TessellaError
from tessella.images import Pixels
from tessella.model.folder import choose_device
from tessella.training.checkpoint import (
    CheckpointState,
    flatten_optimizer,
    load_latest_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from tessella.training.ema import create_average, update_average
from tessella.training.interrupt import Interrupted, stop_on_signals
from tessella.training.optimizer import MuonAdamW, OptimizerSettings
from tessella.training.reporting import Reporter
from tessella.training.schedule import ImageOrder, learning_rate_multiplier, step_seed

CHECKPOINTS_FOLDER = "checkpoints"
_LOG_SECONDS = 10.0
_WAIT = datetime.timedelta(days=1)


class TrainingSettings(Settings):
    """How long and how a stage trains."""

    images: int = Field(200_000, ge=0)
    """Images seen in training, repetitions included; rounded up to whole batches. 0 keeps the
    weights of `init_from` as they are."""
    init_from: str | None = Field(None, min_length=1)
    """A model folder, a run's folder or a bundled model's name: the weights that this stage begins
    with, instead of random ones."""
    batch_size: int = Field(32, ge=1)
    """Images a step, over all processes. Many small steps beat few large ones: docs/log.md."""
    warmup_images: int = Field(2_000, ge=0)
    """Images until the learning rate reaches its peak."""
    decay_fraction: float = Field(0.4, ge=0.0, le=1.0)
    """Share of the training, at its end, in which the learning rate falls to 0."""
    ema_half_life_images: int = Field(5_000, ge=0)
    """Images after which a weight counts half in the averaged weights; 0 does not average."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Learning rates and momentum."""
    evaluate_every_images: int = Field(20_000, ge=1)
    """Images between two evaluations with pictures."""
    save_every_seconds: float = Field(60.0, gt=0.0)
    """Seconds between two checkpoints."""

    @model_validator(mode="after")
    def _something_to_start_from(self) -> Self:
        if self.images == 0 and self.init_from is None:
            raise ValueError("0 images leave random weights. Give images, or init_from")
        return self


@dataclass(frozen=True)
class StepResult:
    """What a network makes of a training batch."""

    loss: Tensor  # () what is minimised
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # () each, to look at


@dataclass(frozen=True)
class Evaluation:
    """What a stage finds on the validation images."""

    metrics: Mapping[str, float]
    pictures: Mapping[str, Pixels]  # to look at, by name
    warnings: Sequence[str] = ()  # what goes wrong, and what to try


class Companion(abc.ABC):
    """What learns beside a stage's network, by an optimizer and a rule of its own."""

    @property
    @abc.abstractmethod
    def counts_from_images(self) -> int:
        """Images seen from which it takes part in every step."""

    @abc.abstractmethod
    def begin_step(self, images_seen: int) -> None:
        """Is told where training stands, before the network's step."""

    @abc.abstractmethod
    def finish_step(self) -> Mapping[str, Tensor]:
        """Learns after the network's step; returns metrics, () each."""

    @abc.abstractmethod
    def note_validation(self, metrics: Mapping[str, float]) -> str | None:
        """Is told what an evaluation found; returns a sentence if it changes its ways."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Returns all that a resumed run needs."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to what `state_dict` returned."""


N = TypeVar("N", bound=nn.Module)


class Stage(abc.ABC, Generic[N]):
    """What differs between training the tokenizer and training the transformer."""

    name: str
    network: N  # calling it on a batch gives a `StepResult`
    num_images: int  # images to train on
    companion: Companion | None = None  # what learns beside it
    compiled: Sequence[nn.Module] = ()  # parts of the network to compile with `torch.compile`

    @abc.abstractmethod
    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the matrices inside the network, which Muon trains; AdamW trains the rest."""

    @abc.abstractmethod
    def load_batch(
        self, indices: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """Reads training images by index, on the CPU; `rng` draws what is drawn afresh."""

    @abc.abstractmethod
    def evaluate(self, average: N, device: torch.device, images_seen: int) -> Evaluation:
        """Measures the averaged network, after so many images, on the validation images."""


def create_accelerator(device: str) -> Accelerator:
    """Sets up where training runs: bf16 on CUDA, fp32 elsewhere, several processes if launched so.

    Args:
        device: auto, cpu, cuda or mps.

    Raises:
        ConfigError: there is no such device here.
    """
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    kind = choose_device(device).type
    return Accelerator(
        cpu=kind == "cpu",
        mixed_precision="bf16" if kind == "cuda" else "no",
        kwargs_handlers=[
            # An objective need not use every part of the transformer.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # The others wait while the first reads the data, encodes it and evaluates.
            InitProcessGroupKwargs(timeout=_WAIT),
        ],
    )


def train(
    stage: Stage[N],
    settings: TrainingSettings,
    folder: Path,
    *,
    seed: int,
    accelerator: Accelerator,
    console: Console,
    fingerprint: str,
) -> N:
    """Trains a stage, from its last good checkpoint if there is one.

    Args:
        stage: what is trained, on what.
        settings: how long and how.
        folder: the stage's own folder: checkpoints, metrics, samples.
        seed: of all randomness.
        accelerator: from `create_accelerator`.
        console: where progress is shown.
        fingerprint: of recipe and data; a checkpoint of another one is refused.

    Returns:
        The averaged network, on the accelerator's device.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        CheckpointError: a checkpoint cannot be read, is another run's, or cannot be written.
        TessellaError: the loss is not a number.
    """
    order = ImageOrder(stage.num_images, seed)
    rank, main = accelerator.process_index, accelerator.is_main_process
    share = _batch_share(settings.batch_size, accelerator.num_processes)

    def load(images_seen: int) -> tuple[Tensor, ...]:
        indices = order.indices(images_seen, settings.batch_size)[rank * share : (rank + 1) * share]
        return stage.load_batch(indices, np.random.default_rng([seed, rank, images_seen]))

    state = _TrainingState(stage, settings, folder / CHECKPOINTS_FOLDER, accelerator, fingerprint)
    is_new = not state.restore()
    if main and is_new and settings.images == 0:
        state.save()  # the weights that it starts from are all that it will have
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        loader = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        reporter = None
        if main:
            seen, due = state.images_seen, state.evaluation_due
            reporter = Reporter(folder, stage.name, settings.images, seen, console, redo=due)
            stack.enter_context(reporter)
        meter = _Meter()
        upcoming = loader.submit(load, state.images_seen)
        while True:
            done = state.images_seen >= settings.images
            if state.evaluation_due:
                # Here, not at the end of the step: a run that was killed between makes it up.
                state.evaluate(stage, reporter)
                meter.restart()
                if done and main:
                    state.save()
            if done:
                break
            batch = [tensor.to(accelerator.device) for tensor in upcoming.result()]
            upcoming = loader.submit(load, state.images_seen + settings.batch_size)

            torch.manual_seed(step_seed(seed, rank, state.images_seen))
            meter.add(state.step(batch), settings.batch_size)

            stopping = _anyone(stop.asked, accelerator)
            if reporter is not None:
                reporter.advance(state.images_seen)
                save = stopping or state.evaluation_due or state.is_save_due()
                if save or meter.is_due():
                    # Before saving: a loss that is no number must not become a checkpoint.
                    reporter.log(state.images_seen, meter.take())
                if save:
                    state.save()
            if stopping and state.images_seen < settings.images:
                # The first process saves: whoever ended before it would have it killed meanwhile.
                accelerator.wait_for_everyone()
                raise Interrupted
        if _anyone(stop.asked, accelerator):
            # Asked in the last step or the last evaluation: what follows must not begin.
            raise Interrupted
    _share_buffers(state.average, accelerator)
    return state.average


@dataclass(frozen=True)
class Pace:
    """How long the parts of a stage take on this machine."""

    step_seconds: float  # one training step, data included
    evaluation_seconds: float  # one evaluation


def measure_pace(
    stage: Stage[N], settings: TrainingSettings, accelerator: Accelerator, seconds: float
) -> Pace:
    """Trains a stage for some seconds and forgets it: its network is spoilt afterwards.

    Args:
        stage: a fresh one, used for this alone.
        settings: batch size and optimizer.
        accelerator: from `create_accelerator`.
        seconds: how long to measure, after two steps to warm up.
    """
    state = _TrainingState(stage, settings, Path(), accelerator, fingerprint="")
    if stage.companion is not None:
        state.images_seen = stage.companion.counts_from_images
    order = ImageOrder(stage.num_images, seed=0)
    share = _batch_share(settings.batch_size, accelerator.num_processes)
    times: list[float] = []
    rng = np.random.default_rng(0)
    while len(times) < 5 or not _anyone(sum(times[2:]) >= seconds, accelerator):
        began = time.monotonic()
        indices = order.indices(state.images_seen, share)
        state.step([tensor.to(accelerator.device) for tensor in stage.load_batch(indices, rng)])
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    began = time.monotonic()
    stage.evaluate(state.average, accelerator.device, images_seen=0)
    accelerator.free_memory()
    return Pace(statistics.median(times[2:]), time.monotonic() - began)


class _TrainingState(Generic[N]):
    """All that changes in training, and how it is saved and restored."""

    def __init__(
        self,
        stage: Stage[N],
        settings: TrainingSettings,
        folder: Path,
        accelerator: Accelerator,
        fingerprint: str,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._accelerator = accelerator
        self._fingerprint = fingerprint
        self.images_seen = 0
        self.evaluation_due = False  # it belongs to the images seen, and was not made yet
        self._companion = stage.companion
        network = stage.network.to(accelerator.device).train()
        self.average = create_average(network)
        for module in stage.compiled:  # not the average: it is evaluated in other shapes
            module.compile()
        hidden = stage.hidden_matrices()
        groups = _group_parameters(network, hidden)
        self._names = [name for group in groups for name in group.pop("names")]
        self._optimizer = MuonAdamW(groups, settings.optimizer)
        self._network = network
        self._prepared, self._stepper = accelerator.prepare(network, self._optimizer)
        self._saved_at = time.monotonic()

    def step(self, batch: Sequence[Tensor]) -> StepResult:
        """Learns from one batch."""
        settings = self._settings
        rate = learning_rate_multiplier(
            self.images_seen, settings.images, settings.warmup_images, settings.decay_fraction
        )
        self._optimizer.set_learning_rate(rate)
        if self._companion is not None:
            self._companion.begin_step(self.images_seen)
        result: StepResult = self._prepared(*batch)
        self._accelerator.backward(result.loss)
        norm = self._accelerator.clip_grad_norm_(
            self._network.parameters(), settings.optimizer.max_gradient_norm
        )
        self._stepper.step()
        self._stepper.zero_grad()
        metrics = {**result.metrics, "gradient_norm": norm}
        if self._companion is not None:
            metrics |= self._companion.finish_step()
        before, self.images_seen = self.images_seen, self.images_seen + settings.batch_size
        every = settings.evaluate_every_images
        passed = self.images_seen // every > before // every
        self.evaluation_due = passed or self.images_seen >= settings.images
        update_average(
            self.average,
            self._network,
            half_life_images=settings.ema_half_life_images,
            images_seen=self.images_seen,
            step_images=settings.batch_size,
        )
        return StepResult(result.loss, metrics)

    def evaluate(self, stage: Stage[N], reporter: Reporter | None) -> None:
        """Measures the averaged network; only the first process, which has a reporter, does."""
        found: list[Any] = [None]
        if reporter is not None:
            device = self._accelerator.device
            evaluation = stage.evaluate(self.average, device, self.images_seen)
            reporter.log(self.images_seen, evaluation.metrics, kind="validation")
            reporter.show(self.images_seen, evaluation.pictures)
            for warning in evaluation.warnings:
                reporter.say(self.images_seen, warning)
            found = [dict(evaluation.metrics)]
        if self._companion is not None:
            broadcast_object_list(found)
            change = self._companion.note_validation(found[0])
            if change is not None and reporter is not None:
                reporter.say(self.images_seen, change)
        self.evaluation_due = False

    def is_save_due(self) -> bool:
        """Whether the last checkpoint was written long enough ago."""
        return time.monotonic() - self._saved_at >= self._settings.save_every_seconds

    def save(self) -> None:
        """Writes a checkpoint; the last good one and the one before stay."""
        optimizer, scalars = flatten_optimizer(self._optimizer, self._names)
        parts = {
            "network": self._network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer,
            "companion": {} if self._companion is None else self._companion.state_dict(),
        }
        tensors = {f"{part}.{name}": t for part, ts in parts.items() for name, t in ts.items()}
        info = {
            "fingerprint": self._fingerprint,
            "optimizer": scalars,
            "evaluation_due": self.evaluation_due,
        }
        save_checkpoint(self._folder, CheckpointState(self.images_seen, tensors, info))
        self._saved_at = time.monotonic()

    def restore(self) -> bool:
        """Goes back to the last good checkpoint; returns whether there is one."""
        saved = load_latest_checkpoint(self._folder)
        if saved is None:
            return False
        if saved.info["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"The checkpoints are of other data or another recipe: `{self._folder}`. "
                "Resume with the data and the settings that the run began with, or choose a new "
                "--out."
            )
        self._network.load_state_dict(saved.section("network"))
        self.average.load_state_dict(saved.section("average"))
        restore_optimizer(
            self._optimizer, self._names, saved.section("optimizer"), saved.info["optimizer"]
        )
        if self._companion is not None:
            self._companion.load_state_dict(saved.section("companion"))
        self.images_seen = saved.images_seen
        self.evaluation_due = saved.info["evaluation_due"]
        return True


class _Meter:
    """Averages the metrics of the steps since the last line of the log."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begins afresh: what took time since the last step was no training."""
        self._began = time.monotonic()
        self._images = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()  # what begins in between is in fewer steps

    def add(self, result: StepResult, images: int) -> None:
        """Adds a step; the values stay on their device until they are taken."""
        for name, value in {"loss": result.loss, **result.metrics}.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1
        self._images += images

    def is_due(self) -> bool:
        """Whether it is time for another line."""
        return time.monotonic() - self._began >= _LOG_SECONDS

    def take(self) -> dict[str, float]:
        """Returns the means and the pace, and begins afresh.

        Raises:
            TessellaError: the loss or its gradient is not a finite number.
        """
        means = {name: value.item() / self._counts[name] for name, value in self._sums.items()}
        # A gradient that is no number has spoilt the weights before the loss shows it.
        for name in ("loss", "gradient_norm"):
            if math.isfinite(means[name]):
                continue
            raise TessellaError(
                f"The {name.replace('_', ' ')} is not a number any more: `{means[name]}`. The last "
                "good checkpoint is kept. Lower the learning rates "
                "(…_training.optimizer.muon_learning_rate and .adamw_learning_rate) and start in a "
                "new --out."
            )
        pace = self._images / (time.monotonic() - self._began)
        self.restart()
        return {**means, "images_per_second": pace}


def _group_parameters(network: nn.Module, hidden: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Sorts the parameters that learn into Muon's group and AdamW's, with their names."""
    inside = {id(parameter) for parameter in hidden}
    groups: list[dict[str, Any]] = []
    for muon in (True, False):
        chosen = [
            (name, parameter)
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and (id(parameter) in inside) is muon
        ]
        groups.append(
            {"params": [p for _, p in chosen], "names": [n for n, _ in chosen], "muon": muon}
        )
    return [group for group in groups if group["params"]]


def _batch_share(batch_size: int, num_processes: int) -> int:
    if batch_size % num_processes:
        raise ConfigError(
            f"The batch size must be a multiple of the number of processes: `{batch_size}` over "
            f"{num_processes}. Set"
            f" …_training.batch_size to {num_processes * (batch_size // num_processes + 1)}."
        )
    return batch_size // num_processes


def _anyone(mine: bool, accelerator: Accelerator) -> bool:
    """Agrees with the other processes whether to stop: all must leave at the same step."""
    if accelerator.num_processes == 1:
        return mine
    asked = torch.tensor(float(mine), device=accelerator.device)
    return bool(accelerator.reduce(asked, reduction="sum").item() > 0)


def _share_buffers(network: nn.Module, accelerator: Accelerator) -> None:
    """Gives every process the first one's buffers: running statistics are of each one's images."""
    if accelerator.num_processes > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, src=0)
