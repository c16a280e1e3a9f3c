"""What the benchmark scripts share: environment, timing, bounds, results.

Why:
    A number without the machine, the spread and something to compare it with says nothing.
    Every script measures through this file, so that all results carry the same facts.

Theory:
    A time is compared either with a peer or with the bound of this machine, in the same run.
    The bound of dense arithmetic is what the best kernels at hand reach: a large float32 matrix
    product (`matmul_bound`) and a large convolution (`convolution_bound`), in GFLOP/s. A step
    that needs F floating-point operations cannot take less than F / bound. A multiply-add
    counts as two operations.

Output contract:
    A script prints what it likes, and as the last line of stdout one JSON object: the record
    that `write_result` also stores as `results/<what>_<hardware>_<yyyymm>.json`, with a table
    for people beside it (`.md`). Times are seconds.
"""

import datetime
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Environment:
    """Where and with what a benchmark ran."""

    commit: str  # short commit of the sources, with "-dirty" when files differ; or "unknown"
    month: str  # yyyy-mm; the day would say nothing more
    hardware: str  # the short name that result files carry
    device: str  # the torch device that was measured: "cpu", "cuda:0"
    processor: str  # the processor's (or accelerator's) model
    cores: int  # cores that this process may use
    threads: int  # threads that torch computes with
    system: str  # operating system and machine type
    python: str  # Python version
    torch: str  # torch version


@dataclass(frozen=True)
class Spread:
    """What repeats of one measurement gave."""

    median: float  # middle value
    min: float  # lowest value
    max: float  # highest value
    iqr: float  # distance from the first to the third quartile
    repeats: int  # how many values these are
    warmup: int  # runs before them that were thrown away

    @staticmethod
    def of(values: Sequence[float], warmup: int = 0) -> "Spread":
        """Describes measured values.

        Args:
            values: at least one.
            warmup: how many runs came before them, for the record.
        """
        if not values:
            raise ValueError("A spread needs at least one value: got none.")
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else None
        return Spread(
            median=statistics.median(values),
            min=min(values),
            max=max(values),
            iqr=quartiles[2] - quartiles[0] if quartiles else 0.0,
            repeats=len(values),
            warmup=warmup,
        )


@dataclass(frozen=True)
class Ratio:
    """Two contestants, measured in turn in one run."""

    ratio: Spread  # theirs / ours, pair by pair: above 1 means that ours is faster
    ours: Spread  # seconds of one call of ours
    theirs: Spread  # seconds of one call of theirs


def environment(device: str | torch.device = "cpu") -> Environment:
    """Records where a benchmark runs.

    Args:
        device: what is measured; names the hardware.
    """
    device = torch.device(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
        hardware = _slug(processor.replace("NVIDIA", ""))
    else:
        processor = _cpu_model()
        hardware = f"cpu{cores}-{_vector_extension()}"
    return Environment(
        commit=_commit(),
        month=datetime.date.today().strftime("%Y-%m"),
        hardware=hardware,
        device=str(device),
        processor=processor,
        cores=cores,
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
    )


def measure(
    function: Callable[[], object],
    *,
    warmup: int = 2,
    repeats: int = 10,
    device: str | torch.device = "cpu",
) -> Spread:
    """Times calls of a function.

    Args:
        function: takes nothing; what it returns is dropped.
        warmup: calls that are not counted (caches, memory, kernels chosen).
        repeats: calls that are counted, >= 1.
        device: where its work runs; an accelerator is waited for.

    Returns:
        Seconds of one call.
    """
    for _ in range(warmup):
        function()
    return Spread.of([_seconds(function, device) for _ in range(repeats)], warmup)


def measure_ratio(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    warmup: int = 2,
    repeats: int = 10,
    device: str | torch.device = "cpu",
) -> Ratio:
    """Times two functions in turn, so that a machine's moods meet both alike.

    Each repeat calls both, and which one goes first changes from repeat to repeat; the ratio is
    taken within the repeat.

    Args:
        ours: takes nothing; what it returns is dropped.
        theirs: the same for the peer.
        warmup: pairs of calls that are not counted.
        repeats: pairs of calls that are counted, >= 1.
        device: where their work runs; an accelerator is waited for.
    """
    for _ in range(warmup):
        ours()
        theirs()
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            their_seconds = _seconds(theirs, device)
            our_seconds = _seconds(ours, device)
        else:
            our_seconds = _seconds(ours, device)
            their_seconds = _seconds(theirs, device)
        pairs.append((our_seconds, their_seconds))
    return Ratio(
        ratio=Spread.of([b / a for a, b in pairs], warmup),
        ours=Spread.of([a for a, _ in pairs], warmup),
        theirs=Spread.of([b for _, b in pairs], warmup),
    )


def matmul_bound(size: int = 1536, *, repeats: int = 5, device: str = "cpu") -> Spread:
    """Measures this machine's bound for float32 matrix products.

    Args:
        size: edge of the two square matrices; large enough that memory is not the limit.
        repeats: products that are counted.
        device: where they are computed.

    Returns:
        GFLOP/s; a product of two (size, size) matrices counts 2·size³ operations.
    """
    left = torch.rand(size, size, device=device)
    right = torch.rand(size, size, device=device)
    out = torch.empty_like(left)
    flops = 2 * size**3
    return _rate(lambda: torch.mm(left, right, out=out), flops, repeats, device)


def convolution_bound(
    channels: int = 128, size: int = 64, *, batch: int = 4, repeats: int = 5, device: str = "cpu"
) -> Spread:
    """Measures this machine's bound for float32 3×3 convolutions.

    Args:
        channels: input and output channels.
        size: height and width of the maps, kept by padding 1.
        batch: maps at once.
        repeats: convolutions that are counted.
        device: where they are computed.

    Returns:
        GFLOP/s; every output value counts 2·9·channels operations (those that fall on the
        padding are counted too, under 4 % at this size).
    """
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device)
    maps = torch.rand(batch, channels, size, size, device=device)
    flops = 2 * 9 * channels * channels * size * size * batch

    def convolve() -> None:
        with torch.inference_mode():
            layer(maps)

    return _rate(convolve, flops, repeats, device)


