"""The examples of a served model: chosen for requests, and picked up when their files change."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.checksums import SUMS_FILE
from tessella.errors import CheckpointError, GenerationError
from tessella.model.pipeline import TextToImage
from tessella.retrieval import Example, ExampleMemory
from tessella.retrieval.examples import EXAMPLES_FILE, ROWS_FILE, ExampleRow
from tessella.serving.api_errors import ApiError
from tessella.serving.examples_served import ServedExamples
from tessella.serving.models_served import ServedModel
from untrained import create_memory, create_untrained, save_untrained

Found = tuple[Example, ...]


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return create_untrained(neighbors=2)


@pytest.fixture
def folder(tmp_path: Path, model: TextToImage) -> Path:
    return put(model, tmp_path / "album", ["a red star", "a blue moon", "a red moon"])


def put(model: TextToImage, folder: Path, captions: list[str]) -> Path:
    return save_untrained(model.with_parts(memory=create_memory(model, captions)), folder)


def names(found: Found) -> list[str]:
    return [one.name for one in found]


def errors(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelname == "ERROR" for record in caplog.records)


# What is chosen.


def test_the_prompts_examples(model: TextToImage, folder: Path) -> None:
    examples = ServedExamples(folder, model)
    assert (examples.most, len(examples)) == (2, 3)
    assert names(examples.find("a red star", None)) == ["0.png", "2.png"]
    assert names(examples.find("a red star", 1)) == ["0.png"]
    assert examples.find("a red star", 0) == ()


def test_pinned_ones_come_before_what_is_found_and_excluded_ones_never(
    model: TextToImage, folder: Path
) -> None:
    examples = ServedExamples(folder, model)
    assert names(examples.find("a red star", None, pinned=[1])) == ["1.png", "0.png"]
    assert names(examples.find("a red star", None, pinned=[0, 0])) == ["0.png", "2.png"]
    assert names(examples.find("a red star", 1, pinned=[1])) == ["1.png"]
    assert names(examples.find("a red star", None, excluded=[0])) == ["2.png", "1.png"]
    assert examples.find("a red star", None, excluded=[0, 1, 2]) == ()
    own = Example(np.zeros((1, 4, 4), np.uint16), "", "reference 1")
    assert names(examples.find("red", None, references=[own], pinned=[1])) == [
        "reference 1",
        "1.png",
    ]


def test_a_pinned_example_has_the_caption_that_it_is_found_by(
    model: TextToImage, tmp_path: Path
) -> None:
    """So that pinning what a picture looked at paints the same picture."""
    rows = [ExampleRow("a.png", ["a star", "a red dot"]), ExampleRow("b.png", [])]
    memory = ExampleMemory.build(
        np.zeros((2, 1, 4, 4), np.uint16), rows, model.tokenizer.hash_encoder()
    )
    folder = save_untrained(model.with_parts(memory=memory), tmp_path / "album")
    examples = ServedExamples(folder, model)
    [pinned] = examples.find("a red dot", None, pinned=[0])
    assert (pinned.caption, pinned.index) == ("a red dot", 0)
    assert examples.find("nothing", None, pinned=[0])[0].caption == "a star"
    assert examples.find("nothing", None, pinned=[1])[0].caption == ""
    assert examples.read(1).name == "b.png"


def test_examples_that_are_not_there(model: TextToImage, folder: Path, tiny: ServedModel) -> None:
    examples = ServedExamples(folder, model)
    for name in ("pinned", "excluded"):
        with pytest.raises(ApiError) as refused:
            examples.find("star", None, **{name: [1, 3]})  # type: ignore[arg-type]
        error = refused.value
        assert (error.status, error.param, error.code) == (400, name, "unknown_example")
        assert error.message == (
            f"`{name}`: There is no such example: `3`. The model has 3, counted from 0."
        )
    with pytest.raises(ApiError, match=r"An example is pinned and excluded: `1`\. Leave one out"):
        examples.find("star", None, pinned=[1, 2], excluded=[1])
    with pytest.raises(ApiError, match="no such example: `3`") as unknown:
        examples.read(3)
    assert unknown.value.status == 404
    with pytest.raises(ApiError, match=r"no such example: `0`\. The model has none"):
        tiny.examples.read(0)
    with pytest.raises(ApiError, match="`pinned`: There is no such example: `0`"):
        tiny.examples.find("star", None, pinned=[0])


def test_more_than_the_model_learned(model: TextToImage, folder: Path, tiny: ServedModel) -> None:
    examples = ServedExamples(folder, model)
    examples.check(2)
    for refused in (
        lambda: examples.check(3),
        lambda: examples.find("star", None, pinned=[0, 1, 2]),
        lambda: examples.find("star", 3),
        lambda: tiny.examples.check(1),
        lambda: tiny.examples.find("star", 1),
    ):
        with pytest.raises(GenerationError):
            refused()
    assert tiny.examples.find("star", 0) == tiny.examples.find("star", None) == ()


# Files that change.


def test_a_changed_memory_counts_from_the_next_request(model: TextToImage, folder: Path) -> None:
    examples = ServedExamples(folder, model)
    before = examples.memory
    assert before is not None
    assert examples.memory is before
    put(model, folder, ["a green sun", "a red star"])  # as a whole folder, by renaming
    assert len(examples) == 2
    assert names(examples.find("a green sun", 1)) == ["0.png"]
    # What is being painted keeps what it has.
    assert before.by_caption(1).caption == "a blue moon"


def test_files_that_are_replaced_one_after_the_other(
    model: TextToImage, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Between the two they do not fit: the ones before stay, and the log says so once."""
    (folder / SUMS_FILE).unlink()  # as whoever changes files by hand is told to
    examples = ServedExamples(folder, model)
    newer = put(model, tmp_path / "newer", ["a green sun"])
    for file, expected in ((ROWS_FILE, 3), (EXAMPLES_FILE, 1)):
        (newer / file).replace(folder / file)
        for _ in range(3):
            assert len(examples) == expected
    assert errors(caplog) == 1
    assert "the ones before stay: The captions of the examples are missing, damaged" in caplog.text


