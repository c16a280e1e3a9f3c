"""Checkpoints: whatever happens while one is written, a good one is there and is found."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tessella.errors import CheckpointError
from tessella.training import checkpoint
from tessella.training.checkpoint import (
    CheckpointState,
    flatten_optimizer,
    load_latest_checkpoint,
    read_images_seen,
    restore_optimizer,
    save_checkpoint,
    section,
)
from tessella.training.optimizer import MuonAdamW, OptimizerSettings, group_parameters


def numbered(images_seen: int) -> CheckpointState:
    """A state that can be told from every other."""
    tensors = {
        "model.weight": torch.full((40, 30), float(images_seen)),
        "optimizer.step": torch.tensor(images_seen),
    }
    return CheckpointState(images_seen, tensors, {"recipe": "abc", "loss": images_seen / 3})


def assert_same_bits(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (got[name], tensor)]
        assert torch.equal(*as_bytes), name


def latest(folder: Path) -> int | None:
    """Loads, checks that all of the state belongs together, and says which one it is."""
    state = load_latest_checkpoint(folder)
    if state is None:
        return None
    expected = numbered(state.images_seen)
    assert_same_bits(state.tensors, expected.tensors)
    assert state.info == expected.info
    return state.images_seen


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Saving and loading.


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load_latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-12").mkdir()  # no name of ours
    (tmp_path / "samples.png").write_bytes(b"")
    assert load_latest_checkpoint(tmp_path) is None


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    grid = torch.randn(4, 6)
    tensors = {
        "float": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "bfloat16": torch.randn(3).bfloat16(),
        "half": torch.randn(3).half(),
        "double": torch.randn(3, dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "random_state": torch.get_rng_state(),
        "scalar": torch.tensor(7.5),
        "empty": torch.zeros(0, 3),
        "grid": grid,
        "grid_again": grid,
        "row": grid[2],
        "turned": grid.t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    info = {"text": "ü 🐙 \ud800", "nested": {"list": [1, 0.1, None, True]}, "big": 2**70}
    path = save_checkpoint(tmp_path, CheckpointState(12345, tensors, info))
    assert path == tmp_path / "checkpoint-000000012345"
    assert names(path) == ["checkpoint.json", "state.safetensors"]
    back = load_latest_checkpoint(tmp_path)
    assert back is not None
    assert back.images_seen == 12345
    assert back.info == info
    assert_same_bits(back.tensors, {name: tensor.detach() for name, tensor in tensors.items()})


def test_a_state_without_tensors_is_a_state(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, CheckpointState(0, {}))
    back = load_latest_checkpoint(tmp_path)
    assert back is not None
    assert (back.images_seen, back.tensors, back.info) == (0, {}, {})


def test_a_section_is_taken_out_by_its_name() -> None:
    one, two = torch.tensor(1), torch.tensor(2)
    tensors = {"model.a.b": one, "model_b.a": two, "ema.a.b": two}
    assert section(tensors, "model") == {"a.b": one}
    assert section(tensors, "nothing") == {}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@settings(max_examples=20, deadline=None)
@given(
    images_seen=st.integers(0, 10**13),
    shapes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
        st.tuples(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES)),
        max_size=4,
    ),
    info=st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3),
)
def test_any_state_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    images_seen: int,
    shapes: dict[str, tuple[list[int], torch.dtype]],
    info: dict[str, Any],
) -> None:
    tensors = {name: (torch.randn(size) * 9).to(dtype) for name, (size, dtype) in shapes.items()}
    folder = tmp_path_factory.mktemp("state")
    save_checkpoint(folder, CheckpointState(images_seen, tensors, info))
    back = load_latest_checkpoint(folder)
    assert back is not None
    assert (back.images_seen, back.info) == (images_seen, info)
    assert_same_bits(back.tensors, tensors)


def test_the_last_and_the_one_before_are_kept(tmp_path: Path) -> None:
    for images_seen in (64, 128, 192, 256):
        save_checkpoint(tmp_path, numbered(images_seen))
    assert names(tmp_path) == ["checkpoint-000000000192", "checkpoint-000000000256"]
    save_checkpoint(tmp_path, numbered(320), keep=1)
    assert names(tmp_path) == ["checkpoint-000000000320"]


def test_the_newest_goes_by_its_number_not_by_its_time(tmp_path: Path) -> None:
    new = save_checkpoint(tmp_path, numbered(1_000_000))
    old = save_checkpoint(tmp_path, numbered(999_999))
    for path, time in ((new, 1_000), (old, 2_000_000_000)):
        for inside in (path, *path.iterdir()):
            os.utime(inside, (time, time))
    assert latest(tmp_path) == 1_000_000


def test_saving_the_same_number_replaces_it_and_keeps_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, numbered(64))
    save_checkpoint(tmp_path, CheckpointState(128, {"other": torch.zeros(1)}))
    save_checkpoint(tmp_path, numbered(128))
    assert latest(tmp_path) == 128
    assert names(tmp_path) == ["checkpoint-000000000064", "checkpoint-000000000128"]


def test_info_that_is_not_json_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, CheckpointState(0, {}, {"path": tmp_path}))
    assert names(tmp_path) == []


# Damage.


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))
    touch(path)


def touch(path: Path) -> None:
    """Makes a change show in the file's time, whose clock is coarser than a test is quick."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "tensors gone": lambda path: (path / "state.safetensors").unlink(),
    "record gone": lambda path: (path / "checkpoint.json").unlink(),
    "both gone": lambda path: [inside.unlink() for inside in path.iterdir()],
    "a file instead": lambda path: (shutil.rmtree(path), path.write_text("?")),
    "tensors are a folder": lambda path: (
        (path / "state.safetensors").unlink(),
        (path / "state.safetensors").mkdir(),
    ),
    "record of another": lambda path: shutil.copy(
        path.with_name("checkpoint-000000000064") / "checkpoint.json", path
    ),
    "tensors of another": lambda path: shutil.copy(
        path.with_name("checkpoint-000000000064") / "state.safetensors", path
    ),
    "another under its name": lambda path: (
        shutil.rmtree(path),
        shutil.copytree(path.with_name("checkpoint-000000000064"), path),
    ),
    "record is a list": lambda path: (path / "checkpoint.json").write_text("[1]"),
    "record is deep": lambda path: (path / "checkpoint.json").write_text("[" * 100_000),
    "record is no text": lambda path: (path / "checkpoint.json").write_bytes(b"\xff\xfe\x00"),
    "one byte too many": lambda path: (path / "state.safetensors").write_bytes(
        (path / "state.safetensors").read_bytes() + b"\0"
    ),
}
for file in ("state.safetensors", "checkpoint.json"):
    for share in (0.0, 0.005, 0.1, 0.5, 0.9, 0.99):
        DAMAGES[f"{file} cut to {share}"] = lambda path, f=file, s=share: cut(path / f, s)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save_checkpoint(tmp_path, numbered(64))
    path = save_checkpoint(tmp_path, numbered(128))
    DAMAGES[damage](path)
    with caplog.at_level(logging.WARNING, "tessella"):
        assert latest(tmp_path) == 64
    [message] = caplog.messages
    assert message.startswith(f"Skipped a damaged checkpoint: `{path}` (")


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, numbered(64))
    for file in ("state.safetensors", "checkpoint.json"):
        whole = (path / file).read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 47)):
            flip(path / file, place, bit=place % 8)
            try:
                # White space between the record's values may change without harm.
                assert latest(tmp_path) == 64
                assert file == "checkpoint.json"
            except CheckpointError as error:
                assert "Every checkpoint is damaged" in str(error)
            (path / file).write_bytes(whole)
    assert latest(tmp_path) == 64


