"""`tessella studio`: which run and which model are shown, and what is refused."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tessella.cli import app
from tessella.errors import CheckpointError
from tessella.serving import server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my stickers (2)"
    folder.mkdir()
    (folder / "run.json").write_text('{"recipe": {}}', encoding="utf-8")
    return folder


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been served, call by call."""
    calls: list[dict[str, Any]] = []

    def serve(models: Sequence[str], settings: Any, **words: Any) -> None:
        calls.append({"models": models, "settings": settings, **words})
        words["tell"]("http://127.0.0.1:1234")

    monkeypatch.setattr(server, "serve", serve)
    return calls


def test_a_run_is_shown_before_it_has_a_model(run: Path, served: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(app, ["studio", str(run), "--port", "0", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert done.stdout == "The run is shown at http://127.0.0.1:1234/#run. Ctrl-C stops it.\n"
    [call] = served
    assert (call["models"], call["run"], call["device"]) == ([], run, "cpu")
    assert (call["settings"].host, call["settings"].port) == ("127.0.0.1", 0)


def test_it_takes_the_options_of_a_server(run: Path, served: list[dict[str, Any]]) -> None:
    options = ["--allow-origin", "https://a.example", "--public-url", "https://b.example/x"]
    done = CliRunner().invoke(app, ["studio", str(run), *options, "--log-prompts"])
    assert done.exit_code == 0, done.output
    settings = served[0]["settings"]
    assert settings.allow_origins == ("https://a.example",)
    assert (settings.public_url, settings.log_prompts) == ("https://b.example/x", True)


# A folder's name may hold what no address takes.
def test_a_finished_model_can_be_painted_with(run: Path, served: list[dict[str, Any]]) -> None:
    (run / "model").mkdir()
    done = CliRunner().invoke(app, ["studio", str(run)])
    assert done.exit_code == 0, done.output
    assert served[0]["models"] == [f"my-stickers-2={run}"]


def test_a_damaged_model_hides_no_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "model").mkdir()
    shown: list[Sequence[str]] = []

    def serve(models: Sequence[str], settings: Any, **words: Any) -> None:
        shown.append(models)
        if models:
            raise CheckpointError("The model is damaged: `model`. Train again.")

    monkeypatch.setattr(server, "serve", serve)
    done = CliRunner().invoke(app, ["studio", str(run)])
    assert done.exit_code == 0, done.output
    assert done.stderr == (
        "The run's model cannot be loaded. The model is damaged: `model`. Train again.\n"
    )
    assert shown == [[f"my-stickers-2={run}"], []]


@pytest.mark.parametrize(("words", "pages"), [([], []), (["--open"], ["/#run"])])
def test_the_browser_is_opened_when_it_is_asked(
    run: Path,
    served: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    pages: list[str],
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    CliRunner().invoke(app, ["studio", str(run), *words])
    assert opened == [f"http://127.0.0.1:1234{page}" for page in pages]


def test_a_run_that_is_just_being_begun_is_waited_for(
    tmp_path: Path, served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started in a second terminal at once, it once said that there is no such run."""
    run = tmp_path / "run"

    def begin(seconds: float) -> None:
        run.mkdir()
        (run / ".lock").touch()

    monkeypatch.setattr(time, "sleep", begin)
    done = CliRunner().invoke(app, ["studio", str(run)])
    assert done.exit_code == 0
    assert "Waiting up to 30 s for the run to start." in done.stderr
    assert [call["run"] for call in served] == [run]


def test_what_is_no_run_is_refused(tmp_path: Path, served: list[dict[str, Any]]) -> None:
    (tmp_path / "picture.png").touch()
    done = CliRunner().invoke(app, ["studio", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: Not the folder of a run: `{tmp_path}`.")
    (tmp_path / ".lock").touch()  # it prepares its data
    assert CliRunner().invoke(app, ["studio", str(tmp_path)]).exit_code == 0
    assert [call["run"] for call in served] == [tmp_path]


def test_others_cannot_reach_it_without_a_key(run: Path, served: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(app, ["studio", str(run), "--host", "0.0.0.0"])
    assert done.exit_code == 1
    assert "--insecure" in done.stderr
    assert not served


def test_it_serves_and_ends_when_it_is_told(run: Path) -> None:
    words = [sys.executable, "-m", "tessella", "studio", str(run), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert found is not None
            with urllib.request.urlopen(f"{found[0]}/v1/run", timeout=60) as answer:
                assert json.loads(answer.read())["name"] == run.name
            with urllib.request.urlopen(f"{found[0]}/v1/studio", timeout=60) as answer:
                assert json.loads(answer.read())["run"] is True
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
