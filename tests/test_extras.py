"""What `pip install tessella` brings, and what only an extra does."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "src/tessella"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    name: group
    for name, group in PROJECT["optional-dependencies"].items()
    if name not in ("test", "dev")
}
# Modules that are named otherwise than their package, or come with another one.
PACKAGE_OF = {"PIL": "pillow", "starlette": "fastapi", "IPython": "ipykernel"}
# Where a whole folder or file belongs to an extra, it may be imported at the top.
EXTRA_OF = {"serving": "serve", "posts/chat_client.py": "llm"}
# A user installs it by hand: its weights come from elsewhere too.
BY_HAND = {"lpips"}


def packages(requirements: list[str]) -> set[str]:
    """The names of required packages, as modules are spelt."""
    return {re.split(r"[<>=;\[ ]", line)[0].replace("-", "_") for line in requirements}


def imports(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Foreign modules that code imports, and whether it does so inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        names: list[str] = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            names = [child.module or ""]
        for name in names:
            top = name.partition(".")[0]
            if name.startswith("torch.utils.tensorboard"):
                top = "tensorboard"
            if top not in sys.stdlib_module_names and top != "tessella":
                yield PACKAGE_OF.get(top, top), inside
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(child, inside=inside or is_function)


def test_an_extra_is_imported_only_where_it_is_needed() -> None:
    """At the top of a file only what is always installed; what is not declared, nowhere."""
    base = packages(PROJECT["dependencies"])
    anywhere = base.union(BY_HAND, *(packages(group) for group in EXTRAS.values()))
    wrong = []
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).as_posix()
        own = [packages(EXTRAS[name]) for part, name in EXTRA_OF.items() if place.startswith(part)]
        at_top = base.union(*own)
        for name, inside in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if name not in (anywhere if inside else at_top):
                wrong.append(f"`{name}` in `{place}`")
    assert wrong == []


def test_tests_install_every_extra() -> None:
    [line] = [each for each in PROJECT["optional-dependencies"]["test"] if "tessella[" in each]
    assert set(re.findall(r"\w+", line)) == {"tessella", *EXTRAS}


def test_painting_needs_nothing_that_only_training_or_an_extra_needs() -> None:
    """Who only paints may leave out accelerate, jinja2 and rich too."""
    hidden = ["accelerate", "jinja2", "rich", "torchmetrics"]
    hidden += [name for group in EXTRAS.values() for name in packages(group)]
    code = (
        "import json, sys\n"
        f"sys.modules |= dict.fromkeys({hidden!r})\n"
        "import tessella\n"
        "model = tessella.load()\n"
        "[image] = model.generate('a large red star on a navy background', steps=2)\n"
        "model.reconstruct([image])\n"
        "model.score([image], ['a red star'], num_orders=1)\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('tessella.')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = {name.split(".")[1] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "model" in parts
    assert not parts & {"cli", "evaluation", "posts", "runs", "serving", "training"}
