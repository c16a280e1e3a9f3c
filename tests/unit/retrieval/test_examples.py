"""The memory in its files: what comes back, and what is damaged, foreign or being replaced."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tessella.checksums import SUMS_FILE, read_sums, write_sums
from tessella.errors import CheckpointError
from tessella.retrieval import ExampleMemory
from tessella.retrieval import examples as examples_module
from tessella.retrieval.examples import (
    EXAMPLES_FILE,
    ROWS_FILE,
    ExampleRow,
    remove_memory,
)
from tessella.retrieval.mapped import map_arrays, write_arrays

ROWS = [
    ExampleRow("pics/a.png", ["a red star", "large star"]),
    ExampleRow("pics/b.png", ["a blue ring"]),
    ExampleRow("pics/nothing.png", []),
    ExampleRow("pics/黑猫 \udce9.png", ["黑猫", 'a red cat, „quoted"\\n']),
]
OLD = "examples.old.jsonl"
ENDS = np.array([50, 100, 150, 200], np.int64)


def create_memory(
    rows: list[ExampleRow] = ROWS, seed: int = 0, num_codes: int = 1
) -> ExampleMemory:
    size = (len(rows), num_codes, 4, 4)
    codes = np.random.default_rng(seed).integers(512, size=size).astype(np.uint16)
    return ExampleMemory.build(codes, rows, "the tokenizer's hash")


def open_memory(folder: Path) -> ExampleMemory:
    memory = ExampleMemory.open(folder)
    assert memory is not None
    return memory


def assert_same(first: ExampleMemory, second: ExampleMemory) -> None:
    assert list(first.rows) == list(second.rows)
    assert first.tokenizer == second.tokenizer
    assert first.index.words == second.index.words
    arrays = [
        (one.codes, one.example_of, one.index.offsets, one.index.captions, one.index.scores)
        for one in (first, second)
    ]
    for a, b in zip(*arrays, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


@pytest.mark.parametrize("num_codes", [1, 2])
def test_what_is_written_comes_back_and_is_mapped(num_codes: int, tmp_path: Path) -> None:
    memory = create_memory(num_codes=num_codes)
    memory.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ROWS_FILE, EXAMPLES_FILE]
    again = open_memory(tmp_path)
    assert_same(memory, again)
    assert again.codes.shape == (4, num_codes, 4, 4)
    assert not again.codes.flags.writeable
    assert not again.codes.flags.owndata
    assert len((tmp_path / ROWS_FILE).read_bytes().splitlines()) == len(ROWS)
    # The same memory gives the same files, bit for bit.
    (tmp_path / "other").mkdir()
    again.write(tmp_path / "other")
    for name in (ROWS_FILE, EXAMPLES_FILE):
        assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_an_empty_memory(tmp_path: Path) -> None:
    memory = create_memory([])
    memory.write(tmp_path)
    again = open_memory(tmp_path)
    assert (len(again), list(again.rows), again.codes.shape) == (0, [], (0, 1, 4, 4))
    assert again.find("a red star", 3) == []


def test_examples_are_found_by_one_of_their_captions(tmp_path: Path) -> None:
    create_memory().write(tmp_path)
    memory = open_memory(tmp_path)
    [star, cat] = memory.find("a large red star, a cat", 2)
    assert (star.index, star.name, star.caption) == (0, "pics/a.png", "large star")
    assert (cat.index, cat.caption) == (3, ROWS[3].captions[1])
    assert np.array_equal(star.codes, memory.codes[0])
    assert [one.index for one in memory.find("star cat", 2, excluded=[0, 1])] == [3]
    assert [one.index for one in memory.find("猫", 2)] == [3]
    assert memory.find("a zebra's", 2, excluded=[0, 1, 3]) == []
    assert memory.find("star", 0) == []


def test_examples_of_before_have_one_code_a_position(tmp_path: Path) -> None:
    """Their codes are (E, h, w)."""
    memory = create_memory()
    memory.write(tmp_path)
    change(tmp_path, codes=memory.codes[:, 0])
    assert_same(open_memory(tmp_path), memory)
    open_memory(tmp_path).write(tmp_path)
    assert map_arrays(tmp_path / EXAMPLES_FILE)[0]["codes"].shape == (4, 1, 4, 4)
    assert_same(open_memory(tmp_path), memory)


def test_a_folder_without_a_memory(tmp_path: Path) -> None:
    assert ExampleMemory.open(tmp_path) is None
    remove_memory(tmp_path)
    create_memory().write(tmp_path)
    remove_memory(tmp_path)
    assert ExampleMemory.open(tmp_path) is None
    assert not list(tmp_path.iterdir())


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / ROWS_FILE).unlink(), "captions .* missing, damaged or those of others"),
        (lambda f: cut(f / ROWS_FILE, -1), "captions .* missing, damaged or those of others"),
        (lambda f: cut(f / ROWS_FILE, 0), "captions .* missing, damaged or those of others"),
        (lambda f: cut(f / EXAMPLES_FILE, -1), "Cannot read the tensors: .*cut off"),
        (lambda f: cut(f / EXAMPLES_FILE, 0), "Cannot read the tensors"),
        (lambda f: change(f, metadata={"format": "7"}), "have format `7`; this tessella reads 1"),
        (lambda f: change(f, metadata={"format": None}), "The examples are damaged: `.*"),
        (lambda f: change(f, metadata={"tokenizer": None}), "The examples are damaged: `.*"),
        (lambda f: change(f, codes=np.zeros((3, 1, 4, 4), np.uint16)), "The examples are damaged"),
        (lambda f: change(f, codes=np.zeros((4, 16), np.uint16)), "The examples are damaged"),
        (lambda f: change(f, words=np.array([255], np.uint8)), "The examples are damaged"),
        (lambda f: change(f, word_offsets=np.zeros(2, np.int64)), "The examples are damaged"),
        (lambda f: change(f, posting_scores=np.zeros(2, np.float32)), "The examples are damaged"),
        (lambda f: change(f, example_of=None), "The examples are damaged"),
        (lambda f: change(f, row_ends=ENDS + 10**9), "The examples are damaged"),
        (lambda f: change(f, row_ends=ENDS[::-1]), "The examples are damaged"),
        (lambda f: change(f, row_ends=ENDS - 10**9), "The examples are damaged"),
        (lambda f: change(f, example_of=np.array([0, 0, 1, 3, 4], "i4")), "The examples are dam"),
        (lambda f: change(f, example_of=np.array([0, 1, 0, 3, 3], "i4")), "The examples are dam"),
        (lambda f: change_array(f, "posting_captions", -1, 99), "The examples are damaged"),
        (lambda f: change_array(f, "posting_captions", 0, -1), "The examples are damaged"),
        (lambda f: change_array(f, "posting_scores", 0, np.nan), "The examples are damaged"),
        (lambda f: change_array(f, "word_offsets", 1, 9_999), "The examples are damaged"),
        (lambda f: change_array(f, "word_offsets", 1, 0), "The examples are damaged"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    create_memory().write(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        ExampleMemory.open(tmp_path)


def change(
    folder: Path, metadata: dict[str, str | None] | None = None, **arrays: np.ndarray | None
) -> None:
    """Replaces parts of the file of arrays; None takes one out."""
    old, said = map_arrays(folder / EXAMPLES_FILE)
    new = {name: array for name, array in (old | arrays).items() if array is not None}
    says = {name: text for name, text in (said | (metadata or {})).items() if text is not None}
    write_arrays(folder / "changed", new, says)
    (folder / "changed").replace(folder / EXAMPLES_FILE)


def change_array(folder: Path, name: str, place: int, value: float) -> None:
    array = map_arrays(folder / EXAMPLES_FILE)[0][name].copy()
    array[place] = value
    change(folder, **{name: array})


def test_the_captions_of_another_memory_are_refused(tmp_path: Path) -> None:
    """As many bytes: only their hash tells."""
    create_memory().write(tmp_path)
    path = tmp_path / ROWS_FILE
    path.write_bytes(path.read_bytes().replace(b"red star", b"red ring"))
    with pytest.raises(CheckpointError, match=f"those of others: `{path}`. Copy the whole"):
        ExampleMemory.open(tmp_path)


def test_a_line_that_ends_elsewhere_is_refused(tmp_path: Path) -> None:
    create_memory().write(tmp_path)
    ends = map_arrays(tmp_path / EXAMPLES_FILE)[0]["row_ends"] - 2  # within the line
    change(tmp_path, row_ends=ends)
    memory = open_memory(tmp_path)
    with pytest.raises(CheckpointError, match="example `0` has no captions"):
        memory.find("star", 1)


def test_captions_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    create_memory().write(tmp_path)
    (tmp_path / ROWS_FILE).unlink()
    (tmp_path / ROWS_FILE).mkdir()
    with pytest.raises(CheckpointError, match="Something in the model folder is no plain file: `"):
        ExampleMemory.open(tmp_path)


# Replacing: after each step of a write the process is killed.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a killed process is a fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("step", range(5))
def test_a_killed_write_leaves_the_old_memory_or_the_new(tmp_path: Path, step: int) -> None:
    old, new = create_memory(), create_memory([ROWS[3], ROWS[0]], seed=1)
    old.write(tmp_path)
    child = os.fork()
    if not child:
        die_at_rename(step)
        new.write(tmp_path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = open_memory(tmp_path)
    is_done = step >= 3
    assert (os.waitstatus_to_exitcode(status) == 0) == (step >= 4)
    assert_same(found, new if is_done else old)
    # The next one is written as if nothing had been, from the one that was found.
    third = ExampleMemory.build(found.codes[:1], list(found.rows)[:1], "third")
    third.write(tmp_path)
    assert_same(open_memory(tmp_path), third)
    assert not (tmp_path / OLD).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a killed process is a fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("is_removed", [False, True])
@pytest.mark.parametrize("step", range(8))
def test_a_killed_change_leaves_files_that_are_proved(
    tmp_path: Path, step: int, is_removed: bool
) -> None:
    """The sums of a model folder are right at every moment, for the old memory or the new one."""
    old, new = create_memory(), create_memory([ROWS[3], ROWS[0]], seed=1)
    old.write(tmp_path)
    write_sums(tmp_path)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            die_at_rename(step)
            remove_memory(tmp_path) if is_removed else new.write(tmp_path)
            os._exit(0)
        os._exit(8)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    found = ExampleMemory.open(tmp_path)
    if os.waitstatus_to_exitcode(status) == 0:
        assert step >= 4
        assert (found is None) == is_removed
    if found is None:
        assert is_removed
    else:
        assert_same(found, old if found.codes.shape == old.codes.shape else new)
    new.write(tmp_path)
    assert_same(open_memory(tmp_path), new)
    names = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".tmp")]
    assert sorted(names) == [SUMS_FILE, ROWS_FILE, EXAMPLES_FILE]
    assert all(len(sums) == 1 for sums in (read_sums(tmp_path) or {}).values())


def die_at_rename(step: int) -> None:
    """Kills this process instead of the rename or removal of that number."""
    done = 0

    def count(action: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            nonlocal done
            if done == step:
                os._exit(9)
            done += 1
            return action(*arguments, **options)

        return counted

    Path.replace = count(Path.replace)  # type: ignore[method-assign, assignment]
    Path.unlink = count(Path.unlink)  # type: ignore[method-assign, assignment]


def test_a_failed_write_leaves_the_old_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = create_memory()
    old.write(tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(examples_module, "write_arrays", fail)
        with pytest.raises(CheckpointError, match=r"Cannot write the examples: .*No space left"):
            create_memory([ROWS[0]]).write(tmp_path)
    assert_same(open_memory(tmp_path), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ROWS_FILE, EXAMPLES_FILE]


def test_a_memory_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has the old codes when the new pair takes its place: it reads again."""
    new = create_memory([ROWS[1]], seed=1)
    create_memory().write(tmp_path)
    actual, calls = map_arrays, []

    def replace_after_the_first(path: Path, *, is_proved: bool = True) -> object:
        mapped = actual(path, is_proved=is_proved)
        calls.append(path)
        if len(calls) == 1:
            new.write(tmp_path)
        return mapped

    monkeypatch.setattr(examples_module, "map_arrays", replace_after_the_first)
    assert_same(open_memory(tmp_path), new)
    assert len(calls) >= 2


def test_what_is_open_stays_while_it_is_replaced(tmp_path: Path) -> None:
    create_memory().write(tmp_path)
    before = open_memory(tmp_path)
    create_memory([ROWS[1]], seed=1).write(tmp_path)
    assert_same(before, create_memory())
    shutil.rmtree(tmp_path)
    assert before.find("cat", 1)[0].index == 3
