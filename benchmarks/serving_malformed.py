"""Whether anything that people or programs send, by mistake or in malice, harms the server.

Why: an address that is open to others is sent everything: cut-off uploads, pictures that decode to
gigabytes, numbers no language can hold. Each of them must cost its sender an error, and the
server nothing.

Theory: a request is refused as soon as it is known to be wrong: by its headers before its body is
read, by its size before it is parsed, by a picture's header before it is decoded. So a refusal
takes a bounded time and leaves nothing in memory.

Output contract: a line a thousand; the last line of stdout is the record, one JSON object.
`malformed`: how many were sent, all HTTP, each wrong in one way, and `statuses` of their answers,
also by kind in `kinds`. `not_4xx`: answers of another status. `no_answer`: connections that
ended without one, or were silent for a minute. `wrong_body`: refusals without the error object;
`by_parser` counts those of the HTTP parser, which come before the application and are plain text.
`leaks`: answers that reveal code, files or versions. `not_http`: what became of bytes that are not
HTTP; `unfinished`: of requests that stop in the middle (nobody is left to answer); `odd`: of
unusual pictures, which may be read. `alive`: how often a good request in between got the right
picture, and of how many. `memory_after_1000`, `memory_after`: resident bytes at
rest; `memory_ratio` of the two. `slowest_seconds`: of one answer, and its kind. Exit status 1
unless all is well and the ratio is at most 1.05.

    python benchmarks/serving_malformed.py --requests 10000
"""

import argparse
import asyncio
import collections
import functools
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import RESULTS, environment, print_record, write_result
from http_clients import Answer, Client, Server, encode_generation, serving
from malformed_requests import KEY, NOT_HTTP, PROMPT, Request, Rng, draw_requests, odd, unfinished

EARLY = 1_000
TOGETHER = 16  # connections at once
MEMORY_BAR = 1.05
LEAK = re.compile(rb"Traceback|site-packages|\.py\b|/home/|/usr/|uvicorn/|[Pp]ydantic|starlette")


@dataclass
class Counts:
    """What became of the requests."""

    statuses: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )  # by kind
    complaints: dict[str, list[bytes]] = field(
        default_factory=lambda: collections.defaultdict(list)
    )  # requests by what was wrong with their answers
    wrong_body: int = 0
    by_parser: int = 0
    leaks: int = 0
    alive: list[bool] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def complain(self, request: Request, reason: str) -> None:
        """Notes that a request was answered wrongly."""
        self.complaints[f"{request.kind}: {reason}"].append(request.content)


