"""Faults of the system: disks, signals, memory, and a run that is somewhere else."""

import contextlib
import errno
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_cases import Bench, Outcome, Problem, Scenario, run_faulty
from fault_errors import try_one
from fault_injection import ANY, Injector
from fault_runs import Ended, fit_words, run, start

_SEED = 18  # of the moments


def _fit(bench: Bench, out: Path | None = None) -> Scenario:
    """A whole `fit`."""
    out = bench.work / "run" if out is None else out
    words = fit_words(bench.data, out)
    return Scenario("fit", words, out, None, words, bench.place / "plain")


def _draw(scenario: Scenario, bench: Bench, count: int) -> Iterator[int]:
    """Draws moments of a command, each before something that it does to files."""
    most = bench.counts[scenario.name].get(ANY, 1)
    moments = random.Random(_SEED)
    for _ in range(count):
        number = moments.randint(1, most)
        if bench.is_chosen():
            yield number


def try_disks(bench: Bench) -> Iterator[Outcome]:
    """A disk that is full, read-only, or gone."""
    for size_kib in (32, 64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024):
        if bench.is_chosen():
            yield from _try_full_disk(bench, size_kib)
    sizes = {path.stat().st_size for path in bench.run.rglob("*") if path.is_file()}
    for limit in sorted(size - 1 for size in sizes if size > 256)[::3]:
        if bench.is_chosen():
            limited = _limit(resource.RLIMIT_FSIZE, limit)
            ended, scenario = _run_alone(bench, limited)
            yield bench.judge(scenario, ended, f"no file larger than {limit} bytes")
    scenario = _fit(bench)
    for number in _draw(scenario, bench, 8):
        injector = Injector(scenario.target, ANY, number, errno.EROFS, is_lasting=True)
        yield from try_one(bench, scenario, injector, f"read-only from {number}")
    for what, act in (("removed", _remove), ("moved", _move)):
        for number in _draw(scenario, bench, 8):
            injector = Injector(
                scenario.target, ANY, number, act=functools.partial(act, scenario.target)
            )
            name = f"{what} before {number}"
            ended, _, _ = run_faulty(bench, scenario, injector)
            # What the process made in its place goes; a folder that was moved comes back.
            shutil.rmtree(scenario.target, ignore_errors=True)
            if _elsewhere(scenario.target).exists():
                _elsewhere(scenario.target).rename(scenario.target)
            # What it had begun is out of its reach; the next start removes that.
            yield bench.judge(scenario, ended, name, reaches=False)


def _try_full_disk(bench: Bench, size_kib: int) -> Iterator[Outcome]:
    """Fits on a small disk, which then gets larger; nothing where mounting is not allowed."""
    disk = bench.work / "disk"
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return
    try:
        scenario = _fit(bench, disk / "run")
        ended = run(scenario.words)
        larger = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(larger, capture_output=True, check=True)
        yield bench.judge(scenario, ended, f"a disk of {size_kib} KiB")
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True, check=True)


def try_processes(bench: Bench) -> Iterator[Outcome]:
    """Signals, memory, dead threads, and two runs in one folder."""
    scenario = _fit(bench)
    signals = {
        "SIGTERM": (signal.SIGTERM,),
        "SIGINT": (signal.SIGINT,),
        "SIGINT twice": (signal.SIGINT, signal.SIGINT),
        "SIGHUP": (signal.SIGHUP,),
    }
    for name, numbers in signals.items():
        for moment in _draw(scenario, bench, 12):
            act = _sender(*numbers)
            injector = Injector(scenario.target, ANY, moment, act=act)
            yield from try_one(bench, scenario, injector, f"{name} before {moment}")
    for moment in _draw(scenario, bench, 3):
        yield from _try_stopped(bench, scenario, moment)
    for mebibytes in (1, 2, 4, 8, 16, 32, 64):
        if bench.is_chosen():
            ended, scenario = _run_alone(bench, _limit_memory(mebibytes << 20))
            yield bench.judge(scenario, ended, f"{mebibytes} MiB of memory left")
    for what, fault in _THREAD_FAULTS.items():
        for number in (1, 7):
            if bench.is_chosen():
                ended, scenario = _run_alone(bench, lambda: fault(number))  # noqa: B023
                yield bench.judge(scenario, ended, f"{what} {number}")
    for _ in range(3):
        if bench.is_chosen():
            yield from _try_two(bench)


def _run_alone(bench: Bench, before: Callable[[], object]) -> tuple[Ended, Scenario]:
    """Fits from nothing, after something was done to the process."""
    scenario = _fit(bench)
    scenario.reset()
    return run(scenario.words, before), scenario


def _limit(what: int, limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (limit, limit))


def _limit_memory(more: int) -> Callable[[], None]:
    """Limits the address space to what is taken, and some bytes more."""

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + more)()

    return limit


def _sender(*numbers: int) -> Callable[[], None]:
    def send() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return send


