"""Whether the server answers rightly for a long time while its painting thread fails.

Why: what leaks, comes loose or stays broken after a fault shows after an hour, not in a test.

Theory: a fault costs the requests that it met, each an error in words, and nothing else. A seed
gives the same pixels before it, after it and in a new process. What a request needs is freed with
it, so that memory is reached within minutes and kept.

Clients send generations of several sizes and counts, streams, edits and wrong requests, and some
go away. Meanwhile batches run out of memory, and the thread meets faults between batches
([faulty_server.py](faulty_server.py)). In the end it meets them for ever: the process has to end by
itself, and a new one to paint the same.

Output contract: a line a minute; the last line of stdout is the record, one JSON object. `minutes`;
`answers` by kind and status; `faults`: how many were injected. `lost`: requests without an answer.
`wrong`: other pixels than the first time, or a status other than 200 (of a wrong request: 4xx);
not of requests that a fault met, which got a 500 or 503 with an error object: `excused`, at most
as many for a fault as were in hand. `memory_early` (after 5 minutes, or a third of less than 15)
and `memory_end`, resident bytes at rest, and `memory_ratio`. `ended_by_itself`;
`same_after_restart`: of the reference pictures. Exit status 1 unless nothing is lost or wrong, the
process ends as it should and the ratio is at most 1.02.

    python benchmarks/serving_soak.py --minutes 60
"""

import argparse
import asyncio
import base64
import collections
import hashlib
import io
import itertools
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness import RESULTS, environment, print_record, write_result
from http_clients import Answer, Client, Server, decode_picture, encode_request, serving
from malformed_requests import KEY, draw_requests
from tessella.data.scenes import canonical_caption
from tessella.evaluation.scenes import sample_prompts

MEMORY_BAR = 1.02
CLIENTS = 6
FAULT_EVERY_SECONDS = 15.0
SETTLE_SECONDS = 12.0  # until the server has given back what it does not need
TIMEOUT_SECONDS = 300  # of one answer, on a busy machine
FAULTS = (signal.SIGUSR1, signal.SIGUSR2)
PROGRAM = (str(Path(__file__).with_name("faulty_server.py")),)
SIZES = (None, None, "64x64", "128x96", "96x160", "256x256")


@dataclass
class Soak:
    """What was asked and answered so far."""

    answers: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    pixels: dict[bytes, str] = field(default_factory=dict)  # what a request painted, the first time
    num_faults: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    excused: int = 0
    compared: int = 0  # pictures that were painted before

    def check(self, kind: str, request: bytes, answer: Answer) -> None:
        """Notes an answer to a good request, and what is wrong with it."""
        self.answers[kind][str(answer.status)] += 1
        if answer.status == 200:
            pictures = [decode_picture(one["b64_json"]) for one in answer.json()["data"]]
            self.compare(kind, request, pictures)
        elif answer.status in (500, 503) and _is_error(answer) and self.may_excuse():
            self.excused += 1
        else:
            self.wrong.append(f"{kind}: {answer.status} {answer.body[:200]!r}")

    def compare(self, kind: str, request: bytes, pictures: list[np.ndarray]) -> None:
        """Compares pictures with those that the same request got first."""
        digest = hashlib.sha256(b"".join(one.tobytes() for one in pictures)).hexdigest()
        self.compared += request in self.pixels
        if self.pixels.setdefault(request, digest) != digest:
            self.wrong.append(f"{kind}: other pixels than the first time")

    def may_excuse(self) -> bool:
        """Returns whether another request may have met a fault: each costs those in hand alone."""
        return self.excused < self.num_faults * CLIENTS


