"""Whether damaged and hostile inputs do anything but give a clear error.

Why: model folders, tables, archives and pictures come from strangers, and from disks that fail. A
parser that meets what nobody expected must say so in words; a raw error, a hang or memory that
never comes back is a bug.

Theory: a parser reads each byte a bounded number of times, so that its time and memory are bounded
by its input's size, which is at most 2 MB here. Two seconds of processor time are a hang. All get
the same time, so that the cheap ones read the most inputs.

Output contract: a line a parser; the last line of stdout is the record, one JSON object. By parser
in `parsers`: `inputs`, how many were `refused` with words and how many `read`; `crashes`, by error,
each with the number of its first input; `hangs`, numbers of inputs that took more than 2 s of
processor time; `slowest_seconds`. `inputs`, `crashes`, `hangs` of all; `memory_ratio`, resident
bytes of the process at the end ÷ after a quarter, both without what was freed and allocators keep.
In the first quarter every parser has met all kinds of input, and what is made once is there. Exit
status 1 if there is a crash or a hang, or `--minutes` end with a ratio of more than 1.05.

    python benchmarks/fuzz.py --minutes 15            # the same inputs on every machine; Ctrl-C
                                                      # ends it earlier, with its record,
    python benchmarks/fuzz.py --only zip --first 123 --inputs 1     # one of them again
"""

import argparse
import collections
import contextlib
import gc
import io
import logging
import math
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from harness import RESULTS, environment, print_record, write_result
from malformed_files import PARSERS
from tessella.errors import TessellaError
from tessella.serving.allocator import return_freed_memory

HANG_SECONDS = 2.0
MEMORY_BAR = 1.05
ROUND_SECONDS = 0.5  # of processor time, for one parser after another


@dataclass
class Found:
    """What one parser did."""

    inputs: int = 0
    refused: int = 0
    read: int = 0
    crashes: dict[str, int] = field(default_factory=dict)  # first input, by error
    hangs: list[int] = field(default_factory=list)
    slowest_seconds: float = 0.0


def draw_input(name: str, number: int) -> bytes:
    """Draws input N of a parser."""
    return PARSERS[name].draw(Random(f"{name} {number}"))


def read_input(name: str, number: int, folder: Path) -> str:
    """Lets a parser read its input N in an empty folder; returns `read` or `refused`.

    Raises:
        Exception: whatever the parser raises that is no error in words.
    """
    content = draw_input(name, number)
    work = folder / "work"
    try:
        PARSERS[name].read(content, work)
        return "read"
    except TessellaError as error:
        if not str(error).strip():
            raise ValueError("an error without words") from error
        return "refused"
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run_round(
    name: str, found: Found, numbers: Iterable[int], folder: Path, seconds: float = math.inf
) -> None:
    """Sends inputs to a parser, until it has used so much processor time."""
    end = time.process_time() + seconds
    for number in numbers:
        begin = time.process_time()
        try:
            result = read_input(name, number, folder)
            setattr(found, result, getattr(found, result) + 1)
        except Exception as error:  # noqa: BLE001 — that is what is looked for
            found.crashes.setdefault(_describe(error), number)
        taken = time.process_time() - begin
        found.slowest_seconds = max(found.slowest_seconds, taken)
        if taken > HANG_SECONDS:
            found.hangs.append(number)
        found.inputs += 1
        if begin + taken >= end:
            break


def _describe(error: Exception) -> str:
    """Names an error and the line of ours that it came through."""
    frames, at = [], error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        if f"{os.sep}tessella{os.sep}" in code.co_filename:
            frames.append(f"{Path(code.co_filename).name}:{at.tb_lineno}")
        at = at.tb_next
    return f"{type(error).__name__}: {str(error)[:80]} ({frames[-1] if frames else 'library'})"


def measure_memory() -> int:
    """Returns the resident bytes, after all allocators have given back what was freed."""
    gc.collect()
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    return_freed_memory()
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what libraries say of damaged files."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def main() -> int:
    """Runs the command."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=15.0, help="of processor time, in all")
    options.add_argument("--inputs", type=int, help="of each parser, instead of --minutes")
    options.add_argument("--first", type=int, default=0, help="number of the first input")
    options.add_argument("--only", choices=sorted(PARSERS), action="append")
    options.add_argument(
        "--quick", action="store_true", help="20 inputs of each; nothing is stored"
    )
    given = options.parse_args()
    most = 20 if given.quick else given.inputs
    found = {name: Found() for name in given.only or PARSERS}
    numbers = {name: iter(range(given.first, given.first + (most or 2**63))) for name in found}
    end = time.process_time() + given.minutes * 60
    memory = []  # after each round
    with tempfile.TemporaryDirectory() as folder, quiet():
        if most:
            for name, one in found.items():
                run_round(name, one, numbers[name], Path(folder))
        with contextlib.suppress(KeyboardInterrupt):
            while not most and time.process_time() < end:
                for name, one in found.items():
                    run_round(name, one, numbers[name], Path(folder), ROUND_SECONDS)
                memory.append(measure_memory())
    minutes = round(time.process_time() / 60, 2)
    settings = {"first": given.first, "minutes": min(given.minutes, minutes)}
    ratio = memory[-1] / memory[(len(memory) - 1) // 4] if memory else 1.0
    return report(found, settings, ratio, store=not most and given.only is None)


def report(
    found: dict[str, Found], settings: dict[str, float], memory_ratio: float, *, store: bool
) -> int:
    """Prints and stores what was found; returns the exit status."""
    parsers = {}
    for name, one in found.items():
        parsers[name] = asdict(one) | {"slowest_seconds": round(one.slowest_seconds, 3)}
        print(f"{name:<15} {one.inputs:>8,} inputs  {len(one.crashes)} kinds of crash", end="")
        print(f"  {len(one.hangs)} hangs")
        for error, number in one.crashes.items():
            print(f"    input {number}: {error}")
    totals = collections.Counter(
        inputs=sum(one.inputs for one in found.values()),
        crashes=sum(len(one.crashes) for one in found.values()),
        hangs=sum(len(one.hangs) for one in found.values()),
    )
    results = {**totals, "memory_ratio": round(memory_ratio, 3), "parsers": parsers}
    where = environment("cpu")
    folder = RESULTS if store else None
    record = write_result("fuzz", results, config=settings, where=where, folder=folder)
    print_record(record)
    return int(bool(totals["crashes"] or totals["hangs"] or memory_ratio > MEMORY_BAR))


if __name__ == "__main__":
    sys.exit(main())
