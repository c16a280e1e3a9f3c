"""The real command: its start, its end, and its log."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from typer.testing import CliRunner

from tessella.cli import app
from tessella.errors import CheckpointError
from tessella.serving import server
from tessella.serving.settings import ServeSettings
from tessella.serving.worker import PaintingWorker

PROMPT = "a large red circle on a white background"
PATIENCE = 600  # seconds; other processes may leave these ones hardly any time


BROKEN = """
from tessella.cli import main
from tessella.serving.worker import PaintingWorker

def fail(self, *given):
    raise ValueError("a large red circle")

PaintingWorker._measure = fail
main()
"""

# Ctrl-C while the server looks whether to go on.
INTERRUPTED = """
import signal
from tessella.cli import main
from tessella.serving.worker import PaintingWorker

looks_alive = PaintingWorker.is_alive.fget
interrupts = [signal.SIGINT]

def is_alive(self):
    if interrupts:
        signal.raise_signal(interrupts.pop())
    return looks_alive(self)

PaintingWorker.is_alive = property(is_alive)
main()
"""

# A route whose thread never ends, as where a run lies on a drive that is gone.
HANGING = """
import time
from tessella.cli import main
from tessella.serving import server
from tessella.serving.metrics import ServerMetrics

def hang(self):
    print("hanging", flush=True)
    time.sleep(1_000_000)

ServerMetrics.render = hang
server._LATE_SECONDS = 600.0
main()
"""

# Says when it is about to write a line of its log, and does not wait long for its own end.
IMPATIENT = """
import logging
from tessella.cli import main
from tessella.serving import server

write = logging.StreamHandler.emit

def emit(self, record):
    print("logging", flush=True)
    write(self, record)

logging.StreamHandler.emit = emit
server._LATE_SECONDS = 1.0
main()
"""

# Within PyTorch, as when a large model is loaded or painted with, and for ever.
BUSY = """
import signal
import torch
from tessella.cli import main
from tessella.model.pipeline import TextToImage
from tessella.serving import server

def be_busy(*given, **settings):
    print("busy", flush=True)
    matrix = torch.rand(300, 300)
    while True:
        matrix @ matrix

# Whoever starts tests in the background of a shell lets them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
if PLACE == "loading":
    server.load_models = be_busy
else:
    TextToImage.generate_images = be_busy
main()
"""


@contextlib.contextmanager
def serving(*arguments: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Starts `tessella serve` on a free port; gives the process and its address."""
    with starting(*arguments, **options) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("Serving at http://"), process.communicate()
        yield process, said.split()[2]


