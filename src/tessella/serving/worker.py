"""The painting worker: one thread that paints what waits, as much of it together as it can.

    handlers ─ submit ─▶ jobs ─ requests ─▶ pictures ─ by layout and settings ─▶ batches ─▶ events

A batch begins as soon as the last one is done, with whatever waits by then; the worker never holds
a batch back for others to come. It takes the oldest picture and all others of the same model,
settings, number of candidates and layout (which codes are known); prompts, negative prompts, seeds
and canvases are each picture's own. A picture does not depend on its batch; by `latent_mse`, which
decodes a latent instead of codes, a value may round otherwise.

PyTorch is used in this thread alone, also to load models (`call`). Each thread that uses it gets a
team of OpenMP threads, and once there are more of them than cores, the teams sleep at every step
instead of waiting awake: painting took three times as long.
"""

import contextlib
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tessella.errors import TessellaError
from tessella.model.canvas import find_layout
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.objectives import GenerationStep
from tessella.serving.api_errors import ClosingError, QueueFullError, describe_fault
from tessella.serving.image_job import ImageJob, JobEvent, PaintedPicture
from tessella.serving.metrics import ServerMetrics
from tessella.serving.settings import ServeSettings
from tessella.serving.threads import run_call

T = TypeVar("T")

_log = logging.getLogger(__name__)

_SMOOTHING = 0.2  # weight of the last batch in the estimate of the pace
_MAX_FAULTS = 5  # in a row, without a batch between them; then only a restart can help
_CHECK_EVERY = 3  # pictures in a row that cannot be painted, for no fault of their requests


