"""Whether those who say nothing can keep others out: half-open connections beside painting clients.

Why: a connection costs whoever opens it nothing, and the server a file. Some hundreds of them, left
open with half a request, once used up the files that the process may open; then nobody was let in,
`/healthz` included, and a supervisor ended a server that was well.

Theory: the server raises its limit of files as far as the system lets it, closes connections whose
headers do not come, and lets the one that has been silent longest make room for a new one, so that
silence never costs more than the connections that it may have. `/healthz` is answered by the event
loop, which does not paint: it waits for the loop's other work, and where the cores are taken, for
its turn.

Output contract: the last line of stdout is the record, one JSON object. The server is started with
a soft limit of 256 files. `half_open`: connections with half a request, held all the time; each one
that is closed is opened anew (`reopened`). `pictures`: answered with a picture, for 64 clients that
ask in a closed loop, 429 tried again; `refused`: connections that were refused or ended without an
answer; `other`: answers of another status. `health_seconds`: of `/healthz` on a connection of its
own, ten times a second, connecting included; `health_alone_seconds` the same before anything else
is asked; `health_slow`: how many took over 100 ms. Exit status 1 if any was refused, or the median
of `health_seconds` is over 100 ms.

    python benchmarks/serving_connections.py
"""

import argparse
import asyncio
import contextlib
import resource
import time
from dataclasses import dataclass, field
from itertools import count

from harness import RESULTS, Spread, environment, print_record, write_result
from http_clients import HOST, Client, Server, encode_generation, serving

SOFT_LIMIT = 256
BAR_SECONDS = 0.1
HALF = f"POST /v1/images/generations HTTP/1.1\r\nHost: {HOST}\r\nContent-Le".encode()
PROMPT = "a large red circle on a white background"


@dataclass
class Counts:
    """What became of everybody."""

    pictures: int = 0
    busy: int = 0  # 429
    other: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    reopened: int = 0
    health: list[float] = field(default_factory=list)
    open_now: int = 0


def main() -> None:
    """Measures, stores and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder or bundled name")
    parser.add_argument("--half-open", type=int, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--quick", action="store_true", help="stores nothing")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT_LIMIT, hard))  # the server inherits it
    with serving(options.model) as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        counts, alone = asyncio.run(crowd(server, options))
    results = {
        "pictures": counts.pictures,
        "busy": counts.busy,
        "refused": len(counts.refused),
        "other": len(counts.other),
        "half_open": options.half_open,
        "half_open_at_the_end": counts.open_now,
        "reopened": counts.reopened,
        "health_seconds": Spread.of(counts.health),
        "health_alone_seconds": Spread.of(alone),
        "health_slow": sum(seconds > BAR_SECONDS for seconds in counts.health),
        "bar_seconds": BAR_SECONDS,
    }
    for reason in sorted({*counts.refused, *map(str, counts.other)}):
        print(reason)
    record = write_result(
        "serving-connections",
        results,
        config={name: value for name, value in vars(options).items() if name != "quick"}
        | {"soft_limit_of_files": SOFT_LIMIT, "hard_limit_of_files": hard},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)
    if counts.refused or counts.other or results["health_seconds"].median > BAR_SECONDS:
        raise SystemExit(1)


async def crowd(server: Server, options: argparse.Namespace) -> tuple[Counts, list[float]]:
    """Opens half requests, then paints and asks for health among them."""
    alone = [await ask_health(server) for _ in range(50)]
    counts, until = Counts(), time.monotonic() + options.seconds
    silent = [asyncio.create_task(stay_silent(server, counts)) for _ in range(options.half_open)]
    while counts.open_now < options.half_open:
        await asyncio.sleep(0.05)
    numbers = count()
    async with asyncio.TaskGroup() as group:
        for _ in range(options.clients):
            group.create_task(paint(server, counts, until, numbers))
        group.create_task(watch_health(server, counts, until))
    for task in silent:
        task.cancel()
    await asyncio.gather(*silent, return_exceptions=True)
    return counts, alone


async def stay_silent(server: Server, counts: Counts) -> None:
    """Holds half a request open; opens another one once it is closed."""
    while True:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        counts.open_now += 1
        try:
            writer.write(HALF)
            with contextlib.suppress(OSError):
                await reader.read()
        finally:
            writer.close()
        counts.open_now -= 1
        counts.reopened += 1


async def paint(server: Server, counts: Counts, until: float, numbers: "count[int]") -> None:
    """Asks for one picture after the other, each on a connection of its own."""
    while time.monotonic() < until:
        client = Client(server.port)
        try:
            answer = await client.send(encode_generation(prompt=PROMPT, seed=next(numbers)))
        except OSError as error:
            counts.refused.append(repr(error))
            continue
        finally:
            await client.close()
        if answer.status == 200:
            counts.pictures += 1
        elif answer.status == 429:
            counts.busy += 1
            await asyncio.sleep(0.25)
        else:
            counts.other.append(answer.status)


async def watch_health(server: Server, counts: Counts, until: float) -> None:
    """Asks ten times a second whether the server is well."""
    while time.monotonic() < until:
        try:
            counts.health.append(await ask_health(server))
        except OSError as error:
            counts.refused.append(f"health: {error!r}")
        await asyncio.sleep(0.1)


async def ask_health(server: Server) -> float:
    """Asks once; returns how long it took."""
    client, started = Client(server.port), time.perf_counter()
    try:
        answer = await client.ask("GET", "/healthz")
    finally:
        await client.close()
    if answer.status != 200:
        raise SystemExit(f"/healthz: {answer.status}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
