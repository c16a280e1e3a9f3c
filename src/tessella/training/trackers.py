"""Experiment trackers: wandb, trackio and MLflow, by Accelerate's; `board.py` is TensorBoard's.

Each stage is a run of its own there, as its folder is in TensorBoard: both count images from 0.
A tracker's failure is reported once, and never ends a training.
"""

import contextlib
import importlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tessella.config import flatten, read_config
from tessella.errors import ConfigError, first_line
from tessella.files import write_json
from tessella.runs import record
from tessella.training.callbacks import Callback, TrainingEvent

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")

_PROJECT = "tessella"
_ID_FILE = "trackers.json"


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that are unknown or not installed.

    Raises:
        ConfigError: says how to install it.
    """
    for name in names:
        if name not in TRACKERS:
            known = ", ".join(TRACKERS)
            raise ConfigError(f"Unknown tracker: `{name}`. Known are {known}.")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"The tracker cannot be used: `{name}`; {first_line(error)}. Install it with "
                f"pip install {name}, or leave it out."
            ) from None


class Trackers(Callback):
    """Passes on to trackers what a run logs.

    Args:
        names: of `TRACKERS`; `tensorboard` is left to the run, which writes its files anyway.
        run: the run's folder, with its run.json when training begins.
        tell: says what fails.
    """

    def __init__(self, names: Sequence[str], run: Path, tell: Callable[[str], object]) -> None:
        self._names = [name for name in dict.fromkeys(names) if name != "tensorboard"]
        self._run, self._tell = run, tell
        self._stage = ""
        self._started: dict[str, Any] = {}

    def on_log(self, event: TrainingEvent) -> None:
        """Passes on means of the training."""
        self._log(event, "train")

    def on_evaluate(self, event: TrainingEvent) -> None:
        """Passes on an evaluation, and its pictures where the tracker takes any."""
        self._log(event, "validation")
        images = {name: [picture] for name, picture in event.pictures.items()}
        for name, tracker in list(self._started.items()):
            if hasattr(tracker, "log_images"):
                with self._surviving(name):
                    tracker.log_images(images, step=event.images_seen)

    def close(self) -> None:
        """Ends the trackers' runs."""
        for name, tracker in list(self._started.items()):
            with self._surviving(name):
                tracker.finish()
        self._started = {}

    def _log(self, event: TrainingEvent, kind: str) -> None:
        if event.stage != self._stage:
            self.close()
            self._stage = event.stage
            for name in list(self._names):
                with self._surviving(name):
                    self._started[name] = self._start(name)
        values = {f"{kind}/{name}": value for name, value in event.metrics.items()}
        for name, tracker in list(self._started.items()):
            with self._surviving(name):
                tracker.log(values, step=event.images_seen)

    def _start(self, name: str) -> Any:
        """Begins a stage's run, or goes on with it."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        label = f"{self._run.resolve().name}-{self._stage}"
        own = f"{self._read_id()}-{self._stage}"  # the folder may have any name, and get another
        options: dict[str, dict[str, Any]] = {
            "wandb": {"name": label, "id": own, "resume": "allow", "dir": str(self._run)},
            "trackio": {"name": own, "resume": "allow"},
            "mlflow": {"run_name": label},
        }
        tracker = LOGGER_TYPE_TO_CLASS[name](_PROJECT, **options[name])
        tracker.start()
        recipe = read_config(self._run / record.RUN_FILE)["recipe"]
        tracker.store_init_configuration(flatten(recipe))
        return tracker

    def _read_id(self) -> str:
        """Returns what tells this run from others, when it goes on too."""
        path = self._run / _ID_FILE
        if not path.exists():
            write_json(path, {"id": secrets.token_hex(4)})
        return str(read_config(path)["id"])

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Any:
        """Leaves a tracker out from its first failure on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a library and its server may do
            self._names.remove(name)
            self._started.pop(name, None)
            self._tell(
                f"The tracker {name} failed, and is left out from here on: {first_line(error)}. "
                "The training goes on."
            )
