"""Imports point upstream only, and importing does nothing else.

The order below is the data's way through the package; docs/tour.md walks it. The sources are
read, not run, so that an import inside a function counts too.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "tessella"
ORDER = (
    "errors",
    "untrusted",
    "config",
    "temporary",
    "signals",
    "files",
    "hub",
    "checksums",
    "images",
    "sheets",
    "generation",
    "precision",
    "batch",
    "data",
    "text",
    "tokenizer",
    "retrieval",
    "transformer",
    "objectives",
    "model",
    "runs",
    "evaluation",
    "training",
    "posts",
    "serving",
    "cli",
)
# The package's front and its `python -m` entry stand outside of the order: they only pass on.
OUTSIDE = ("__init__", "__main__")
VAGUE = ("utils", "util", "common", "helpers", "helper", "misc")
# What changes the process that imports: seeds, threads, devices, warnings, output, files.
EFFECTS = {
    "print",
    "open",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_num_threads",
    "set_num_interop_threads",
    "set_default_device",
    "set_default_dtype",
    "set_grad_enabled",
    "set_float32_matmul_precision",
    "use_deterministic_algorithms",
    "filterwarnings",
    "simplefilter",
    "basicConfig",
    "putenv",
    "mkdir",
    "makedirs",
    "urlopen",
    "write_text",
    "write_bytes",
}


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The file's place in the order: the first folder or file name below the package."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_units(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and unit of every import of tessella; the unit "" is the package's front."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "tessella":
            names = [f"tessella.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            root, _, rest = name.partition(".")
            if root == "tessella":
                yield node.lineno, rest.partition(".")[0]


def wrong_imports(unit: str, tree: ast.Module) -> list[str]:
    """Says each import that points downstream, or at the package's front."""
    faults = []
    for line, imported in imported_units(tree):
        if imported not in ORDER:
            faults.append(f"line {line}: import the unit itself, not `tessella.{imported}`")
        elif ORDER.index(imported) > ORDER.index(unit):
            faults.append(f"line {line}: `{unit}` comes before `{imported}`")
    return faults


def root_name(node: ast.expr) -> str:
    """The name that a chain such as `torch.backends.cudnn` starts with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Every node that runs on import: all but what stands inside of functions."""
    stack: list[ast.AST] = list(body)
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stack += [*node.decorator_list, *node.args.defaults]
            stack += [default for default in node.args.kw_defaults if default]
        elif not isinstance(node, ast.Lambda):
            stack += ast.iter_child_nodes(node)


def import_effects(tree: ast.Module) -> list[str]:
    """Says each thing that a module does when it is imported, beyond defining names."""
    own = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    faults = []
    for node in run_at_import(tree.body):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else root_name(node)
            if called in EFFECTS:
                faults.append(f"line {node.lineno}: `{called}` is called on import")
        # `app.add_typer(...)` on a name of its own is a definition; on another module's, not.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            root = root_name(node.value)
            if root not in own:
                faults.append(f"line {node.lineno}: `{root}` is called for its effect")
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                foreign = isinstance(target, ast.Attribute | ast.Subscript)
                if foreign and root_name(target) not in own:
                    faults.append(f"line {node.lineno}: `{root_name(target)}` is changed")
    return faults


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_upstream(path: Path) -> None:
    unit = unit_of(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    relative = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert not relative, f"relative import, line {relative[0].lineno}: write tessella.…"
    if unit in OUTSIDE:
        return
    assert unit in ORDER, f"`{unit}` has no place yet: add it to ORDER here and to docs/tour.md"
    assert not wrong_imports(unit, tree)


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_happens_at_import(path: Path) -> None:
    if path.name == "__main__.py":
        return  # it is run, never imported
    assert not import_effects(ast.parse(path.read_text(encoding="utf-8")))


def test_no_file_has_a_vague_name() -> None:
    names = [path for path in SOURCE.rglob("*") if path.stem.strip("_") in VAGUE]
    assert not names, "name the file after the one thing that it holds"


# A checker that resolved `from tessella import x` to nothing would pass everything: so it is
# tested on sources that it must refuse.
@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("data", "from tessella.training.loop import train"),
        ("data", "import tessella.cli"),
        ("data", "from tessella import cli"),
        ("data", "def f():\n    import tessella.model.pipeline"),
        ("model", "from tessella.evaluation.reconstruction import compute_psnr"),
        ("model", "from tessella import load"),
        ("serving", "import tessella"),
    ],
)
def test_a_downstream_import_is_refused(unit: str, source: str) -> None:
    assert wrong_imports(unit, ast.parse(source))


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("data", "from tessella.data.scenes import draw"),
        ("training", "from tessella.evaluation import metric\nfrom tessella import errors"),
        ("cli", "import torch\nfrom tessella.serving.app import serve"),
    ],
)
def test_an_upstream_import_is_allowed(unit: str, source: str) -> None:
    assert not wrong_imports(unit, ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.manual_seed(0)",
        "import torch\nGENERATOR = torch.manual_seed(0)",
        "if True:\n    print('hello')",
        "class A:\n    print('hello')",
        "import os\nos.environ['A'] = '1'",
        "import torch\ntorch.backends.cudnn.benchmark = True",
        "import torch\ntry:\n    torch.set_num_threads(1)\nexcept RuntimeError:\n    pass",
        "import atexit\natexit.register(f)",
        "def f(a=open('x')):\n    pass",
    ],
)
def test_an_effect_at_import_is_refused(source: str) -> None:
    assert import_effects(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import typer\napp = typer.Typer()\napp.add_typer(x)",
        "@app.command()\ndef f():\n    print('hello')",
        "SIZES = {'small': 1}\nSIZES['large'] = 2",
        "import re\nWORD = re.compile('a')",
        "KEY = lambda: print('later')",
    ],
)
def test_a_definition_at_import_is_allowed(source: str) -> None:
    assert not import_effects(ast.parse(source))


IMPORT_ALL = """
import importlib, json, os, pkgutil, sys, warnings
import torch

def state():
    return {
        "seed": torch.initial_seed(),
        "draw": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tessella_environment": sorted(k for k in os.environ if "TESSELLA" in k.upper()),
    }

torch.manual_seed(1234)
before = state()
import tessella
names = [m.name for m in pkgutil.walk_packages(tessella.__path__, "tessella.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
after = state()
changed = [key for key in before if before[key] != after[key]]
print(json.dumps({"changed": changed, "modules": len(names)}))
"""


def test_importing_every_module_changes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # anything printed by a module would not be JSON
    assert report["changed"] == []
    assert report["modules"] >= len(ORDER)
