"""Arrays in a safetensors file: written one by one, read as memory maps.

A process holds only what it looks at, in writing too. Source: the format as safetensors documents
it, 8 bytes for the length of a JSON header, the header, the arrays.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessella.checksums import map_bytes, map_file
from tessella.errors import CheckpointError
from tessella.untrusted import parse_json

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


def map_arrays(
    path: Path, *, is_proved: bool = True
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Maps the arrays of a file, all of one moment even if it is replaced meanwhile.

    Args:
        path: the file.
        is_proved: against the checksums of its folder, if there are some; it is read as a whole.

    Returns:
        The arrays by name, read only, and the text of the file's header.

    Raises:
        CheckpointError: the file is missing, damaged or not a safetensors file, or has tensors of
            other types than `write_arrays` writes.
    """
    try:
        data = map_file(path) if is_proved else map_bytes(path)
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        if not 8 < start <= len(data):
            raise ValueError("its header is cut off")
        header = parse_json(data[8:start].tobytes())
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its header holds something other than text")
        arrays = {name: _view(data[start:], name, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"Cannot read the tensors: `{path}`; {error}. "
            "The file is missing or damaged: copy or train it again."
        ) from error
    return arrays, metadata


def _view(data: npt.NDArray[np.uint8], name: str, entry: Any) -> npt.NDArray[Any]:
    """Views a part of a file's data as the array that the header describes.

    Raises:
        ValueError: it does not lie in the data, or is not as large as its shape.
        KeyError: the header does not describe it, or it is of another type.
        TypeError: the header does not describe it.
    """
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    kind = np.dtype(_TYPES[entry["dtype"]])
    if not all(isinstance(one, int) and one >= 0 for one in (begin, end, *shape)):
        raise ValueError(f"`{name}` has a shape or place that is no whole number")
    if not begin <= end <= len(data):
        raise ValueError(f"`{name}` is cut off")
    if math.prod(shape) * kind.itemsize != end - begin:
        raise ValueError(f"`{name}` is not as large as its shape says")
    return data[begin:end].view(kind).reshape(shape)