def test_all_damaged_says_which_and_what_to_do(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, numbered(images_seen)) for images_seen in (64, 128)]
    for path in paths:
        cut(path / "state.safetensors", 0.5)
    with pytest.raises(CheckpointError) as caught:
        load_latest_checkpoint(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"Every checkpoint is damaged: `{paths[1]}`: state.safetensors has ")
    assert f"`{paths[0]}`: " in message
    assert message.endswith(
        f"Restore one from a backup, or remove `{tmp_path}` to train from the beginning."
    )


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    """The run went back to 64 because 128 and 192 were damaged.

    Counted by their numbers alone, these two would push out 64 and the new 100 with it.
    """
    for images_seen in (64, 128, 192):
        path = save_checkpoint(tmp_path, numbered(images_seen), keep=3)
        if images_seen > 64:
            flip(path / "state.safetensors", -1)
    assert latest(tmp_path) == 64
    save_checkpoint(tmp_path, numbered(100))
    assert names(tmp_path) == ["checkpoint-000000000064", "checkpoint-000000000100"]
    assert latest(tmp_path) == 100


def test_a_good_later_one_is_never_removed_but_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    later = save_checkpoint(tmp_path, numbered(128))
    save_checkpoint(tmp_path, numbered(64))
    assert latest(tmp_path) == 128
    assert caplog.messages == [f"Resuming will use a later checkpoint, which exists: `{later}`."]


