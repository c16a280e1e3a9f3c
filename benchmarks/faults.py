"""Whether a fault of the disk, the system or a person loses anything, or is told in words.

Why: disks fill up, files are cut off, machines are switched off, folders are moved. What a run has
saved must survive each of these, and a person must be told what to do, not shown a traceback.

Theory: what is written gets its name only when it is whole, so at every moment the last good state
is there. What follows is a function of that state: the same command ends in the same files as a run
that nothing disturbed. So a state that was finished from once is not finished from again.

Faults, each in a run of its own, small enough to take a second ([the runs](fault_runs.py)):
`error` EIO once and ENOSPC from then on at the n-th write, flush, rename and creation
([the shim](fault_injection.py)), for all n of `fit-tokenizer`, `fit-transformer`, `examples add`,
`export`, `report` and `generate`; `kill` at any of them; `damage` every file of a checkpoint and of
a model folder flipped at five places, cut at three, emptied, missing, swapped with another run's;
`disk` full, read-only, vanished; `process` signals, memory, threads, two runs in one folder;
`place` moved, copied, odd names, clock, HOME, locale.

Output contract: a line for every problem; the last line of stdout is the record, one JSON object.
`cases`, how many faults came about; `state_lost`, how many lost something that was saved or did not
end in the same files; `unclear_errors`, how many ended with anything but success or an error that
says what to do; `left_behind`, how many left temporary files after the end; and the same by group.
Exit status 1 if any of them is not 0.

    python benchmarks/faults.py
    python benchmarks/faults.py --only damage
"""

import argparse
import collections
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import fault_damage
import fault_errors
import fault_system
from fault_cases import Bench, Outcome, prepare
from fault_runs import workplace
from harness import RESULTS, environment, print_record, write_result

GROUPS: Mapping[str, Callable[[Bench], Iterator[Outcome]]] = {
    "error": fault_errors.try_errors,
    "kill": fault_errors.try_kills,
    "damage": fault_damage.try_damages,
    "disk": fault_system.try_disks,
    "process": fault_system.try_processes,
    "place": fault_system.try_places,
}


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(GROUPS), action="append")
    parser.add_argument("--every", type=int, default=1, help="try every n-th case alone")
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the cases")
    parser.add_argument("--quick", action="store_true", help="every 60th case; stores nothing")
    options = parser.parse_args()
    every = 60 if options.quick else options.every
    names = options.only or list(GROUPS)
    with workplace() as place:
        counted = try_all(prepare(Path(place), every, options.jobs), names)
    totals = sum(counted.values(), collections.Counter[str]())
    failures = ("state_lost", "unclear_errors", "left_behind")
    results = {name: totals[name] for name in ("cases", *failures)}
    record = write_result(
        "faults",
        {**results, "groups": counted},
        config={"every": every, "only": names},
        where=environment("cpu"),
        folder=RESULTS if not options.quick and not options.only else None,
    )
    print_record(record)
    return int(any(totals[name] for name in failures))


def try_all(bench: Bench, names: Sequence[str]) -> dict[str, collections.Counter[str]]:
    """Lets several processes share the cases; returns what they counted, by group."""
    pids = {}
    for job in range(bench.jobs):
        sys.stdout.flush()
        pids[job] = os.fork()
        if not pids[job]:
            bench.job = job
            status = 1
            try:
                counted = {name: try_group(name, bench) for name in names}
                (bench.place / f"{job}.json").write_text(json.dumps(counted), encoding="utf-8")
                status = 0
            except BaseException:  # noqa: BLE001  the parent must go on
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
    if any([os.waitpid(pid, 0)[1] for pid in pids.values()]):
        raise SystemExit("A process of the campaign has failed.")
    found = [json.loads((bench.place / f"{job}.json").read_text()) for job in pids]
    return {
        name: sum((collections.Counter(one[name]) for one in found), collections.Counter[str]())
        for name in names
    }


def try_group(name: str, bench: Bench) -> collections.Counter[str]:
    """Tries this process's cases of a group; returns what was counted."""
    counted = collections.Counter[str]()
    began = time.monotonic()
    for outcome in GROUPS[name](bench):
        count(outcome, counted)
    seconds = time.monotonic() - began
    print(f"job {bench.job}, {name}: {dict(counted)}, {seconds:.0f} s", flush=True)
    return counted


def count(outcome: Outcome, counted: collections.Counter[str]) -> None:
    """Counts what a fault did; prints what is wrong."""
    counted["cases"] += 1
    counted[outcome.ending] += 1
    for kind in sorted({problem.kind for problem in outcome.problems}):
        counted[kind] += 1
    for problem in outcome.problems:
        print(f"{outcome.name}: {problem.kind}: {problem.text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
