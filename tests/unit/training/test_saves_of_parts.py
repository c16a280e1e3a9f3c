"""Callbacks hear of every checkpoint that processes save in the background, in one process here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tessella.training import loop, sharding, shards
from tessella.training.callbacks import Callbacks, TrainingEvent
from tessella.training.interrupt import TrainingStopped
from tessella.training.loop import create_accelerator, train
from tessella.training.stage import TrainingSettings
from unit.training.test_loop import Toy


class SlowSaver:
    """Never done before somebody waits for it."""

    is_saving = False

    def save(self, images_seen: int, *_: Any) -> None:
        assert not self.is_saving, "the save before was not waited for"
        self.is_saving = True

    def wait(self) -> None:
        self.is_saving = False

    def check(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(state: Any) -> None:
        whole(state)
        state._shard_saver = SlowSaver()

    def clip(parameters: Any, max_norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    whole = loop._TrainingState._prepare_whole
    monkeypatch.setattr(loop._TrainingState, "_prepare_whole", prepare)
    monkeypatch.setattr(sharding, "average_gradients", lambda stage: None)
    monkeypatch.setattr(shards, "clip_gradients", clip)
    monkeypatch.setattr(shards, "gather", lambda network: network)


def run(folder: Path, callback: object) -> None:
    train(
        Toy(),
        TrainingSettings(images=12, batch_size=4, save_every_seconds=1e-6, warmup_images=0),
        folder,
        seed=0,
        accelerator=create_accelerator("cpu"),
        console=Console(quiet=True),
        fingerprint="",
        callbacks=Callbacks([callback], folder),
    )


def test_callbacks_hear_of_each(tmp_path: Path) -> None:
    class Told:
        saves: list[int] = []  # noqa: RUF012

        def on_save(self, event: TrainingEvent) -> None:
            self.saves.append(event.images_seen)

    run(tmp_path, Told())
    assert Told.saves == [4, 8, 12, 12]  # before the last evaluation, and after it


def test_the_last_may_still_stop_the_run(tmp_path: Path) -> None:
    class Stop:
        number = 0

        def on_save(self, event: TrainingEvent) -> None:
            self.number += 1
            if self.number == 4:
                event.stop()

    with pytest.raises(TrainingStopped):
        run(tmp_path, Stop())
