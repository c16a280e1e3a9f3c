"""`tessella.fit`: the command's run, from Python, with callbacks that watch, stop and fail."""

import inspect
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tessella
from commands import invoke
from tessella.files import read_tensors
from tiny_runs import TINY, draw_pictures

SETTINGS: dict[str, Any] = {
    "data.image_size": 16,
    "data": {"workers": 1},
    "tokenizer": {"patch": 2, "widths": [16, 16], "quantizer": {"codebook_size": 16}},
    "tokenizer_training": {"images": 32, "batch_size": 8, "evaluate_every_images": 16},
    "transformer": {"width": 16, "depth": 2, "heads": 2},
    "transformer_training": {"images": 32, "batch_size": 8, "save_every_seconds": 0.001},
    "generation.steps": 2,
    "generation.top_k": None,
}
"""Dotted, nested and both; what is left out by None, too."""
WORDS = [
    *TINY,
    "tokenizer_training.evaluate_every_images=16",
    "transformer_training.save_every_seconds=0.001",
]
"""The same for the command."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures"), 12)


class Recorder(tessella.Callback):
    def __init__(self) -> None:
        self.events: list[tuple[str, tessella.TrainingEvent]] = []

    def on_step(self, event: tessella.TrainingEvent) -> None:
        self.events.append(("step", event))

    def on_log(self, event: tessella.TrainingEvent) -> None:
        self.events.append(("log", event))

    def on_evaluate(self, event: tessella.TrainingEvent) -> None:
        self.events.append(("evaluate", event))

    def on_save(self, event: tessella.TrainingEvent) -> None:
        assert event.path is not None
        assert (event.path / "state.safetensors").exists()
        self.events.append(("save", event))

    def on_end(self, event: tessella.TrainingEvent) -> None:
        self.events.append(("end", event))

    def list(self, kind: str, stage: str) -> list[tessella.TrainingEvent]:
        return [event for name, event in self.events if (name, event.stage) == (kind, stage)]


def fit(pictures: Path, out: Path, **options: Any) -> tessella.TextToImage:
    return tessella.fit(pictures, out, **{"settings": SETTINGS, "device": "cpu"} | options)


@pytest.fixture(scope="module")
def recorded(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Recorder, tessella.TextToImage]:
    """A whole run, what its callback was told, and its model."""
    out, recorder = tmp_path_factory.mktemp("runs") / "whole", Recorder()
    return out, recorder, fit(pictures, out, callbacks=[recorder], quiet=True)


def test_it_is_the_commands_run(recorded: Any, pictures: Path, tmp_path: Path) -> None:
    out, _, model = recorded
    assert model.generate("picture 3", seed=1)[0].size == (16, 16)
    words = [word for setting in WORDS for word in ("--set", setting)]
    command = ["fit", str(pictures), "--out", str(tmp_path / "run"), "--device", "cpu", *words]
    done = invoke(*command)
    assert done.exit_code == 0, done.stderr
    asked = [json.loads((run / "run.json").read_text())["asked"] for run in (out, tmp_path / "run")]
    assert asked[0] == asked[1]
    for name in ("tokenizer.safetensors", "transformer.safetensors"):
        mine, theirs = (read_tensors(run / "model" / name) for run in (out, tmp_path / "run"))
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
    # And the other way round: Python finds the command's run finished.
    fit(pictures, tmp_path / "run", quiet=True)


def test_a_callback_is_told_of_everything(recorded: Any) -> None:
    out, recorder, _ = recorded
    steps = recorder.list("step", "tokenizer")
    assert [event.images_seen for event in steps] == [8, 16, 24, 32]
    assert {event.images for event in steps} == {32}
    assert "loss" in recorder.list("log", "tokenizer")[-1].metrics
    evaluations = recorder.list("evaluate", "tokenizer")
    assert [event.images_seen for event in evaluations] == [16, 32]
    assert evaluations[0].metrics["psnr"] > 0
    assert isinstance(evaluations[0].pictures["samples"], Image.Image)
    saves = recorder.list("save", "transformer")
    assert {event.images_seen for event in saves} >= {8, 16, 24, 32}
    [end] = recorder.list("end", "model")
    assert recorder.events[-1][1] is end
    assert end.path == out / "model"
    assert end.metrics["reconstruction_psnr"] > 0


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_a_callback_stops_the_run_which_then_goes_on(
    stage: str, recorded: Any, pictures: Path, tmp_path: Path
) -> None:
    class Stop:
        def on_step(self, event: tessella.TrainingEvent) -> None:
            if (event.stage, event.images_seen) == (stage, 16):
                event.stop()

    with pytest.raises(tessella.TrainingStopped, match="the same call goes on"):
        fit(pictures, tmp_path / "run", callbacks=[Stop()], quiet=True)
    again = Recorder()
    fit(pictures, tmp_path / "run", callbacks=[again], quiet=True)
    seen = [event.images_seen for event in again.list("step", stage)]
    assert seen[-1] == 32
    assert seen[0] > 16
    for name in ("tokenizer.safetensors", "transformer.safetensors"):
        mine, theirs = (
            read_tensors(run / "model" / name) for run in (tmp_path / "run", recorded[0])
        )
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("method", ["on_step", "on_log", "on_evaluate", "on_save", "on_end"])
def test_a_callback_that_raises_ends_the_run_which_then_goes_on(
    method: str, recorded: Any, pictures: Path, tmp_path: Path
) -> None:
    def fail(event: tessella.TrainingEvent) -> None:
        if event.stage != "tokenizer":
            raise LookupError("of the callback")

    faulty = type("Faulty", (), {method: staticmethod(fail)})()
    with pytest.raises(LookupError, match="of the callback") as caught:
        fit(pictures, tmp_path / "run", callbacks=[faulty], quiet=True)
    assert f"Faulty.{method}" in caught.value.__notes__[0]
    fit(pictures, tmp_path / "run", quiet=True)
    name = "transformer.safetensors"
    mine, theirs = (read_tensors(run / "model" / name) for run in (tmp_path / "run", recorded[0]))
    assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": {"transformer.depht": 2}}, r"did you mean `transformer\.depth`"),
        ({"settings": {"transformer": {"depth": "deep"}}}, "`transformer.depth`: got: `deep`"),
        ({"settings": "transformer.depth=2"}, "not one text: `transformer.depth=2`"),
        ({"minutes": -1}, "Minutes must be a number above 0: `-1`"),
        ({"minutes": "5"}, "Minutes must be a number above 0: `5`"),
        ({"seed": -1}, "A seed must be a whole number from 0 to 9223372036854775807: `-1`"),
        ({"seed": 1.5}, "A seed must be a whole number .*: `1.5`"),
        ({"trackers": ["nowhere"]}, "Unknown tracker: `nowhere`"),
        ({"trackers": "nowhere"}, "Unknown tracker: `nowhere`"),
        ({"tokenizer": "nowhere"}, "nowhere"),
        ({"callbacks": [object()]}, "methods that a run calls: `object`"),
        ({"callbacks": Recorder()}, r"Callbacks are a list: `Recorder`"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    options: Any, words: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises((tessella.ConfigError, tessella.CheckpointError), match=words):
        fit(pictures, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_it_says_what_it_does_unless_it_is_quiet(
    recorded: Any, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(pictures, recorded[0])
    said = capsys.readouterr()
    assert "12 images, 12 captions" in said.err
    assert said.out == ""
    fit(pictures, recorded[0], quiet=True)
    assert capsys.readouterr().err == ""


def test_quiet_does_not_hide_what_fails(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # it lacks all
    with pytest.warns(UserWarning, match="The tracker wandb failed"):
        fit(pictures, tmp_path / "run", quiet=True, trackers="wandb")


def test_home_is_found(
    recorded: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(recorded[0].parent))
    monkeypatch.setenv("USERPROFILE", str(recorded[0].parent))
    monkeypatch.chdir(tmp_path)
    again = Recorder()
    fit(pictures, Path("~/whole"), quiet=True, callbacks=[again])  # the finished run
    assert not again.events
    assert not list(tmp_path.iterdir())


def test_it_takes_what_the_command_takes() -> None:
    """Whoever adds an option to one adds it to the other, or says here why not."""
    from tessella.cli import training

    groups = (training.RunOptions, training.FitOptions, training.TrainingOptions)
    names = {"from_": "start_from", "config": "config_file", "set_": "settings"}
    names |= {"tracker": "trackers"}
    options = {
        names.get(name, name) for group in groups for name in inspect.signature(group).parameters
    }
    own = {"callbacks", "quiet"}  # of Python; `--dry-run` is the command's
    assert set(inspect.signature(tessella.fit).parameters) == options - {"dry_run"} | own
