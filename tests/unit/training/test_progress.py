"""Bars, where they can be drawn."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from tessella.training import progress as progress_module
from tessella.training.progress import NotebookProgress, create_progress, show_progress


class Output:
    """A cell's output, as IPython gives it."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def update(self, shown: Any, *, raw: bool = False) -> None:
        text = shown if raw else shown._repr_mimebundle_((), ())
        self.shown.append(text["text/plain"])


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[Output]:
    """The outputs of the notebook that the test runs in."""
    display = pytest.importorskip("IPython.display")
    made: list[Output] = []

    def show(shown: Any, *, display_id: bool) -> Output:
        assert display_id
        made.append(Output())
        return made[-1]

    monkeypatch.setattr(display, "display", show)
    return made


def notebook() -> Console:
    return Console(file=io.StringIO(), force_jupyter=True)


def test_a_notebook_has_one_output_that_is_renewed_now_and_then(
    outputs: list[Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with show_progress(notebook(), "codes") as tell:
        for done in range(1000):
            now = done / 100
            tell(done, 1000)
    [output] = outputs
    assert 10 <= len(output.shown) <= 21  # in ten seconds
    assert "codes" in output.shown[0]
    assert re.search(r"9\d%", output.shown[-2])
    assert output.shown[-1] == ""


def test_elsewhere_nothing_is_drawn() -> None:
    written = io.StringIO()
    with show_progress(Console(file=written), "codes") as tell:
        tell(1, 2)
    assert written.getvalue() == ""


def test_who_is_quiet_draws_nothing(outputs: list[Output]) -> None:
    written = io.StringIO()
    for options in ({"force_jupyter": True}, {"force_terminal": True}):
        console = Console(file=written, quiet=True, **options)  # type: ignore[arg-type]
        with show_progress(console, "codes") as tell:
            tell(1, 2)
    assert not outputs
    assert written.getvalue() == ""


def test_a_terminal_has_richs_own_bars() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, force_jupyter=False)
    assert not isinstance(create_progress(terminal), NotebookProgress)
