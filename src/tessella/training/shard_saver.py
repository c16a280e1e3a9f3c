"""Saving a sharded run while it goes on: all processes write, the first one proves and renames.

A save copies each process's part into the CPU's memory and returns; threads do the rest. Each
process writes its rows and hashes its files. Once all have, the first one writes the record with
the checksums, and flushes, renames and tidies up as for any checkpoint (`checkpoint.py`). Until
then the checkpoint has no name, so that a process that dies leaves the last good one.
"""

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed
from torch import Tensor

from tessella.errors import CheckpointError
from tessella.training import checkpoint, shard_files
from tessella.training.checkpoint import FileProof


@dataclass(eq=False)
class ShardSaver:
    """Saves the checkpoints of a run that is spread over processes; each has one.

    Every process must call the same methods in the same order.
    """

    folder: Path  # of the checkpoints
    timeout: timedelta  # of waiting for the other processes
    _pending: "Future[None] | None" = None
    _group: "torch.distributed.ProcessGroup | None" = None  # of its own: its threads talk too
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def save(
        self, images_seen: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]
    ) -> None:
        """Begins to save, after the save before has ended; the tensors may change at once.

        Raises:
            CheckpointError: the save before failed, or this one cannot begin; in all processes.
        """
        self.wait()
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)
        rank = torch.distributed.get_rank()
        with contextlib.ExitStack() as stack:
            told: list[Any] = [None]
            if rank == 0:
                try:
                    new = checkpoint.new_checkpoint(self.folder, images_seen, info)
                    temporary, proofs = stack.enter_context(new)
                    told = [temporary]
                except CheckpointError as error:
                    told = [error]
            torch.distributed.broadcast_object_list(told, group=self._group)
            if isinstance(told[0], CheckpointError):
                raise told[0]
            written = shard_files.begin_writing(told[0], tensors, self._group)
            begun = stack.pop_all()
        own = proofs if rank == 0 else {}
        self._pending = self._thread.submit(self._finish, told[0], written, begun, own)

    def check(self) -> None:
        """Looks whether the last save has failed, without waiting for it.

        Raises:
            CheckpointError: it has.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    @property
    def is_saving(self) -> bool:
        """Whether the last save goes on."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Waits until the last save has ended.

        Raises:
            CheckpointError: it has failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the last save, whose failure is told elsewhere, and ends the thread."""
        with contextlib.suppress(Exception):
            self.wait()
        self._thread.shutdown()

    def _finish(
        self,
        folder: Path,
        written: "Future[Any]",
        begun: contextlib.ExitStack,
        proofs: dict[str, FileProof],
    ) -> None:
        """Waits until all have written; the first process then gives the checkpoint its name."""
        rank, group = torch.distributed.get_rank(), self._group
        found: list[Any] = [None] * torch.distributed.get_world_size()
        outcome: list[Any] = [None]
        torch.distributed.all_gather_object(found, _prove_own(folder, written, rank), group=group)
        if rank == 0:
            try:
                with begun:
                    for one in found:
                        if isinstance(one, BaseException):
                            raise one
                        proofs.update(one)
            except CheckpointError as error:
                outcome = [error]
            except Exception as error:  # noqa: BLE001 - the other processes wait for the outcome
                outcome = [CheckpointError(f"Cannot write the checkpoint: `{folder}`; {error}.")]
        torch.distributed.broadcast_object_list(outcome, group=group)
        if outcome[0] is not None:
            raise outcome[0]


def _prove_own(folder: Path, written: "Future[Any]", rank: int) -> dict[str, FileProof] | Exception:
    """Waits until all have written; hashes this process's files, or returns why it cannot."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        written.result()
        return {path.name: FileProof.of(path) for path in shard_files.list_own(folder, rank)}
    except CheckpointException as error:
        causes: list[BaseException] = [cause for cause, _ in error.failures.values()]
    except Exception as error:  # noqa: BLE001 - told to the first process, which raises it
        causes = [error]
    for cause in causes:
        if isinstance(cause, OSError):  # what is wrong with the disk, in the system's words
            return OSError(cause.errno, cause.strerror)
    return RuntimeError(f"{type(causes[0]).__name__}: {causes[0]}")