def _is_error(answer: Answer) -> bool:
    try:
        return bool(answer.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return False


def draw_fields(rng: random.Random, prompts: list[str]) -> dict[str, Any]:
    """Draws a good request out of a few hundred, so that each comes back."""
    fields: dict[str, Any] = {"prompt": rng.choice(prompts), "seed": rng.randrange(4), "steps": 4}
    fields["n"] = rng.choice((1, 1, 1, 2, 3))
    if size := rng.choice(SIZES):
        fields["size"] = size
    return fields


def source_picture() -> str:
    """Draws the picture that edits begin with, as a URL."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def run_client(server: Server, soak: Soak, rng: random.Random, end: float) -> None:
    """Sends one request after another until the end."""
    prompts = [canonical_caption(scene) for scene in sample_prompts(12, seed=3)]
    image, wrong = source_picture(), itertools.cycle(draw_requests(2_000, rng.randrange(2**30)))
    while time.monotonic() < end:
        client = Client(server.port, KEY)
        kind = rng.choice(("paint", "paint", "paint", "stream", "edit", "wrong", "gone"))
        fields = draw_fields(rng, prompts)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await _send(client, soak, kind, fields, image, next(wrong)(), rng)
        except (OSError, TimeoutError, EOFError) as error:
            soak.lost.append(f"{kind}: {type(error).__name__} {str(error)[:80]}")
        finally:
            await client.close()


async def _send(
    client: Client,
    soak: Soak,
    kind: str,
    fields: dict[str, Any],
    image: str,
    wrong: Any,
    rng: random.Random,
) -> None:
    """Sends a request of a kind, and checks what comes."""
    path = "/v1/images/generations"
    if kind == "wrong":
        answer = await client.send(wrong.content, last=wrong.ends)
        soak.answers[kind][f"{answer.status // 100}xx"] += 1
        if not 400 <= answer.status < 500:
            soak.wrong.append(f"{wrong.kind}: {answer.status}")
        return
    if kind == "edit":
        path, fields = "/v1/images/edits", {**fields, "images": [{"image_url": image}]}
        del fields["n"], fields["prompt"]
        fields = {"prompt": "a small red star on a white background", **fields}
        fields.pop("size", None)
    if kind == "stream":
        fields = {**fields, "n": 1, "stream": True}
    request = encode_request("POST", path, json.dumps(fields).encode(), key=KEY)
    if kind == "gone":
        await client.start(request[: rng.choice((len(request) // 2, len(request)))])
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        soak.answers[kind]["none awaited"] += 1
    elif kind == "stream":
        await _follow(client, soak, fields, request)
    else:
        soak.check(kind, request, await client.send(request))


async def _follow(client: Client, soak: Soak, fields: dict[str, Any], request: bytes) -> None:
    """Reads a stream to its end: the picture, or an error."""
    answer = await client.send(request)
    if answer.status != 200:
        soak.check("stream", request, answer)
        return
    last = answer.body.decode().rstrip().split("\n\n")[-1]
    lines = dict(line.split(": ", 1) for line in last.splitlines())
    name, data = lines.get("event", ""), json.loads(lines["data"])
    soak.answers["stream"][name or "nothing"] += 1
    if name.endswith(".completed"):
        plain = json.dumps({key: value for key, value in fields.items() if key != "stream"})
        key = encode_request("POST", "/v1/images/generations", plain.encode(), key=KEY)
        soak.compare("stream", key, [decode_picture(data["b64_json"])])
    elif "error" in data and soak.may_excuse():
        soak.excused += 1
    else:
        soak.wrong.append(f"stream: ended with `{name}` {str(data)[:100]}")


async def inject(server: Server, soak: Soak, end: float) -> None:
    """Injects faults until shortly before the end."""
    number = 0
    while time.monotonic() + FAULT_EVERY_SECONDS < end:
        await asyncio.sleep(FAULT_EVERY_SECONDS)
        soak.num_faults += 1
        os.kill(server.pid, FAULTS[number % len(FAULTS)])
        number += 1


async def run(server: Server, soak: Soak, seconds: float, seed: int) -> list[int]:
    """Loads the server; returns its resident bytes early and at the end."""
    begin = time.monotonic()
    marks = (begin + min(300.0, seconds / 3), begin + seconds)
    memory = []
    for phase, end in enumerate(marks):
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                rng = random.Random(f"{seed} {phase} {number}")
                group.create_task(run_client(server, soak, rng, end))
            group.create_task(inject(server, soak, end))
            group.create_task(_report(server, soak, end))
        await asyncio.sleep(SETTLE_SECONDS)
        memory.append(server.resident_bytes())
    return memory


async def _report(server: Server, soak: Soak, end: float) -> None:
    while time.monotonic() < end:
        await asyncio.sleep(min(60.0, max(0.1, end - time.monotonic())))
        totals = {kind: dict(counted) for kind, counted in soak.answers.items()}
        print(
            f"{totals}, {server.resident_bytes() >> 20} MiB, {soak.num_faults} faults", flush=True
        )


async def kill(server: Server, soak: Soak) -> bool:
    """Lets every batch fail until the process ends by itself; returns whether it did."""
    soak.num_faults += 1
    os.kill(server.pid, signal.SIGRTMIN)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        client = Client(server.port, KEY)
        body = json.dumps({"prompt": "a star", "seed": 0, "steps": 1}).encode()
        request = encode_request("POST", "/v1/images/generations", body, key=KEY)
        try:
            answer = await asyncio.wait_for(client.send(request), TIMEOUT_SECONDS)
        except OSError:  # nobody listens any more
            return True
        finally:
            await client.close()
        soak.check("dying", request, answer)
    return False


async def repaint(server: Server, soak: Soak, most: int) -> int:
    """Asks a new process for pictures of the old one; returns how many requests got the same."""
    same = 0
    for request, digest in list(soak.pixels.items())[:most]:
        client = Client(server.port, KEY)
        answer = await asyncio.wait_for(client.send(request), TIMEOUT_SECONDS)
        await client.close()
        pictures = [decode_picture(one["b64_json"]) for one in answer.json().get("data", ())]
        same += hashlib.sha256(b"".join(p.tobytes() for p in pictures)).hexdigest() == digest
    return same


def main() -> None:
    """Loads, kills and restarts a server; counts, stores and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder or bundled name")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.minutes = 0.5
    soak, again, keys = Soak(), 20, {"TESSELLA_API_KEYS": KEY}
    with serving(
        options.model, "--no-any-model", environment=keys, program=PROGRAM, ends_with=1
    ) as server:
        memory = asyncio.run(run(server, soak, options.minutes * 60, options.seed))
        has_ended = asyncio.run(kill(server, soak))
    with serving(options.model, environment=keys) as server:
        same = asyncio.run(repaint(server, soak, again))
    for reason, number in collections.Counter(soak.lost + soak.wrong).items():
        print(f"{number} × {reason}")
    results = {
        "minutes": options.minutes,
        "answers": {kind: dict(sorted(n.items())) for kind, n in sorted(soak.answers.items())},
        "faults": soak.num_faults,
        "lost": len(soak.lost),
        "wrong": len(soak.wrong),
        "excused": soak.excused,
        "compared": soak.compared,
        "memory_early": memory[0],
        "memory_end": memory[1],
        "memory_ratio": memory[1] / memory[0],
        "ended_by_itself": has_ended,
        "same_after_restart": [same, min(again, len(soak.pixels))],
    }
    config = {"model": options.model, "seed": options.seed, "clients": CLIENTS}
    config["fault_every_seconds"] = FAULT_EVERY_SECONDS
    folder = None if options.quick else RESULTS
    record = write_result(
        "serving-soak", results, config=config, where=environment("cpu"), folder=folder
    )
    print_record(record)
    is_good = has_ended and same == min(again, len(soak.pixels)) and not (soak.lost or soak.wrong)
    # A short run has not filled its caches when it is looked at first.
    if not is_good or (not options.quick and results["memory_ratio"] > MEMORY_BAR):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
