"""Trackers get what the run logs, and cannot end it."""

import importlib
import json
import re
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import accelerate
import pytest
from PIL import Image

from tessella.errors import ConfigError
from tessella.training.callbacks import TrainingEvent
from tessella.training.trackers import Trackers, check_trackers


class Wandb(types.ModuleType):
    """What Accelerate's tracker calls of wandb; it may fail at one of them."""

    def __init__(self, fails_at: str = "") -> None:
        super().__init__("wandb")
        self.fails_at, self.runs = fails_at, list[dict[str, Any]]()
        self.config = types.SimpleNamespace(update=self.update)

    def do(self, what: str) -> None:
        if what == self.fails_at:
            raise ConnectionError("no route to host\nand a page of it")

    def init(self, **options: Any) -> Any:
        self.do("init")
        self.runs.append({"options": options, "points": [], "is_over": False})
        return types.SimpleNamespace(log=self.log, finish=self.finish)

    def update(self, values: Any, **_: Any) -> None:
        self.runs[-1]["config"] = values

    def log(self, values: Any, step: int) -> None:
        self.do("log")
        self.runs[-1]["points"].append((step, values))

    def finish(self) -> None:
        self.do("finish")
        self.runs[-1]["is_over"] = True

    def Image(self, image: Any) -> Any:
        return ("image", image.size)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has begun."""
    accelerate.PartialState(cpu=True)
    (tmp_path / "mine").mkdir()
    recipe = {"recipe": {"transformer": {"depth": 8}}}
    (tmp_path / "mine" / "run.json").write_text(json.dumps(recipe))
    return tmp_path / "mine"


def train(run: Path, *names: str) -> list[str]:
    """Both stages of a run; returns what was said."""
    said: list[str] = []
    trackers = Trackers(names, run, said.append)
    for stage in ("tokenizer", "transformer"):
        for images in (64, 128):
            trackers.on_log(TrainingEvent(run, stage, images, 128, {"loss": 1 / images}))
        samples = {"samples": Image.new("RGB", (8, 4))}
        trackers.on_evaluate(TrainingEvent(run, stage, 128, 128, {"psnr": 20.0}, samples))
    trackers.close()
    return said


def test_each_stage_is_a_run_of_the_tracker(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train(run, "wandb", "wandb", "tensorboard") == []
    assert [one["options"]["name"] for one in wandb.runs] == ["mine-tokenizer", "mine-transformer"]
    for one in wandb.runs:
        assert one["options"]["project"] == "tessella"
        assert one["config"] == {"transformer.depth": 8}
        assert one["points"] == [
            (64, {"train/loss": 1 / 64}),
            (128, {"train/loss": 1 / 128}),
            (128, {"validation/psnr": 20.0}),
            (128, {"samples": [("image", (8, 4))]}),
        ]
        assert one["is_over"]
    first = [one["options"]["id"] for one in wandb.runs]
    run = run.rename(run.with_name("a name: of its own?"))
    train(run, "wandb")  # the run is resumed
    assert [one["options"]["id"] for one in wandb.runs] == [*first, *first]
    assert all(re.fullmatch(r"[0-9a-f]{8}-\w+", one) for one in first)


def test_mlflow_takes_it_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = MagicMock()
    mlflow.search_experiments.return_value = []
    mlflow.utils.validation.MAX_PARAM_VAL_LENGTH = 500
    mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 100
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    assert train(run, "mlflow") == []
    named = [begun.kwargs["run_name"] for begun in mlflow.start_run.call_args_list]
    assert named == ["mine-tokenizer", "mine-transformer"]
    mlflow.log_params.assert_called_with({"transformer.depth": 8})
    assert call({"train/loss": 1 / 64}, step=64) in mlflow.log_metrics.call_args_list
    assert mlflow.end_run.call_count == 2


@pytest.mark.parametrize("fails_at", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_and_told_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Wandb(fails_at))
    [sentence] = train(run, "wandb")
    assert "tracker wandb failed" in sentence
    assert "no route to host. The training goes on." in sentence


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_with_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"`{name}`; .*pip install {name}, or leave it out"):
        check_trackers([name])


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"`wandbb`\. Known are tensorboard, wandb, trackio, mlflow"
    ):
        check_trackers(["wandbb"])


def import_real(name: str) -> Any:
    """Imports a tracker that is installed, which may warn of what it imports itself."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return importlib.import_module(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_itself_takes_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_real("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    check_trackers(["wandb"])
    assert train(run, "wandb") == []
    kept = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(kept) == 2
    assert all(b"train/loss" in path.read_bytes() for path in kept)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trackio_itself_takes_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(run / "trackio"))
    import_real("trackio")
    check_trackers(["trackio"])
    assert train(run, "trackio") == []
    assert (run / "trackio" / "tessella.db").stat().st_size > 0
