"""A run on two processes learns what one learns, and a run may change between them.

As a script (`python tests/test_ranks.py FOLDER [KIND …]`) this file trains each kind of stage on
one and on two processes, which find each other by gloo on this machine. All are forks of one that
has imported everything once.
"""

import contextlib
import errno
import importlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.errors import CheckpointError, TessellaError
from tessella.files import write_text
from tessella.training import launch, processes, reporting, shard_files, shards
from tessella.training.checkpoint import CHECKPOINTS_FOLDER, CheckpointState, section
from tessella.training.loop import create_accelerator
from tessella.training.optimizer import orthogonalize
from tessella.training.shard_saver import ShardSaver
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
# A discriminator, whose part of the loss looks at a gradient before the backward pass; matrices of
# one row, of which the second process has none; layers that are computed again.
SHARDED = ("discriminator", "any_order", "examples")
LOSSES = ("loss", "gradient_norm", "psnr", "codes_used", "accuracy", "discriminator_loss")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one process, on two, and on both in turn."""
    folder = tmp_path_factory.mktemp("ranks")
    forks = "ignore:This process:DeprecationWarning"  # Python counts torch's threads
    script = [sys.executable, "-W", "error", "-W", forks, __file__, str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=900, check=False)
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


@pytest.mark.parametrize("kind", SHARDED)
def test_processes_that_hold_a_part_each_learn_what_one_does(kind: str, runs: Path) -> None:
    one, two = (read(runs / kind / name, "train") for name in ("one", "sharded"))
    assert [line["images_seen"] // BATCH for line in two] == [1, 2, 3]
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for name in {*LOSSES} & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name
    assert_same_state(saved(runs / kind / "sharded"), saved(runs / kind / "one"))


@pytest.mark.parametrize("kind", ["gradient", "any_order"])
def test_a_sharded_run_may_go_on_whole_and_back(kind: str, runs: Path) -> None:
    assert_same_state(saved(runs / kind / "sharded_parts"), saved(runs / kind / "one"))
    formats = json.loads((runs / kind / "formats.json").read_text())
    assert formats == ({"any_order": [2, 2, 1], "gradient": [1, 2, 1]}[kind])


def assert_same_state(state: CheckpointState, expected: CheckpointState) -> None:
    assert state.images_seen == expected.images_seen
    assert state.tensors.keys() == expected.tensors.keys()
    for name, tensor in state.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_damaged_part_is_passed_over(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(runs / "any_order" / "sharded", folder)
    newest = folder / CHECKPOINTS_FOLDER / f"checkpoint-{3 * BATCH:012d}"
    part = next(newest.glob("shard-00002-*"))
    good = part.read_bytes()
    part.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert saved(folder).images_seen == 2 * BATCH
    part.unlink()
    assert saved(folder).images_seen == 2 * BATCH
    part.write_bytes(good)
    assert saved(folder).images_seen == 3 * BATCH
    (newest / "more.safetensors").write_bytes(good)  # it would be read as a part, too
    assert saved(folder).images_seen == 2 * BATCH


def test_each_process_writes_its_part(runs: Path) -> None:
    folders = (runs / "any_order" / name / CHECKPOINTS_FOLDER for name in ("one", "sharded"))
    whole, parts = (
        [path.stat().st_size for path in folder.rglob(f"*{3 * BATCH}/*.safetensors")]
        for folder in folders
    )
    assert len(parts) == 2
    assert max(parts) < 0.65 * whole[0]  # headers, and what is whole in every process


def test_matrices_and_gradients_as_a_whole(runs: Path) -> None:
    found = json.loads((runs / "spread.json").read_text())
    assert found["matrices"]
    assert found["gathered"]
    assert found["norm"] == pytest.approx(found["expected"], rel=1e-4)


def test_a_save_that_fails_in_one_process_fails_in_both(runs: Path) -> None:
    """And nothing is left of it but the checkpoint before."""
    for rank in (0, 1):
        said = (runs / f"full-{rank}.txt").read_text()
        assert "No space left on device" in said
        assert "the last good checkpoint is kept" in said
    assert [path.name for path in (runs / "full").iterdir()] == ["checkpoint-000000000001"]


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


def test_a_process_that_left_by_an_error_and_lives_ends_the_other(runs: Path) -> None:
    said, seconds = (runs / "left.txt").read_text().split("\n")
    assert said.startswith("Process 1 of 2 (PID ")
    assert "has left the training, and process 0 can't go on without it" in said
    assert "`LookupError: of a callback`" in said
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
    start(2, "sharded", STEPS, SHARDED)
    for kind, numbers in (("any_order", (2, 2, 1)), ("gradient", (1, 2, 1))):
        formats = []
        for steps, ranks in enumerate(numbers, start=1):
            start(ranks, "sharded_parts", steps, [kind])
            [*_, newest] = sorted((folder / kind / "sharded_parts").glob("checkpoints/*"))
            formats.append(json.loads((newest / "checkpoint.json").read_text())["format"])
        write_text(folder / kind / "formats.json", json.dumps(formats))
    fork(2, lambda: map_and_gather(folder))
    fork(2, lambda: fill_the_disk(folder))
    fork(2, lambda: be_killed(folder), statuses=(0, 9))
    fork(2, lambda: leave_and_live(folder))


def train_one(folder: Path, kind: str, name: str, steps: int) -> None:
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    stage = KINDS[kind](prepare(["scenes:40"], settings, folder / "data").sides)
    for module in stage.loss_module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each process draws its own
    stage.evaluate = lambda *_: Evaluation({"psnr": 1.0}, {})
    # The same schedule, whenever it ends: a run of fewer steps is one that was stopped.
    more = {"sharding": "full"} if name.startswith("sharded") else {}
    if name == "sharded" and kind == "any_order":
        stage.network.set_recompute(True)
    run(stage, folder / kind / name, steps=steps, decay_fraction=0.0, **more)


def map_and_gather(folder: Path) -> None:
    """Three matrices of five rows over two processes: nothing divides evenly."""
    accelerator = create_accelerator("cpu")
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    wholes = torch.randn(3, 5, 4)
    spread = [distribute_tensor(one, mesh, [Shard(0)]) for one in wholes]
    results = shards.map_matrices(
        orthogonalize, torch.stack([shards.local(one) for one in spread]), spread[0]
    )
    rows = slice(3) if accelerator.is_main_process else slice(3, 5)
    expected = orthogonalize(wholes)[:, rows]
    layer = nn.Linear(4, 5)
    shards.replace_parameters(layer, [("weight", spread[0])])
    is_gathered = torch.equal(shards.gather(layer).weight, wholes[0])
    learning = [nn.Parameter(spread[0]), nn.Parameter(torch.zeros(3))]
    learning[0].grad, learning[1].grad = spread[1], torch.ones(3)
    norm = shards.clip_gradients(learning, 0.1)
    left = torch.cat([learning[0].grad.full_tensor().flatten(), learning[1].grad]).norm()
    if accelerator.is_main_process:
        found = {
            "matrices": torch.allclose(results, expected, atol=1e-6),
            "gathered": is_gathered,
            "norm": [norm.item(), left.item()],
            "expected": [torch.cat([wholes[1].flatten(), torch.ones(3)]).norm().item(), 0.1],
        }
        write_text(folder / "spread.json", json.dumps(found))


def fill_the_disk(folder: Path) -> None:
    """The second process finds no more room while it saves."""
    accelerator = create_accelerator("cpu")
    saver = ShardSaver(folder / "full", timedelta(minutes=5))
    saver.save(1, {"weight": torch.ones(3)}, {})
    saver.wait()

    def be_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if not accelerator.is_main_process:
        shard_files.list_own = be_full
    try:
        saver.save(2, {"weight": torch.ones(3)}, {})
        saver.wait()
    except CheckpointError as error:
        write_text(folder / f"full-{accelerator.process_index}.txt", str(error))
    saver.close()


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


def leave_and_live(folder: Path) -> None:
    """The second process catches the error of a callback, and never comes to where both wait."""
    accelerator = create_accelerator("cpu")
    peers = launch.find_peers(accelerator)
    told, began = io.StringIO(), time.monotonic()
    path = folder / "left.txt"

    def end(_: int) -> None:
        write_text(path, f"{told.getvalue().strip()}\n{time.monotonic() - began}")
        os._exit(0)

    if accelerator.is_main_process:
        with contextlib.redirect_stderr(told), launch.watch_peers(peers, end, patience=0.5):
            accelerator.wait_for_everyone()
    with contextlib.suppress(LookupError), launch.watch_peers(peers):
        raise LookupError("of a callback")
    while not path.exists():
        time.sleep(0.01)
    os._exit(0)  # there is nobody left to part from


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
