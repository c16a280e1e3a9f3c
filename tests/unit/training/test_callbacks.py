"""Callbacks: what is called with what, what they may raise, and who is refused."""

from pathlib import Path
from typing import Any

import pytest

from tessella.errors import ConfigError
from tessella.training.callbacks import METHODS, Callback, Callbacks, TrainingEvent


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[TrainingEvent] = []

    def on_log(self, event: TrainingEvent) -> None:
        self.events.append(event)


class Plain:
    """Any object with one of the methods will do."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def on_save(self, event: TrainingEvent) -> None:
        self.order.append("save")


def test_every_method_is_known_and_does_nothing_by_itself() -> None:
    assert [name for name in vars(Callback) if name.startswith("on_")] == list(METHODS)
    callbacks = Callbacks([Callback()])
    for method in METHODS:
        callbacks.call(method, "tokenizer", 0, 1)


def test_a_callback_is_told_what_happened(tmp_path: Path) -> None:
    recorder, plain = Recorder(), Plain()
    callbacks = Callbacks([recorder, plain], tmp_path)
    callbacks.call("on_log", "transformer", 64, 128, metrics={"loss": 0.5})
    callbacks.call("on_save", "transformer", 64, 128, path=tmp_path / "checkpoint")
    [event] = recorder.events
    assert (event.run, event.stage, event.images_seen, event.images) == (
        *(tmp_path, "transformer"),
        *(64, 128),
    )
    assert event.metrics == {"loss": 0.5}
    assert plain.order == ["save"]
    assert not callbacks.is_stopped
    event.stop()
    assert callbacks.is_stopped


def test_what_a_callback_raises_passes_with_a_note(tmp_path: Path) -> None:
    class Faulty:
        def on_step(self, event: TrainingEvent) -> None:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        Callbacks([Faulty()], tmp_path).call("on_step", "tokenizer", 0, 1)
    [note] = caught.value.__notes__
    assert "`Faulty.on_step`" in note
    assert "last good checkpoint" in note


def test_a_callback_cannot_change_what_training_and_others_see() -> None:
    class Changes:
        def on_evaluate(self, event: TrainingEvent) -> None:
            for values in (event.metrics, event.pictures):
                with pytest.raises(TypeError, match="does not support item assignment"):
                    values["loss"] = 0  # type: ignore[index]
            metrics["loss"] = 2.0

    class Later:
        def on_evaluate(self, event: TrainingEvent) -> None:
            assert event.metrics == {"loss": 1.0}

    metrics = {"loss": 1.0}
    Callbacks([Changes(), Later()]).call("on_evaluate", "tokenizer", 0, 1, metrics=metrics)


def test_an_attribute_that_is_no_method_is_left_alone() -> None:
    class Plot(Recorder):
        on_screen = True
        on_save = None  # type: ignore[assignment]

    Callbacks([Plot()]).call("on_save", "tokenizer", 0, 1, path=Path())


class Misspelt(Callback):
    def on_epoch_end(self, event: TrainingEvent) -> None: ...


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (Misspelt(), r"never called: `Misspelt.on_epoch_end`\. Known are on_step, on_log"),
        (print, "an object with methods that a run calls: `builtin_function_or_method`"),
        (Recorder, "an object with methods that a run calls: `type`"),
    ],
)
def test_what_would_never_be_called_is_refused(callback: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Callbacks([callback])
