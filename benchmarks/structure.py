"""How large the package is, and how deep a command goes through it.

Why: code that nobody can keep in mind is wrong in places that nobody sees. These numbers say
whether it grew, and where: lines, long functions and files, code that is repeated, frames between a
command and its first matrix product, and what a person who only paints has to import.

Theory: lines of code are those left without blank lines, comments and docstrings. Two places repeat
each other where six or more such lines in a row are equal, imports aside; a repeat counts once,
however long. A frame counts if its function belongs to this package, not to click, torch or
contextlib. The time of an import is that of a fresh process that imports and loads, minus that of a
fresh process that imports torch alone, in turn.

Output contract: a table with the bar beside each number that has one; the last line of stdout is
the record, one JSON object. `--quick` starts each process once. Nothing is stored: the numbers
belong to a commit, and `tests/test_structure.py` holds those that are rules.

    python benchmarks/structure.py
"""

import argparse
import ast
import importlib.util
import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import environment, print_record, write_result

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "tessella"
PAGES = (".js", ".css", ".html", ".jinja")
MAX_FUNCTION, MAX_FILE, MIN_REPEAT = 60, 450, 6
NOT_TO_PAINT = ("training", "evaluation", "serving", "posts")
BARS = {
    "python_code_lines": 14_000,
    "page_lines": 3_600,
    "frames_to_first_product": 12,
    "long_functions": 4,
    "long_files": 2,
    "repeated_places": 20,
    "load_seconds_over_torch": 0.3,
    "modules_not_needed_to_paint": 0,
    "network_passes_to_count_1000_prompts": 0,
}
"""The most that each may be."""

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Repeat:
    """Two places that are written alike."""

    first: str  # file:line
    second: str
    lines: int  # of code


def main() -> None:
    """Measures and prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each process once")
    repeats = 1 if parser.parse_args().quick else 7
    sources = read_sources(PACKAGE)
    functions = list_long_functions(sources, MAX_FUNCTION)
    files = list_long_files(sources, MAX_FILE)
    places = list_repeats(sources)
    frames = trace_first_product()
    imported = list_modules_to_paint()
    measured = {
        "python_code_lines": sum(len(find_code_lines(source)) for source in sources.values()),
        "page_lines": count_page_lines(PACKAGE),
        "frames_to_first_product": len(frames),
        "long_functions": len(functions),
        "long_files": len(files),
        "repeated_places": len(places),
        "load_seconds_over_torch": measure_load(repeats),
        "modules_not_needed_to_paint": len(imported),
        "network_passes_to_count_1000_prompts": count_passes(),
    }
    for name, value in measured.items():
        shown = "not measured: needs the `text` extra" if value is None else f"{value:,.3g}"
        if isinstance(value, int):
            shown = f"{value:,}"
        print(f"{name:40} {shown:>10}   bar ≤ {BARS[name]:,}")
    details: dict[str, Sequence[str]] = {
        "long_functions": [f"{name} {lines}" for name, lines in functions],
        "long_files": [f"{name} {lines}" for name, lines in files],
        "repeated_places": [f"{one.first} {one.second} {one.lines}" for one in places],
        "frames_to_first_product": frames,
        "modules_not_needed_to_paint": imported,
    }
    for name, rows in details.items():
        print(f"\n{name}:", *rows, sep="\n    ")
    print_record(
        write_result(
            "structure",
            {"measured": measured, "bars": BARS, "details": details},
            config={"processes": repeats},
            where=environment(),
            folder=None,
        )
    )


# Counting: text in, numbers out.


def read_sources(folder: Path) -> dict[str, str]:
    """Reads every Python file below a folder, by its path there."""
    paths = sorted(folder.rglob("*.py"))
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in paths}


def find_code_lines(source: str) -> list[int]:
    """Lists the lines, from 1, that are neither blank nor comment nor docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.difference_update(_lines_of(node))
    return sorted(lines)


def count_page_lines(folder: Path) -> int:
    """Counts the lines of scripts, styles and pages that are not a vendor's."""
    return sum(
        len(path.read_text(encoding="utf-8").splitlines())
        for path in folder.rglob("*")
        if path.suffix in PAGES and "vendor" not in path.parts
    )


def list_long_functions(sources: Mapping[str, str], most: int) -> list[tuple[str, int]]:
    """Lists the functions of more lines than that, docstrings included: `file:name`, lines."""
    return [
        (f"{file}:{node.name}", len(_lines_of(node)))
        for file, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(_lines_of(node)) > most
    ]


def list_long_files(sources: Mapping[str, str], most: int) -> list[tuple[str, int]]:
    """Lists the files of more lines than that: file, lines."""
    counts = {file: len(source.splitlines()) for file, source in sources.items()}
    return [(file, count) for file, count in counts.items() if count > most]


