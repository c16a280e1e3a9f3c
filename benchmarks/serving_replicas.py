"""Whether several servers behind one address lose an answer when one of them stops or dies.

Why: replicas are replaced with every new model, and machines are lost. Nobody who waits for a
picture should notice.

Theory: a request is a function of its prompt and seed, so a proxy may repeat it at another replica.
What a stopping replica refuses (503), what a dead one leaves unanswered, and what a starting one
does not accept goes elsewhere; an answer then takes at most as long as two. Two replicas of one
thread each paint twice as many pictures as one where there are two free cores for them.

Two servers of one thread run behind nginx and HAProxy, configured as
[the page](../docs/how-to/deploy.md) says: its blocks are read from there, addresses apart. Clients
ask for pictures all the time. One replica is stopped by SIGTERM and started again, then the other
is killed and started again, and so on. A client repeats what it is refused twice, as OpenAI's does.

Output contract: a line a replacement; the last line of stdout is the record, one JSON object. By
proxy: `answers` by status; `lost`: requests without an answer, or not 200 after two repeats;
`wrong`: other pixels than the first time; `drained` and `killed`, how often; `seconds` of the
answers (median, longest). `rates`: pictures/s of one replica asked directly (`direct`), behind the
proxy (`one`), and of two (`two`), measured in turn. Exit status 1 if anything is lost or wrong.

    python benchmarks/serving_replicas.py               # needs nginx and haproxy
    python benchmarks/serving_replicas.py --proxy nginx
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import RESULTS, environment, print_record, print_skipped, write_result
from http_clients import HOST, Client, encode_generation, find_port, serving
from malformed_requests import KEY
from tessella.data.scenes import canonical_caption
from tessella.evaluation.scenes import sample_prompts

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "deploy.md"
TRIES = 3  # of a request: OpenAI's client repeats twice
TIMEOUT_SECONDS = 150.0  # of one answer; the proxies' are 130
ENDINGS = (("drained", signal.SIGTERM, 0), ("killed", signal.SIGKILL, -signal.SIGKILL))
"""By replica: how it goes, again and again; the signal, and the status that it then ends with."""


@dataclass
class Counts:
    """What clients got."""

    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    lost: list[str] = field(default_factory=list)
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    pixels: dict[bytes, bytes] = field(default_factory=dict)  # hash, by request


def read_blocks(language: str) -> list[str]:
    """Reads the page's blocks of a language."""
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def put_replicas(text: str, ports: Sequence[int]) -> str:
    """Puts the replicas' addresses in place of the page's; leaves servers without one out."""
    addresses = iter([f"{HOST}:{port}" for port in ports])
    lines = []
    for line in text.splitlines():
        found = re.search(r"10\.0\.0\.\d+:8000", line)
        address = next(addresses, None) if found else None
        if not found or address:
            lines.append(line.replace(found.group(), address) if found and address else line)
    return "\n".join(lines)


