"""What a launcher brought up; `tests/test_ranks.py` has real processes."""

import os
import subprocess
import sys
import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState

from tessella.errors import ConfigError, TessellaError
from tessella.training import launch
from tessella.training.interrupt import Interrupted, TrainingStopped
from tessella.training.launch import (
    Notes,
    Peer,
    Peers,
    check_launch,
    find_peers,
    join_again,
    leave_device,
    watch_peers,
)
from tessella.training.loop import create_accelerator


@pytest.mark.parametrize(
    ("num_processes", "environment"),
    [
        (1, {}),
        (1, {"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}),
        (2, {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}),
        (1, {"ACCELERATE_USE_CPU": "true"}),  # `accelerate launch --cpu --num_processes 1`
        (1, {"SLURM_NTASKS": "8"}),  # what a batch script starts by itself
    ],
)
def test_as_many_as_were_asked_for(num_processes: int, environment: dict[str, str]) -> None:
    check_launch(num_processes, environment)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        # `accelerate launch --cpu --num_processes 2` trained in one process, and said nothing.
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "for more than one"),
        ({"WORLD_SIZE": "2"}, "for 2 processes"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "for 4 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "for 3 processes"),
    ],
)
def test_fewer_than_were_asked_for_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"{said}.*alone among `1`.*torchrun --nproc-per-node"):
        check_launch(1, environment)


@pytest.mark.parametrize(
    ("all_peers", "said"),
    [
        ([("a", "cpu")], "1, on cpu"),
        ([("a", "H100"), ("a", "H100")], "2, each on H100"),
        ([("a", "H100"), ("b", "H100")], "2 on 2 hosts, each on H100"),
        ([("a", "H100"), ("a", "H100"), ("a", "A10")], "3, 2 on H100, 1 on A10"),
    ],
)
def test_they_are_described(all_peers: list[tuple[str, str]], said: str) -> None:
    peers = Peers([Peer(host, 1, device) for host, device in all_peers], 0)
    assert peers.describe() == said
    facts = peers.facts()
    assert facts["processes"] == len(all_peers) == sum(facts["devices"].values())
    assert facts["hosts"] == len({host for host, _ in all_peers})


def test_one_process_finds_itself() -> None:
    peers = find_peers(create_accelerator("cpu"))
    assert [peer.pid for peer in peers.all] == [os.getpid()]
    assert peers.describe() == "1, on cpu"
    with pytest.raises(RuntimeError, match="its own"), watch_peers(peers):
        raise RuntimeError("its own")


def test_the_next_run_of_a_program_may_be_on_another_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Accelerator(cpu=False)  # the program's own
    assert create_accelerator("cpu").device.type == "cpu"
    leave_device(torch.device("cuda"))
    assert not PartialState._shared_state  # so that the next one looks for a device
    assert create_accelerator("cpu").device.type == "cpu"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    leave_device(torch.device("cpu"))
    with pytest.raises(ConfigError, match="stay on their device: `cuda` after `cpu`"):
        leave_device(torch.device("cuda"))
    assert PartialState().device.type == "cpu"


def start_other() -> tuple["subprocess.Popen[bytes]", Peers]:
    """Starts another process of this host, which waits to be killed."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pids = [os.getpid(), other.pid]
    return other, Peers([Peer("here", pid, "cpu") for pid in pids], 0)


@pytest.mark.skipif(sys.platform == "win32", reason="there processes can't be asked")
def test_an_operation_that_fails_with_a_dead_process_names_it() -> None:
    other, peers = start_other()
    said = r"Process 1 of 2 \(PID \d+\) has ended"
    with pytest.raises(TessellaError, match=said), watch_peers(peers):
        other.kill()
        other.communicate()
        raise RuntimeError("gloo: Connection closed by peer [127.0.0.1]:1234")


def test_an_error_of_one_s_own_stays_what_it_is() -> None:
    other, peers = start_other()
    with pytest.raises(RuntimeError, match="out of memory"), watch_peers(peers):
        raise RuntimeError("CUDA: out of memory")
    other.kill()
    other.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="there processes can't be asked")
def test_what_waits_for_a_dead_process_is_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_SECONDS_BETWEEN_LOOKS", 0.01)
    other, peers = start_other()
    ended, statuses = threading.Event(), []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    with watch_peers(peers, end, patience=0.01):
        assert not ended.wait(0.1)  # it lives
        other.kill()
        other.communicate()
        assert ended.wait(10)
    assert statuses == [1]
    assert f"Process 1 of 2 (PID {other.pid}) has ended" in capsys.readouterr().err


def find_two(pid: int) -> list[Peers]:
    """Two processes that live, as each of them sees both."""
    notes = Notes(torch.distributed.HashStore(), "call")
    return [Peers([Peer("here", pid, "cpu") for _ in range(2)], rank, notes) for rank in range(2)]


# The others waited for it for ever: it lived, for the program had caught the error.
@pytest.mark.parametrize("is_seen", [True, False])
def test_what_waits_for_a_process_that_left_by_an_error_is_ended(
    is_seen: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_SECONDS_BETWEEN_LOOKS", 0.01)
    peers = find_two(os.getpid() if is_seen else find_dead())
    ended, statuses = threading.Event(), []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    with watch_peers(peers[1], end, patience=0.01):
        assert not ended.wait(0.1)
        with pytest.raises(LookupError), watch_peers(peers[0]):
            raise LookupError("of the\n callback")
        peers[0].notes.leave(0, ValueError("what follows from it"))  # type: ignore[union-attr]
        assert ended.wait(10)
    assert statuses == [1]
    said = capsys.readouterr().err
    assert said.startswith("Process 0 of 2 (PID ")
    assert "has left the training, and process 1 can't go on without it" in said
    assert "`LookupError: of the callback`" in said


@pytest.mark.parametrize("stop", [Interrupted, TrainingStopped])
def test_a_stop_that_all_have_agreed_on_ends_nobody(stop: type[BaseException]) -> None:
    peers = find_two(os.getpid())
    with pytest.raises(stop), watch_peers(peers[0]):
        raise stop
    assert peers[1].say_missing() is None


def test_an_error_about_a_connection_of_one_s_own_stays_what_it_is() -> None:
    """Not that of the processes, which are all there."""
    [peers, _] = find_two(os.getpid())
    with pytest.raises(RuntimeError, match="connection to the tracker"), watch_peers(peers):
        raise RuntimeError("The connection to the tracker was refused.")


def find_dead() -> int:
    """The PID of a process that has ended."""
    script = [sys.executable, "-c", "import os; print(os.getpid())"]
    return int(subprocess.run(script, capture_output=True, text=True, check=True).stdout)


def test_processes_that_are_not_to_be_seen_are_not_watched() -> None:
    """Of another container with the same name, say: they would all look dead."""
    peers = Peers([Peer("here", pid, "cpu") for pid in (os.getpid(), find_dead())], 0)
    before = threading.active_count()
    with watch_peers(peers):
        assert threading.active_count() == before


def test_a_new_start_does_not_read_the_addresses_of_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun's store outlives the processes; with `--max-restarts` none found the others."""
    seconds = timedelta(seconds=20)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=seconds)
    environment = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
    }
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **named: begun.append(named)
    )
    for count in "012":
        started = {**environment, "TORCHELASTIC_RESTART_COUNT": count}
        join_again(torch.device("cpu"), seconds, started)
    join_again(torch.device("cpu"), seconds, {})
    first, second = (one["store"] for one in begun)
    first.set("address", "of a process that died")
    assert second.check(["address"]) is False
    assert first.check(["address"]) is True