def list_repeats(sources: Mapping[str, str], least: int = MIN_REPEAT) -> list[Repeat]:
    """Lists the pairs of places that share so many code lines in a row, imports aside."""
    code: list[tuple[str, int, str]] = []  # file, line, text
    for file, source in sources.items():
        imports = {
            line
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line in _lines_of(node)
        }
        text = source.splitlines()
        lines = [line for line in find_code_lines(source) if line not in imports]
        code += [(file, line, text[line - 1].strip()) for line in lines]
        code += [(file, 0, f"end of {file}")]  # no run goes on into the next file
    starts = defaultdict(list)
    for index in range(len(code) - least + 1):
        starts[tuple(text for _, _, text in code[index : index + least])].append(index)
    pairs = {
        (first, second)
        for places in starts.values()
        for first, second in itertools.combinations(places, 2)
        if second - first >= least
    }
    return list(_join_runs(sorted(pairs), pairs, code, least))


def _join_runs(
    ordered: Sequence[tuple[int, int]],
    pairs: set[tuple[int, int]],
    code: Sequence[tuple[str, int, str]],
    least: int,
) -> Iterator[Repeat]:
    """Joins overlapping windows of one pair of places into one."""
    for first, second in ordered:
        if (first - 1, second - 1) in pairs:
            continue
        length = next(n for n in itertools.count(1) if (first + n, second + n) not in pairs)
        one, other = (f"{code[index][0]}:{code[index][1]}" for index in (first, second))
        yield Repeat(one, other, lines=least + length - 1)


def _lines_of(node: Any) -> range:
    return range(node.lineno, node.end_lineno + 1)


# Measuring: processes of their own.


def run(program: str, *arguments: str) -> Any:
    """Runs a program in a fresh process; returns the JSON of its last line."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


_FIRST_PRODUCT = """
import json, os, sys, traceback
from pathlib import Path
import torch
from torch.overrides import TorchFunctionMode
import tessella
from tessella.cli import main

PRODUCTS = {torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul,
            torch.Tensor.__matmul__, torch.bmm, torch.einsum, torch.conv2d}
HOME = Path(tessella.__file__).parent

class FirstProduct(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            frames = [(Path(f.filename), f.name) for f in traceback.extract_stack()]
            own = [f"{p.relative_to(HOME)}:{name}" for p, name in frames if HOME in p.parents]
            print(json.dumps(own[own.index("cli/__init__.py:main") + 1:]), flush=True)
            os._exit(0)
        return function(*args, **(kwargs or {}))

with FirstProduct():
    main()
"""


def trace_first_product() -> list[str]:
    """Lists this package's frames below `main()` at the first product of `tessella generate`."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "pictures")
        frames: list[str] = run(_FIRST_PRODUCT, "generate", "a red star", "--out", out)
    return frames


_PAINT = """
import json, sys
import tessella
tessella.load().generate("a red star", steps=1)
rooms = tuple(f"tessella.{room}" for room in sys.argv[1:])
print(json.dumps(sorted(name for name in sys.modules if name.startswith(rooms))))
"""


def list_modules_to_paint() -> list[str]:
    """Lists the modules of rooms that painting has no use for, but imports."""
    modules: list[str] = run(_PAINT, *NOT_TO_PAINT)
    return modules


def measure_load(repeats: int) -> float:
    """Measures `import tessella; tessella.load()` over `import torch`: seconds, of medians."""
    seconds: dict[str, list[float]] = {"import torch": [], "import tessella; tessella.load()": []}
    for _ in range(repeats):
        for program, times in seconds.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            times.append(time.perf_counter() - began)
    bare, loaded = (statistics.median(times) for times in seconds.values())
    return loaded - bare


def count_passes() -> int | None:
    """Counts the passes of a frozen encoder in 1,000 questions whether a prompt is too long."""
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    from tessella.evaluation.eval_images import can_read
    from tessella.model.folder import ModelConfig
    from tessella.model.pipeline import TextToImage
    from tessella.text import TextSettings, create_text_encoder

    passes = 0
    vocabulary = ("[PAD]", "[UNK]", "[SEP]", *"0123456789")
    words = {word: number for number, word in enumerate(vocabulary)}
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(words), intermediate_size=16, **size)
    with tempfile.TemporaryDirectory() as folder:
        transformers.BertModel(config).save_pretrained(folder)
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = TemplateProcessing(
            single="$A [SEP]", special_tokens=[("[SEP]", 2)]
        )
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
        ).save_pretrained(folder)
        encoder = create_text_encoder(TextSettings(encoder=folder), [])
        model = TextToImage.create(ModelConfig(), encoder)
        original = transformers.BertModel.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes
            passes += 1
            return original(*args, **kwargs)

        transformers.BertModel.forward = forward
        try:
            for number in range(1000):
                can_read(model, " ".join(str(number)))
        finally:
            transformers.BertModel.forward = original
    return passes


if __name__ == "__main__":
    main()
