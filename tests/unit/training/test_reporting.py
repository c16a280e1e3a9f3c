"""What a person sees of a run."""

import errno
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from tessella.errors import CheckpointError
from tessella.training.reporting import Meter, Reporter
from tessella.training.stage import Evaluation


def report(folder: Path, images_seen: int = 0) -> tuple[Reporter, io.StringIO]:
    shown = io.StringIO()
    return Reporter(folder, "tokenizer", 1000, images_seen, Console(file=shown, width=120)), shown


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_a_report(tmp_path: Path) -> None:
    reporter, shown = report(tmp_path / "new")
    with reporter:
        reporter.log(64, {"loss": 0.5, "gradient_norm": 2.0})
        reporter.log(128, {"psnr": 20.125}, kind="validation")
    assert lines(tmp_path / "new") == [
        {"images_seen": 64, "kind": "train", "loss": 0.5, "gradient_norm": 2.0},
        {"images_seen": 128, "kind": "validation", "psnr": 20.125},
    ]
    first, second = shown.getvalue().splitlines()
    assert first.split() == ["tokenizer", "64", "images", "train", "loss", "0.5"]
    assert second.split() == ["tokenizer", "128", "images", "validation", "psnr", "20.12"]


def test_a_line_is_there_at_once(tmp_path: Path) -> None:
    """A run that is killed keeps what it reported."""
    reporter, _ = report(tmp_path)
    with reporter:
        reporter.log(64, {"loss": 0.5})
        assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("log", ["metrics.jsonl", "tensorboard"])
def test_a_log_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    """TensorBoard's own thread once wrote a traceback, and the run ended without words."""
    if log == "tensorboard":
        pytest.importorskip("tensorboard")
    opened = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_full(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if log not in str(path):
            return opened(path, mode, *args, **options)
        raw = Full(path, mode.replace("b", ""))
        return raw if "b" in mode else io.TextIOWrapper(io.BufferedWriter(raw))

    monkeypatch.setattr(Path, "open", open_full)
    words = r"Cannot write the log: .*No space left.*last good checkpoint is kept; free some space"
    with pytest.raises(CheckpointError, match=words), report(tmp_path)[0] as reporter:
        reporter.log(64, {"loss": 0.5})


def test_going_on_drops_what_comes_again(tmp_path: Path) -> None:
    reporter, _ = report(tmp_path)
    with reporter:
        for images_seen in (64, 128, 192):
            reporter.log(images_seen, {"loss": images_seen / 64})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"images_seen": 25')  # cut off by a crash

    reporter, _ = report(tmp_path, images_seen=128)
    with reporter:
        reporter.log(192, {"loss": 9.0})
    assert [(line["images_seen"], line["loss"]) for line in lines(tmp_path)] == [
        (64, 1.0),
        (128, 2.0),
        (192, 9.0),
    ]


def test_tensorboard_shows_the_same_points(tmp_path: Path) -> None:
    """Going on from a checkpoint once took the point of the checkpoint itself off the board."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reporter, _ = report(tmp_path)
    with reporter:
        for images_seen in (64, 128, 192):
            reporter.log(images_seen, {"loss": images_seen / 64})
    reporter, _ = report(tmp_path, images_seen=128)
    with reporter:
        reporter.log(192, {"loss": 9.0})
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in board.Scalars("train/loss")]
    assert points == [(64, 1.0), (128, 2.0), (192, 9.0)]


def test_without_tensorboard_all_but_the_board_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    reporter, _ = report(tmp_path)
    with reporter:
        reporter.log(64, {"loss": 0.5})
        reporter.show(64, {"samples": picture})
    assert len(lines(tmp_path)) == 1
    assert (tmp_path / "samples" / "000000000064.png").exists()
    assert not (tmp_path / "tensorboard").exists()


def test_pictures_are_kept_by_progress(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    reporter, _ = report(tmp_path)
    with reporter:
        reporter.show(640, {"samples": picture})
    with Image.open(tmp_path / "samples" / "000000000640.png") as saved:
        assert np.array_equal(np.asarray(saved), picture)


def test_a_terminal_has_a_bar_and_only_validation_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb one, as in CI, has no bar
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    with Reporter(tmp_path, "tokenizer", 1000, 0, console) as reporter:
        reporter.advance(500)
        reporter.log(500, {"loss": 0.5})
        reporter.log(500, {"psnr": 20.0}, kind="validation")
    text = shown.getvalue()
    assert "500/1,000 images" in text
    assert "validation" in text
    assert "images  train" not in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_shows_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=width, color_system=None)
    with Reporter(tmp_path, "transformer", 200_000, 0, console) as reporter:
        reporter.advance(100_000)
        reporter.log(150_000, {"loss": 3.4567, "accuracy": 0.1234, "images_per_second": 1234.0})
    assert re.search(r"150,000/200,000 images +\d+:\d\d:\d\d left", shown.getvalue())


# A full bar said "0:00:00 left" for as long as the last evaluation took.
def test_while_a_stage_is_measured_the_bar_says_so_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, color_system=None)

    def last_bar() -> str:
        reporter._progress.refresh()
        return shown.getvalue().splitlines()[-1]

    with Reporter(tmp_path, "tokenizer", 1000, 0, console) as reporter:
        assert "left" not in last_bar()  # no pace yet
        reporter.advance(250)
        reporter.advance(500)
        assert re.search(r"500/1,000 images +\d+:\d\d:\d\d left", last_bar())
        reporter.begin_evaluation()
        assert re.search(r"500/1,000 images +measuring", last_bar())
        reporter.report_evaluation(500, Evaluation({"psnr": 20.0}, {}))
        assert "left" in last_bar()
        reporter.advance(1000)
        assert re.search(r"1,000/1,000 images +$", last_bar().partition("psnr")[0])
        reporter.begin_evaluation()
        assert re.search(r"1,000/1,000 images +measuring", last_bar())


def test_a_meter_averages_over_the_steps_that_gave_a_metric() -> None:
    meter = Meter()
    norm = torch.tensor(1.0)
    for loss in (1.0, 2.0, 6.0):
        meter.add({"loss": torch.tensor(loss), "gradient_norm": norm}, images=8)
    meter.add({"loss": torch.tensor(3.0), "gradient_norm": norm, "late": torch.tensor(7)}, 8)
    means = meter.take()
    assert means.pop("images_per_second") > 0
    assert means == {"loss": 3.0, "gradient_norm": 1.0, "late": 7.0}
    meter.add({"loss": torch.tensor(9.0), "gradient_norm": norm}, images=8)
    assert meter.take()["loss"] == 9.0
