"""Arrays in a safetensors file: written one by one, read as memory maps.

A process holds only what it looks at, in writing too. Source: the format as safetensors documents
it, 8 bytes for the length of a JSON header, the header, the arrays.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessella.errors import CheckpointError

_TYPES = {"U8": "<u1", "U16": "<u2", "I32": "<i4", "I64": "<i8", "F32": "<f4"}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}

Arrays = Mapping[str, npt.NDArray[Any]]


def write_arrays(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Writes arrays of uint8, uint16, int32, int64 and float32, and text for the file's header.

    Raises:
        OSError: it cannot be written.
    """
    names = sorted(arrays, key=lambda name: -arrays[name].itemsize)  # so that each is aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        array, begin = arrays[name], end
        end += array.nbytes
        kind, shape = _NAMES[array.dtype], list(array.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name]).data)


def map_arrays(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Maps the arrays of a file, all of one moment even if it is replaced meanwhile.

    Returns:
        The arrays by name, read only, and the text of the file's header.

    Raises:
        CheckpointError: the file is missing, damaged or not a safetensors file, or has tensors of
            other types than `write_arrays` writes.
    """
    try:
        data = map_bytes(path)
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        if not 8 < start <= len(data):
            raise ValueError("its header is cut off")
        header = json.loads(data[8:start].tobytes())
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if end > len(data) - start:
                raise ValueError(f"`{name}` is cut off")
            values = data[start + begin : start + end].view(_TYPES[entry["dtype"]])
            arrays[name] = values.reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"Cannot read the tensors: `{path}`; {error}. "
            "The file is missing or damaged: copy or train it again."
        ) from error
    return arrays, metadata


def map_bytes(path: Path) -> npt.NDArray[np.uint8]:
    """Maps a file as (N,) uint8, read only.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return np.zeros(0, np.uint8)  # an empty file cannot be mapped
        # As a plain array: every slice of a memmap carries its overhead along.
        return np.asarray(np.memmap(file, np.uint8, "r"))
