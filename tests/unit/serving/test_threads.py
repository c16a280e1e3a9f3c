"""Blocking calls in threads: few at once, and none is waited for at the end."""

import asyncio
import functools
import queue
import threading

import pytest

from tessella.serving.threads import DaemonThreads


def test_a_call_returns_or_raises_what_its_function_does() -> None:
    async def run() -> None:
        threads = DaemonThreads("reading", 1)
        thread = await threads.run(threading.current_thread)
        assert (thread.name, thread.daemon) == ("reading", True)
        assert await threads.run(lambda: divmod(7, 2)) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: divmod(7, 0))
        while threads.num_running:
            await asyncio.sleep(0.001)
        assert threads.num_waiting == 0

    asyncio.run(run())


def test_an_abandoned_call_keeps_its_place_and_one_that_waits_never_begins() -> None:
    gate, begun = threading.Event(), []

    def wait(number: int) -> int:
        begun.append(number)
        gate.wait(60)
        return number

    async def run() -> None:
        threads = DaemonThreads("reading", 2)
        calls = [
            asyncio.ensure_future(threads.run(functools.partial(wait, number)))
            for number in range(4)
        ]
        while len(begun) < 2 or threads.num_waiting < 2:
            await asyncio.sleep(0.001)
        for call in (calls[0], calls[2]):
            call.cancel()
        await asyncio.sleep(0.01)
        assert (threads.num_running, threads.num_waiting) == (2, 1)
        gate.set()
        assert [await calls[1], await calls[3]] == [1, 3]
        while threads.num_running:
            await asyncio.sleep(0.001)

    asyncio.run(run())
    assert begun == [0, 1, 3]


def test_a_burst_is_refused_as_soon_as_enough_wait() -> None:
    """Calls that began in the same turn of the event loop once all found room."""
    gate = threading.Event()

    async def run() -> list[object]:
        threads = DaemonThreads("writing", 1, max_waiting=2)
        calls = [asyncio.ensure_future(threads.run(lambda: gate.wait(60))) for _ in range(5)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        gate.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(run())
    assert results[:3] == [True] * 3
    assert [type(error) for error in results[3:]] == [queue.Full] * 2


def test_without_threads_the_place_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        threads = DaemonThreads("reading", 1)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail)
            for _ in range(2):
                with pytest.raises(RuntimeError, match="can't start"):
                    await threads.run(lambda: divmod(7, 2))
        assert await threads.run(lambda: divmod(7, 2)) == (3, 1)

    asyncio.run(run())
