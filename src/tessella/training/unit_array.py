"""Arrays in a file that are computed in units: what a kill leaves of them is not lost.

    .NAME.partial.npy ─ unit after unit, noted in .NAME.partial.units.jsonl ─▶ NAME.npy, NAME.json

A unit is noted when it is on the disk, with a key of everything that it was made from. So the next
attempt goes on with the first one that is missing; and of an older finished array the units with
the same keys are copied, wherever they stood.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tessella.files import explained, is_cached, write_json

N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True)
class ArrayUnit:
    """Columns of an array that are computed together."""

    key: str  # of everything that they are made from
    start: int
    end: int

    def __len__(self) -> int:
        """Returns the number of columns."""
        return self.end - self.start


def cached_in_units(
    path: Path,
    made_from: Mapping[str, Any],
    dtype: type[N],
    shape: tuple[int, ...],
    units: Sequence[ArrayUnit],
    fill: Callable[[npt.NDArray[N], ArrayUnit], None],
    *,
    what: str,
    known: Path | None = None,
) -> npt.NDArray[N]:
    """Computes an array into a file, unless it is there already; memory-maps it, read only.

    Args:
        path: the `.npy` file; a `.json` beside it notes what it was made from.
        made_from: plain JSON values that identify everything the array depends on.
        dtype: of the array.
        shape: of the array; its second axis is cut into units.
        units: of all columns, in their order.
        fill: computes a unit into the columns that it is given.
        what: what the file is, for the message.
        known: such a file elsewhere, whose units are copied where they are the same.

    Raises:
        CheckpointError: the file cannot be written.
    """
    partial = path.with_name(f".{path.stem}.partial.npy")
    if not is_cached(path, made_from):
        with explained(path, what):
            path.parent.mkdir(parents=True, exist_ok=True)
            _build(path, partial, dtype, shape, units, fill, known)
            # A note goes first and comes last: a file without one is not trusted.
            path.with_suffix(".json").unlink(missing_ok=True)
            if partial.exists():
                partial.replace(path)
            write_json(path.with_suffix(".json"), made_from, what=what)
    if _journal(partial).exists() and not partial.exists():  # it speaks of the finished array
        with explained(path, what):
            _journal(partial).replace(_journal(path))
    for leftover in (partial, _journal(partial)):  # of an attempt with other settings
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)
    array: npt.NDArray[N] = np.load(path, mmap_mode="r")
    return array


def _build(
    path: Path,
    partial: Path,
    dtype: type[N],
    shape: tuple[int, ...],
    units: Sequence[ArrayUnit],
    fill: Callable[[npt.NDArray[N], ArrayUnit], None],
    known: Path | None,
) -> None:
    """Computes what is missing."""
    journal = _journal(partial)
    is_complete = journal.exists() and set(_read(journal)).issuperset(units)
    if is_complete and not partial.exists() and _open(path, dtype, shape) is not None:
        return  # it has its name already: a kill came before its note
    try:
        _compute(path, partial, dtype, shape, units, fill, known)
    except BaseException:
        if not _read(journal):  # nothing is worth keeping
            for file in (journal, partial):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
        raise


def _compute(
    path: Path,
    partial: Path,
    dtype: type[N],
    shape: tuple[int, ...],
    units: Sequence[ArrayUnit],
    fill: Callable[[npt.NDArray[N], ArrayUnit], None],
    known: Path | None,
) -> None:
    """Computes the units that are missing, and notes each when it is on the disk."""
    journal = _journal(partial)
    array = _open(partial, dtype, shape) if journal.exists() else None
    if array is None:
        journal.unlink(missing_ok=True)  # first: it must not speak of another file
        array = _create(partial, dtype, shape)
    done = set(_read(journal))
    older = [_Older(one, dtype, shape) for one in (path, known) if one is not None]
    with journal.open("ab") as notes:
        notes.write(b"\n")  # ends a line that a kill cut off
        for unit in units:
            if unit in done:
                continue
            columns = array[:, unit.start : unit.end]
            if not any(one.copy(unit, columns) for one in older):
                fill(columns, unit)
            array.flush()
            notes.write(json.dumps(asdict(unit)).encode() + b"\n")
            notes.flush()
            os.fsync(notes.fileno())
    array.flush()


class _Older:
    """A finished array that was made from other things: some units may be the same."""

    def __init__(self, path: Path, dtype: type[Any], shape: tuple[int, ...]) -> None:
        self._units: dict[str, ArrayUnit] = {}
        self._array = None
        if path.with_suffix(".json").exists() and path.exists():
            self._array = _map(path, "r")
        if self._array is not None and self._is_like(self._array, dtype, shape):
            ends = self._array.shape[1]
            self._units = {u.key: u for u in _read(_journal(path)) if u.end <= ends}

    @staticmethod
    def _is_like(array: npt.NDArray[Any], dtype: type[Any], shape: tuple[int, ...]) -> bool:
        same = array.ndim == len(shape) and array.dtype == dtype
        return same and (array.shape[0], *array.shape[2:]) == (shape[0], *shape[2:])

    def copy(self, unit: ArrayUnit, columns: npt.NDArray[Any]) -> bool:
        """Copies a unit, if it is there; returns whether it was."""
        known = self._units.get(unit.key)
        if self._array is None or known is None or len(known) != len(unit):
            return False
        columns[:] = self._array[:, known.start : known.end]
        return True


def _journal(path: Path) -> Path:
    """Returns where the units of an array are noted."""
    return path.with_suffix(".units.jsonl")


def _read(journal: Path) -> list[ArrayUnit]:
    """Reads which units are done; a line that a kill cut off says nothing."""
    units = []
    with contextlib.suppress(OSError):
        for line in journal.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                units.append(ArrayUnit(**json.loads(line)))
    return units


def _map(path: Path, mode: str) -> npt.NDArray[Any] | None:
    """Maps an array; None if it is damaged."""
    try:
        mapped: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode)
        return mapped
    except (OSError, ValueError):
        return None


def _open(path: Path, dtype: type[N], shape: tuple[int, ...]) -> np.memmap[Any, Any] | None:
    """Opens what an earlier attempt left, if it is of the same shape."""
    array = _map(path, "r+")
    is_same = isinstance(array, np.memmap) and array.dtype == dtype and array.shape == shape
    return array if is_same else None  # type: ignore[return-value]


def _create(path: Path, dtype: type[N], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Creates a file and takes all of its space: a full disk would kill a write to mapped memory.

    Raises:
        OSError: the space is not there.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
    return array
