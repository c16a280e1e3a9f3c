"""Whether an overrun server answers everyone, refuses politely and keeps its size.

Why: a queue that grows without bound turns a busy hour into a crash, and an answer that never
comes makes a client wait forever.

Theory: 64 clients with one request in flight each are more than a queue of 16 holds, so most of
the time some have to be refused: 429, with the seconds after which to try again. Clients wait a
quarter of a second then, less than the header says, so that painted and refused answers come in
comparable numbers. Every request has one answer; a client that hangs up gives its place back. What
a request needs is freed with it, so that the memory of the process is reached early and kept:
caches and the allocator's reserves fill within the first thousand.

Output contract: a line a thousand answers; the last line of stdout is the record, one JSON object.
`statuses`: answers by status, 20,000 in all. `lost`: connections that ended, or stayed silent
for a minute, without an answer. `wrong`: answers that are none of 200 with a picture and 429 with
`Retry-After` of at least 1 and an error object. `hung_up`: clients that went away on purpose, not
counted as requests: within their body, or at once, or soon after it. `memory_after_1000`,
`memory_after`: resident bytes of the server, at rest; `memory_ratio` of the two. Exit status 1
unless `lost` and `wrong` are 0, some were refused, and the ratio is at most 1.05.

    python benchmarks/serving_load.py --requests 20000
"""

import argparse
import asyncio
import collections
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from harness import RESULTS, environment, print_record, write_result
from http_clients import Answer, Client, Server, decode_picture, encode_generation, serving
from tessella.data.scenes import canonical_caption
from tessella.evaluation.scenes import sample_prompts

EARLY = 1_000
MEMORY_BAR = 1.05


@dataclass
class Counts:
    """What became of the requests."""

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    hung_up: int = 0

    @property
    def num_done(self) -> int:
        """Requests that have their answer, or will never have one."""
        return self.statuses.total() + len(self.lost)


def main() -> None:
    """Overruns a server; counts, stores and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder or bundled name")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max-queue", type=int, default=16)
    parser.add_argument("--pause", type=float, default=0.25, help="seconds after a refusal")
    parser.add_argument("--hang-up", type=float, default=0.05, help="share of clients that do")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.requests = 2_000
    with serving(options.model, "--set", f"serve.max_queue={options.max_queue}") as server:
        started = time.monotonic()
        results = asyncio.run(overrun(server, options))
        results["seconds"] = time.monotonic() - started
    record = write_result(
        "serving-load",
        results,
        config={
            name: value
            for name, value in vars(options).items()
            if name not in ("quick", "requests")
        },
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)
    if results["lost"] or results["wrong"] or not results["statuses"].get("429"):
        raise SystemExit(1)
    if results["memory_ratio"] > MEMORY_BAR:
        raise SystemExit(1)


async def overrun(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Sends all requests and reads the server's memory after the first thousand and at the end."""
    counts = Counts()
    prompts = [canonical_caption(scene) for scene in sample_prompts(256, seed=2)]
    numbers = iter(range(10**9))
    memory = []
    for until in (EARLY, options.requests):
        async with asyncio.TaskGroup() as group:
            for client in range(options.clients):
                rng = random.Random(f"{options.seed} {until} {client}")
                group.create_task(run_client(server, options, counts, until, prompts, numbers, rng))
        await asyncio.sleep(1.0)
        memory.append(server.resident_bytes())
    for reason, number in collections.Counter(counts.lost + counts.wrong).items():
        print(f"{number} × {reason}")
    return {
        "requests": counts.num_done,
        "statuses": {str(status): number for status, number in sorted(counts.statuses.items())},
        "lost": len(counts.lost),
        "wrong": len(counts.wrong),
        "hung_up": counts.hung_up,
        "memory_after_1000": memory[0],
        "memory_after": memory[1],
        "memory_ratio": memory[1] / memory[0],
    }


async def run_client(
    server: Server,
    options: argparse.Namespace,
    counts: Counts,
    until: int,
    prompts: list[str],
    numbers: Iterator[int],
    rng: random.Random,
) -> None:
    """Sends one request after another until enough are answered."""
    client = Client(server.port)
    while counts.num_done < until:
        number = next(numbers)
        request = encode_generation(prompt=prompts[number % len(prompts)], seed=number)
        if rng.random() < options.hang_up:
            await hang_up(client, request, rng)
            counts.hung_up += 1
            continue
        try:
            answer = await asyncio.wait_for(client.send(request), timeout=60)
        except (OSError, TimeoutError) as error:
            counts.lost.append(type(error).__name__)
            await client.close()
            continue
        counts.statuses[answer.status] += 1
        if counts.num_done % 1_000 == 0:
            statuses = dict(sorted(counts.statuses.items()))
            print(f"{counts.num_done}: {statuses}, {server.resident_bytes() >> 20} MiB", flush=True)
        if reason := complain(answer, look=number % 50 == 0):
            counts.wrong.append(reason)
        if answer.status == 429:
            await asyncio.sleep(options.pause)
    await client.close()


async def hang_up(client: Client, request: bytes, rng: random.Random) -> None:
    """Goes away within the request, right after it, or while its picture is waited for."""
    cut = rng.choice((rng.randrange(1, len(request)), len(request)))
    await client.start(request[:cut])
    await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 0.2))))
    await client.close()


def complain(answer: Answer, look: bool) -> str | None:
    """Says what is wrong with an answer, or None.

    Args:
        answer: of the server.
        look: also decodes the picture.
    """
    if answer.status == 429:
        error = answer.json().get("error", {})
        if error.get("type") != "rate_limit_error" or not error.get("message"):
            return f"429 with this body: {answer.body[:200]!r}"
        seconds = answer.headers.get("retry-after", "")
        return None if seconds.isdigit() and int(seconds) >= 1 else f"Retry-After: `{seconds}`"
    if answer.status != 200:
        return f"{answer.status}: {answer.body[:200]!r}"
    if not answer.body.endswith(b"}") or b'"b64_json"' not in answer.body:
        return f"200 without a picture: {answer.body[:200]!r}"
    if look:
        decode_picture(answer.json()["data"][0]["b64_json"])
    return None


if __name__ == "__main__":
    main()
