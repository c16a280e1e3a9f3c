"""Blocking calls in daemon threads, a few at once: picture files, language models."""

import asyncio
import math
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class DaemonThreads:
    """Runs blocking calls, a few at once, each in a thread of its own.

    Not a `ThreadPoolExecutor`: Python joins its threads at exit, so one hanging call would keep a
    stopped server alive. A call that nobody awaits any more keeps its place until it ends; one that
    has not begun by then never does.

    Args:
        name: of the threads.
        limit: calls that run at the same time.
        max_waiting: calls that may wait for a place.
    """

    def __init__(self, name: str, limit: int, max_waiting: float = math.inf) -> None:
        self.num_waiting = self.num_running = 0
        self._name, self._max_waiting = name, max_waiting
        self._free = asyncio.Semaphore(limit)

    async def run(self, function: Callable[[], T]) -> T:
        """Runs one call as soon as a place is free.

        Raises:
            queue.Full: too many calls wait.
            Exception: the function's.
        """
        if self._free.locked() and self.num_waiting >= self._max_waiting:
            raise queue.Full
        self.num_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.num_waiting -= 1
        self.num_running += 1
        future: Future[T] = Future()
        result = asyncio.wrap_future(future)
        result.add_done_callback(self._release)
        thread = threading.Thread(
            target=run_call, args=(function, future), name=self._name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            future.cancel()
            raise
        # Whoever gives up waiting leaves the call to run to its end.
        return await asyncio.shield(result)

    def _release(self, _: object) -> None:
        self.num_running -= 1
        self._free.release()


def run_call(function: Callable[[], T], future: "Future[T]") -> None:
    """Runs a call and settles its future; does nothing if the future was cancelled."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  raised where the future is awaited
            is_exit = not isinstance(error, Exception)
            # An exit from within a library would end the event loop, and so the server.
            future.set_exception(RuntimeError("it tried to exit") if is_exit else error)
