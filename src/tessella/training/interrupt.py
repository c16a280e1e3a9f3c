"""SIGINT, SIGTERM and SIGHUP ask a run to save and stop; a second one stops it at once."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from tessella.signals import handling

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

    with handling(_SIGNALS, handle):
        yield request