def main() -> None:
    """Sends everything; counts, stores and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder or bundled name")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.requests = 1_500
    with serving(options.model, "--no-any-model", environment={"TESSELLA_API_KEYS": KEY}) as server:
        results = asyncio.run(send_all(server, options.requests, options.seed))
    record = write_result(
        "serving-malformed",
        results,
        config={"model": options.model, "seed": options.seed, "together": TOGETHER},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)
    faults = [results[name] for name in ("not_4xx", "no_answer", "wrong_body", "leaks")]
    if any(faults) or results["alive"][0] != results["alive"][1]:
        raise SystemExit(1)
    if results["memory_ratio"] > MEMORY_BAR:
        raise SystemExit(1)


async def send_all(server: Server, count: int, seed: int) -> dict[str, Any]:
    """Sends the malformed requests in thousands, looks after the server in between."""
    counts = Counts()
    reference = await paint(server)
    requests = draw_requests(count, seed)
    memory = 0
    for start in range(0, count, EARLY):
        await send_some(server, requests[start : start + EARLY], counts)
        counts.alive.append(await paint(server) == reference)
        await asyncio.sleep(1.0)
        memory = memory or server.resident_bytes()
        totals = dict(sum(counts.statuses.values(), collections.Counter()))
        print(f"{start + EARLY}: {totals}, {server.resident_bytes() >> 20} MiB", flush=True)
    memory_after = server.resident_bytes()
    malformed = {kind: dict(sorted(counted.items())) for kind, counted in counts.statuses.items()}
    totals = sum(counts.statuses.values(), collections.Counter())
    others = await send_others(server, count // 50, seed, counts)
    counts.alive.append(await paint(server) == reference)
    for reason, contents in counts.complaints.items():
        shortest = min(contents, key=len)
        print(f"{len(contents)} × {reason}, such as {shortest[:400]!r} … {shortest[-200:]!r}")
    return {
        "malformed": totals.total(),
        "statuses": dict(sorted(totals.items())),
        "not_4xx": sum(n for status, n in totals.items() if not status.startswith(("4", "no"))),
        "no_answer": totals["no answer"],
        "wrong_body": counts.wrong_body,
        "by_parser": counts.by_parser,
        "leaks": counts.leaks,
        "kinds": malformed,
        **others,
        "alive": [sum(counts.alive), len(counts.alive)],
        "memory_after_1000": memory,
        "memory_after": memory_after,
        "memory_ratio": memory_after / memory,
        "slowest_seconds": counts.slowest[0],
        "slowest_kind": counts.slowest[1],
    }


async def send_others(server: Server, count: int, seed: int, counts: Counts) -> dict[str, Any]:
    """Sends what may be answered otherwise: no HTTP, unfinished requests, odd pictures."""
    rng = Rng(f"{seed} others")
    groups: dict[str, list[Callable[[], Request]]] = {
        "not_http": [
            functools.partial(Request, "not_http", content, ends=True)
            for content in NOT_HTTP
            for _ in range(max(1, count // len(NOT_HTTP)))
        ],
        "unfinished": [lambda: unfinished(rng)] * count,
        "odd": [lambda: odd(rng)] * count,
    }
    statuses = {}
    for kind, requests in groups.items():
        await send_some(server, requests, counts)
        statuses[kind] = dict(sorted(counts.statuses.pop(kind).items()))
    return statuses


async def send_some(
    server: Server, requests: Sequence[Callable[[], Request]], counts: Counts
) -> None:
    """Sends requests, some at once, each on a connection of its own."""
    waiting = iter(requests)

    async def run_client() -> None:
        for make in waiting:
            await provoke(server, make(), counts)

    async with asyncio.TaskGroup() as group:
        for _ in range(TOGETHER):
            group.create_task(run_client())


async def provoke(server: Server, request: Request, counts: Counts) -> None:
    """Sends one request and checks its answer."""
    client = Client(server.port)
    start = time.perf_counter()
    try:
        answer = await asyncio.wait_for(client.send(request.content, last=request.ends), 60)
    except (OSError, TimeoutError) as error:
        counts.statuses[request.kind]["no answer"] += 1
        if request.kind not in ("not_http", "unfinished"):
            counts.complain(request, type(error).__name__)
        return
    finally:
        await client.close()
    counts.slowest = max(counts.slowest, (time.perf_counter() - start, request.kind))
    counts.statuses[request.kind][str(answer.status)] += 1
    counts.leaks += bool(LEAK.search(answer.body))
    if request.kind in ("not_http", "unfinished", "odd"):
        return
    if reason := find_fault(answer, counts, request.content.startswith(b"HEAD ")):
        counts.complain(request, reason)


def find_fault(answer: Answer, counts: Counts, bodiless: bool) -> str | None:
    """Describes what is wrong with an answer; None if nothing is."""
    if not 400 <= answer.status < 500:
        return str(answer.status)
    if answer.headers.get("content-type", "").startswith("text/plain"):
        counts.by_parser += 1
        return None
    if bodiless:
        return None
    try:
        error = json.loads(answer.body)["error"]
        good = isinstance(error["message"], str) and {"type", "param", "code"} <= error.keys()
    except (ValueError, LookupError, TypeError):
        good = False
    counts.wrong_body += not good
    return None if good else f"{answer.status} without an error object"


async def paint(server: Server) -> str:
    """Asks for a picture as every client may; returns it, encoded."""
    client = Client(server.port)
    answer = await client.send(encode_generation(KEY, prompt=PROMPT, seed=7))
    await client.close()
    return answer.json()["data"][0]["b64_json"] if answer.status == 200 else f"{answer.status}"


if __name__ == "__main__":
    main()
