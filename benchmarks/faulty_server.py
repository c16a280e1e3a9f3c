"""`tessella`, whose painting thread fails when it is told to: what `serving_soak.py` starts.

    SIGUSR1   want of memory while the next two batches are painted
    SIGUSR2   a fault between two batches, where none is expected
    SIGRTMIN  such faults from now on, until the thread gives up

Nothing is measured here.
"""

import collections
import signal
from typing import Any

from tessella.cli import main
from tessella.model.pipeline import TextToImage
from tessella.serving.worker import PaintingWorker

due: collections.Counter[str] = collections.Counter()


def fail_when_due(owner: type, name: str, error: type[BaseException]) -> None:
    """Lets a method raise an error as often as is due."""
    method = getattr(owner, name)

    def run(*arguments: Any, **options: Any) -> Any:
        if due[name] > 0:
            due[name] -= 1
            raise error
        return method(*arguments, **options)

    setattr(owner, name, run)


if __name__ == "__main__":
    fail_when_due(TextToImage, "generate_images", MemoryError)
    fail_when_due(PaintingWorker, "_take_batch", SystemExit)
    signal.signal(signal.SIGUSR1, lambda *_: due.update(generate_images=2))
    signal.signal(signal.SIGUSR2, lambda *_: due.update(_take_batch=1))
    signal.signal(signal.SIGRTMIN, lambda *_: due.update(_take_batch=1_000_000))
    main()
