"""What saving a checkpoint costs beside writing and hashing its bytes once.

Why: training stands still while it saves, once a minute. Each save used to read and hash the
older checkpoints again, which took longer than writing the new one.

Theory: a checkpoint that can be proved needs its bytes written, hashed and flushed to the disk,
once each; anything else is waste. That is the bound: one `write`, one SHA-256 and one `fsync` of
the same number of bytes, one after another, in a file that did not exist. A save also flattens
the state, writes its record, renames, and removes the oldest checkpoint. It may take less than
the bound where safetensors writes faster than one `write` call does.

Output contract: a line for people; the last line of stdout is the record, one JSON object:
`times_the_bound` (save over bound, round by round; the bar is a median of at most 1.15), and the
seconds of both. Two older checkpoints are there at every save that counts. Each round measures
both, and which one goes first alternates.

    python benchmarks/checkpoint.py --megabytes 256 --repeats 11
"""

import argparse
import functools
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from harness import RESULTS, Spread, environment, print_record, write_result
from tessella.training.checkpoint import CheckpointState, save_checkpoint

WARMUP = 2  # rounds: as many as there are older checkpoints


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=256, help="of tensors, MiB")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.megabytes, options.repeats = 64, 5
    tensors = {f"network.{n}": torch.rand(512, 512) for n in range(options.megabytes)}
    content = os.urandom(options.megabytes << 20)
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(1, WARMUP + options.repeats + 1):
            state = CheckpointState(number, tensors)
            works: list[Callable[[], object]] = [
                functools.partial(save_checkpoint, folder / "run", state),
                lambda: write_once(folder / "bound", content),
            ]
            first = number % 2
            seconds = [0.0, 0.0]
            for which in (first, 1 - first):
                seconds[which] = measure_once(works[which])
            (folder / "bound").unlink()
            rounds.append(seconds)
    counted = rounds[WARMUP:]
    results = {
        "times_the_bound": Spread.of([save / bound for save, bound in counted], WARMUP),
        "save_seconds": Spread.of([save for save, _ in counted], WARMUP),
        "bound_seconds": Spread.of([bound for _, bound in counted], WARMUP),
    }
    times = results["times_the_bound"]
    print(
        f"a save of {options.megabytes} MiB takes {results['save_seconds'].median:.2f} s, "
        f"{times.median:.2f} times the bound (from {times.min:.2f} to {times.max:.2f})"
    )
    record = write_result(
        "checkpoint",
        results,
        config={"megabytes": options.megabytes, "tensors": len(tensors)},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_once(work: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_once(path: Path, content: bytes) -> str:
    """Writes and flushes a new file; returns the SHA-256 of its content."""
    with path.open("xb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
