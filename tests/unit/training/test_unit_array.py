"""Arrays that are computed in units: a kill costs one of them, a change those that it concerns."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tessella.errors import CheckpointError
from tessella.training import unit_array
from tessella.training.unit_array import ArrayUnit, cached_in_units

UNITS = [ArrayUnit(f"key {start}", start, start + 10) for start in range(0, 50, 10)]


class Made:
    """Computes an array of 2×N×3; dies at a unit, if asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.filled: list[str] = []

    def __call__(
        self, units: list[ArrayUnit] = UNITS, dies_at: int | None = None, made_from: str = "this"
    ) -> npt.NDArray[np.uint16]:
        def fill(columns: npt.NDArray[np.uint16], unit: ArrayUnit) -> None:
            if len(self.filled) == dies_at:
                raise KeyboardInterrupt
            self.filled.append(unit.key)
            columns[:] = int(unit.key.split()[1]) + np.arange(10)[None, :, None]

        self.filled.clear()
        shape = (2, 10 * len(units), 3)
        facts = {"from": made_from}
        return cached_in_units(self.path, facts, np.uint16, shape, units, fill, what="the codes")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "codes" / "train.npy")


def names(made: Made) -> set[str]:
    return {path.name for path in made.path.parent.iterdir()}


FINISHED = {"train.npy", "train.json", "train.units.jsonl"}


def test_it_is_computed_once_and_read_only(made: Made) -> None:
    array = made()
    assert np.array_equal(array, np.tile(np.arange(50)[None, :, None], (2, 1, 3)))
    assert not array.flags.writeable and names(made) == FINISHED
    assert np.array_equal(made(), array) and not made.filled


def test_an_attempt_that_dies_loses_one_unit(made: Made) -> None:
    with pytest.raises(KeyboardInterrupt):
        made(dies_at=0)
    assert not names(made)
    for number in (2, 2):
        with pytest.raises(KeyboardInterrupt):
            made(dies_at=number)
        assert not made.path.exists()
    array = made()
    assert made.filled == ["key 40"]
    assert np.array_equal(array[1, :, 2], np.arange(50)) and names(made) == FINISHED


def test_a_note_that_was_cut_off_says_nothing(made: Made) -> None:
    with pytest.raises(KeyboardInterrupt):
        made(dies_at=3)
    [journal] = made.path.parent.glob(".*.jsonl")
    journal.write_bytes(journal.read_bytes()[:-5])
    array = made()
    assert made.filled == ["key 20", "key 30", "key 40"]
    assert np.array_equal(array[0, :, 0], np.arange(50))


@pytest.mark.parametrize("gone", ["train.json", "both notes", "the units' name"])
def test_a_kill_between_the_last_names_costs_nothing(made: Made, gone: str) -> None:
    made()
    if gone != "the units' name":
        (made.path.parent / "train.json").unlink()
    if gone != "train.json":  # of the units too, which has its old name still
        (made.path.parent / "train.units.jsonl").rename(
            made.path.parent / ".train.partial.units.jsonl"
        )
        array = made()
        assert not made.filled
    else:
        array = made()
    assert np.array_equal(array[0, :, 0], np.arange(50)) and names(made) == FINISHED


def test_units_that_are_the_same_are_copied(made: Made) -> None:
    """In front, in another place, behind; of another length, never."""
    made()
    moved = [ArrayUnit("key 100", 0, 10)]
    moved += [ArrayUnit(unit.key, unit.start + 10, unit.end + 10) for unit in UNITS]
    array = made(moved, made_from="more")
    assert made.filled == ["key 100"]
    assert array[0, :, 0].tolist() == [*range(100, 110), *range(50)]
    array = made([ArrayUnit("key 0", 0, 10), ArrayUnit("key 200", 10, 20)], made_from="less")
    assert made.filled == ["key 200"]
    assert array[1, :, 1].tolist() == [*range(10), *range(200, 210)]
    assert names(made) == FINISHED


def test_an_attempt_of_another_shape_is_not_gone_on_with(made: Made) -> None:
    with pytest.raises(KeyboardInterrupt):
        made(dies_at=3)
    array = made(UNITS[:2], made_from="less")
    assert made.filled == ["key 0", "key 10"] and array.shape == (2, 20, 3)
    assert names(made) == FINISHED


def test_an_attempt_with_other_contents_is_not_trusted(made: Made) -> None:
    with pytest.raises(KeyboardInterrupt):
        made(dies_at=3)
    others = [ArrayUnit(f"key {u.start + 7}", u.start, u.end) for u in UNITS]
    array = made(others)
    assert len(made.filled) == 5 and array[0, 0, 0] == 7


def test_a_full_disk_is_told_before_anything_is_computed(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(unit_array.os, "posix_fallocate", full, raising=False)
    message = r"Cannot write the codes: `.*train.npy` \(No space left on device\).*free some space"
    with pytest.raises(CheckpointError, match=message):
        made()
    assert not made.filled and not names(made)