@contextlib.contextmanager
def starting(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    code: str | None = None,
    log: int = subprocess.PIPE,
) -> Iterator[subprocess.Popen[str]]:
    """Starts `tessella serve` on a free port; gives the process."""
    program = ["-m", "tessella"] if code is None else ["-c", code]
    command = [sys.executable, *program, "serve", "--port", "0", "--device", "cpu"]
    command += ["--set", f"serve.shutdown_timeout_seconds={PATIENCE}"]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        preexec_fn=_hear_hangup,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _hear_hangup() -> None:
    """As from a terminal: what nohup starts has SIGHUP ignored, and so have its children."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ask(
    address: str, body: Mapping[str, Any] | None = None, key: str | None = None
) -> tuple[int, Any]:
    """Sends a request; returns the status and the JSON."""
    request = urllib.request.Request(address)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_sigterm_finishes_what_runs_and_refuses_the_rest() -> None:
    """A deployment that replaced the server must not cost anybody a picture."""
    with serving("scenes", "--set", "serve.batch_size=1") as (process, address):
        url = f"{address}/v1/images/generations"
        assert ask(f"{address}/readyz")[0] == 200
        answers: list[tuple[int, Any]] = []
        begun = threading.Thread(
            # Ten batches.
            target=lambda: answers.append(ask(url, {"prompt": PROMPT, "n": 10, "best_of": 4}))
        )
        begun.start()
        waiting: list[tuple[int, Any]] = []
        wait_for(address, "tessella_batch_size_count", 1)
        late = threading.Thread(
            target=lambda: waiting.append(ask(url, {"prompt": PROMPT, "n": 10}))
        )
        late.start()
        wait_for(address, "tessella_queue_pictures", 11)
        process.send_signal(signal.SIGTERM)
        begun.join()
        late.join()
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        [(status, answer)] = answers
        assert status == 200, answer
        assert len(answer["data"]) == 10
        [(status, answer)] = waiting
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
        assert "Traceback" not in log


def wait_for(address: str, metric: str, least: float) -> None:
    """Waits until a metric is large enough; not busily, for nobody reads the log meanwhile."""
    for _ in range(1000):
        with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
            values = dict(line.decode().split() for line in answer if line.startswith(b"tess"))
        if float(values.get(metric, 0)) >= least:
            return
        time.sleep(0.05)
    raise AssertionError(values)


# A closed terminal once cut off what was painted, with a traceback, "nothing was being served".
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGHUP])
def test_it_ends_well_and_its_log_is_json_without_prompts_or_keys(ending: signal.Signals) -> None:
    key = "sixteen-characters-at-least"
    environment = {"TESSELLA_API_KEYS": f"{key},another-key-of-some-length"}
    with serving("scenes", environment=environment) as (process, address):
        url = f"{address}/v1/images/generations"
        assert ask(url, {"prompt": PROMPT})[0] == 401
        assert ask(url, {"prompt": PROMPT}, key="sixteen-characters-at-leasu")[0] == 401
        assert ask(url, {"prompt": PROMPT}, key=key)[0] == 200
        assert ask(f"{address}/healthz")[0] == 200
        process.send_signal(ending)
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("other", 401),
        ("other", 401),
        ("/v1/images/generations", 200),
        ("/healthz", 200),
    ]
    assert "circle" not in log
    assert key not in log
    assert all(line["id"] and line["seconds"] >= 0 for line in lines)


def test_ctrl_c_at_any_step_ends_it() -> None:
    """The server wrote down that it goes on, over the signal that had just come: it never ended."""
    with serving("scenes", code=INTERRUPTED) as (process, _):
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert log == ""


def test_a_route_that_hangs_does_not_keep_it() -> None:
    """Python waits for each route's thread before it ends."""
    impatient = ("--set", "serve.shutdown_timeout_seconds=1")
    with serving("scenes", *impatient, code=HANGING) as (process, address):
        with asking(f"{address}/metrics"):
            assert process.stdout is not None
            assert process.stdout.readline() == "hanging\n"
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert "Traceback" not in log


@pytest.mark.skipif(not hasattr(os, "set_blocking"), reason="no pipe can be filled")
def test_a_log_that_nobody_reads_does_not_keep_it() -> None:
    """Every line to it waits for ever, in the thread that answers all requests."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    impatient = ("--set", "serve.shutdown_timeout_seconds=1")
    try:
        with (
            serving("scenes", *impatient, code=IMPATIENT, log=writing) as (process, address),
            asking(f"{address}/healthz"),
        ):
            assert process.stdout is not None
            assert process.stdout.readline() == "logging\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=PATIENCE) == -signal.SIGALRM
    finally:
        os.close(reading)
        os.close(writing)


def test_ctrl_c_while_a_model_is_loaded_ends_it_at_once() -> None:
    """Python ended the thread in the middle of PyTorch, which aborted the process."""
    with starting("scenes", code=f"PLACE = 'loading'{BUSY}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
    assert log == "Interrupted. Nothing was being served yet.\n"


def test_a_second_ctrl_c_waits_for_no_picture() -> None:
    with serving("scenes", code=f"PLACE = 'painting'{BUSY}") as (process, address):
        url = f"{address}/v1/images/generations"
        with asking(url, {"prompt": PROMPT}):
            assert process.stdout is not None
            assert process.stdout.readline() == "busy\n"
            # A half-sent request besides.
            parts = urlsplit(address)
            with socket.create_connection((parts.hostname, parts.port)) as half:
                half.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
                process.send_signal(signal.SIGINT)
                # Once the first one is heard: two that come at once count as one.
                wait_until_refused(f"{address}/healthz")
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


@contextlib.contextmanager
def asking(address: str, body: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Asks in a thread meanwhile, and for an answer that may never come."""

    def try_it() -> None:
        with contextlib.suppress(OSError, HTTPException):
            ask(address, body)

    thread = threading.Thread(target=try_it)
    thread.start()
    yield
    thread.join()


