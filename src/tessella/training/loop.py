"""The training loop, one for both stages: what differs between them is their `Stage`.

Every step is a pure function of the state and of (seed, images seen): a run that is stopped at any
moment and resumed ends in the same weights as one that was not. Several processes share each batch
(`tessella.batch`) and learn what one would, but for the rounding of sums and for dropout, which
each draws by itself.
"""

import contextlib
import datetime
import statistics
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device
from rich.console import Console
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tessella.batch import drawing
from tessella.errors import CheckpointError
from tessella.model.folder import choose_device
from tessella.training import checkpoint, launch, processes, sharding, shards
from tessella.training.callbacks import Callbacks
from tessella.training.ema import create_average, update_average
from tessella.training.interrupt import StopRequest, end_run, stop_on_signals
from tessella.training.optimizer import MuonAdamW, group_parameters
from tessella.training.precision import PrecisionSetting, autocast, settle_precision
from tessella.training.processes import Due
from tessella.training.reporting import Meter, Reporter
from tessella.training.schedule import (
    create_image_generators,
    learning_rate_multiplier,
    step_seed,
)
from tessella.training.shard_saver import ShardSaver
from tessella.training.stage import Batch, N, Stage, TrainingSettings

_PROCESS_TIMEOUT = datetime.timedelta(days=1)


