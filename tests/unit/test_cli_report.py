"""`tessella report`: what it says and writes, what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessella.cli import app


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "run.json").write_text('{"recipe": {}}', encoding="utf-8")
    lines = (
        '{"images_seen": 8, "kind": "validation"}\n'
        '{"images_seen": 8, "kind": "note", "note": "watch out"}\n'
        '{"images'
    )
    (folder / "tokenizer" / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_it_says_where_the_page_is(run: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0, done.output
    assert f"The report is in {run / 'report.html'} (0.0 MB)." in done.stdout
    assert "Unreadable lines in the logs, left out: 1." in done.stdout
    assert "watch out" in (run / "report.html").read_text(encoding="utf-8")


def test_it_replaces_an_older_page_and_tells_json(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("old", encoding="utf-8")
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "run": str(run),
        "report": str(out),
        "size_bytes": out.stat().st_size,
        "images_seen": {"tokenizer": 8, "transformer": 0},
        "warnings": 1,
        "unreadable_lines": 1,
    }
    assert not (run / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: Not the folder of a run: `{tmp_path}`.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("page.pdf", "This is written to a file NAME.html: `page.pdf`."),
        ("folder.html", "A folder has the name of the file: `folder.html`."),
    ],
)
def test_only_a_page_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.html").mkdir()
    done = CliRunner().invoke(app, ["report", str(run), "--out", name])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {message} ")


# A page about a run is a matter of a second: torch alone would take several.
def test_it_does_not_load_torch(run: Path) -> None:
    words = (
        "import pathlib, sys\n"
        "from tessella.runs.report import write_report\n"
        f"write_report(pathlib.Path({str(run)!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
