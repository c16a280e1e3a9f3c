"""SIGINT, SIGTERM and SIGHUP ask a run to save and stop; a second one stops it at once."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from accelerate.utils import broadcast_object_list

from tessella.errors import TessellaError
from tessella.signals import handling

# A closed terminal sends SIGHUP; SIGBREAK, Ctrl-Break, is Windows's alone.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved its state."""

    def __init__(self, message: str = "The state is saved; rerun the command to resume.") -> None:
        """Carries what the command line says."""
        super().__init__(message)


class TrainingStopped(TessellaError):
    """A callback stopped the run, which has saved its state: the same call goes on."""

    def __init__(self) -> None:
        """Says so."""
        super().__init__("A callback stopped the run. Its state is saved: the same call goes on.")


def end_run(*, by_callback: bool) -> NoReturn:
    """Ends the run in all processes, once its state is saved; every process must call it.

    Args:
        by_callback: whether a callback asked for it; the first process has callbacks.

    Raises:
        TrainingStopped: one did.
        Interrupted: otherwise a signal did.
    """
    if broadcast_object_list([by_callback])[0]:
        raise TrainingStopped
    raise Interrupted


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
