"""The training loop, one for both stages: what differs between them is their `Stage`.

Every step is a pure function of the state and of (seed, rank, images seen): a run that is stopped
at any moment and resumed ends in the same weights as one that was not.
"""

import abc
import contextlib
import datetime
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device
from pydantic import Field, model_validator
from rich.console import Console
from torch import Tensor, nn

from tessella.config import Settings
from tessella.errors import CheckpointError
from tessella.images import Pixels
from tessella.model.folder import choose_device
from tessella.training import checkpoint, processes
from tessella.training.ema import create_average, update_average
from tessella.training.interrupt import Interrupted, stop_on_signals
from tessella.training.optimizer import MuonAdamW, OptimizerSettings, group_parameters
from tessella.training.precision import PrecisionSetting, autocast, settle_precision
from tessella.training.reporting import Meter, Reporter
from tessella.training.schedule import learning_rate_multiplier, order_images, step_seed

_PROCESS_TIMEOUT = datetime.timedelta(days=1)


class TrainingSettings(Settings):
    """How long and how a stage trains."""

    images: int = Field(200_000, ge=0)
    """Images to train on, repetitions included; rounded up to whole batches. 0 keeps the weights
    of `init_from` as they are."""
    init_from: str | None = Field(None, min_length=1)
    """A model folder, a run's folder or a bundled model's name: the weights to start from, instead
    of random ones."""
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
    steady_from_images: int = 0  # images seen from which all steps take equally long
    is_streamed: bool = False  # each process reads every so-manieth image: shards of its own

    def order(self, seed: int, start: int, count: int) -> npt.NDArray[np.int64]:
        """Returns which images the run sees, from the `start`-th on."""
        return order_images(self.num_images, seed, start, count)

    @abc.abstractmethod
    def load_batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Reads training images by index, on the CPU; `rng` is for what is drawn afresh."""

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


def create_accelerator(device: str) -> Accelerator:
    """Sets up where training runs, in several processes if launched so.

    Args:
        device: auto, cpu, cuda or mps.

    Raises:
        ConfigError: there is no such device here.
    """
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    kind = choose_device(device).type
    if kind == "cpu":
        # Keeps MKL from choosing fewer, as measuring the precision does: a resumed run, which
        # doesn't measure, has to compute alike.
        torch.set_num_threads(torch.get_num_threads())
    return Accelerator(
        cpu=kind == "cpu",
        mixed_precision="no",  # accelerate's is one for the whole process; `train` has its own
        kwargs_handlers=[
            # An objective need not use every part of the transformer.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # The others wait while the first reads the data, encodes it and evaluates.
            InitProcessGroupKwargs(timeout=_PROCESS_TIMEOUT),
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
    precision: PrecisionSetting = "auto",
) -> N:
    """Trains a stage, from its last good checkpoint if there is one; returns the average.

    Args:
        stage: network and data.
        settings: how long and how.
        folder: the stage's own folder: checkpoints, metrics, samples.
        seed: of all randomness.
        accelerator: from `create_accelerator`.
        console: where progress is shown.
        fingerprint: of recipe and data; a checkpoint with another one is refused.
        precision: `auto` is bf16 on CUDA and fp32 elsewhere; nothing is measured here.

    Raises:
        Interrupted: a signal asked it to stop; the state is saved.
        CheckpointError: a checkpoint cannot be read, is another run's, or cannot be written.
        TessellaError: the loss is not a number.
    """
    state = _TrainingState(
        stage,
        settings,
        folder / checkpoint.CHECKPOINTS_FOLDER,
        accelerator,
        fingerprint,
        precision,
    )
    if not state.restore() and not settings.images:
        state.save()  # the weights that it starts from are all that it will have
    with contextlib.ExitStack() as stack:
        stop = processes.StopAgreement(stack.enter_context(stop_on_signals()), accelerator)
        batches = stack.enter_context(contextlib.closing(state.load_batches(seed)))
        if accelerator.is_main_process:
            state.reporter = stack.enter_context(state.create_reporter(folder, console))
        while True:
            if state.evaluation_due:
                # Not at the end of the step: a run killed before this evaluation makes up for it.
                state.evaluate()
            if state.is_done:
                break
            state.step(next(batches), seed)
            stopping = stop.is_reached()
            state.report(save=stopping)
            if stopping and not state.is_done:
                # The first process saves: if another ended now, the launcher would kill it.
                accelerator.wait_for_everyone()
                raise Interrupted
        if stop.ask():  # in the last step or evaluation: the next stage must not begin
            raise Interrupted
    processes.broadcast_buffers(state.average, accelerator)
    return state.average


@dataclass(frozen=True)
class Pace:
    """How long the parts of a stage take on this machine."""

    step_seconds: float  # one training step, data included
    evaluation_seconds: float  # one evaluation


def measure_pace(
    stage: Stage[N],
    settings: TrainingSettings,
    accelerator: Accelerator,
    seconds: float,
    precision: PrecisionSetting = "auto",
) -> Pace:
    """Trains a stage for some seconds, to time it; its network is spoilt afterwards.

    Args:
        stage: a fresh one, used for this alone.
        settings: batch size and optimizer.
        accelerator: from `create_accelerator`.
        seconds: how long to measure, after two steps to warm up.
        precision: as for `train`.
    """
    state = _TrainingState(stage, settings, Path(), accelerator, "", precision)
    state.images_seen = stage.steady_from_images
    times: list[float] = []
    with contextlib.closing(state.load_batches(seed=0)) as batches:
        while len(times) < 5 or not processes.any_process(sum(times[2:]) >= seconds, accelerator):
            began = time.monotonic()
            state.step(next(batches), seed=0)
            if accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic() - began)
    began = time.monotonic()
    stage.evaluate(state.average, accelerator.device, images_seen=0)
    accelerator.free_memory()
    return Pace(statistics.median(times[2:]), time.monotonic() - began)


@dataclass(eq=False)
class _TrainingState(Generic[N]):
    """All that changes in training, and how it is saved and restored."""

    stage: Stage[N]
    settings: TrainingSettings
    folder: Path  # of the checkpoints
    accelerator: Accelerator
    fingerprint: str
    precision: PrecisionSetting

    def __post_init__(self) -> None:
        stage, accelerator = self.stage, self.accelerator
        self._local_batch_size = processes.local_batch_size(
            self.settings.batch_size, accelerator.num_processes
        )
        self.images_seen = 0
        self.evaluation_due = False  # at the present number of images, and not done yet
        self.reporter: Reporter | None = None  # in the first process
        self._meter = Meter()
        stage.loss_module.to(accelerator.device).train()
        self._network = stage.network
        self.average = create_average(stage.network)
        for module in stage.compiled:  # not the average: it is evaluated in other shapes
            module.compile()
        groups = group_parameters(stage.network, stage.hidden_matrices)
        self._precision = settle_precision(self.precision, accelerator.device)
        self._optimizer = MuonAdamW(
            groups, self.settings.optimizer, in_fp32=self._precision == "fp32"
        )
        self._compute_loss = accelerator.prepare(stage.loss_module)
        self._saved_at = time.monotonic()

    @property
    def is_done(self) -> bool:
        """Whether all images have been seen."""
        return self.images_seen >= self.settings.images

    def load_batches(self, seed: int) -> Generator[Batch]:
        """Yields this process's part of each batch, on the device; a thread reads one ahead.

        Args:
            seed: of the order and of what is drawn, with the process and the images seen.
        """
        stage, rank, local_size = self.stage, self.accelerator.process_index, self._local_batch_size

        def load(images_seen: int) -> Batch:
            batch = stage.order(seed, images_seen, self.settings.batch_size)
            own = batch[rank * local_size :][:local_size]
            indices = batch[rank :: len(batch) // local_size] if stage.is_streamed else own
            return stage.load_batch(indices, np.random.default_rng([seed, rank, images_seen]))

        images_seen = self.images_seen
        with ThreadPoolExecutor(max_workers=1) as thread:
            upcoming = thread.submit(load, images_seen)
            while True:
                batch = send_to_device(upcoming.result(), self.accelerator.device)
                images_seen += self.settings.batch_size
                upcoming = thread.submit(load, images_seen)
                yield batch

    def step(self, batch: Batch, seed: int) -> None:
        """Learns from one batch."""
        settings = self.settings
        torch.manual_seed(step_seed(seed, self.accelerator.process_index, self.images_seen))
        lr_multiplier = learning_rate_multiplier(
            self.images_seen, settings.images, settings.warmup_images, settings.decay_fraction
        )
        self._optimizer.set_learning_rate(lr_multiplier)
        self.stage.before_step(self.images_seen)
        with autocast(self.accelerator.device, self._precision):
            result = self._compute_loss(*batch)
        self.accelerator.backward(result.loss)
        norm = self.accelerator.clip_grad_norm_(
            self._network.parameters(), settings.optimizer.max_gradient_norm
        )
        self._optimizer.step()
        self._optimizer.zero_grad()
        metrics = {"loss": result.loss, **result.metrics, "gradient_norm": norm}
        self._meter.add({**metrics, **self.stage.after_step()}, settings.batch_size)
        before, self.images_seen = self.images_seen, self.images_seen + settings.batch_size
        every = settings.evaluate_every_images
        self.evaluation_due = self.is_done or self.images_seen // every > before // every
        update_average(
            self.average,
            self._network,
            half_life_images=settings.ema_half_life_images,
            images_seen=self.images_seen,
            step_images=settings.batch_size,
        )

    def create_reporter(self, folder: Path, console: Console) -> Reporter:
        """Creates what reports the training from here on."""
        name, images = self.stage.name, self.settings.images
        return Reporter(folder, name, images, self.images_seen, console, redo=self.evaluation_due)

    def report(self, *, save: bool) -> None:
        """Shows progress; logs the metrics and saves a checkpoint when it is time, or if asked."""
        if self.reporter is None:
            return
        self.reporter.advance(self.images_seen)
        is_old = time.monotonic() - self._saved_at >= self.settings.save_every_seconds
        save = save or self.evaluation_due or is_old
        if save or self._meter.is_due():
            # Before saving: a loss that is not a number must not become a checkpoint.
            self.reporter.log(self.images_seen, self._meter.take())
        if save:
            self.save()

    def evaluate(self) -> None:
        """Measures the averaged network in the first process; at the end of training, saves it."""
        shared: list[Any] = [None]
        if self.reporter is not None:
            device = self.accelerator.device
            evaluation = self.stage.evaluate(self.average, device, self.images_seen)
            self.reporter.log(self.images_seen, evaluation.metrics, kind="validation")
            self.reporter.show(self.images_seen, evaluation.pictures)
            for warning in evaluation.warnings:
                self.reporter.say(self.images_seen, warning)
            shared = [dict(evaluation.metrics)]
        broadcast_object_list(shared)
        note = self.stage.note_validation(shared[0])
        if note is not None and self.reporter is not None:
            self.reporter.say(self.images_seen, note)
        self.evaluation_due = False
        self._meter.restart()
        if self.is_done:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint in the first process; the last good one and the one before stay."""
        if not self.accelerator.is_main_process:
            return
        parts = {
            "network": self._network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": checkpoint.flatten_optimizer(self._optimizer),
            "stage": self.stage.state_dict(),
        }
        tensors = {f"{part}.{name}": t for part, ts in parts.items() for name, t in ts.items()}
        info = {"fingerprint": self.fingerprint, "evaluation_due": self.evaluation_due}
        checkpoint.save_checkpoint(
            self.folder, checkpoint.CheckpointState(self.images_seen, tensors, info)
        )
        self._saved_at = time.monotonic()

    def restore(self) -> bool:
        """Restores the last good checkpoint; returns whether there is one."""
        saved = checkpoint.load_latest_checkpoint(self.folder)
        if saved is None:
            return False
        if saved.info["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"The checkpoints are of other data or another recipe: `{self.folder}`. "
                "Resume with the data and the settings that the run began with, or choose a new "
                "--out."
            )
        self._network.load_state_dict(checkpoint.section(saved.tensors, "network"))
        self.average.load_state_dict(checkpoint.section(saved.tensors, "average"))
        checkpoint.restore_optimizer(
            self._optimizer, checkpoint.section(saved.tensors, "optimizer")
        )
        self.stage.load_state_dict(checkpoint.section(saved.tensors, "stage"))
        self.images_seen = saved.images_seen
        self.evaluation_due = saved.info["evaluation_due"]
        return True
