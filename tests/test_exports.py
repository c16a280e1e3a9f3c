"""The public front: what `tessella` offers, and that offering it costs nothing."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# Modules that take a noticeable part of a second to import.
HEAVY = (
    "torch",
    "numpy",
    "pydantic",
    "PIL",
    "matplotlib",
    "torchmetrics",
    "accelerate",
    "tokenizers",
    "safetensors",
    "tensorboard",
    "pyarrow",
)
NOT_FOR_PAINTING = (
    "tessella.evaluation",
    "tessella.posts",
    "tessella.runs",
    "tessella.serving",
    "tessella.training",
    "accelerate",
    "fastapi",
    "jinja2",
    "matplotlib",
    "pyarrow",
    "starlette",
    "tensorboard",
    "torchmetrics",
    "transformers",
)


def front_names() -> set[str]:
    """The public names that `tessella/__init__.py` binds, those for type checkers included."""
    tree = ast.parse((REPOSITORY / "src/tessella/__init__.py").read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        # What is bound inside of a function is no part of the front.
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node in tree.body:
            names.add(node.name)
    stack: list[ast.stmt] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If):
            stack += [*node.body, *node.orelse]
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tessella"):
            names |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_all_names_what_the_front_binds() -> None:
    tessella = importlib.import_module("tessella")
    assert len(set(tessella.__all__)) == len(tessella.__all__)
    assert front_names() <= set(tessella.__all__)
    assert "load" in tessella.__all__


def test_every_name_of_all_is_there_and_documented() -> None:
    tessella = importlib.import_module("tessella")
    for name in tessella.__all__:
        value = getattr(tessella, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"`tessella.{name}` has no docstring"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    tessella = importlib.import_module("tessella")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tessella.no_such_name


def test_the_version_is_the_packages() -> None:
    tessella = importlib.import_module("tessella")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert tessella.__version__ == project["project"]["version"]


def list_imported(code: str, modules: Sequence[str], folder: Path) -> list[str]:
    """Runs code in a process of its own; returns those of the modules that it has imported."""
    script = (
        "import json, sys\n"
        "try:\n"
        f"    exec({code!r})\n"
        "except SystemExit as stop:\n"
        "    assert stop.code in (0, None), stop.code\n"
        "names = {name + '.' for name in sys.modules}\n"
        f"found = [m for m in {modules!r} if any(name.startswith(m + '.') for name in names)]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    imported: list[str] = json.loads(done.stdout.splitlines()[-1])
    return imported


# `tessella --help` answers in under 0.3 s only while nothing heavy is imported for it.
# Typer itself asks pydantic about the types of a command's options, so there it is allowed.
@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import tessella", ()),
        ("import tessella.cli", ()),
        ("import sys, tessella.cli as c; sys.argv = ['tessella', '--help']; c.main()", ()),
        (
            "import sys, tessella.cli as c; sys.argv = ['tessella', 'fit', '--help']; c.main()",
            ("pydantic",),
        ),
        (
            "import sys, tessella.cli as c; sys.argv = ['tessella', 'generate', '-h']; c.main()",
            ("pydantic",),
        ),
    ],
    ids=["package", "cli", "help", "fit help", "generate help"],
)
def test_nothing_heavy_is_imported(code: str, allowed: tuple[str, ...], tmp_path: Path) -> None:
    assert set(list_imported(code, HEAVY, tmp_path)) <= set(allowed)


# What a person needs to paint, who neither trains nor evaluates nor serves.
def test_painting_imports_nothing_of_other_work(tmp_path: Path) -> None:
    code = (
        "import sys, tessella.cli as c\n"
        "sys.argv = ['tessella', 'generate', 'a red star', '--out', 'star.png', '--steps', '1']\n"
        "c.main()"
    )
    assert list_imported(code, [*NOT_FOR_PAINTING, "tessella.model"], tmp_path) == [
        "tessella.model"
    ]
    assert (tmp_path / "star.png").exists()


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tessella", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "tessella" in done.stdout
    assert "generate" in done.stdout


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    errors = importlib.import_module("tessella.errors")
    defined = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and kind.__module__ == errors.__name__
    }
    drawn = drawn_parents(errors.__doc__ or "")
    assert drawn.keys() == defined.keys()
    for name, parent in drawn.items():
        assert issubclass(defined[name], errors.TessellaError)
        assert defined[name].__base__.__name__ == (parent or "Exception")


def drawn_parents(docstring: str) -> dict[str, str]:
    """Reads a drawn tree: each class and the one that it hangs on ("" for the root)."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in docstring.splitlines():
        found = re.match(r"^( +(?:[│ ]*[├└]── )?)([A-Z]\w*Error)\b", line)
        if not found:
            continue
        column = len(found.group(1))
        above = [(c, name) for c, name in above if c < column]
        parents[found.group(2)] = above[-1][1] if above else ""
        above.append((column, found.group(2)))
    return parents


def test_a_drawn_tree_is_read() -> None:
    tree = """
    AError
    ├── BError   first
    │   └── CError   below B
    └── DError   last
    """
    expected = {"AError": "", "BError": "AError", "CError": "BError", "DError": "AError"}
    assert drawn_parents(tree) == expected


def test_dir_lists_what_is_offered() -> None:
    import tessella

    assert dir(tessella) == sorted(tessella.__all__)
