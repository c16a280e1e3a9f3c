"""Workers: keeps decoding processes busy, in order and with bounded memory.

    Record, Skipped, … ─ batches ─▶ decoding processes ─▶ the same batches, in the same order

The order of the results is the order of the records, whatever the number of processes.
"""

import contextlib
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice

from tessella.data.decode import Decoded, DecodedBatch, decode_batch, read_answer, write_request
from tessella.data.records import Location, Record, Skipped
from tessella.data.settings import DataSettings
from tessella.errors import DataError

# A batch is large enough to hide the hand-over and small enough to hold several of.
_MAX_BATCH = 64
_MAX_BATCH_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded pictures, and those that were skipped among them."""

    decoded: list[tuple[Record, Decoded]]
    skipped: list[Skipped]
    pixels: bytes  # (len(decoded), S, S, 3) uint8


def decode_records(
    records: Iterable[Record | Skipped], settings: DataSettings
) -> Generator[Batch, None, None]:
    """Decodes records in batches.

    Args:
        records: read only a few batches ahead.
        settings: size, limits and number of processes; with one process, or for a single batch,
            this process decodes.

    Yields:
        Batches in the order of the records.

    Raises:
        DataError: a decoding process died.
    """
    size, max_pixels = settings.image_size, settings.max_image_pixels
    length = max(1, min(_MAX_BATCH, _MAX_BATCH_BYTES // (size * size * 3)))
    stream = iter(records)
    batches = iter(lambda: list(islice(stream, length)), [])
    first_two = list(islice(batches, 2))
    batches = chain(first_two, batches)
    if settings.num_workers == 1 or len(first_two) < 2 or not sys.executable:
        for items in batches:
            yield _join(items, decode_batch(_list_locations(items), size, max_pixels))
        return

    with _Processes(settings.num_workers, size, max_pixels) as processes:
        waiting: deque[tuple[list[Record | Skipped], Future[DecodedBatch]]] = deque()
        for items in batches:
            waiting.append((items, processes.submit(_list_locations(items))))
            if len(waiting) > 2 * settings.num_workers:
                oldest, future = waiting.popleft()
                yield _join(oldest, future.result())
        for oldest, future in waiting:
            yield _join(oldest, future.result())


def _list_locations(items: Sequence[Record | Skipped]) -> list[Location]:
    return [item.location for item in items if isinstance(item, Record)]


def _join(items: Sequence[Record | Skipped], batch: DecodedBatch) -> Batch:
    """Joins the outcomes with their records."""
    decoded: list[tuple[Record, Decoded]] = []
    skipped: list[Skipped] = []
    outcomes = iter(batch.outcomes)
    for item in items:
        if isinstance(item, Skipped):
            skipped.append(item)
            continue
        outcome = next(outcomes)
        if isinstance(outcome, Decoded):
            decoded.append((item, outcome))
        else:
            skipped.append(Skipped(item.name, outcome.reason, outcome.kind))
    return Batch(decoded, skipped, batch.pixels)


class _Processes:
    """Decoding processes, each with a thread that sends it requests and waits for the answers."""

    def __init__(self, count: int, size: int, max_pixels: int) -> None:
        self._size = size
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="tessella-decode")
        self._local = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the processes, at once after an error or Ctrl-C."""
        if kind is not None:
            for process in self._all:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            for pipe in filter(None, (process.stdin, process.stdout)):
                with contextlib.suppress(BrokenPipeError):  # closing flushes to a dead process
                    pipe.close()
            process.wait()

    def submit(self, locations: Sequence[Location]) -> "Future[DecodedBatch]":
        return self._threads.submit(self._ask, locations)

    def _ask(self, locations: Sequence[Location]) -> DecodedBatch:
        """Runs in a thread: one request, one answer, so that neither side blocks the other."""
        process: subprocess.Popen[bytes] | None = getattr(self._local, "process", None)
        if process is None:
            process = self._local.process = _start()
            self._all.append(process)
        if process.stdin is None or process.stdout is None:
            raise DataError("A decoding process has no pipes.")
        try:
            write_request(process.stdin, locations, self._size, self._max_pixels)
            answer = read_answer(process.stdout, self._size)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise DataError(
                f"A decoding process died (exit status {process.wait()}), perhaps because memory "
                "ran out. Set data.workers=1 to see why."
            )
        return answer


def _start() -> "subprocess.Popen[bytes]":
    """Starts a decoding process that finds the same packages as this one."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import tessella.data.decode as d; d.serve()"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