def write_format(path: Path, number: int) -> None:
    record = json.loads((path / "checkpoint.json").read_bytes())
    del record["sha256"]
    record["format"] = number
    record["sha256"] = checkpoint._record_sha256(record)
    (path / "checkpoint.json").write_text(json.dumps(record))


def test_a_newer_format_is_refused_and_never_removed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, numbered(64))
    path = save_checkpoint(tmp_path, numbered(128))
    write_format(path, checkpoint.SHARDED_FORMAT + 1)
    with pytest.raises(CheckpointError) as caught:
        load_latest_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"The checkpoint has format 3, this tessella reads 1 and 2: `{path}`. Use the version of "
        "tessella that wrote it, or a newer one."
    )
    save_checkpoint(tmp_path, numbered(192))
    assert path.exists()
    assert latest(tmp_path) == 192


def test_one_that_may_not_be_read_is_refused_and_never_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_checkpoint(tmp_path, numbered(64))
    touch(path / "state.safetensors")  # else nobody would read it again
    real = checkpoint.files.sha256_file

    def refuse(file: Path) -> str:
        if file.parent != path:
            return real(file)
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.files, "sha256_file", refuse)
        with pytest.raises(CheckpointError, match=r"Not allowed to read .*`.*Make it readable"):
            load_latest_checkpoint(tmp_path)
        save_checkpoint(tmp_path, numbered(128), keep=1)
    assert path.exists()
    assert latest(tmp_path) == 128


# Proved once.


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints' tensors that were read and hashed; "new" is the one being written."""
    checkpoints: list[str] = []
    real = checkpoint.files.sha256_file

    def sha256_file(path: Path) -> str:
        name = path.parent.name
        checkpoints.append("new" if name.startswith(".tmp-") else f"{int(name[-12:])}")
        return real(path)

    monkeypatch.setattr(checkpoint.files, "sha256_file", sha256_file)
    return checkpoints


# Each save read and hashed both older checkpoints again while training stood still.
def test_a_save_hashes_only_what_is_new(tmp_path: Path, hashed: list[str]) -> None:
    for images_seen in (64, 128, 192, 256):
        save_checkpoint(tmp_path, numbered(images_seen))
    assert hashed == ["new"] * 4
    assert read_images_seen(tmp_path) == 256
    assert latest(tmp_path) == 256
    assert hashed == ["new"] * 4


# To learn that a checkpoint was there, a resumed run read and hashed all of it; then again to load.
def test_a_resumed_run_hashes_its_checkpoint_once(tmp_path: Path, hashed: list[str]) -> None:
    save_checkpoint(tmp_path, numbered(64))
    checkpoint._proved.clear()
    hashed.clear()
    assert read_images_seen(tmp_path) == 64
    assert latest(tmp_path) == 64
    assert hashed == ["64"]


