"""What a launcher brought up: how many processes, where they are, and whether they still live.

torchrun, accelerate, SLURM and MPI start the processes; accelerate lets them find each other. A
process that dies, or leaves the training by an error, takes the others with it: they would wait for
it in the next step.
"""

import contextlib
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object

from tessella.errors import ConfigError, TessellaError
from tessella.training.interrupt import Interrupted, TrainingStopped
from tessella.untrusted import to_line

# Where launchers say how many processes they start. The last is srun's; what a batch script of
# SLURM runs by itself has none.
_COUNTS = (
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_EXPLAIN = 5.0  # in which the main thread may find out by itself, and say so better
_BROKEN = re.compile(r"gloo|nccl|connection|peer|socket", re.IGNORECASE)


@dataclass(frozen=True)
class Peer:
    """A process of the run."""

    host: str
    pid: int
    device: str  # `cpu`, or the name of an accelerator


@dataclass(frozen=True)
class Peers:
    """The processes of a run."""

    all: Sequence[Peer]  # by rank
    rank: int  # of this process
    notes: "Notes | None" = None  # by which they tell each other of their errors

    def describe(self) -> str:
        """Describes them in a few words: `16 on 2 hosts, each on NVIDIA H100`."""
        hosts = len({peer.host for peer in self.all})
        on_hosts = f" on {hosts} hosts" if hosts > 1 else ""
        devices = Counter(peer.device for peer in self.all)
        kinds = [
            device if len(devices) == 1 else f"{count} on {device}"
            for device, count in devices.items()
        ]
        each = "each on" if len(self.all) > 1 and len(devices) == 1 else "on"
        where = ", ".join(kinds) if len(devices) > 1 else f"{each} {kinds[0]}"
        return f"{len(self.all)}{on_hosts}, {where}"

    def facts(self) -> dict[str, Any]:
        """Returns what run.json keeps."""
        return {
            "processes": len(self.all),
            "hosts": len({peer.host for peer in self.all}),
            "devices": dict(Counter(peer.device for peer in self.all)),
        }

    def find_gone(self) -> int | None:
        """Finds the rank of a process of this host that has ended."""
        own = self.all[self.rank]
        for rank, peer in enumerate(self.all):
            if peer.host == own.host and not _is_alive(peer.pid):
                return rank
        return None

    def say_gone(self, rank: int | None) -> str:
        """Says which process has ended, and what that means."""
        return (
            f"{self._name(rank)} has ended, and process {self.rank} can't go on without it. Its "
            "own message is above, if it left one. Run the same command again to resume from the "
            "last checkpoint."
        )

    def say_missing(self, *, visible: bool = True) -> str | None:
        """Says which process no longer takes part; None while all do.

        Args:
            visible: whether processes of this host can be seen from here.
        """
        if visible and (gone := self.find_gone()) is not None:
            return self.say_gone(gone)
        left = self.notes.find() if self.notes is not None else None
        if left is None:
            return None
        rank, error = left
        return (
            f"{self._name(rank)} has left the training, and process {self.rank} can't go on "
            f"without it. Its error: `{error}`. Run the same command again to resume from the last "
            "checkpoint."
        )

    def _name(self, rank: int | None) -> str:
        if rank is None:
            return "Another process"
        return f"Process {rank} of {len(self.all)} (PID {self.all[rank].pid})"


class Notes:
    """Tells the other processes of an error, in the store by which all found each other.

    A program may catch what `fit` raises and go on: its process lives, but takes part no longer.

    Args:
        store: if possible a connection of its own, for the main thread may wait on the first.
        call: names this call of `fit`; the same in all processes.
    """

    def __init__(self, store: Any, call: str) -> None:
        self._store = store  # torch's Store, which it does not export to type checkers
        self._key = f"tessella-error-{call}"

    def leave(self, rank: int, error: BaseException) -> None:
        """Leaves the error by which a process leaves the training, if it is the first one."""
        note = f"{rank} {to_line(f'{type(error).__name__}: {error}')[:1000]}"
        with contextlib.suppress(RuntimeError):  # who keeps the store is gone, and seen to be
            self._store.compare_set(self._key, "", note)

    def find(self) -> tuple[int, str] | None:
        """Finds the process that has left first, and its error."""
        with contextlib.suppress(RuntimeError):  # as above
            if self._store.check([self._key]):
                rank, _, error = self._store.get(self._key).decode().partition(" ")
                return int(rank), error
        return None


def check_launch(num_processes: int, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses to train in fewer processes than a launcher asked for.

    Raises:
        ConfigError: says how many there are, and how to start several.
    """
    counts = (environment.get(name, "") for name in _COUNTS)
    asked = max((int(count) for count in counts if count.isdigit()), default=1)
    # What `accelerate launch` sets for several processes, although it starts one.
    is_alone = "ACCELERATE_USE_CPU" in environment and "MASTER_ADDR" in environment
    if num_processes >= asked and not (num_processes == 1 and is_alone):
        return
    wanted = str(asked) if asked > 1 else "more than one"
    number = str(asked) if asked > 1 else "N"
    raise ConfigError(
        f"The launcher asked for {wanted} processes, but they do not train together: this one "
        f"is alone among `{num_processes}`. Start them by `torchrun --nproc-per-node {number} -m "
        "tessella fit …` (docs/how-to/distributed.md)."
    )


def join_again(
    device: torch.device, timeout: timedelta, environment: Mapping[str, str] = os.environ
) -> None:
    """Lets processes that torchrun has started anew find each other; otherwise does nothing.

    torchrun keeps the store in which they leave their addresses, and those of the processes that
    died are still there (torch 2.13): each start needs names of its own in it.
    """
    count = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    is_kept = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if count == "0" or not is_kept or torch.distributed.is_initialized():
        return
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    address = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        *address, is_master=False, timeout=timeout
    )
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=torch.distributed.PrefixStore(  # type: ignore[attr-defined]
            f"tessella-{count}-{size}", store
        ),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )


def leave_device(device: torch.device) -> None:
    """Lets a program that has trained before, or used accelerate itself, train on this device.

    Accelerate keeps one state for the whole process, the device included: the next run would take
    the old device without a word, or fail.

    Raises:
        ConfigError: the processes of a distributed run cannot change theirs.
    """
    if not PartialState._shared_state:
        return
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)
    elif PartialState().device.type != device.type:
        raise ConfigError(
            f"Processes that train together stay on their device: `{device.type}` after "
            f"`{PartialState().device.type}`. Train on the other one in another program."
        )


def find_peers(accelerator: Accelerator) -> Peers:
    """Asks all processes who they are; every process must call it."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    own = Peer(socket.gethostname(), os.getpid(), name), secrets.token_hex(8)
    all_peers, calls = zip(*gather_object([own]), strict=True)
    notes = None
    if accelerator.num_processes > 1:
        store = torch.distributed.distributed_c10d._get_default_store()
        if hasattr(store, "clone"):  # older versions of torch have one connection
            store = store.clone()
        notes = Notes(store, calls[0])
    return Peers(all_peers, accelerator.process_index, notes)


@contextlib.contextmanager
def watch_peers(
    peers: Peers, end: Callable[[int], object] = os._exit, *, patience: float = _SECONDS_TO_EXPLAIN
) -> Iterator[None]:
    """Ends this process soon after another one has, or has left this block by an error.

    The first is seen of those of its host, the second of all, and the error is said. A collective
    operation that waits for such a process may wait for hours, and can't be interrupted: so a
    thread looks, and ends the process if the main thread does not get to it.

    Args:
        peers: all processes.
        end: ends the process, with a status.
        patience: seconds that the main thread has to find out by itself.

    Raises:
        TessellaError: an operation failed because another process has left; says which.
    """
    visible = peers.find_gone() is None
    if len(peers.all) == 1 or not (visible or peers.notes):
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            missing = peers.say_missing(visible=visible)
            if missing is not None and not over.wait(patience):
                print(missing, file=sys.stderr, flush=True)  # noqa: T201
                end(1)
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    except (Interrupted, TrainingStopped):
        raise  # all stop after the same step, and some need longer to tidy up
    except BaseException as error:
        is_broken = visible and isinstance(error, RuntimeError) and _is_broken(error)
        missing = _wait_until_missing(peers) if is_broken else None
        told = error if missing is None else TessellaError(missing)
        if peers.notes is not None:
            peers.notes.leave(peers.rank, told)
        if told is error:
            raise
        raise told from error
    finally:
        over.set()


def leave_peers() -> None:
    """Parts from the other processes at the end of the program; torch warns if nobody does."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return not torch.distributed.is_available() or (
        not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    )


def _is_broken(error: RuntimeError) -> bool:
    """Whether an error may come from a connection that was cut off."""
    return isinstance(error, torch.distributed.DistError) or bool(_BROKEN.search(str(error)))


def _wait_until_missing(peers: Peers) -> str | None:
    """Waits a moment until it is seen whose connection broke; None if all are here and live."""
    began = time.monotonic()
    while (missing := peers.say_missing()) is None and time.monotonic() - began < 2:
        time.sleep(0.05)
    are_here = len({peer.host for peer in peers.all}) == 1
    return missing or (None if are_here else peers.say_gone(None))


def _is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended may still be listed, until its parent asks."""
    if sys.platform == "win32":
        return True  # there a signal of 0 is not a question
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return state.rpartition(")")[2].split()[0] not in ("Z", "X")
    return True
