"""The size of the house: what benchmarks/structure.py counts, and the rules that hold."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Longer than the rule allows, each with its reason.
LONG_FUNCTIONS: dict[str, str] = {}
LONG_FILES: dict[str, str] = {}


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    path = REPOSITORY / "benchmarks" / "structure.py"
    spec = importlib.util.spec_from_file_location("structure", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        patch.setitem(sys.modules, "structure", module)
        spec.loader.exec_module(module)
    return module


SOURCE = '''"""A docstring
of two lines."""

import os  # counts

# A comment.
NAME = """text
that counts"""
"""A docstring of NAME."""


def work(
    number: int,
) -> int:
    """Works."""
    return number  # and a comment


async def wait() -> None: ...
'''


def test_code_lines_by_hand(structure: ModuleType) -> None:
    assert structure.find_code_lines(SOURCE) == [4, 7, 8, 12, 13, 14, 16, 19]
    assert structure.find_code_lines("") == []


def test_long_functions_and_files_by_hand(structure: ModuleType) -> None:
    sources = {"a.py": SOURCE, "b.py": "x = 1\n"}
    assert structure.list_long_functions(sources, 4) == [("a.py:work", 5)]
    assert structure.list_long_functions(sources, 5) == []
    assert structure.list_long_files(sources, 18) == [("a.py", 19)]


def body(first: int, last: int) -> str:
    return "".join(f"line_{number} = {number}\n" for number in range(first, last + 1))


def test_repeats_by_hand(structure: ModuleType) -> None:
    """Six lines in a row or more are one pair; comments and imports do not count as lines."""

    def repeats(**sources: str) -> list[tuple[str, str, int]]:
        found = structure.list_repeats({f"{name}.py": text for name, text in sources.items()})
        return [(one.first, one.second, one.lines) for one in found]

    assert repeats(a=body(1, 5), b=body(1, 5)) == []
    assert repeats(a=body(1, 6), b="other = 0\n" + body(1, 6)) == [("a.py:1", "b.py:2", 6)]
    assert repeats(a=body(1, 9), b=body(2, 9)) == [("a.py:2", "b.py:1", 8)]
    commented = body(1, 3) + "\n# why\nimport os\n" + body(4, 6)
    assert repeats(a=body(1, 6), b=commented) == [("a.py:1", "b.py:1", 6)]
    assert repeats(a=body(1, 6), b=body(1, 6), c=body(1, 6)) == [
        ("a.py:1", "b.py:1", 6),
        ("a.py:1", "c.py:1", 6),
        ("b.py:1", "c.py:1", 6),
    ]
    # Within a file, too; a run of one and the same line does not repeat itself.
    assert repeats(a=body(1, 6) + "other = 0\n" + body(1, 6)) == [("a.py:1", "a.py:8", 6)]
    assert repeats(a="same = 0\n" * 8) == []
    # Two files are not read as one.
    assert repeats(a=body(1, 3), b=body(4, 6), c=body(1, 6)) == []


def test_page_lines_are_counted_without_a_vendors(structure: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "a.js").write_text("1\n2\n")
    (tmp_path / "b.css").write_text("1")
    (tmp_path / "c.py").write_text("1\n")
    (tmp_path / "vendor" / "d.js").write_text("1\n")
    assert structure.count_page_lines(tmp_path) == 3


def test_functions_are_short(structure: ModuleType) -> None:
    sources = structure.read_sources(structure.PACKAGE)
    found = structure.list_long_functions(sources, structure.MAX_FUNCTION)
    assert {name for name, _ in found} == LONG_FUNCTIONS.keys(), (
        "Split the function, or name it here with its reason; take out what has become short."
    )


def test_files_are_short(structure: ModuleType) -> None:
    found = structure.list_long_files(structure.read_sources(structure.PACKAGE), structure.MAX_FILE)
    assert {name for name, _ in found} == LONG_FILES.keys(), (
        "Split the file, or name it here with its reason; take out what has become short."
    )


def test_painting_imports_no_other_room(structure: ModuleType) -> None:
    assert structure.list_modules_to_paint() == []
