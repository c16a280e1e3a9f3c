"""What a person sees of a run: progress in the terminal, metrics.jsonl, TensorBoard, pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from tessella.files import write_text
from tessella.images import Pixels, save_png
from tessella.runs.record import METRICS_LOG

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
    ) -> None:
        """Goes on from `images_seen`: what was reported beyond it is dropped, it comes again.

        With `redo` so does the evaluation at this very point.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / METRICS_LOG
        self._console = console
        self._name = name
        _drop_beyond(self._path, images_seen, redo)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=images_seen + 1)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=images, completed=images_seen, shown="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._file.close()
        self._board.close()

    def advance(self, images_seen: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=images_seen)

    def log(self, images_seen: int, metrics: Mapping[str, float], kind: str = "train") -> None:
        """Writes one line of metrics; `kind` is `train` or `validation`."""
        self._write({"images_seen": images_seen, "kind": kind, **metrics})
        for name, value in metrics.items():
            self._board.add_scalar(f"{kind}/{name}", value, images_seen)
        shown = _show(metrics)
        self._progress.update(self._task, completed=images_seen, shown=shown)
        if kind == "validation" or not self._console.is_terminal:
            self._console.print(f"{self._name} {images_seen:>10,} images  {kind:<10}  {shown}")

    def show(self, images_seen: int, pictures: Mapping[str, Pixels]) -> None:
        """Saves pictures made at this point, each in the folder of its name."""
        for name, picture in pictures.items():
            save_png(self._folder / name / f"{images_seen:012d}.png", picture)
            self._board.add_image(name, picture, images_seen, dataformats="HWC")

    def say(self, images_seen: int, sentence: str) -> None:
        """Tells a person something, and keeps it among the metrics."""
        self._write({"images_seen": images_seen, "kind": "note", "note": sentence})
        self._console.print(f"{self._name} {images_seen:>10,} images  {sentence}")

    def _write(self, line: Mapping[str, float | str]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _show(metrics: Mapping[str, float]) -> str:
    known = [f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics]
    return "  ".join(known)


def _drop_beyond(path: Path, images_seen: int, redo: bool) -> None:
    """Keeps the whole lines of a metrics file up to the point that is resumed from."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break  # the crash cut this line off
        again = redo and line["images_seen"] == images_seen and line["kind"] != "train"
        if line["images_seen"] <= images_seen and not again:
            kept.append(text + "\n")
    write_text(path, "".join(kept))