def training_bound(device: torch.device) -> Spread:
    """Measures the rate, in GFLOP/s, that no training step can beat.

    bf16 products on CUDA, where training runs in bf16; fp32 convolutions elsewhere.
    """
    if device.type != "cuda":
        return convolution_bound(device=str(device))
    size = 8192
    left, right = (torch.rand(size, size, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    spread = measure(lambda: torch.mm(left, right, out=out), warmup=5, repeats=20, device=device)
    rates = [2 * size**3 / seconds / 1e9 for seconds in (spread.median, spread.min, spread.max)]
    return Spread(rates[0], rates[2], rates[1], spread.iqr / spread.median * rates[0], 20, 5)


def measure_peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Measures how many bytes of tensors a step adds at its highest.

    On a CPU these are torch's own allocations, from the profiler's trace; what the math libraries
    take for themselves is not counted.

    Args:
        step: what is run once, warmed up.
        device: where it works.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    moves = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    held = highest = 0
    for _, num_bytes in moves:  # below 0 where memory is given back
        held += num_bytes
        highest = max(highest, held)
    return highest


def write_result(
    what: str,
    results: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    where: Environment,
    folder: Path | None = RESULTS,
) -> dict[str, Any]:
    """Stores a result for machines (`.json`) and for people (`.md`).

    Args:
        what: the benchmark's name: letters, digits and hyphens.
        results: what was measured; plain values, mappings and the dataclasses of this file.
        config: what was run: sizes, settings, repeats, seed.
        where: from `environment`.
        folder: made when it is not there; None stores nothing, as quick runs want it.

    Returns:
        The record, as it is (or would be) stored.
    """
    if _slug(what) != what:
        raise ValueError(f"A result's name has small letters, digits and hyphens: `{what}`.")
    record = {
        "what": what,
        "environment": asdict(where),
        "config": _plain(config),
        "results": _plain(results),
    }
    if folder is None:
        return record
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{what}_{where.hardware}_{where.month.replace('-', '')}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_markdown(record), encoding="utf-8")
    return record


def find_missing_package(*names: str, extra: str) -> str | None:
    """Says which of some packages is not installed, and which extra of tessella brings it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            return (
                f"The package `{name}` is not installed. Install it with pip install "
                f"'tessella[{extra}]'"
            )
    return None


def print_record(record: Mapping[str, Any]) -> None:
    """Prints a record as the one JSON line that has to come last on stdout."""
    print(json.dumps(record), flush=True)


def print_skipped(what: str, missing: str, *, is_quick: bool) -> None:
    """Ends a quick run on a machine that lacks a program, with a record of no results.

    Raises:
        SystemExit: the run is not quick: it was asked for alone, and cannot measure.
    """
    if not is_quick:
        raise SystemExit(f"Cannot measure: {missing}.")
    print(f"Skipped: {missing}.")
    print_record(write_result(what, {}, config={}, where=environment("cpu"), folder=None))


def _rate(function: Callable[[], object], flops: int, repeats: int, device: str) -> Spread:
    """Turns timed calls of known work into GFLOP/s."""
    warmup = 2
    for _ in range(warmup):
        function()
    seconds = [_seconds(function, device) for _ in range(repeats)]
    return Spread.of([flops / s / 1e9 for s in seconds], warmup)


def _seconds(function: Callable[[], object], device: str | torch.device) -> float:
    """Times one call, an accelerator's queue emptied before and after it."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _commit() -> str:
    """Names the sources' commit, or "unknown" outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _cpu_model() -> str:
    """Reads the processor's model, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _vector_extension() -> str:
    """Names the widest vector instructions that torch uses here, such as avx2."""
    return _slug(torch.backends.cpu.get_cpu_capability())


def _slug(text: str) -> str:
    """Turns a name into small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _plain(value: Any) -> Any:
    """Turns records into what JSON knows, and refuses what it does not."""
    if isinstance(value, Spread | Ratio | Environment):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A result holds plain values: `{type(value).__name__}`.")


def _markdown(record: Mapping[str, Any]) -> str:
    """Lays a record out as a page with one table a part."""
    lines = [f"# {record['what']}", ""]
    for part in ("results", "config", "environment"):
        lines += [f"## {part.capitalize()}", "", "| name | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in _rows(record[part])]
        lines.append("")
    return "\n".join(lines)


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flattens nested values to dotted names; a spread becomes one row."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and {"median", "iqr", "repeats"} <= value.keys():
            text = (
                f"{value['median']:.4g} (from {value['min']:.4g} to {value['max']:.4g}, "
                f"IQR {value['iqr']:.2g}, {value['repeats']} repeats)"
            )
            rows.append((prefix + name, text))
        elif isinstance(value, Mapping):
            rows += _rows(value, f"{prefix}{name}.")
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            rows.append((prefix + name, text.replace("|", "\\|")))
    return rows