def _try_stopped(bench: Bench, scenario: Scenario, moment: int) -> Iterator[Outcome]:
    """Stops a process as Ctrl-Z does, and lets it go on."""
    scenario.reset()
    injector = Injector(scenario.target, ANY, moment, act=_sender(signal.SIGSTOP))
    process = start(scenario.words, injector.install)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if status == "T":
            time.sleep(0.2)
            process.send(signal.SIGCONT)
        time.sleep(0.01)
    yield bench.judge(scenario, process.wait(), f"stopped before {moment}")


def _fail_decoding(number: int, raise_error: Callable[[], None]) -> None:
    """Lets the n-th picture that a decoding thread gets end in an error."""
    from tessella.data import decode

    inner: Callable[..., Any] = decode._decode
    seen = 0

    def counted(record: object, settings: object) -> Any:
        nonlocal seen
        seen += 1
        if seen == number:
            raise_error()
        return inner(record, settings)

    decode._decode = counted


def _raise_memory_error() -> None:
    raise MemoryError


_THREAD_FAULTS: dict[str, Callable[[int], None]] = {
    "no memory for picture": lambda number: _fail_decoding(number, _raise_memory_error),
    "a thread is killed at picture": lambda number: _fail_decoding(number, _sender(signal.SIGKILL)),
}


def _try_two(bench: Bench) -> Iterator[Outcome]:
    """Two processes begin in one folder: one trains, the other is refused or finds it done."""
    scenario = _fit(bench)
    scenario.reset()
    first, second = (process.wait() for process in (start(scenario.words), start(scenario.words)))
    outcome = bench.judge(scenario, first if first.status else second, "two in one folder")
    outcome.problems += [
        Problem("unclear_errors", text) for text in (first if second.status else second).problems
    ]
    if first.status and second.status:
        outcome.problems.append(Problem("state_lost", f"neither trains: {first.err} {second.err}"))
    yield outcome


def try_places(bench: Bench) -> Iterator[Outcome]:
    """A half-finished run that is somewhere else, at another time, in another environment."""
    names = ("moved", "with spaces", "ünï—🎨", "[red]", "a'b\"c", "x" * 200, "-dash", "a\tb")
    for name in names:
        for copies in (True, False):
            if bench.is_chosen():
                yield _resume_at(bench, bench.work / "places" / name / "run", copies=copies)
    changes: dict[str, Callable[[], object]] = {
        "clock set back a year": lambda: _set_clock(-365 * 86400.0),
        "clock set back to 1970": lambda: _set_clock(-time.time()),
        "clock a year ahead": lambda: _set_clock(365 * 86400.0),
        "HOME unset": lambda: _set_home(None),
        "HOME read-only": lambda: _set_home("/proc"),
        "HOME missing": lambda: _set_home("/nowhere"),
        "HOME empty": lambda: _set_home(""),
        "TMPDIR missing": lambda: os.environ.update(TMPDIR="/nowhere"),
        "umask 077": lambda: os.umask(0o077),
        "no terminal": lambda: os.close(0),
        "few files": _limit(resource.RLIMIT_NOFILE, 64),
    }
    for name, change in changes.items():
        if bench.is_chosen():
            yield _resume_at(bench, bench.work / "run", before=change, name=name)
    for locale in ("C", "POSIX", "xx_XX.UTF-8"):
        if bench.is_chosen():
            yield _resume_in_locale(bench, locale)


def _resume_at(
    bench: Bench,
    out: Path,
    *,
    copies: bool = True,
    before: Callable[[], object] | None = None,
    name: str = "",
) -> Outcome:
    """Resumes a run whose tokenizer is trained, at another place."""
    words = fit_words(bench.data, out, command="fit-transformer")
    scenario = Scenario("fit-transformer", words, out, bench.tokenizer, words, bench.run)
    scenario.reset()
    if not copies:
        moved = out.with_name("moved")
        out.rename(moved)
        scenario.target = moved
        scenario.words = scenario.finish = fit_words(bench.data, moved, command="fit-transformer")
    ended = run(scenario.words, before)
    name = name or f"{'copied' if copies else 'moved'} to {out.parent.name}"
    return bench.judge(scenario, ended, name)


def _resume_in_locale(bench: Bench, locale: str) -> Outcome:
    """Resumes in a new Python, without UTF-8, at a path that is not ASCII."""
    out = bench.work / "places" / "ünï—🎨" / "locale"
    words = fit_words(bench.data, out, command="fit-transformer")
    scenario = Scenario("fit-transformer", words, out, bench.tokenizer, words, bench.run)
    scenario.reset()
    env = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "tessella", *words]
    done = subprocess.run(command, env=env, capture_output=True, check=False)
    out_text, err_text = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    ended = Ended(done.returncode, out_text, err_text, 0.0)
    return bench.judge(scenario, ended, f"LC_ALL={locale}")


def _set_clock(difference: float) -> None:
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + difference
    time.time_ns = lambda: now_ns() + int(difference * 1e9)


def _set_home(home: str | None) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME"):
        os.environ.pop(name, None)
    if home is not None:
        os.environ["HOME"] = home


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rename(_elsewhere(folder))


def _elsewhere(folder: Path) -> Path:
    return folder.with_name("moved-away")