def test_damaged_and_foreign_files(
    model: TextToImage, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    examples = ServedExamples(folder, model)
    (folder / EXAMPLES_FILE).unlink()
    (folder / EXAMPLES_FILE).write_bytes(b"half")
    assert len(examples) == len(examples) == 3
    other = create_untrained(seed=1, neighbors=2)
    put(other, folder, ["a green sun"])
    assert names(examples.find("a blue moon", 1)) == ["1.png"]
    assert errors(caplog) == 2
    assert "their codes are of another image tokenizer" in caplog.text
    with pytest.raises(CheckpointError, match="another image tokenizer"):
        ServedExamples(folder, model)
    put(model, folder, ["a green sun"])
    assert len(examples) == 1


def test_a_memory_that_is_taken_out_or_put_in(
    model: TextToImage, folder: Path, tmp_path: Path
) -> None:
    (folder / SUMS_FILE).unlink()  # as whoever changes files by hand is told to
    examples = ServedExamples(folder, model)
    moved = [(folder / name, tmp_path / name) for name in (EXAMPLES_FILE, ROWS_FILE)]
    for here, there in moved:
        here.rename(there)
    assert len(examples) == 0
    assert examples.find("star", None) == ()
    for here, there in moved:
        there.rename(here)
    assert len(examples) == 3


def test_a_folder_that_is_gone_changes_nothing(
    model: TextToImage, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    examples = ServedExamples(folder, model)
    shutil.rmtree(folder)
    assert len(examples) == len(examples) == 3
    assert caplog.text.count("The model folder is gone") == 1


def test_files_are_opened_only_when_they_change(
    model: TextToImage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_memory = [], ExampleMemory.open

    def record(path: Path) -> Any:
        opened.append(path)
        return open_memory(path)

    monkeypatch.setattr(ExampleMemory, "open", record)
    examples = ServedExamples(folder, model)
    for _ in range(5):
        examples.find("star", None)
    assert len(opened) == 1
    os.utime(folder / ROWS_FILE, ns=(1, 1))
    assert len(examples) == 3
    assert len(opened) == 2


def test_a_model_without_examples_reads_no_files(tiny: ServedModel, tmp_path: Path) -> None:
    examples = ServedExamples(tmp_path / "nowhere", tiny.model)
    assert (examples.most, len(examples), examples.memory) == (0, 0, None)