@dataclass(eq=False)
class QueuedJob:
    """A job in the queue."""

    job: ImageJob
    emit: Callable[[JobEvent], None]  # called in the worker's thread
    release: Callable[["QueuedJob"], None]  # gives its places in the queue back
    submitted: float = field(default_factory=time.monotonic)
    num_waiting: int = 0  # pictures that have a place in the queue; the worker's own
    is_begun: bool = False
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Gives the job up: nobody waits for its pictures any more."""
        self.is_cancelled = True
        self.release(self)

    def tell(self, event: JobEvent) -> None:
        """Reports an event; a listener that fails is not told again."""
        try:
            self.emit(event)
        except Exception:  # noqa: BLE001  the thread goes on
            _log.exception("A painted picture could not be handed over.")
            self.cancel()

    def fail(self, error: Exception) -> None:
        """Reports that no more pictures come, once."""
        if not self.is_cancelled:
            self.cancel()
            self.tell(error)


@dataclass(eq=False)
class _Picture:
    """One picture to be painted."""

    queued: QueuedJob
    index: int
    request: ImageRequest
    group: Hashable  # pictures of one group can share a batch
    size: int  # how many of the model's own size it counts for
    num_partials: int = 0  # emitted

    def is_due(self, step: int, steps: int) -> bool:
        """Returns whether another partial picture is due after step `step` of `steps`, from 1.

        The first comes within a quarter of the steps, the others as far apart; a step shows one at
        most, the last step none.
        """
        count = self.queued.job.num_partials
        parts = max(4, count + 1)
        due = (self.num_partials + 1) * steps
        return self.num_partials < count and due <= step * parts < steps * parts


class _AbandonedError(Exception):
    """Ends a batch that nobody waits for any more."""


class PaintingWorker:
    """Paints jobs in batches, one batch at a time, in a thread of its own.

    A fault outside of painting, where none is expected, costs the jobs at hand, not the thread. If
    it comes again and again, or nothing can be painted any more, the thread ends: see `is_alive`.

    Args:
        settings: how many pictures are painted together, and how many, calls included, may wait.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.metrics = ServerMetrics()
        self._settings = settings
        self._changed = threading.Condition()
        self._arrived: deque[QueuedJob] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._pictures: list[_Picture] = []  # listed and not begun; the worker's own
        self._in_hand: list[QueuedJob] = []  # what a fault would cost; the worker's own
        self._num_faults = 0  # since the last batch
        self._num_failures = 0  # pictures since the last one that could be painted
        self._is_broken = False  # nothing can be painted
        self._num_waiting = 0
        self.metrics.queue.set_function(lambda: self._num_waiting)
        self._is_closing = False
        self._has_ended = False
        self._has_failed = False  # it ended before it was closed
        self._pictures_per_second = 0.0
        self._thread = threading.Thread(target=self._work, name="painting", daemon=True)

    def start(self) -> None:
        """Begins to work, unless it has begun already."""
        if self._thread.ident is None:
            self._thread.start()

    @property
    def takes_jobs(self) -> bool:
        """Whether it works and is not closing."""
        return self._thread.is_alive() and not self._is_closing

    @property
    def is_alive(self) -> bool:
        """Whether it works, has not begun to, or has ended because it was closed."""
        is_closed = self._is_closing and not self._has_failed
        return self._thread.ident is None or self._thread.is_alive() or is_closed

    @property
    def num_waiting(self) -> int:
        """How many pictures, and calls, wait."""
        return self._num_waiting

    def submit(self, job: ImageJob, emit: Callable[[JobEvent], None]) -> QueuedJob:
        """Queues a job.

        Args:
            job: the pictures.
            emit: called with each event, in the worker's thread.

        Raises:
            QueueFullError: too many pictures wait.
            ClosingError: it is closing, or has ended.
        """
        queued = QueuedJob(job, emit, self._release)
        with self._changed:
            self._admit(job.count)
            queued.num_waiting = job.count
            self._arrived.append(queued)
            self._changed.notify()
        return queued

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Queues anything else that uses a network; it runs between two batches.

        Raises:
            QueueFullError: too much waits.
            ClosingError: it is closing, or has ended.
        """
        future: Future[T] = Future()
        with self._changed:
            self._admit(1)
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Refuses whatever has not begun and ends when the rest is done; returns at once."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Waits until it has ended."""
        self._thread.join(timeout)

    def _admit(self, count: int) -> None:
        """Takes places in the queue, or refuses."""
        if self._is_closing or self._has_ended:
            raise ClosingError
        if self._num_waiting + count > self._settings.max_queue:
            raise QueueFullError(self._estimate_seconds())
        self._num_waiting += count

    def _release(self, queued: QueuedJob, most: int | None = None) -> None:
        """Gives places of a job's pictures in the queue back: all, or some."""
        with self._changed:
            count = queued.num_waiting if most is None else min(most, queued.num_waiting)
            queued.num_waiting -= count
            self._num_waiting -= count

    def _estimate_seconds(self) -> int:
        """Estimates, in whole seconds, when half of the queue will be painted."""
        pace = self._pictures_per_second
        return max(1, min(60, round(self._num_waiting / 2 / pace))) if pace else 1

    def _work(self) -> None:
        """Works until it is closed, or only a restart can help."""
        try:
            while self._work_on():
                pass
        except BaseException:  # noqa: BLE001  even the fault's report failed: no memory is left
            with contextlib.suppress(BaseException):
                _log.critical("The painting thread ends: it could not recover from a fault.")
        finally:
            self._end()

    def _work_on(self) -> bool:
        """Does what there is to do, whatever happens; returns whether to go on."""
        try:
            return self._work_once()
        except BaseException as error:  # noqa: BLE001  also SystemExit would end the thread
            self._num_faults += 1
            with contextlib.suppress(Exception):  # where there is no memory for it
                _log.exception("The painting thread met a fault.")
            for queued in self._in_hand:
                queued.fail(describe_fault(error))
        if self._num_faults < _MAX_FAULTS:
            return True
        _log.critical("The painting thread ends after %d faults in a row.", self._num_faults)
        return False

    def _end(self) -> None:
        """Fails everything that waits; from now on nothing is taken."""
        with self._changed:
            self._has_ended, self._has_failed = True, not self._is_closing
            waiting = [*self._in_hand, *self._arrived, *(one.queued for one in self._pictures)]
            calls = list(self._calls)
            self._arrived.clear()
            self._calls.clear()
            self._num_waiting -= len(calls)
        for queued in waiting:
            queued.fail(ClosingError())
        for _, future in calls:
            run_call(_refuse, future)

    def _work_once(self) -> bool:
        """Takes what has arrived and paints a batch; returns whether there may be more to do."""
        with self._changed:
            while not (self._arrived or self._pictures or self._calls or self._is_closing):
                self._changed.wait()
            arrived, closing = list(self._arrived), self._is_closing
            self._in_hand = [*arrived]
            self._arrived.clear()
            num_calls = len(self._calls) if closing else min(1, len(self._calls))
            calls = [self._calls.popleft() for _ in range(num_calls)]
            self._num_waiting -= num_calls
        if closing:
            arrived += [one.queued for one in self._pictures if not one.queued.is_begun]
            for queued in arrived:
                queued.fail(ClosingError())
        for function, future in calls:
            run_call(_refuse if closing else function, future)
        for queued in arrived:
            self._list_pictures(queued)
        self._pictures = [one for one in self._pictures if not one.queued.is_cancelled]
        batch = self._take_batch()
        self._in_hand = [one.queued for one in batch]
        if batch:
            self._paint(batch)
            self._num_faults = 0
        self._in_hand = []
        return not self._is_broken and (bool(batch) or not closing)

    def _list_pictures(self, queued: QueuedJob) -> None:
        """Turns a job into pictures; one that cannot be met fails here, alone."""
        if queued.is_cancelled:
            return
        job = queued.job
        grid = job.served.model.config.grid
        try:
            for index, request in enumerate(job.list_requests()):
                known = request.canvas_on(grid).known
                group = (job.served.name, job.settings, job.best_of, find_layout(known, grid))
                size = -(-known.numel() // (grid[0] * grid[1]))
                self._pictures.append(_Picture(queued, index, request, group, size))
        except Exception as error:  # noqa: BLE001  reported to the client
            queued.fail(error)

    def _take_batch(self) -> list[_Picture]:
        """Takes the oldest picture and those that can be painted with it."""
        if not self._pictures:
            return []
        first = self._pictures[0]
        limit = max(1, self._settings.batch_size // first.queued.job.best_of // first.size)
        batch = [picture for picture in self._pictures if picture.group == first.group][:limit]
        self._pictures = [picture for picture in self._pictures if picture not in batch]
        now = time.monotonic()
        for picture in batch:
            picture.queued.is_begun = True
            self._release(picture.queued, 1)
            self.metrics.seconds.labels("wait").observe(now - picture.queued.submitted)
        return batch

    def _paint(self, batch: Sequence[_Picture]) -> None:
        """Paints a batch and emits its pictures; if it fails, paints each picture alone."""
        error = self._paint_together(batch)
        if error is None:
            self._num_failures = 0
            return
        is_unforeseen = not isinstance(error, TessellaError)
        if len(batch) > 1:
            if is_unforeseen:
                _log.error(
                    "A batch of %d failed; each is painted alone.", len(batch), exc_info=error
                )
            for picture in batch:
                self._paint([picture])
            return
        [picture] = batch
        picture.queued.fail(error)
        if is_unforeseen:
            self._num_failures += 1
            if self._num_failures % _CHECK_EVERY == 0:
                self._check(picture.queued.job.served.model)

    def _paint_together(self, batch: Sequence[_Picture]) -> Exception | None:
        """Paints a batch and emits its pictures; returns why that failed, if it did."""
        job, started = batch[0].queued.job, time.monotonic()
        try:
            images = job.served.model.generate_images(
                [picture.request for picture in batch],
                job.settings,
                best_of=job.best_of,
                on_step=lambda step: self._show_step(batch, step),
            )
        except _AbandonedError:
            return None
        except Exception as error:  # noqa: BLE001  reported to the client
            # Its tensors would stay as long as it does, where perhaps they were too large already.
            traceback.clear_frames(error.__traceback__)
            return error
        for picture, pixels in zip(batch, images.pixels, strict=True):
            picture.queued.tell(PaintedPicture(picture.index, picture.request, pixels))
        self._measure(job.served.name, len(batch), time.monotonic() - started)
        return None

    def _check(self, model: TextToImage) -> None:
        """Paints for nobody: whether the requests are at fault, or nothing can be painted more.

        After some faults an accelerator refuses everything until its process is a new one.
        """
        try:
            model.generate_images(
                [ImageRequest("", 0, examples=())], model.generation_settings(steps=1)
            )
        except Exception:  # noqa: BLE001  whatever it is
            _log.critical("The painting thread ends: nothing can be painted any more.")
            self._is_broken = True

    def _show_step(self, batch: Sequence[_Picture], step: GenerationStep) -> None:
        """Emits the partial pictures that are due after a step."""
        if all(picture.queued.is_cancelled for picture in batch):
            raise _AbandonedError
        due = [row for row, one in enumerate(batch) if one.is_due(step.step, step.steps)]
        if not due:
            return
        job = batch[0].queued.job
        # Of several candidates the first is shown.
        rows = [row * job.best_of for row in due]
        shown = job.served.model.decode_codes(step.codes[rows], step.is_decoded[rows])
        for row, image in zip(due, shown, strict=True):
            picture = batch[row]
            pixels = picture.request.finish(image)
            number, picture.num_partials = picture.num_partials, picture.num_partials + 1
            picture.queued.tell(PaintedPicture(picture.index, picture.request, pixels, number))

    def _measure(self, name: str, count: int, seconds: float) -> None:
        self.metrics.seconds.labels("paint").observe(seconds)
        self.metrics.batch_size.observe(count)
        self.metrics.pictures.labels(name).inc(count)
        # A coarse clock may measure no time at all for a small batch.
        pace, old = count / max(seconds, 1e-3), self._pictures_per_second
        self._pictures_per_second = old + _SMOOTHING * (pace - old) if old else pace


def _refuse() -> None:
    raise ClosingError
