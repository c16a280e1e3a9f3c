"""The real command: its start, its end, and its log."""

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
from typing import Any

import pytest
from typer.testing import CliRunner

from tessella.cli import app

PROMPT = "a large red circle on a white background"


BROKEN = """
from tessella.cli import app
from tessella.serving.worker import PaintingWorker

def fail(self, *given):
    raise ValueError("a large red circle")

PaintingWorker._measure = fail
app()
"""


@contextlib.contextmanager
def serving(
    *arguments: str, environment: Mapping[str, str] | None = None, code: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Starts `tessella serve` on a free port; gives the process and its address."""
    program = ["-m", "tessella"] if code is None else ["-c", code]
    command = [sys.executable, *program, "serve", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("Serving at http://"), process.communicate()
        yield process, said.split()[2]
    finally:
        process.kill()
        process.communicate()


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
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_sigterm_finishes_what_runs_and_refuses_the_rest() -> None:
    """A deployment that replaced the server must not cost anybody a picture."""
    patient = ("--set", "serve.batch_size=1", "--set", "serve.shutdown_timeout_seconds=600")
    with serving("scenes", *patient) as (process, address):
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
        _, log = process.communicate(timeout=300)
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


def test_ctrl_c_ends_it_well_and_its_log_is_json_without_prompts_or_keys() -> None:
    key = "sixteen-characters-at-least"
    environment = {"TESSELLA_API_KEYS": f"{key},another-key-of-some-length"}
    with serving("scenes", environment=environment) as (process, address):
        url = f"{address}/v1/images/generations"
        assert ask(url, {"prompt": PROMPT})[0] == 401
        assert ask(url, {"prompt": PROMPT}, key="sixteen-characters-at-leasu")[0] == 401
        assert ask(url, {"prompt": PROMPT}, key=key)[0] == 200
        assert ask(f"{address}/healthz")[0] == 200
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=300)
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


def test_a_server_that_cannot_paint_ends_for_its_supervisor() -> None:
    """Each fault costs the picture in hand; the fifth in a row ends the process."""
    with serving("scenes", code=BROKEN) as (process, address):
        url, said = f"{address}/v1/images/generations", {"prompt": PROMPT, "n": 2}
        seen = []
        for _ in range(5):
            with contextlib.suppress(OSError):
                seen.append(ask(url, said | {"seed": 1})[0])
        _, log = process.communicate(timeout=300)
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
