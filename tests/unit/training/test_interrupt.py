"""The first signal asks, the second insists, and afterwards all is as it was."""

import signal
import threading
from collections.abc import Iterator

import pytest

from tessella.training.interrupt import Interrupted, stop_on_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
EVERY = pytest.mark.parametrize("number", SIGNALS)


@pytest.fixture(autouse=True)
def heard_signals() -> Iterator[None]:
    """The tests may have been started by `nohup`, or in the background."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@EVERY
def test_the_first_signal_asks(number: signal.Signals) -> None:
    with stop_on_signals() as request:
        assert not request.is_set
        signal.raise_signal(number)
        assert request.is_set


@EVERY
def test_the_second_insists(number: signal.Signals) -> None:
    with stop_on_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


@EVERY
def test_handlers_are_put_back(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, _frame: heard.append(number))
    try:
        with stop_on_signals() as request:
            signal.raise_signal(number)
        assert request.is_set
        assert not heard
        signal.raise_signal(number)
        assert heard == [number]
        with pytest.raises(ZeroDivisionError), stop_on_signals():
            raise ZeroDivisionError
        signal.raise_signal(number)
        assert heard == [number, number]
    finally:
        signal.signal(number, before)


def test_in_another_thread_the_caller_s_handlers_stay() -> None:
    """A server may train in a thread, where Python lets nobody handle signals."""
    asked = []

    def work() -> None:
        with stop_on_signals() as request:
            asked.append(request.is_set)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_that_a_system_lacks_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which has SIGBREAK and few of the POSIX signals."""
    monkeypatch.delattr(signal, "SIGTERM")
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    with stop_on_signals() as request:
        signal.raise_signal(signal.SIGUSR1)
        assert request.is_set


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no SIGHUP")
def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as request:
            signal.raise_signal(signal.SIGHUP)
        assert not request.is_set
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_background_job_hears_sigint() -> None:
    """A shell that is no terminal's starts its background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as request:
            signal.raise_signal(signal.SIGINT)
        assert request.is_set
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_run_is_no_error_of_the_program() -> None:
    """`except Exception` must not swallow it."""
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)
