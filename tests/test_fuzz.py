"""Damaged and hostile inputs: every parser reads them or says what is wrong, and nothing else."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessella.errors import TessellaError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PARSERS = (
    "checksums", "config", "weights", "text_tokenizer", "examples", "example_rows", "captions",
    "picture", "picture_notes", "caption_text", "sidecar", "table_csv", "table_tsv", "table_jsonl",
    "table_json", "annotations", "zip", "tar", "parquet", "arrow", "braces", "scene", "scene2",
    "run", "description", "answer", "toml", "assignment",
)  # fmt: skip
# Inputs that once ended in something other than an error with words.
FOUND = (
    ("annotations", 43),
    ("annotations", 46),
    ("annotations", 116),
    ("zip", 151),
    ("run", 58931),
)


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("fuzz")
        for name in ("fuzz", "harness", *(path.stem for path in BENCHMARKS.glob("malformed_*.py"))):
            sys.modules.pop(name, None)


def test_every_parser_is_here(fuzz: Any) -> None:
    assert tuple(fuzz.PARSERS) == PARSERS


@pytest.mark.parametrize("name", PARSERS)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(number=st.integers(0, 2**32))
def test_an_input_is_read_or_refused_in_words(
    fuzz: Any, tmp_path: Path, name: str, number: int
) -> None:
    with fuzz.quiet():
        assert fuzz.read_input(name, number, tmp_path) in ("read", "refused")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("config", "config.json"),
        ("weights", "tokenizer.safetensors"),
        ("text_tokenizer", "text_tokenizer.json"),
        ("examples", "examples.safetensors"),
        ("example_rows", "examples.jsonl"),
    ],
)
def test_what_is_damaged_was_good(fuzz: Any, tmp_path: Path, name: str, file: str) -> None:
    """Otherwise every input would be refused for the same reason."""
    inputs = importlib.import_module("malformed_files")
    assert fuzz.PARSERS[name].read(inputs.tiny_files()[file], tmp_path / "work") is not None


@pytest.mark.parametrize(("name", "number"), FOUND)
def test_an_input_that_was_found_stays_mended(
    fuzz: Any, tmp_path: Path, name: str, number: int
) -> None:
    with fuzz.quiet():
        assert fuzz.read_input(name, number, tmp_path) in ("read", "refused")


@pytest.mark.parametrize("name", ["config", "weights", "text_tokenizer", "examples"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(
    fuzz: Any, tmp_path: Path, name: str, content: bytes
) -> None:
    with fuzz.quiet(), pytest.raises(TessellaError, match=r".+"):
        fuzz.PARSERS[name].read(content, tmp_path / "work")


def test_a_crash_is_told_from_an_error_in_words(
    fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(content: bytes, folder: Path) -> object:
        if content == b"7":
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "raw")
        raise TessellaError("words" if content == b"8" else "")

    parser = type(fuzz.PARSERS["config"])(lambda rng: b"789"[(n := next(numbers)) : n + 1], crash)
    numbers = iter(range(3))
    monkeypatch.setitem(fuzz.PARSERS, "config", parser)
    found = fuzz.Found()
    fuzz.run_round("config", found, range(5, 8), tmp_path)
    assert (found.inputs, found.refused, found.read) == (3, 1, 0)
    assert sorted(found.crashes.values()) == [5, 7]


@pytest.mark.parametrize(("ratio", "status"), [(1.05, 0), (1.06, 1)])
def test_growing_memory_fails(fuzz: Any, ratio: float, status: int) -> None:
    assert fuzz.report({}, {}, ratio, store=False) == status