def test_what_another_process_wrote_is_proved_once(tmp_path: Path, hashed: list[str]) -> None:
    for images_seen in (64, 128):
        save_checkpoint(tmp_path, numbered(images_seen))
    checkpoint._proved.clear()
    hashed.clear()
    assert latest(tmp_path) == 128
    for images_seen in (192, 256):
        save_checkpoint(tmp_path, numbered(images_seen), keep=9)
    assert hashed == ["128", "64", "new", "new"]


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
def test_what_changed_since_is_proved_again(tmp_path: Path, file: str, hashed: list[str]) -> None:
    """A swapped record is whole by itself: it only belongs to other tensors."""
    good = save_checkpoint(tmp_path / "run", numbered(64))
    bad = save_checkpoint(tmp_path / "run", numbered(128))
    other = save_checkpoint(
        tmp_path / "other", dataclasses.replace(numbered(128), tensors=numbered(64).tensors)
    )
    shutil.copy(other / file, bad)
    touch(bad / file)
    save_checkpoint(tmp_path / "run", numbered(192), keep=9)
    assert names(tmp_path / "run") == [good.name, "checkpoint-000000000192"]
    assert hashed == ["new", "new", "new", "128", "new"]


def test_how_far_a_run_is_skips_what_is_damaged(tmp_path: Path) -> None:
    assert read_images_seen(tmp_path / "nowhere") is None
    paths = [save_checkpoint(tmp_path, numbered(images_seen)) for images_seen in (64, 128)]
    cut(paths[1] / "state.safetensors", 0.5)
    assert read_images_seen(tmp_path) == 64
    cut(paths[0] / "checkpoint.json", 0.5)
    with pytest.raises(CheckpointError, match="Every checkpoint is damaged"):
        read_images_seen(tmp_path)


# Crashes.


def test_leftovers_of_a_crash_are_ignored_then_removed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, numbered(64))
    half = tmp_path / ".tmp-tessella-123"
    shutil.copytree(path, half)
    cut(half / "state.safetensors", 0.5)
    # Killed where names cannot be swapped, after the old one was put aside.
    path.rename(tmp_path / ".old-tessella-checkpoint-000000000064")
    assert latest(tmp_path) == 64
    save_checkpoint(tmp_path, numbered(128))
    assert names(tmp_path) == ["checkpoint-000000000064", "checkpoint-000000000128"]


# One process imports torch once and forks the writers that it kills: first at every single
# call that changes the disk, then ten times at a random moment.
KILLED = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from tessella.files import remove_leftovers
from tessella.training.checkpoint import CheckpointState, load_latest_checkpoint, save_checkpoint

torch.set_num_threads(1)
folder = Path(sys.argv[1])

def save(number):
    tensors = {f"model.{i}": torch.full((5_000,), float(number)) for i in range(10)}
    save_checkpoint(folder, CheckpointState(number, tensors, {"number": number}))

def load():
    state = load_latest_checkpoint(folder)
    assert state is not None, os.listdir(folder)
    assert state.info == {"number": state.images_seen}
    assert len(state.tensors) == 10
    for tensor in state.tensors.values():
        assert tensor.shape == (5_000,) and (tensor == state.images_seen).all()
    return state.images_seen

def die_at(calls):
    left = calls
    def event(name, arguments):
        nonlocal left
        if name in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}:
            left -= 1
            if left == 0:
                os._exit(9)
    sys.addaudithook(event)

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

save(1)
save(2)
calls = 0
while True:
    child = os.fork()
    if child == 0:
        die_at(calls + 1)
        save(3)
        os._exit(0)
    calls += 1
    ended = wait(child)
    assert load() in (2, 3)
    if ended == 0:
        break
    shutil.rmtree(folder / "checkpoint-000000000003", ignore_errors=True)  # as it was before
assert load() == 3

def half_written():
    return any(name.startswith(".tmp-") for name in os.listdir(folder))