def create_accelerator(device: str) -> Accelerator:
    """Sets up where training runs, in several processes if launched so.

    Args:
        device: auto, cpu, cuda or mps.

    Raises:
        ConfigError: there is no such device here, or several processes have another already.
    """
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    chosen = choose_device(device)
    kind = chosen.type
    if kind == "cpu":
        # Keeps MKL from choosing fewer, as measuring the precision does: a resumed run, which
        # doesn't measure, has to compute alike.
        torch.set_num_threads(torch.get_num_threads())
    launch.leave_device(chosen)
    launch.join_again(chosen, _PROCESS_TIMEOUT)
    return Accelerator(
        cpu=kind == "cpu",
        mixed_precision="no",  # accelerate's is one for the whole process; `train` has its own
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
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
    callbacks: Callbacks | None = None,
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
        callbacks: of the run; the first process calls them.

    Raises:
        Interrupted, TrainingStopped: a signal or a callback asked it to stop; the state is saved.
        CheckpointError: a checkpoint cannot be read, is another run's, or cannot be written.
        TessellaError: the loss is not a number.
    """
    checkpoints = folder / checkpoint.CHECKPOINTS_FOLDER
    how = accelerator, fingerprint, precision, callbacks or Callbacks()
    state = _TrainingState(stage, settings, checkpoints, *how)
    agreement = processes.Agreement(accelerator)
    with contextlib.ExitStack() as stack:
        stack.callback(state.close)
        state.begin()
        request = stack.enter_context(stop_on_signals())
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
            due = agreement.settle(state.find_due(request))
            state.report(due)
            if due.stop and not state.is_done:
                # The first process saves: if another ended now, the launcher would kill it.
                state.finish_saving()
                accelerator.wait_for_everyone()
                end_run(by_callback=state.callbacks.is_stopped)
        state.finish_saving()  # callbacks may still ask to stop
        # In the last step or evaluation: the next stage must not begin.
        if agreement.ask(Due(stop=request.is_set or state.callbacks.is_stopped)).stop:
            end_run(by_callback=state.callbacks.is_stopped)
        return state.finish()


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
    stage.evaluate(state.gather_average(), accelerator.device, images_seen=0)
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
    callbacks: Callbacks = field(default_factory=Callbacks)

    def __post_init__(self) -> None:
        stage, accelerator = self.stage, self.accelerator
        self._local_batch_size = processes.local_batch_size(
            self.settings.batch_size, accelerator.num_processes
        )
        self.images_seen = 0
        self.evaluation_due = False  # at the present number of images, and not done yet
        self.reporter: Reporter | None = None  # in the first process
        self._processes_before = accelerator.num_processes  # until the checkpoint
        self._meter = Meter()
        self._network = stage.network
        self._precision = settle_precision(self.precision, accelerator.device)
        self._shard_saver: ShardSaver | None = None  # where each process holds a part
        self._untold: tuple[int, Path] | None = None  # a checkpoint, until callbacks know of it
        self._compute_loss: Callable[..., Any]
        self.average: N
        stage.loss_module.train()
        if self.settings.sharding == "full" and accelerator.num_processes > 1:
            self._compute_loss, self.average = sharding.shard_stage(
                stage, accelerator.device, self._precision
            )
            self._shard_saver = ShardSaver(self.folder, _PROCESS_TIMEOUT)
        else:
            self._prepare_whole()
        groups = group_parameters(stage.network, stage.hidden_matrices)
        self._optimizer = MuonAdamW(
            groups, self.settings.optimizer, in_fp32=self._precision == "fp32"
        )
        self._saved_at = time.monotonic()

    def _prepare_whole(self) -> None:
        """Gives every process all of the network, and lets them exchange gradients."""
        stage = self.stage
        stage.loss_module.to(self.accelerator.device)
        self.average = create_average(stage.network)
        for module in stage.compiled:  # not the average: it is evaluated in other shapes
            module.compile()
        self._compute_loss = self.accelerator.prepare(stage.loss_module)
        if isinstance(self._compute_loss, DistributedDataParallel):
            # They follow from what all processes share, and are the same in each.
            self._compute_loss.broadcast_buffers = False
            processes.keep_gradient_strides(stage.network)

    @property
    def is_done(self) -> bool:
        """Whether all images have been seen."""
        return self.images_seen >= self.settings.images

    def load_batches(self, seed: int) -> Generator[Batch]:
        """Yields this process's part of each batch, on the device; a thread reads one ahead.

        Args:
            seed: of the order, and of what is drawn for each image by its place in it.
        """
        stage, rank, local_size = self.stage, self.accelerator.process_index, self._local_batch_size

        def load(images_seen: int) -> Batch:
            part = slice(rank * local_size, (rank + 1) * local_size)
            if stage.is_streamed:  # each process has shards of its own
                part = slice(rank, None, self.accelerator.num_processes)
            count = self.settings.batch_size
            indices = stage.order(seed, images_seen, count)
            rngs = create_image_generators(seed, images_seen, count)
            return stage.load_batch(indices[part], rngs[part])

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
        settings, device = self.settings, self.accelerator.device
        # Dropout's alone: what belongs to an image is drawn for the whole batch.
        torch.manual_seed(step_seed(seed, self.images_seen, self.accelerator.process_index))
        with drawing(step_seed(seed, self.images_seen), device):
            metrics = self._learn(batch)
        self._meter.add(metrics, settings.batch_size)
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

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """Moves the weights by one batch; returns the metrics."""
        settings = self.settings
        lr_multiplier = learning_rate_multiplier(
            self.images_seen, settings.images, settings.warmup_images, settings.decay_fraction
        )
        self._optimizer.set_learning_rate(lr_multiplier)
        self.stage.before_step(self.images_seen)
        with autocast(self.accelerator.device, self._precision):
            result = self._compute_loss(*batch)
        self.accelerator.backward(result.loss)
        norm = self._clip_gradients(settings.optimizer.max_gradient_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        metrics = {"loss": result.loss, **result.metrics, "gradient_norm": norm}
        return {**metrics, **self.stage.after_step()}

    def _clip_gradients(self, max_norm: float) -> Tensor:
        """Shortens the gradients of the whole batch if they are too long; returns their length."""
        if self._shard_saver is None:
            norm: Tensor = self.accelerator.clip_grad_norm_(self._network.parameters(), max_norm)
            return norm
        sharding.average_gradients(self.stage)
        return shards.clip_gradients(self._network.parameters(), max_norm)

    def create_reporter(self, folder: Path, console: Console) -> Reporter:
        """Creates what reports the training from here on."""
        name, images, seen = self.stage.name, self.settings.images, self.images_seen
        redo, callbacks = self.evaluation_due, self.callbacks
        reporter = Reporter(folder, name, images, seen, console, redo=redo, callbacks=callbacks)
        before, now = self._processes_before, self.accelerator.num_processes
        if before != now:
            reporter.say(seen, f"The number of processes is now {now}; until here it was {before}.")
        return reporter

    def find_due(self, request: StopRequest) -> Due:
        """Finds what is due by this process's clock, and what it was asked."""
        is_old = time.monotonic() - self._saved_at >= self.settings.save_every_seconds
        stop = request.is_set or self.callbacks.is_stopped
        return Due(stop=stop, save=is_old, log=self._meter.is_due())

    def report(self, due: Due) -> None:
        """Shows progress; logs the metrics and saves a checkpoint if due."""
        if self._shard_saver is not None:
            self._shard_saver.check()
            self._tell_of_checkpoint()
        if self.reporter is not None:
            self.reporter.advance(self.images_seen)
        save = due.stop or due.save or self.evaluation_due
        if save or due.log:
            # Before saving: a loss that is not a number must not become a checkpoint.
            means = self._meter.take()
            if self.reporter is not None:
                self.reporter.report_metrics(self.images_seen, means)
        if save:
            self.save()

    def evaluate(self) -> None:
        """Measures the averaged network in the first process; at the end of training, saves it."""
        shared: list[Any] = [None]
        average = self.gather_average()
        if self.reporter is not None:
            self.reporter.begin_evaluation()
            device = self.accelerator.device
            evaluation = self.stage.evaluate(average, device, self.images_seen)
            self.reporter.report_evaluation(self.images_seen, evaluation)
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
        """Writes a checkpoint in the first process; the last good one and the one before stay.

        Of a sharded run every process writes its part, while training goes on.
        """
        self._saved_at = time.monotonic()
        if self._shard_saver is None and not self.accelerator.is_main_process:
            return
        parts = {
            "network": self._network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": checkpoint.flatten_optimizer(self._optimizer),
            "stage": self.stage.state_dict(),
        }
        tensors = {f"{part}.{name}": t for part, ts in parts.items() for name, t in ts.items()}
        info = {
            "fingerprint": self.fingerprint,
            "evaluation_due": self.evaluation_due,
            "processes": self.accelerator.num_processes,
        }
        if self._shard_saver is not None:
            self.finish_saving()  # and tell of the one before
            self._shard_saver.save(self.images_seen, tensors, info)
        else:
            state = checkpoint.CheckpointState(self.images_seen, tensors, info)
            checkpoint.save_checkpoint(self.folder, state)
        self._untold = (self.images_seen, checkpoint.name_checkpoint(self.folder, self.images_seen))
        self._tell_of_checkpoint()
        self._saved_at = time.monotonic()  # what it took counts for nothing

    def _tell_of_checkpoint(self) -> None:
        """Tells of the last checkpoint, once it is on the disk."""
        is_written = self._shard_saver is None or not self._shard_saver.is_saving
        if is_written and self._untold is not None and self.reporter is not None:
            self.reporter.report_checkpoint(*self._untold)
            self._untold = None

    def finish_saving(self) -> None:
        """Waits until what was saved is on the disk."""
        if self._shard_saver is not None:
            self._shard_saver.wait()
            self._tell_of_checkpoint()

    def close(self) -> None:
        """Ends what saves in the background."""
        if self._shard_saver is not None:
            self._shard_saver.close()

    def gather_average(self) -> N:
        """Returns the averaged network as a whole; every process must call it."""
        return self.average if self._shard_saver is None else shards.gather(self.average)

    def finish(self) -> N:
        """Returns the averaged network as a whole, the same in every process."""
        average = self.gather_average()
        processes.broadcast_network(average, self.accelerator)
        return average

    def begin(self) -> None:
        """Restores the last good checkpoint, which is the same in every process."""
        if not self.restore() and not self.settings.images:
            self.save()  # the weights that it starts from are all that it will have
        processes.require_same_start(self.images_seen, self.accelerator)

    def restore(self) -> bool:
        """Restores the last good checkpoint; returns whether there is one."""
        found = checkpoint.find_latest_checkpoint(self.folder)
        if found is None:
            return False
        if found.info["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"The checkpoints are of other data or another recipe: `{self.folder}`. "
                "Resume with the data and the settings that the run began with, or choose a new "
                "--out."
            )
        if self._shard_saver is not None:
            tensors = sharding.read_state(found.path, self._network, self.average)
        else:
            tensors = found.read_tensors()
            self._network.load_state_dict(checkpoint.section(tensors, "network"))
            self.average.load_state_dict(checkpoint.section(tensors, "average"))
        checkpoint.restore_optimizer(self._optimizer, checkpoint.section(tensors, "optimizer"))
        self.stage.load_state_dict(checkpoint.section(tensors, "stage"))
        self.images_seen = found.images_seen
        self.evaluation_due = found.info["evaluation_due"]
        self._processes_before = found.info.get("processes", self._processes_before)
        return True