def wait_until_refused(address: str) -> None:
    """Waits until a server takes no connections any more."""
    for _ in range(1000):
        try:
            urllib.request.urlopen(address, timeout=60).close()
        except urllib.error.URLError:
            return
        time.sleep(0.05)
    raise AssertionError(address)


def test_memory_is_given_back_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    worker = PaintingWorker(ServeSettings())
    tested = server._Server(uvicorn.Config("none"), worker, lambda: None)

    async def tick() -> None:
        for counter in range(250):
            monkeypatch.setattr(server, "return_freed_memory", lambda at=counter: times.append(at))
            assert not await tested.on_tick(counter)

    asyncio.run(tick())
    assert times == [0, 100, 200]


def test_a_server_that_cannot_paint_ends_for_its_supervisor() -> None:
    """Each fault costs the picture in hand; the fifth in a row ends the process."""
    with serving("scenes", code=BROKEN) as (process, address):
        url, said = f"{address}/v1/images/generations", {"prompt": PROMPT, "n": 2}
        seen = []
        for _ in range(5):
            with contextlib.suppress(OSError):
                seen.append(ask(url, said | {"seed": 1})[0])
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
    assert set(seen) <= {200, 500, 503}
    told = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    faults = [line for line in told if "errors" in line]
    assert [line["errors"][0]["kind"] for line in faults] == ["ValueError"] * 5
    assert [line.get("level") for line in told].count("critical") == 1
    assert "Error: The painting thread ended after faults" in log
    assert "Traceback" not in log
    assert "circle" not in log


def refuse(*arguments: str) -> str:
    """Starts a server that must refuse to; returns the reason."""
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    return str(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--host", "0.0.0.0"), "Anyone who can reach this address could paint: `0.0.0.0`"),
        (("nowhere", "--port", "0"), "There is no such model: `nowhere`"),
        (("scenes", "scenes=stickers", "--port", "0"), "Two models have one name: `scenes`"),
        (("--set", "serve.max_que=3"), "did you mean `max_queue`"),
        (
            ("--set", "generation.steps=3"),
            "settings of the section `serve` only: `generation`",
        ),
        (("--insecure", "--host", "no such host"), "Cannot listen on `no such host`"),
    ],
)
def test_a_wrong_start_is_refused(arguments: tuple[str, ...], reason: str) -> None:
    assert reason in refuse(*arguments)


def test_an_address_in_use_is_reported_before_models_are_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        reason = refuse("nowhere", "--port", str(taken.getsockname()[1]))
    assert "Address already in use. Try another --port, or 0 for a free one." in reason


def test_while_models_load_connections_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy whose connection is refused asks another replica; one that waits keeps a client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def load(*given: object) -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        raise CheckpointError("the model is missing")

    monkeypatch.setattr(server, "load_models", load)
    assert "the model is missing" in refuse("scenes", "--port", str(port))


def test_of_two_that_start_at_once_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take the address; only the first of them to have loaded its models may listen."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    load, listening = server.load_models, socket.socket()

    def load_slower(models: Any, *more: Any) -> Any:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
        return load(models, *more)

    monkeypatch.setattr(server, "load_models", load_slower)
    with listening:
        assert f"Cannot listen on `127.0.0.1`, port {port}" in refuse("scenes", "--port", str(port))


def test_a_start_that_fails_leaves_no_thread(until: Any) -> None:
    def count() -> int:
        return sum(thread.name == "painting" for thread in threading.enumerate())

    before = count()
    refuse("nowhere", "--port", "0")
    until(lambda: count() == before)


def test_a_short_key_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_API_KEYS", "hunter2")
    reason = refuse("--host", "0.0.0.0")
    assert "API key 1 must have at least 16 characters" in reason
    assert "hunter2" not in reason