def configure_nginx(folder: Path, port: int, ports: Sequence[int]) -> list[str]:
    """Writes nginx's configuration; returns its command."""
    site, upstream, location = read_blocks("nginx")
    site = re.sub(r"^upstream .*?^}\n", "", site, flags=re.MULTILINE | re.DOTALL)
    site = re.sub(r"^ *ssl_certificate.*\n", "", site, flags=re.MULTILINE)
    site = site.replace("443 ssl", f"{HOST}:{port}")
    site = site.replace("proxy_pass http://tessella;", f"proxy_pass http://tessella;\n{location}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    text = f"""daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/log;
events {{}}
http {{
access_log off;
{paths}
{put_replicas(upstream, ports)}
{site}
}}
"""
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    return ["nginx", "-e", str(folder / "log"), "-c", str(folder / "nginx.conf")]


def configure_haproxy(folder: Path, port: int, ports: Sequence[int]) -> list[str]:
    """Writes HAProxy's configuration; returns its command."""
    [text] = read_blocks("haproxy")
    text = re.sub(r"bind .*", f"bind {HOST}:{port}", put_replicas(text, ports))
    (folder / "haproxy.cfg").write_text(text + "\n", encoding="utf-8")
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


PROXIES: dict[str, Callable[[Path, int, Sequence[int]], list[str]]] = {
    "nginx": configure_nginx,
    "haproxy": configure_haproxy,
}


@contextlib.contextmanager
def proxying(name: str, ports: Sequence[int]) -> Iterator[int]:
    """Runs a proxy before replicas; yields its port."""
    with tempfile.TemporaryDirectory() as folder:
        port = find_port()
        command = PROXIES[name](Path(folder), port, ports)
        with (Path(folder) / "out").open("w+b") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
            try:
                time.sleep(2.5)  # HAProxy's first look at each replica
                if process.poll() is not None:
                    out.seek(0)
                    raise SystemExit(f"{name} ended: {out.read().decode()}")
                yield port
            finally:
                process.terminate()
                process.wait(30)


async def ask(port: int, counts: Counts, rng: random.Random, prompts: list[str]) -> None:
    """Asks for a picture, three times if need be, and notes what came."""
    prompt, seed = rng.choice(prompts), rng.randrange(4)
    request = encode_generation(key=KEY, prompt=prompt, seed=seed, steps=8)
    began, last = time.monotonic(), ""
    for _ in range(TRIES):
        client = Client(port)
        try:
            answer = await asyncio.wait_for(client.send(request), TIMEOUT_SECONDS)
        except (OSError, TimeoutError) as error:
            last = type(error).__name__
            counts.answers[last] += 1
            continue
        finally:
            await client.close()
        counts.answers[str(answer.status)] += 1
        if answer.status == 200:
            content = base64.b64decode(answer.json()["data"][0]["b64_json"])
            digest = hashlib.sha256(content).digest()
            counts.wrong += counts.pixels.setdefault(request, digest) != digest
            counts.seconds.append(time.monotonic() - began)
            return
        last = f"{answer.status} {answer.body[:200]!r}"
        await asyncio.sleep(min(8.0, float(answer.headers.get("retry-after", "1"))))
    counts.lost.append(last)


async def load(port: int, counts: Counts, clients: int, go_on: Callable[[], bool]) -> None:
    """Lets clients ask, one picture after another."""
    prompts = [canonical_caption(scene) for scene in sample_prompts(24, seed=5)]

    async def run_client(number: int) -> None:
        rng = random.Random(number)
        while go_on():
            await ask(port, counts, rng, prompts)

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(run_client(number))


def measure_rate(port: int, clients: int, seconds: float) -> float:
    """Measures the pictures/s at an address."""
    counts, began = Counts(), time.monotonic()
    asyncio.run(load(port, counts, clients, lambda: time.monotonic() < began + seconds))
    if counts.lost or counts.wrong:
        raise SystemExit(f"An undisturbed server lost {counts.lost}, {counts.wrong} are wrong.")
    return len(counts.seconds) / (time.monotonic() - began)


def measure_rates(name: str, ports: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """Measures one replica, the same behind the proxy, and two, in turn."""
    rates: dict[str, list[float]] = collections.defaultdict(list)
    with proxying(name, ports[:1]) as one, proxying(name, ports) as two:
        places = {"direct": ports[0], "one": one, "two": two}
        for number in range(options.repeats + 1):
            for what, port in places.items():
                rate = measure_rate(port, options.clients, options.seconds)
                if number:  # the first is the warm-up
                    rates[what].append(rate)
    medians = {what: statistics.median(values) for what, values in rates.items()}
    medians["one_over_direct"] = medians["one"] / medians["direct"]
    medians["two_over_one"] = medians["two"] / medians["one"]
    return medians


def start_replica(stack: contextlib.ExitStack, number: int, port: int, model: str) -> int:
    """Starts a replica of one thread; returns its process."""
    keys = {"TESSELLA_API_KEYS": KEY, "OMP_NUM_THREADS": "1"}
    ends_with = ENDINGS[number][2]
    server = stack.enter_context(serving(model, environment=keys, port=port, ends_with=ends_with))
    return server.pid


def replace_in_turn(name: str, options: argparse.Namespace, ports: Sequence[int]) -> dict[str, Any]:
    """Replaces one replica after the other while clients ask; counts what they got."""
    counts, is_over, done = Counts(), threading.Event(), collections.Counter[str]()
    with contextlib.ExitStack() as all_replicas:
        stacks = [all_replicas.enter_context(contextlib.ExitStack()) for _ in ports]
        pids = [
            start_replica(stack, number, port, options.model)
            for number, (stack, port) in enumerate(zip(stacks, ports, strict=True))
        ]
        rates = measure_rates(name, ports, options)
        address = all_replicas.enter_context(proxying(name, ports))
        work = load(address, counts, options.clients, lambda: not is_over.is_set())
        clients = threading.Thread(target=asyncio.run, args=(work,))
        clients.start()
        try:
            for turn in range(options.replacements):
                number = turn % len(ports)
                time.sleep(options.seconds)
                what, signal_number, _ = ENDINGS[number]
                began = time.monotonic()
                os.kill(pids[number], signal_number)
                stacks[number].close()  # waits for its end
                pids[number] = start_replica(stacks[number], number, ports[number], options.model)
                done[what] += 1
                took = time.monotonic() - began
                print(f"{name}: {what}, there again after {took:.1f} s, {counts.answers}, "
                      f"{len(counts.lost)} lost", flush=True)  # fmt: skip
            time.sleep(options.seconds)
        finally:
            is_over.set()
            clients.join()
        os.kill(pids[1], signal.SIGKILL)
    seconds = {"median": statistics.median(counts.seconds), "longest": max(counts.seconds)}
    for reason, times in collections.Counter(counts.lost).items():
        print(f"{times} × {reason}")
    return {
        "answers": dict(sorted(counts.answers.items())),
        "lost": len(counts.lost),
        "wrong": counts.wrong,
        **done,
        "seconds": seconds,
        "rates": rates,
    }


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder or bundled name")
    parser.add_argument("--proxy", choices=sorted(PROXIES), action="append")
    parser.add_argument("--replacements", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="of the rates")
    parser.add_argument("--seconds", type=float, default=8.0, help="between replacements; a rate's")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.replacements, options.repeats, options.seconds = 2, 1, 1.0
    names = [name for name in options.proxy or PROXIES if shutil.which(name)]
    if missing := [name for name in options.proxy or () if name not in names]:
        parser.error(f"not installed: {', '.join(missing)}")
    if not names:
        missing_text = f"neither {' nor '.join(PROXIES)} is here"
        return print_skipped("serving-replicas", missing_text, is_quick=options.quick)
    ports = [find_port(), find_port()]
    results = {name: replace_in_turn(name, options, ports) for name in names}
    config = {
        name: value for name, value in vars(options).items() if name not in ("quick", "proxy")
    }
    record = write_result(
        "serving-replicas",
        results,
        config=config,
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)
    if any(found["lost"] or found["wrong"] for found in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
