"""Workers: keeps decoding processes busy, in order and with bounded memory.

    Record, Skipped, … ─ batches ─▶ decoding processes ─▶ the same batches, in the same order

The order of the results is the order of the records, whatever the number of processes.
"""

import contextlib
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from tessella.data.decode import (
    Decoded,
    DecodedBatch,
    decode_batch,
    read_answer,
    write_request,
)
from tessella.data.records import Place, Record, ScenePlace, Skipped
from tessella.errors import DataError

# A batch is large enough to hide the hand-over and small enough to hold several of.
_MAX_BATCH = 64
_MAX_BATCH_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded pictures and what was skipped among them."""

    kept: list[tuple[Record, Decoded]]
    skipped: list[Skipped]
    pixels: bytes  # (len(kept), S, S, 3) uint8


def decode_records(
    records: Iterable[Record | Skipped], *, size: int, max_pixels: int, workers: int
) -> Generator[Batch, None, None]:
    """Decodes records by batches.

    Args:
        records: read only a few batches ahead.
        size: side of the squares, in pixels.
        max_pixels: larger pictures are skipped.
        workers: decoding processes; with 1, or with a single batch, this process decodes.

    Yields:
        Batches in the order of the records.

    Raises:
        DataError: a decoding process died.
    """
    length = max(1, min(_MAX_BATCH, _MAX_BATCH_BYTES // (size * size * 3)))
    stream = iter(records)
    first, second = list(islice(stream, length)), list(islice(stream, length))
    ahead = iter([first, second])
    batches = _chain(ahead, stream, length)
    if workers == 1 or not second or not sys.executable:
        for items in batches:
            places = [item.place for item in items if isinstance(item, Record)]
            yield _join(items, decode_batch(places, size, max_pixels))
        return

    with _Processes(workers, size, max_pixels) as processes:
        waiting: deque[tuple[list[Record | Skipped], Future[DecodedBatch]]] = deque()
        for items in batches:
            places = [item.place for item in items if isinstance(item, Record)]
            waiting.append((items, processes.submit(places)))
            if len(waiting) > 2 * workers:
                oldest, future = waiting.popleft()
                yield _join(oldest, future.result())
        for oldest, future in waiting:
            yield _join(oldest, future.result())


def _chain(
    ahead: Iterator[list[Record | Skipped]], stream: Iterator[Record | Skipped], length: int
) -> Iterator[list[Record | Skipped]]:
    """Gives the batches read ahead, then the rest of the stream."""
    yield from (items for items in ahead if items)
    while items := list(islice(stream, length)):
        yield items


def _join(items: Sequence[Record | Skipped], decoded: DecodedBatch) -> Batch:
    """Puts the outcomes back beside their records."""
    kept: list[tuple[Record, Decoded]] = []
    skipped: list[Skipped] = []
    outcomes = iter(decoded.outcomes)
    for item in items:
        if isinstance(item, Skipped):
            skipped.append(item)
            continue
        outcome = next(outcomes)
        if isinstance(outcome, Decoded):
            kept.append((item, outcome))
        else:
            skipped.append(Skipped(item.name, outcome.reason, outcome.kind))
    return Batch(kept, skipped, decoded.pixels)


class _Processes:
    """Decoding processes, each with a thread that asks it and waits for its answer."""

    def __init__(self, count: int, size: int, max_pixels: int) -> None:
        self._size = size
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="tessella-decode")
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the processes: at once after an error or Ctrl-C."""
        if kind is not None:
            for process in self._all:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            for pipe in (process.stdin, process.stdout):
                # Closing flushes, and a dead process takes no more.
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            process.wait()

    def submit(self, places: Sequence[Place | ScenePlace]) -> "Future[DecodedBatch]":
        return self._threads.submit(self._ask, places)

    def _ask(self, places: Sequence[Place | ScenePlace]) -> DecodedBatch:
        """Runs in a thread: one request, one answer, so neither side can block the other."""
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = _start()
            self._all.append(process)
        if process.stdin is None or process.stdout is None:
            raise DataError("A decoding process has no pipes.")
        try:
            write_request(process.stdin, places, self._size, self._max_pixels)
            answer = read_answer(process.stdout, self._size)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise DataError(
                f"A decoding process ended by itself (exit status {process.wait()}), perhaps for "
                "want of memory. Try data.workers=1 to see why."
            )
        return answer


def _start() -> "subprocess.Popen[bytes]":
    """Starts a decoding process that finds the same packages as this one."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import tessella.data.decode as d; d.serve()"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
