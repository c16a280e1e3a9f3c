"""Whether the server is as fast as it was: this commit beside an earlier one, in turn.

Why: each kindness to a client (a hint, a warning, a check) costs a little of every request. A few
per cent at a time go unnoticed, unless both servers are measured under the same conditions.

Theory: on a machine that others use too, a wall clock measures the others. So both servers run at
once, one of them idle, and take turns at the same requests, in alternating order; what is compared
are pairs of neighbouring rounds. The processor time of the server (user and system, from the
kernel) is what it had to do, however long it waited for its turn: with one thread of PyTorch
nothing spins, and it hardly depends on the others. A closed loop of 32 clients keeps two batches of
16 at the server; one client alone waits for its own batch, so that its time is the latency.

Output contract: a line a round; the last line of stdout is the record, one JSON object. For
`throughput` (a picture of 32 clients) and `latency` (of one client): seconds of a picture by
processor and by wall clock, of each server, and `ratio`, earlier over this, pair by pair: above 1,
this commit is faster. Exit status 1 if the median ratio of processor time is below 0.95.

    git worktree add --detach /tmp/before COMMIT
    OMP_NUM_THREADS=1 python benchmarks/serving_before.py --before /tmp/before
"""

import argparse
import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness import RESULTS, Spread, environment, print_record, write_result
from http_clients import Client, Server, encode_generation, serving
from serving import serve_all
from tessella.data.scenes import canonical_caption
from tessella.evaluation.scenes import sample_prompts

BAR = 0.95
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Times:
    """Seconds of a picture, a round each, of one server."""

    processor: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def main() -> None:
    """Measures, stores and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="sources of an earlier commit")
    parser.add_argument("--model", default="scenes", help="bundled name")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=32, help="a round, of all clients")
    parser.add_argument("--singles", type=int, default=12, help="pictures a round of one client")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="stores nothing")
    options = parser.parse_args()
    folders = {"before": options.before, "now": RESULTS.parent.parent}
    times = {part: {name: Times() for name in folders} for part in ("throughput", "latency")}
    prompts = [canonical_caption(scene) for scene in sample_prompts(options.pictures, seed=3)]
    requests = [encode_generation(prompt=one, seed=seed) for seed, one in enumerate(prompts)]
    with (
        serving(options.model, environment=point_to(folders["before"])) as before,
        serving(options.model, environment=point_to(folders["now"])) as now,
    ):
        servers = {"before": before, "now": now}
        for number in range(-1, options.rounds):  # the first one warms up
            for name in sorted(servers, reverse=number % 2 == 0):
                many, alone = measure(servers[name], requests, options)
                if number >= 0:
                    keep(times["throughput"][name], many)
                    keep(times["latency"][name], alone)
            if number >= 0:
                print(number, {part: show(found) for part, found in times.items()}, flush=True)
    results = {part: summarize(found) for part, found in times.items()}
    record = write_result(
        "serving-before",
        results,
        config={
            "before": describe_commit(options.before),
            "bar": BAR,
            **{
                name: value
                for name, value in vars(options).items()
                if name not in ("before", "quick")
            },
        },
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)
    if any(found["processor"]["ratio"].median < BAR for found in results.values()):
        raise SystemExit(1)


def point_to(folder: Path) -> dict[str, str]:
    """Sets where Python finds the package."""
    return {"PYTHONPATH": str(folder / "src")}


def measure(
    server: Server, requests: list[bytes], options: argparse.Namespace
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Measures (processor, wall) seconds of a picture: of many clients, and of one."""
    many = clock(server, lambda: asyncio.run(serve_all(server.port, requests, options.clients)))
    singles = requests[: options.singles]
    alone = clock(server, lambda: asyncio.run(ask_in_turn(server.port, singles)))
    return divide(many, len(requests)), divide(alone, len(singles))


def clock(server: Server, work: Callable[[], object]) -> tuple[float, float]:
    """Measures what the server's process used, and how long it took."""
    used, started = read_processor_seconds(server.pid), time.perf_counter()
    work()
    return read_processor_seconds(server.pid) - used, time.perf_counter() - started


def read_processor_seconds(pid: int) -> float:
    """Reads a process's user and system time (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def ask_in_turn(port: int, requests: list[bytes]) -> None:
    """Sends one request after the other."""
    client = Client(port)
    for request in requests:
        answer = await client.send(request)
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {answer.body!r}")
    await client.close()


def divide(pair: tuple[float, float], count: int) -> tuple[float, float]:
    """Divides both."""
    return pair[0] / count, pair[1] / count


def keep(times: Times, pair: tuple[float, float]) -> None:
    """Appends a round."""
    times.processor.append(pair[0])
    times.wall.append(pair[1])


def show(found: dict[str, Times]) -> dict[str, str]:
    """Shows the last round in milliseconds."""
    return {
        name: f"{times.processor[-1] * 1e3:.2f} ms, {times.wall[-1] * 1e3:.2f} ms by the clock"
        for name, times in found.items()
    }


def summarize(found: dict[str, Times]) -> dict[str, dict[str, Spread]]:
    """Compares the two servers by each clock."""
    results = {}
    for name in ("processor", "wall"):
        before, now = (getattr(found[one], name) for one in ("before", "now"))
        results[name] = {
            "seconds_before": Spread.of(before, warmup=1),
            "seconds_now": Spread.of(now, warmup=1),
            "ratio": Spread.of([a / b for a, b in zip(before, now, strict=True)], warmup=1),
        }
    return results


def describe_commit(folder: Path) -> str:
    """Names the commit of a worktree."""
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
