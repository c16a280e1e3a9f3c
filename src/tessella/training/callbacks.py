"""Callbacks: a program's own code that a run calls while it trains.

    training ─ logs, evaluations, checkpoints ─▶ `TrainingEvent` ─▶ every callback, in order

Of several processes the first one calls them. Trackers are callbacks too (`trackers.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from tessella.errors import ConfigError


@dataclass(frozen=True)
class TrainingEvent:
    """What a callback is told."""

    run: Path  # its folder
    stage: str  # `tokenizer` or `transformer`; at the end `model`
    images_seen: int  # of this stage
    images: int  # total for the stage
    metrics: Mapping[str, float] = field(default_factory=dict)  # of on_log, on_evaluate, on_end
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)  # of on_evaluate, by name
    path: Path | None = None  # of on_save: the checkpoint; of on_end: the model's folder
    stop: Callable[[], None] = lambda: None
    """Ends the run after this step. Its state is saved, and the call raises `TrainingStopped`."""


class Callback:
    """What a run calls; a callback has any of these methods, with or without this base class.

    What a method raises ends the run: `fit` raises it too, the last good checkpoint is kept, and
    the same call goes on from it.
    """

    def on_step(self, event: TrainingEvent) -> None:
        """After every step; without metrics, for those are taken from the device only now and then.

        Be quick here: training waits.
        """

    def on_log(self, event: TrainingEvent) -> None:
        """About every ten seconds, and before every save and evaluation.

        With the means of the metrics since the last time.
        """

    def on_evaluate(self, event: TrainingEvent) -> None:
        """After an evaluation on held-out pictures, with its metrics and sample pictures."""

    def on_save(self, event: TrainingEvent) -> None:
        """When a checkpoint is written to `event.path`.

        The run keeps two: copy what you need for longer.
        """

    def on_end(self, event: TrainingEvent) -> None:
        """When the model is written to `event.path`, with its metrics.

        Not when the same call finds the run finished.
        """


METHODS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class Callbacks:
    """Calls the callbacks of a run.

    Args:
        callbacks: objects with any methods of `Callback`.
        run: the run's folder.

    Raises:
        ConfigError: they are no list; or one has none of these methods, or another that begins with
            `on_`.
    """

    def __init__(self, callbacks: Sequence[object] = (), run: Path = Path()) -> None:
        if not isinstance(callbacks, Sequence):
            raise ConfigError(
                f"Callbacks are a list: `{type(callbacks).__name__}`. Write callbacks=[…]."
            )
        self._callbacks, self._run = list(callbacks), run
        self.is_stopped = False  # whether one asked the run to end
        for callback in self._callbacks:
            _check(callback)

    def add(self, callback: Callback) -> None:
        """Adds one, to be called after the others."""
        self._callbacks.append(callback)

    def call(
        self,
        method: str,
        stage: str,
        images_seen: int,
        images: int,
        *,
        metrics: Mapping[str, float] | None = None,
        pictures: Mapping[str, Image.Image] | None = None,
        path: Path | None = None,
    ) -> None:
        """Calls a method of every callback that has it; the rest are fields of `TrainingEvent`.

        What it raises passes through, with a note on what becomes of the run.
        """
        # Copies, and read-only: training and the next callback use the same values.
        shown = MappingProxyType(dict(metrics or {})), MappingProxyType(dict(pictures or {}))
        event = TrainingEvent(self._run, stage, images_seen, images, *shown, path, self._stop)
        for callback in self._callbacks:
            called = getattr(callback, method, None)
            if not callable(called):
                continue
            try:
                called(event)
            except Exception as error:
                error.add_note(
                    f"A callback raised this: `{type(callback).__name__}.{method}`. The run keeps "
                    f"its last good checkpoint; the same call goes on from it: `{self._run}`."
                )
                raise

    def _stop(self) -> None:
        self.is_stopped = True


def _check(callback: object) -> None:
    """Refuses what would never be called."""
    name = type(callback).__name__
    named = [
        one
        for one in dir(callback)
        if one.startswith("on_") and callable(getattr(callback, one, None))
    ]
    known = f"Known are {', '.join(METHODS)}."
    if unknown := [one for one in named if one not in METHODS]:
        raise ConfigError(
            f"A callback has a method that is never called: `{name}.{unknown[0]}`. {known}"
        )
    if isinstance(callback, type) or not named:
        raise ConfigError(
            f"A callback is an object with methods that a run calls: `{name}`. {known}"
        )
