"""Errors at, and kills before, the n-th thing that a command does to files, for all n."""

import errno
import os
import signal
from collections.abc import Iterator

from fault_cases import Bench, Outcome, Scenario, run_faulty
from fault_injection import ANY, KINDS, Injector

_FAULTS = {"EIO": (errno.EIO, False), "ENOSPC": (errno.ENOSPC, True)}


def try_errors(bench: Bench) -> Iterator[Outcome]:
    """Lets each write, flush, rename and creation of every command fail, one a case."""
    for scenario in bench.scenarios():
        counts = bench.counts[scenario.name]
        for kind in KINDS:
            for number in range(1, counts.get(kind, 0) + 1):
                for fault, (code, is_lasting) in _FAULTS.items():
                    if not bench.is_chosen():
                        continue
                    name = f"{scenario.name} {kind} {number} {fault}"
                    injector = Injector(scenario.target, kind, number, code, is_lasting)
                    yield from try_one(bench, scenario, injector, name)


def try_kills(bench: Bench) -> Iterator[Outcome]:
    """Kills every command before each thing that it does to files."""
    for scenario in bench.scenarios():
        for number in range(1, bench.counts[scenario.name].get(ANY, 0) + 1):
            if bench.is_chosen():
                injector = Injector(scenario.target, ANY, number, act=kill)
                yield from try_one(bench, scenario, injector, f"{scenario.name} kill {number}")


def kill() -> None:
    """Ends this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def try_one(bench: Bench, scenario: Scenario, injector: Injector, name: str) -> Iterator[Outcome]:
    """Tries a fault; yields nothing if it did not come about."""
    ended, noted, problems = run_faulty(bench, scenario, injector)
    if ended.status >= 0 and not noted.get("has_failed"):
        return
    outcome = bench.judge(scenario, ended, name)
    outcome.problems[:0] = problems
    yield outcome
