"""Signals: handlers that are there for a while."""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType


@contextlib.contextmanager
def handling(
    names: Iterable[str], handle: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Handles signals in its block, then puts their handlers back; only in the main thread.

    Args:
        names: of signals; those that the system lacks are left out, and so is a SIGHUP that is
            ignored, as `nohup` has it. The SIGINT of a background job is heard all the same.
        handle: called with a signal's number.
    """
    known = [name for name in names if hasattr(signal, name)]
    if "SIGHUP" in known and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        known.remove("SIGHUP")
    old = {name: signal.signal(getattr(signal, name), handle) for name in known}
    try:
        yield
    finally:
        for name, handler in old.items():
            signal.signal(getattr(signal, name), handler)
