"""The painting worker: one thread that paints what waits, as much of it together as it can.

    handlers ─ submit ─▶ jobs ─ plan ─▶ pictures ─ by layout and settings ─▶ batches ─▶ events

A batch begins as soon as the last one is done, with whatever waits then: nobody waits for others
to come. It holds the pictures of the oldest job that are still to be painted, and whichever others
have the same model, settings, number of candidates and layout (what is known); prompts,
negative prompts, seeds and canvases are each picture's own. A picture does not depend on what it
was painted with; by `latent_mse`, which decodes a latent and no codes, a value may round otherwise.

All that PyTorch does is done in this thread, the loading of models too (`call`). Each thread that
uses it gets a team of OpenMP threads, and once there are more of them than cores, the teams sleep
at every step instead of waiting awake: painting took three times as long.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tessella.errors import TessellaError
from tessella.images import Pixels
from tessella.model.canvas import find_layout
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.objectives import GenerationSettings, GenerationStep
from tessella.serving.metrics import ServerMetrics
from tessella.serving.models_served import ServedModel

T = TypeVar("T")

_log = logging.getLogger(__name__)

_SMOOTHING = 0.2  # weight of the last batch in the estimate of the pace


class QueueFullError(Exception):
    """So many pictures wait that no more are taken; `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


class ClosingError(Exception):
    """The worker takes no more, for it is about to end."""


@dataclass(frozen=True)
class PartialPicture:
    """A picture whose codes are laid in part."""

    index: int  # of the job's pictures
    number: int  # of this picture's partial ones, from 0
    pixels: Pixels  # (H, W, 3)


@dataclass(frozen=True)
class FinishedPicture:
    """A picture."""

    index: int
    pixels: Pixels  # (H, W, 3)


@dataclass(frozen=True)
class FailedJob:
    """None of a job's pictures come any more."""

    error: Exception


Event = PartialPicture | FinishedPicture | FailedJob
RequestPlan = Callable[[TextToImage], Sequence[ImageRequest]]


@dataclass(frozen=True, eq=False)
class ImageJob:
    """The pictures that one HTTP request asks for."""

    served: ServedModel
    count: int  # pictures
    plan: RequestPlan  # lists them, in the worker's thread: canvases need the network
    settings: GenerationSettings
    best_of: int = 1
    num_partials: int = 0  # a picture


@dataclass(eq=False)
class QueuedJob:
    """A job in the queue."""

    spec: ImageJob
    tell: Callable[[Event], None]  # called in the worker's thread
    let_go: Callable[["QueuedJob"], None]  # gives its places in the queue back
    submitted: float = field(default_factory=time.monotonic)
    num_waiting: int = 0  # pictures that have a place in the queue; the worker's own
    is_begun: bool = False
    is_dropped: bool = False

    def drop(self) -> None:
        """Says that nobody waits for the pictures any more."""
        self.is_dropped = True
        self.let_go(self)


@dataclass(eq=False)
class _Picture:
    """One picture to be painted."""

    job: QueuedJob
    index: int
    request: ImageRequest
    group: Hashable  # pictures of one group can share a batch
    num_told: int = 0  # partial pictures

    def is_due(self, step: int, steps: int) -> bool:
        """Says whether another partial picture is to be told after a step, from 1, of so many.

        The first comes within a quarter of the steps, the others as far apart; a step tells one at
        most, the last step none.
        """
        count = self.job.spec.num_partials
        parts = max(4, count + 1)
        return self.num_told < count and (self.num_told + 1) * steps <= step * parts < steps * parts


class _AbandonedError(Exception):
    """Ends a batch that nobody waits for any more."""


@dataclass(frozen=True, eq=False)
class _Call:
    """Something that uses a network and paints nothing."""

    function: Callable[[], Any]
    future: "Future[Any]"

    def run(self) -> None:
        """Runs it, unless nobody waits for it any more."""
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.function())
            except Exception as error:  # noqa: BLE001  told to the one who asked
                self.future.set_exception(error)

    def fail(self, error: Exception) -> None:
        """Tells who waits for it that it is not run."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class PaintingWorker:
    """Paints jobs in batches, one batch at a time, in a thread of its own.

    Args:
        batch_size: pictures, candidates included, that are painted together.
        max_queue: pictures and calls that may wait.
        metrics: told what is painted.
    """

    def __init__(self, batch_size: int, max_queue: int, metrics: ServerMetrics) -> None:
        self.metrics = metrics
        self._batch_size, self._max_queue = batch_size, max_queue
        self._changed = threading.Condition()
        self._arrived: deque[QueuedJob] = deque()
        self._calls: deque[_Call] = deque()
        self._pictures: list[_Picture] = []  # planned and not begun; the worker's own
        self._num_waiting = 0
        self._is_closing = False
        self._pictures_per_second = 0.0
        self._thread = threading.Thread(target=self._work, name="painting", daemon=True)

    def start(self) -> None:
        """Begins to work, unless it does already."""
        if self._thread.ident is None:
            self._thread.start()

    @property
    def takes_jobs(self) -> bool:
        """Whether it works and is not about to end."""
        return self._thread.is_alive() and not self._is_closing

    def submit(self, spec: ImageJob, tell: Callable[[Event], None]) -> QueuedJob:
        """Takes a job.

        Args:
            spec: what to paint.
            tell: called with each event, in the worker's thread.

        Raises:
            QueueFullError: too many pictures wait.
            ClosingError: it is about to end, or has.
        """
        job = QueuedJob(spec, tell, self._let_go)
        with self._changed:
            job.num_waiting = spec.count
            self._admit(job.num_waiting)
            self._arrived.append(job)
            self._changed.notify()
        return job

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Takes anything else that uses a network; it runs between two batches.

        Raises:
            QueueFullError: too much waits.
            ClosingError: it is about to end, or has.
        """
        called = _Call(function, Future())
        with self._changed:
            self._admit(1)
            self._calls.append(called)
            self._changed.notify()
        return called.future

    def close(self) -> None:
        """Refuses what has not begun and ends when the begun is done; returns at once."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Waits until it has ended."""
        self._thread.join(timeout)

    def _admit(self, count: int) -> None:
        """Gives places in the queue, or refuses."""
        has_ended = self._thread.ident is not None and not self._thread.is_alive()
        if self._is_closing or has_ended:
            raise ClosingError
        if self._num_waiting + count > self._max_queue:
            raise QueueFullError(self._estimate_seconds())
        self._count(count)

    def _let_go(self, job: QueuedJob, most: int | None = None) -> None:
        """Takes the places in the queue of a job's pictures back; of all unless some are said."""
        with self._changed:
            count = job.num_waiting if most is None else min(most, job.num_waiting)
            job.num_waiting -= count
            self._count(-count)

    def _count(self, change: int) -> None:
        self._num_waiting += change
        self.metrics.queue.set(self._num_waiting)

    def _estimate_seconds(self) -> int:
        """Estimates, in whole seconds, when half of what waits will be painted."""
        pace = self._pictures_per_second
        return max(1, min(60, round(self._num_waiting / 2 / pace))) if pace else 1

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._arrived or self._pictures or self._calls or self._is_closing):
                    self._changed.wait()
                arrived, closing = list(self._arrived), self._is_closing
                self._arrived.clear()
                calls = [self._calls.popleft()] if self._calls else []
                if closing:
                    calls += self._calls
                    self._calls.clear()
                self._count(-len(calls))
            if closing:
                self._refuse(arrived, calls)
            else:
                for called in calls:
                    called.run()
                for job in arrived:
                    self._plan(job)
            self._pictures = [one for one in self._pictures if not one.job.is_dropped]
            if batch := self._take_batch():
                self._paint(batch)
            elif closing:
                return

    def _refuse(self, arrived: Sequence[QueuedJob], calls: "Sequence[_Call]") -> None:
        """Refuses all that has not begun."""
        planned = [picture.job for picture in self._pictures if not picture.job.is_begun]
        for job in dict.fromkeys([*arrived, *planned]):
            self._fail(job, ClosingError())
        for called in calls:
            called.fail(ClosingError())

    def _fail(self, job: QueuedJob, error: Exception) -> None:
        """Tells a job that no more comes, once."""
        if not job.is_dropped:
            job.drop()
            job.tell(FailedJob(error))

    def _plan(self, job: QueuedJob) -> None:
        """Turns a job into pictures; one that cannot be met fails here, alone."""
        if job.is_dropped:
            return
        spec = job.spec
        try:
            model = spec.served.model
            for index, request in enumerate(spec.plan(model)):
                grid = model.config.grid
                layout = find_layout(request.canvas_on(grid).known, grid)
                group = (spec.served.name, spec.settings, spec.best_of, layout)
                self._pictures.append(_Picture(job, index, request, group))
        except Exception as error:  # noqa: BLE001  told to the one who asked
            self._fail(job, error)

    def _take_batch(self) -> list[_Picture]:
        """Takes the oldest picture and those that can be painted with it."""
        if not self._pictures:
            return []
        first = self._pictures[0]
        spec = first.job.spec
        grid = spec.served.model.config.grid
        # A larger canvas counts as many pictures as its positions would make.
        num_positions = first.request.canvas_on(grid).known.numel()
        pictures = -(-num_positions // (grid[0] * grid[1]))
        room = max(1, self._batch_size // spec.best_of // pictures)
        batch = [picture for picture in self._pictures if picture.group == first.group][:room]
        taken = set(map(id, batch))
        self._pictures = [picture for picture in self._pictures if id(picture) not in taken]
        now = time.monotonic()
        for picture in batch:
            picture.job.is_begun = True
            self._let_go(picture.job, 1)
            self.metrics.seconds.labels("wait").observe(now - picture.job.submitted)
        return batch

    def _paint(self, batch: Sequence[_Picture]) -> None:
        """Paints a batch and tells its pictures; if it fails, each picture alone."""
        spec, started = batch[0].job.spec, time.monotonic()
        try:
            images = spec.served.model.generate_images(
                [picture.request for picture in batch],
                spec.settings,
                best_of=spec.best_of,
                on_step=lambda step: self._watch(batch, step),
            )
            finished = [
                FinishedPicture(picture.index, pixels)
                for picture, pixels in zip(batch, images.pixels, strict=True)
            ]
        except _AbandonedError:
            return
        except Exception as error:  # noqa: BLE001  told to the ones who asked
            if len(batch) > 1:
                if not isinstance(error, TessellaError):
                    _log.exception("A batch of %d failed; each is painted alone.", len(batch))
                for picture in batch:
                    self._paint([picture])
            else:
                self._fail(batch[0].job, error)
            return
        for picture, told in zip(batch, finished, strict=True):
            picture.job.tell(told)
        self._measure(spec.served.name, len(batch), time.monotonic() - started)

    def _watch(self, batch: Sequence[_Picture], step: GenerationStep) -> None:
        """Tells the partial pictures that are due after a step."""
        if all(picture.job.is_dropped for picture in batch):
            raise _AbandonedError
        due = [row for row, told in enumerate(batch) if told.is_due(step.step, step.steps)]
        if not due:
            return
        # Of several candidates the first is shown.
        rows = [row * batch[0].job.spec.best_of for row in due]
        model = batch[0].job.spec.served.model
        shown = model.decode_codes(step.codes[rows], step.is_decoded[rows])
        for row, pixels in zip(due, shown, strict=True):
            picture = batch[row]
            told = PartialPicture(picture.index, picture.num_told, picture.request.finish(pixels))
            picture.num_told += 1
            picture.job.tell(told)

    def _measure(self, name: str, count: int, seconds: float) -> None:
        self.metrics.seconds.labels("paint").observe(seconds)
        self.metrics.batch_size.observe(count)
        self.metrics.pictures.labels(name).inc(count)
        # A clock that ticks seldom finds no time at all for a small batch.
        pace, old = count / max(seconds, 1e-3), self._pictures_per_second
        self._pictures_per_second = old + _SMOOTHING * (pace - old) if old else pace
