"""What a launcher brought up: how many processes, where they are, and whether they still live.

torchrun, accelerate, SLURM and MPI start the processes; accelerate lets them find each other. A
process that dies takes the others with it: they would wait for it in the next step.
"""

import contextlib
import os
import re
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
        who = "Another process"
        if rank is not None:
            who = f"Process {rank} of {len(self.all)} (PID {self.all[rank].pid})"
        return (
            f"{who} has ended, and process {self.rank} can't go on without it. Its own message is "
            "above, if it left one. Run the same command again to resume from the last checkpoint."
        )


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
    own = Peer(socket.gethostname(), os.getpid(), name)
    return Peers(gather_object([own]), accelerator.process_index)


@contextlib.contextmanager
def watch_peers(
    peers: Peers, end: Callable[[int], object] = os._exit, *, patience: float = _SECONDS_TO_EXPLAIN
) -> Iterator[None]:
    """Ends this process soon after another one of its host has ended, and says which.

    A collective operation that waits for a dead process may wait for hours, and can't be
    interrupted: so a thread looks, and ends the process if the main thread does not get to it.

    Args:
        peers: all processes.
        end: ends the process, with a status.
        patience: seconds that the main thread has to find out by itself.

    Raises:
        TessellaError: an operation failed because another process has ended; says which.
    """
    if len(peers.all) == 1 or peers.find_gone() is not None:  # not to be seen from here
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            gone = peers.find_gone()
            if gone is not None and not over.wait(patience):
                print(peers.say_gone(gone), file=sys.stderr, flush=True)  # noqa: T201
                end(1)
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if not _is_broken(error):
            raise
        raise TessellaError(peers.say_gone(_wait_until_gone(peers))) from error
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


def _wait_until_gone(peers: Peers) -> int | None:
    """Waits a moment for the process whose connection broke to have ended; None if it lives."""
    began = time.monotonic()
    while (gone := peers.find_gone()) is None and time.monotonic() - began < 2:
        time.sleep(0.05)
    return gone


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
