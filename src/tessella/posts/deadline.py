"""Until when a language model may be asked."""

import math
import threading
import time


class Deadline:
    """A moment after which nothing more is begun; any thread may bring it forward to now.

    Args:
        seconds: from now until then; unless given it never comes by itself.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._end = time.monotonic() + seconds
        self._called_off = threading.Event()

    @property
    def left_seconds(self) -> float:
        """Seconds until then, 0 once it has come."""
        return 0.0 if self._called_off.is_set() else max(0.0, self._end - time.monotonic())

    def call_off(self) -> None:
        """Makes it now."""
        self._called_off.set()

    def sleep(self, seconds: float) -> None:
        """Waits for some seconds, or until then."""
        self._called_off.wait(min(seconds, self.left_seconds))
