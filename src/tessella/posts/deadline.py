"""The time until which a language model may be asked."""

import math
import threading
import time


class Deadline:
    """A moment after which nothing new is started; any thread may bring it forward to now.

    Args:
        seconds: from now; infinite by default.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._end = time.monotonic() + seconds
        self._called_off = threading.Event()

    @property
    def left_seconds(self) -> float:
        """Seconds that are left, 0 once it has passed."""
        return 0.0 if self._called_off.is_set() else max(0.0, self._end - time.monotonic())

    def call_off(self) -> None:
        """Brings it forward to now."""
        self._called_off.set()

    def sleep(self, seconds: float) -> None:
        """Waits for some seconds, but not past the deadline."""
        self._called_off.wait(min(seconds, self.left_seconds))