last, killed_while_writing = 3, 0
for _ in range(10):
    child = os.fork()
    if child == 0:
        number = load()
        while True:
            number += 1
            save(number)
    while not half_written():
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.08))
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -signal.SIGKILL
    killed_while_writing += half_written()
    remove_leftovers(folder)
    now = load()
    assert now >= last, (now, last)
    last = now
print(calls, killed_while_writing)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_writer_never_loses_the_run(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    calls, killed_while_writing = (int(word) for word in ran.stdout.split())
    assert calls > 10
    assert killed_while_writing > 0


@pytest.mark.parametrize("place", ["write_tensors", "sha256_file", "_record_sha256"])
def test_a_full_disk_keeps_the_last_good_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    save_checkpoint(tmp_path, numbered(64))
    good = save_checkpoint(tmp_path, numbered(128))
    module = checkpoint if place == "_record_sha256" else checkpoint.files
    real = getattr(module, place)

    def full(path: Any, *rest: Any) -> Any:
        if isinstance(path, Path) and ".tmp-" not in str(path):
            return real(path, *rest)  # verifying the earlier ones
        if isinstance(path, dict) and path["images_seen"] != 192:
            return real(path, *rest)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, place, full)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, numbered(192))
    assert str(caught.value) == (
        f"Cannot write the checkpoint: `{tmp_path / 'checkpoint-000000000192'}` (No space left on "
        f"device); the last good checkpoint is kept: `{good}`; free some space and run the same "
        "command again."
    )
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert names(tmp_path) == ["checkpoint-000000000064", "checkpoint-000000000128"]
    assert latest(tmp_path) == 128


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on resources")
@pytest.mark.parametrize("limit", [100_000, 1_000, 1])  # in the tensors, their header, at once
def test_a_real_failure_to_write_keeps_the_last_good_one(tmp_path: Path, limit: int) -> None:
    """By the system's limit on the size of files; a full disk would need a disk to fill."""
    import resource

    good = save_checkpoint(tmp_path, numbered(64))
    state = CheckpointState(128, {f"t{number}": torch.zeros(9_000) for number in range(50)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(CheckpointError) as caught:
            save_checkpoint(tmp_path, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    path = tmp_path / "checkpoint-000000000128"
    assert str(caught.value) == (
        f"Cannot write the checkpoint: `{path}` (File too large); the last good checkpoint is "
        f"kept: `{good}`; free some space and run the same command again."
    )
    assert names(tmp_path) == ["checkpoint-000000000064"]
    assert latest(tmp_path) == 64


def test_the_first_checkpoint_fails_without_a_false_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = save_checkpoint(tmp_path, numbered(64))
    cut(damaged / "state.safetensors", 0.5)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(checkpoint.files, "write_tensors", full)
    with pytest.raises(CheckpointError, match="; there is no earlier checkpoint; free some space"):
        save_checkpoint(tmp_path, numbered(128))


def test_an_old_one_that_cannot_be_removed_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "in use")

    old = save_checkpoint(tmp_path, numbered(64))
    monkeypatch.setattr(checkpoint.files, "remove_folder", refuse)
    save_checkpoint(tmp_path, numbered(128), keep=1)
    assert latest(tmp_path) == 128
    assert caplog.messages[0].startswith(f"Cannot remove the old checkpoint: `{old}` (")


# Optimizers.


def build_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Linear(5, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, steps: int) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        loss = model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def muon_adamw(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    return MuonAdamW(group_parameters(model, matrices), OptimizerSettings(weight_decay=0.1))


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "muon and adamw": muon_adamw,
    "adam": lambda model: torch.optim.Adam(model.named_parameters(), lr=0.01, betas=(0.5, 0.9)),
    "amsgrad": lambda model: torch.optim.AdamW(model.named_parameters(), lr=0.01, amsgrad=True),
    "sgd, momentum": lambda model: torch.optim.SGD(model.named_parameters(), 0.01, momentum=0.9),
    "sgd": lambda model: torch.optim.SGD(model.named_parameters(), lr=0.01),
}


@pytest.mark.parametrize(
    ("kind", "layout"),
    [(kind, torch.contiguous_format) for kind in OPTIMIZERS]
    + [(kind, torch.channels_last) for kind in ("muon and adamw", "adam")],
)
def test_four_steps_are_two_and_saved_and_loaded_and_two(
    tmp_path: Path, kind: str, layout: torch.memory_format
) -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = build_model().to(memory_format=layout)
        return model, OPTIMIZERS[kind](model)

    model, optimizer = begin()
    train(model, optimizer, 0, 4)
    straight = model.state_dict()

    model, optimizer = begin()
    train(model, optimizer, 0, 2)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {f"optimizer.{name}": t for name, t in flatten_optimizer(optimizer).items()}
    save_checkpoint(tmp_path, CheckpointState(8, state))

    model, optimizer = begin()
    train(model, optimizer, 9, 1)  # what it holds before is of no account
    loaded = load_latest_checkpoint(tmp_path)
    assert loaded is not None
    model.load_state_dict(section(loaded.tensors, "model"))
    restore_optimizer(optimizer, section(loaded.tensors, "optimizer"))
    train(model, optimizer, 2, 2)
    assert_same_bits(model.state_dict(), straight)


def test_adamw_state_has_these_names() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors = flatten_optimizer(optimizer)
    assert sorted(tensors) == [
        f"{name}.{key}" for name in ("bias", "weight") for key in ("exp_avg", "exp_avg_sq", "step")
    ]
    assert tensors["weight.step"].shape == ()


def test_state_of_another_dtype_than_the_parameter_is_not_cast() -> None:
    """`Optimizer.load_state_dict` casts it: a bfloat16 model would lose its float32 moments."""
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([("w", parameter)], momentum=0.9)
    moment = torch.tensor([1.0001, 2.0002, 3.0003])
    restore_optimizer(optimizer, {"w.momentum_buffer": moment})
    state = optimizer.state[parameter]
    assert torch.equal(state["momentum_buffer"], moment)
    assert state["momentum_buffer"].data_ptr() != moment.data_ptr()


def test_state_lies_in_memory_as_the_optimizer_made_it() -> None:
    """Sums over another order of the memory may differ in the last bit."""
    model = build_model().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.named_parameters())
    train(model, optimizer, 0, 1)
    before = {p: state["exp_avg"].stride() for p, state in optimizer.state.items()}
    saved = {name: tensor.contiguous() for name, tensor in flatten_optimizer(optimizer).items()}
    restore_optimizer(optimizer, saved)
    after = {p: state["exp_avg"].stride() for p, state in optimizer.state.items()}
    assert before == after
    assert before[model[0].weight] == (27, 1, 9, 3)


def test_a_parameter_that_was_never_stepped_has_no_state() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([("used", used), ("unused", unused)])
    used.sum().backward()
    optimizer.step()
    tensors = flatten_optimizer(optimizer)
    assert not any(name.startswith("unused") for name in tensors)
    restore_optimizer(optimizer, tensors)
    assert unused not in optimizer.state


def test_state_of_another_model_is_refused_and_nothing_is_changed() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.25, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(CheckpointError, match="the model has no parameter `other`"):
        restore_optimizer(optimizer, {"other.momentum_buffer": torch.ones(1)})
    assert torch.equal(optimizer.state[model.weight]["momentum_buffer"], torch.ones(1, 2))


def test_state_of_another_shape_is_refused_and_nothing_is_changed() -> None:
    """A smaller one would have been spread over the parameter unsaid."""
    parameter = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([("w", parameter)], lr=0.25, momentum=0.9)
    moment = torch.full((2, 3), 5.0)
    restore_optimizer(optimizer, {"w.momentum_buffer": moment})
    message = r"`w\.momentum_buffer` has the shape \(3,\), expected \(2, 3\)\. Resume with"
    with pytest.raises(CheckpointError, match=message):
        restore_optimizer(optimizer, {"w.momentum_buffer": torch.ones(3)})
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], moment)
