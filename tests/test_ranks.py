"""A run on two processes learns what one learns, and a run may change between them.

As a script (`python tests/test_ranks.py FOLDER [KIND …]`) this file trains each kind of stage on
one and on two processes, which find each other by gloo on this machine. All are forks of one that
has imported everything once.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.errors import TessellaError
from tessella.files import write_text
from tessella.training import launch, processes, reporting
from tessella.training.checkpoint import section
from tessella.training.loop import create_accelerator
from tessella.training.stage import Evaluation
from test_resume import BATCH, STAGES, run, saved, transformer_stage

STEPS = 3
KINDS = {
    **STAGES,
    **{
        name: lambda data, name=name: transformer_stage(name, data)
        for name in ("masked", "parallel", "shared_latent")
    },
}
LOSSES = ("loss", "gradient_norm", "psnr", "codes_used", "accuracy", "discriminator_loss")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one process, on two, and on both in turn."""
    folder = tmp_path_factory.mktemp("ranks")
    forks = "ignore:This process:DeprecationWarning"  # Python counts torch's threads
    script = [sys.executable, "-W", "error", "-W", forks, __file__, str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # no warnings of torch's, nor any others
    return folder


def read(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(kind: str, runs: Path) -> None:
    one, two = (read(runs / kind / name, "train") for name in ("one", "two"))
    assert [line["images_seen"] for line in two] == [line["images_seen"] for line in one]
    assert [line["images_seen"] // BATCH for line in one] == [1, 2, 3]
    names = {*LOSSES}
    if kind == "report2021":
        # Its batch normalization divides by what is almost 0 here, and makes much of rounding.
        one, two, names = one[:1], two[:1], {"loss", "psnr"}
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for name in names & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


@pytest.mark.parametrize("kind", ["gradient", "any_order"])
def test_a_run_may_go_on_in_another_number_of_processes(kind: str, runs: Path) -> None:
    whole, parts = (saved(runs / kind / name) for name in ("one", "parts"))
    assert whole.images_seen == parts.images_seen == STEPS * BATCH
    expected = section(whole.tensors, "average")
    for name, tensor in section(parts.tensors, "average").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)
    notes = [line["note"] for line in read(runs / kind / "parts", "note")]
    assert notes == [
        "The number of processes is now 2; until here it was 1.",
        "The number of processes is now 1; until here it was 2.",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_are_told_once(kind: str, runs: Path) -> None:
    for name in ("one", "two"):
        told = [line["images_seen"] for line in read(runs / kind / name, "validation")]
        assert told == [2 * BATCH, 3 * BATCH]


def test_who_trains_is_told(runs: Path) -> None:
    assert (runs / "peers.txt").read_text() == "2, each on cpu"


def test_a_killed_process_ends_the_other(runs: Path) -> None:
    """Which waits for it, and is told by the operation that fails, within seconds."""
    said, seconds = (runs / "killed.txt").read_text().split("\n")
    assert said.startswith("Process 1 of 2 (PID ")
    assert "has ended, and process 0 can't go on without it" in said
    assert "resume from the last checkpoint" in said
    assert float(seconds) < 5


# As a script.


def train_everything(folder: Path, kinds: Iterable[str]) -> None:
    """Trains each kind of stage on one process and on two, and two kinds on both in turn."""
    # A line for every step.
    reporting._LOG_SECONDS = processes._SECONDS_BETWEEN_QUESTIONS = 0.0
    importlib.import_module("torch._dynamo")  # every optimizer does, and it takes seconds
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    prepare(["scenes:40"], settings, folder / "data")

    def start(ranks: int, name: str, steps: int, kinds: Iterable[str]) -> None:
        fork(ranks, lambda: [train_one(folder, kind, name, steps) for kind in kinds])

    start(1, "one", STEPS, kinds)
    start(2, "two", STEPS, kinds)
    for ranks, steps in ((1, 1), (2, 2), (1, STEPS)):
        start(ranks, "parts", steps, ("gradient", "any_order"))
    fork(2, lambda: be_killed(folder), statuses=(0, 9))


def train_one(folder: Path, kind: str, name: str, steps: int) -> None:
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    stage = KINDS[kind](prepare(["scenes:40"], settings, folder / "data").sides)
    for module in stage.loss_module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each process draws its own
    stage.evaluate = lambda *_: Evaluation({"psnr": 1.0}, {})
    # The same schedule, whenever it ends: a run of fewer steps is one that was stopped.
    run(stage, folder / kind / name, steps=steps, decay_fraction=0.0)


def be_killed(folder: Path) -> None:
    """The second process dies in the middle of a step of the first."""
    accelerator = create_accelerator("cpu")
    peers = launch.find_peers(accelerator)
    watched = folder / "peers.txt"
    try:
        with launch.watch_peers(peers):
            if accelerator.is_main_process:
                write_text(watched, peers.describe())
            else:
                while not watched.exists():  # else it might die before the other one watches
                    time.sleep(0.01)
                os.kill(os.getpid(), 9)
            began = time.monotonic()
            accelerator.wait_for_everyone()
    except TessellaError as error:
        seconds = time.monotonic() - began
        (folder / "killed.txt").write_text(f"{error}\n{seconds}")


def fork(ranks: int, work: Callable[[], object], statuses: tuple[int, ...] = (0, 0)) -> None:
    """Does some work in several processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
            if ranks > 1:
                os.environ |= {**address, **{name: str(n) for name, n in places.items()}}
            torch.set_num_threads(1)
            work()
            status = 0
            launch.leave_peers()
        except BaseException:  # noqa: BLE001 - a child must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    ended = [os.waitpid(child, 0)[1] for child in children]
    assert ended == list(statuses[:ranks]), ended


if __name__ == "__main__":
    train_everything(Path(sys.argv[1]), sys.argv[2:] or KINDS)
