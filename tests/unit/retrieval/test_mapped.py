"""Arrays in a file: as safetensors itself reads and writes them, and damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from tessella.errors import CheckpointError
from tessella.retrieval.mapped import map_arrays, write_arrays

ARRAYS = {
    "odd": np.arange(3, dtype=np.uint8),
    "codes": np.arange(24, dtype=np.uint16).reshape(2, 3, 4),
    "ends": np.array([-1, 2**40], np.int64),
    "numbers": np.arange(-2, 3, dtype=np.int32),
    "worth": np.array([[0.5], [-0.25]], np.float32),
    "none": np.zeros((0, 4, 4), np.uint16),
}


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.safetensors", ARRAYS, {"format": "1"})
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "1"}
        assert set(file.keys()) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert file.get_tensor(name).dtype == array.dtype
            assert np.array_equal(file.get_tensor(name), array)


def test_what_safetensors_writes_is_mapped(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "a.safetensors", {"by": "safetensors"})
    arrays, metadata = map_arrays(tmp_path / "a.safetensors")
    assert metadata == {"by": "safetensors"}
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
        assert not arrays[name].flags.writeable or not array.size


def test_parts_of_arrays_are_written_in_order(tmp_path: Path) -> None:
    """A slice with gaps, and one that is itself mapped."""
    codes = ARRAYS["codes"].repeat(2, axis=2)[:, :, ::2]
    write_arrays(tmp_path / "a.safetensors", {"codes": codes}, {})
    mapped = map_arrays(tmp_path / "a.safetensors")[0]["codes"]
    write_arrays(tmp_path / "b.safetensors", {"codes": mapped[1:]}, {})
    assert np.array_equal(mapped, ARRAYS["codes"])
    again = map_arrays(tmp_path / "b.safetensors")[0]["codes"]
    assert np.array_equal(again, ARRAYS["codes"][1:])


def test_what_is_mapped_stays_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"a": np.zeros(5000, np.int32)}, {})
    arrays, _ = map_arrays(path)
    write_arrays(tmp_path / "new", {"a": np.ones(5000, np.int32)}, {})
    (tmp_path / "new").replace(path)
    assert not arrays["a"].any()
    assert map_arrays(path)[0]["a"].all()


@pytest.mark.parametrize("length", [0, 5, 8, 60, -1])
def test_a_cut_off_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, ARRAYS, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=rf"Cannot read the tensors: `{path}`; .*damaged"):
        map_arrays(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot read the tensors: `.*`; .*No such file"):
        map_arrays(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        "no JSON",
        "[]",
        '{"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "U8", "shape": [5], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "U8", "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}',
        '{"a": 1}',
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.safetensors"
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match="missing or damaged"):
        map_arrays(path)


def test_the_header_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"a": ARRAYS["odd"], "b": ARRAYS["ends"]}, {"x": "y"})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert [header[name]["data_offsets"] for name in "ab"] == [[16, 19], [0, 16]]
