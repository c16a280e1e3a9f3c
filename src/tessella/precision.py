"""Precisions, and how many times as fast as in fp32 this CPU computes in another one.

Training and painting choose by it (`training/precision.py`, `model/painting_precision.py`). It
imports nothing heavy, so that `--help` can be made from it.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "int8"]
PaintingPrecision = Literal["auto", "fp32", "bf16", "int8"]

CLEARLY = 1.2
"""Times as fast: less isn't worth the rounding."""

_HOPELESS = 1 / 3
_PAIRS = 9
_SECONDS = 0.3  # after which no other pair is measured

# A thread's own time doesn't pass while other programs have the processor. Windows counts it in
# steps of 16 ms, too coarse here.
_clock = time.perf_counter if os.name == "nt" else time.thread_time

Work = Callable[[], object]


@dataclass(frozen=True)
class PrecisionChoice:
    """What is computed in."""

    name: Precision
    why: str  # for people

    def __str__(self) -> str:
        return f"{self.name}; {self.why}"


def measure_speedup(works: Iterable[tuple[Work, Work]]) -> float:
    """Measures how many times as fast as in fp32 some work is: below 1 it is slower.

    One thread computes, by its own clock, so that a busy machine looks like a quiet one. Both are
    timed in turn, and the median pair counts.

    Args:
        works: the same work in fp32 and in the other precision, a small one first. The last one
            counts; after one that takes three times as long no other is measured: without
            instructions for bf16 a large one may take a hundred times as long.
    """
    import torch

    deadline = time.monotonic() + _SECONDS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    speedup = 1.0
    try:
        for fp32, other in works:
            speedup = _compare(fp32, other, deadline)
            if speedup < _HOPELESS:
                break
    finally:
        torch.set_num_threads(threads)
    return speedup


def _compare(fp32: Work, other: Work, deadline: float) -> float:
    """Returns the median, over pairs of calls, of fp32's time over the other's."""
    _time(fp32), _time(other)  # to warm up
    ratios: list[float] = []
    while len(ratios) < _PAIRS and (not ratios or time.monotonic() < deadline):
        seconds, other_seconds = _time(fp32), _time(other)
        ratios.append(seconds / max(other_seconds, 1e-9))
    return statistics.median(ratios)


def _time(work: Work) -> float:
    began = _clock()
    work()
    return _clock() - began
