"""Bars that show how far something is, in a terminal and in a notebook."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID, TimeRemainingColumn
from rich.text import Text

_SECONDS_BETWEEN_LOOKS = 0.5


def shows_bars(console: Console) -> bool:
    """Whether a bar can be redrawn in place; where it can, metrics are shown in it, not printed."""
    return not console.quiet and (console.is_terminal or console.is_jupyter)


def create_progress(console: Console, *columns: ProgressColumn, expand: bool = False) -> Progress:
    """Creates bars that disappear in the end; disabled where none can be drawn."""
    kind = NotebookProgress if console.is_jupyter else Progress
    shown = shows_bars(console)
    return kind(*columns, console=console, expand=expand, transient=True, disable=not shown)


@contextlib.contextmanager
def show_progress(console: Console, what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar, and takes how much of how many is done."""
    with create_progress(console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TimeLeftColumn(TimeRemainingColumn):
    """The time left by the pace so far; nothing before one is known, or while training pauses.

    A task says that it pauses by its field `pause`, which is then shown instead.
    """

    def render(self, task: Task) -> Text:
        """Shows the time left of a task, or why it pauses."""
        if pause := task.fields.get("pause"):
            return Text(pause, style="progress.remaining")
        if task.finished or task.time_remaining is None:
            return Text()
        return super().render(task).append(" left")


class NotebookProgress(Progress):
    """Bars in a notebook: one output of a cell, renewed at most twice a second.

    rich's own need ipywidgets, and draw in a thread, whose output mixes with what is printed.
    """

    _output: Any = None
    _drawn_at = 0.0

    def start(self) -> None:
        """Shows the bars."""
        from IPython.display import display

        if not self.disable:
            self._output = display(self, display_id=True)  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Removes the bars; a notebook that is kept has no dead ones."""
        if self._output is not None:
            self._output.update({"text/plain": "", "text/html": ""}, raw=True)
            self._output = None

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Changes a bar, and draws it if that was not just done."""
        super().update(task_id, **changes)
        if time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_LOOKS:
            self.refresh()

    def refresh(self) -> None:
        """Draws the bars now."""
        if self._output is not None:
            self._output.update(self)
            self._drawn_at = time.monotonic()
