"""What a person sees of a run: progress in the terminal, metrics.jsonl, TensorBoard, pictures."""

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.table import Column
from torch import Tensor

from tessella.batch import average_over_batch
from tessella.errors import TessellaError
from tessella.files import explained, write_text
from tessella.images import Pixels, save_png
from tessella.runs.record import METRICS_LOG
from tessella.training.board import Board, create_board
from tessella.training.callbacks import Callbacks
from tessella.training.progress import TimeLeftColumn, create_progress, shows_bars
from tessella.training.stage import Evaluation

_LOG_SECONDS = 10.0
_SHOWN = ("loss", "psnr", "codes_used", "accuracy", "images_per_second")


class Reporter:
    """Writes the metrics and pictures of one stage, and shows its progress."""

    def __init__(
        self,
        folder: Path,
        name: str,
        images: int,
        images_seen: int,
        console: Console,
        *,
        redo: bool = False,
        callbacks: Callbacks | None = None,
    ) -> None:
        """Continues at `images_seen`: later reports are dropped, for they will come again.

        Args:
            folder: the stage's own.
            name: of the stage.
            images: to train on in all.
            images_seen: progress so far.
            console: where progress is shown.
            redo: drops the evaluation at `images_seen` too.
            callbacks: of the run, called after everything is written.

        Raises:
            CheckpointError: the logs cannot be written.
        """
        self._folder = folder
        self._path = folder / METRICS_LOG
        self._console = console
        self._name, self._images = name, images
        self._callbacks = callbacks or Callbacks()
        self._board: Board | None = None
        with contextlib.ExitStack() as files, self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            _drop_beyond(self._path, images_seen, redo)
            self._file = files.enter_context(self._path.open("a", encoding="utf-8"))
            self._board = create_board(folder / "tensorboard", images_seen + 1)
            files.pop_all()  # they stay open
        self._progress = create_progress(
            console,
            TextColumn("{task.description}"),
            # What gives way in a narrow terminal is the bar, then the metrics: never the time left.
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
            TimeLeftColumn(),
            TextColumn("{task.fields[shown]}", table_column=Column(ratio=2, no_wrap=True)),
            expand=True,
        )
        self._task = self._progress.add_task(
            name, total=images, completed=images_seen, shown="", pause=""
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        # Each line was written through: what fails here has failed, and was told, before.
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()

    def advance(self, images_seen: int) -> None:
        """Tells of a step: moves the bar."""
        self._progress.update(self._task, completed=images_seen)
        self._callbacks.call("on_step", self._name, images_seen, self._images)

    def report_metrics(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        """Tells of the steps since the last line of the log."""
        self.log(images_seen, metrics)
        self._callbacks.call("on_log", self._name, images_seen, self._images, metrics=metrics)

    def begin_evaluation(self) -> None:
        """Tells that training pauses for an evaluation."""
        self._progress.update(self._task, pause="measuring", refresh=True)

    def report_evaluation(self, images_seen: int, evaluation: Evaluation) -> None:
        """Tells of an evaluation that is done."""
        self._progress.update(self._task, pause="")
        self.log(images_seen, evaluation.metrics, kind="validation")
        self.show(images_seen, evaluation.pictures)
        for warning in evaluation.warnings:
            self.say(images_seen, warning)
        self._callbacks.call(
            "on_evaluate",
            self._name,
            images_seen,
            self._images,
            metrics=evaluation.metrics,
            pictures={name: Image.fromarray(one) for name, one in evaluation.pictures.items()},
        )

    def report_checkpoint(self, images_seen: int, path: Path) -> None:
        """Tells of a checkpoint."""
        self._callbacks.call("on_save", self._name, images_seen, self._images, path=path)

    def log(self, images_seen: int, metrics: Mapping[str, float], kind: str = "train") -> None:
        """Writes one line of metrics; `kind` is `train` or `validation`."""
        self._write({"images_seen": images_seen, "kind": kind, **metrics})
        if self._board is not None:
            with self._writing():
                values = {f"{kind}/{name}": value for name, value in metrics.items()}
                self._board.add_scalars(values, images_seen)
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics)
        self._progress.update(self._task, completed=images_seen, shown=shown)
        if kind == "validation" or not shows_bars(self._console):
            self._console.print(f"{self._name} {images_seen:>10,} images  {kind:<10}  {shown}")

    def show(self, images_seen: int, pictures: Mapping[str, Pixels]) -> None:
        """Saves pictures made at this point, each in the folder of its name."""
        for name, picture in pictures.items():
            save_png(self._folder / name / f"{images_seen:012d}.png", picture)
            if self._board is not None:
                with self._writing():
                    self._board.add_image(name, picture, images_seen)

    def say(self, images_seen: int, sentence: str) -> None:
        """Prints a note and keeps it among the metrics."""
        self._write({"images_seen": images_seen, "kind": "note", "note": sentence})
        self._console.print(f"{self._name} {images_seen:>10,} images  {sentence}")

    def _write(self, line: Mapping[str, float | str]) -> None:
        with self._writing():
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Puts the system's errors into words."""
        return explained(self._path, "the log", "the last good checkpoint is kept")


class Meter:
    """Averages the metrics of the steps since the last line of the log."""

    def __init__(self) -> None:
        """Starts without any step."""
        self.restart()

    def restart(self) -> None:
        """Starts anew: the time since the last step was not spent on training."""
        self._began = time.monotonic()
        self._images = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()  # not every metric comes with every step

    def add(self, metrics: Mapping[str, Tensor], images: int) -> None:
        """Adds a step's metrics, () each; they stay on their device until they are taken."""
        for name, value in metrics.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1
        self._images += images

    def is_due(self) -> bool:
        """Whether it is time for another line."""
        return time.monotonic() - self._began >= _LOG_SECONDS

    def take(self) -> dict[str, float]:
        """Returns the means over all processes and the pace, and starts anew.

        Every process must call it.

        Raises:
            TessellaError: the loss or its gradient is not a finite number.
        """
        sums = average_over_batch(torch.stack(list(self._sums.values()))).tolist()
        means = {n: value / self._counts[n] for n, value in zip(self._sums, sums, strict=True)}
        # A gradient that is not a number has spoilt the weights before the loss shows it.
        for name in ("loss", "gradient_norm"):
            if math.isfinite(means[name]):
                continue
            raise TessellaError(
                f"The {name.replace('_', ' ')} is no longer a finite number: `{means[name]}`. The "
                "last good checkpoint is kept. Lower the learning rates "
                "(…_training.optimizer.muon_learning_rate and .adamw_learning_rate) and start in a "
                "new --out."
            )
        pace = self._images / (time.monotonic() - self._began)
        self.restart()
        return {**means, "images_per_second": pace}


def _drop_beyond(path: Path, images_seen: int, redo: bool) -> None:
    """Keeps the whole lines of a metrics file up to the point that is resumed from."""
    if not path.exists():
        return
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break  # the crash cut this line off
        repeated = redo and line["images_seen"] == images_seen and line["kind"] != "train"
        if line["images_seen"] <= images_seen and not repeated:
            lines.append(text + "\n")
    write_text(path, "".join(lines))
