"""SIGINT, SIGTERM and SIGHUP ask a run to save and stop; a second one stops it at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

# A closed terminal sends SIGHUP; SIGBREAK, Ctrl-Break, is Windows's alone.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved its state."""

    def __init__(self, message: str = "The state is saved; rerun the command to resume.") -> None:
        """Carries what the command line says."""
        super().__init__(message)


@dataclass
class StopRequest:
    """Whether the run is to stop. Not a `threading.Event`: its lock may block a signal handler."""

    is_set: bool = False


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first signal into a request; the second raises KeyboardInterrupt."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may handle signals; elsewhere the caller's handlers stay.
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.is_set:
            raise KeyboardInterrupt
        request.is_set = True

    names = [name for name in _SIGNALS if hasattr(signal, name)]
    if "SIGHUP" in names and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        names.remove("SIGHUP")  # as `nohup` has it; a background job's SIGINT is heard all the same
    old = {name: signal.signal(getattr(signal, name), handle) for name in names}
    try:
        yield request
    finally:
        for name, handler in old.items():
            signal.signal(getattr(signal, name), handler)
