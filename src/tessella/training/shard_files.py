"""The files of a sharded state: each process writes its rows, any number of processes reads them.

`torch.distributed.checkpoint` divides the work, with its safetensors format: each file holds rows
of tensors, and says in its header at which place they belong. Nothing is pickled. What every
process has, one of them writes.

Source: torch.distributed.checkpoint.HuggingFaceStorageWriter and -Reader.
"""

import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from tessella.errors import CheckpointError
from tessella.training.shards import count_holders

_FILE_BYTES = 256 * 2**20  # of a process; what is being written lies in memory a second time


def begin_writing(
    folder: Path, tensors: Mapping[str, Tensor], group: "torch.distributed.ProcessGroup"
) -> "Future[Any]":
    """Copies this process's rows into the CPU's memory and begins to write them from there.

    Args:
        folder: an empty one, the same in every process.
        tensors: the same names in every process.
        group: of CPU processes, which nobody else uses until the future is done.

    Returns:
        Done once all processes have written and flushed theirs.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save

    file_of, size, number = dict[str, int](), 0, 1
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.element_size() // count_holders(tensor)
        if size > _FILE_BYTES and file_of:
            size, number = 0, number + 1
        file_of[name] = number
    writer = HuggingFaceStorageWriter(str(folder), file_of, save_distributed=True)
    future = async_save(dict(tensors), storage_writer=writer, process_group=group)
    if not isinstance(future, Future):
        raise TypeError(f"torch returned a {type(future).__name__} in the place of a future.")
    return future


def list_own(folder: Path, rank: int) -> list[Path]:
    """Lists the files that a process has written."""
    return sorted(folder.glob(f"shard-{rank + 1:05d}-*"))


def create_like(folder: Path) -> dict[str, Tensor]:
    """Creates tensors on the meta device that have the names, shapes and dtypes of the files'.

    Raises:
        CheckpointError: a file cannot be read.
    """
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        kinds = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot read the checkpoint: `{folder}`; {error}. Restore it from a backup, or remove "
            "it to resume from the one before."
        ) from error
    return {
        name: torch.empty(kind.size, dtype=kind.properties.dtype, device="meta")  # type: ignore[union-attr]
        for name, kind in kinds.items()
    }


def read_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Reads into tensors that are there; of spread ones each process reads its own rows.

    Args:
        folder: of the files, or of one ordinary file of safetensors.
        tensors: all in the files; of the files' shapes.

    Raises:
        CheckpointError: the files cannot be read, or hold other tensors.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with warnings.catch_warnings():
            # That it reads without asking the others: each process does.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            reader = HuggingFaceStorageReader(str(folder))
            load(dict(tensors), storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        [(cause, _), *_] = error.failures.values()
        raise CheckpointError(
            f"Cannot read the checkpoint: `{folder}`; {cause}. Resume with the recipe that the run "
            "began with, and the version of tessella that wrote it or a newer one."
        ) from error
