"""Reads a safetensors file as memory maps: only what is looked at is read from the disk."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessella.errors import CheckpointError

_NUMPY_TYPES = {"U8": "<u1", "U16": "<u2", "I32": "<i4", "I64": "<i8", "F32": "<f4"}


def map_tensors(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Maps the tensors of a safetensors file as arrays: only what is looked at is read.

    Returns:
        The arrays by name, read only, and the text of the file's header.

    Raises:
        CheckpointError: the file is missing, damaged or not a safetensors file, or has tensors of
            other types than uint8, uint16, int32, int64 and float32.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, entry in header.items():
            dtype = np.dtype(_NUMPY_TYPES[entry["dtype"]])
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"the size of `{name}` is wrong")
            if end == begin:
                arrays[name] = np.zeros(shape, dtype)
                continue
            offset = 8 + length + begin
            # As a plain array: every slice of a memmap carries its overhead along.
            arrays[name] = np.asarray(np.memmap(path, dtype, "r", offset, shape))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"Cannot read the tensors: `{path}`; {error}. "
            "The file is missing or damaged: copy or train it again."
        ) from error
    return arrays, metadata
