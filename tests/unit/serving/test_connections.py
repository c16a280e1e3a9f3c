"""Connections: how long headers may take, and how many files the process may open."""

import asyncio
import contextlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from tessella.serving import connections
from tessella.serving.access_log import ACCESS_LOG
from tessella.serving.connections import bound_connections, create_protocol, raise_file_limit

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that waits 0.4 s for headers."""
    with serving(create_protocol(0.4)) as port:
        yield port


@contextlib.contextmanager
def serving(protocol: type[asyncio.Protocol]) -> Iterator[int]:
    app = FastAPI()
    slow = threading.Event()

    @app.get("/")
    async def answer() -> str:
        return "here"

    @app.get("/slow")
    async def wait() -> str:
        deadline = time.monotonic() + 30
        while not slow.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return "slow"

    @app.get("/release")
    async def release() -> str:
        slow.set()
        return "released"

    config = uvicorn.Config(app, http=protocol, log_config=None, ws="none", timeout_keep_alive=30)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def is_open(connected: socket.socket, seconds: float) -> bool:
    """Tells whether the server keeps a connection, and says nothing, for a while."""
    connected.settimeout(seconds)
    try:
        return connected.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X-Long: " + b"x" * 5000])
def test_half_sent_headers_are_closed(
    sent: bytes, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Three hundred of them were all open after 45 s."""
    with (
        caplog.at_level(logging.INFO, ACCESS_LOG),
        socket.create_connection(("127.0.0.1", port)) as connected,
    ):
        connected.sendall(sent)
        started = time.monotonic()
        assert not is_open(connected, 10)
        assert time.monotonic() - started > 0.3
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == ACCESS_LOG]
    assert len(lines) == bool(sent)
    for line in lines:
        assert (line["status"], line["code"]) == (408, "header_timeout")
        assert line["error"] == "The headers took over 0.4 s."


def test_headers_that_drip_have_one_deadline(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connected:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for letter in (HEAD + b"X: ").ljust(200, b"x"):
                connected.sendall(bytes([letter]))
                time.sleep(0.02)
        assert time.monotonic() - started < 3


def test_a_connection_that_is_kept_is_not_closed(port: int) -> None:
    """Between requests the time of the keep-alive counts; a further half request has 0.4 s."""
    with socket.create_connection(("127.0.0.1", port)) as connected:
        for _ in range(2):
            connected.sendall(HEAD + b"\r\n")
            time.sleep(0.1)
            assert connected.recv(4096).startswith(b"HTTP/1.1 200")
            assert is_open(connected, 0.7)
        connected.sendall(HEAD)
        assert not is_open(connected, 10)


def test_the_limit_of_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    most, unlimited = connections._MAX_FILES, resource.RLIM_INFINITY
    for soft, hard, raised in (
        (256, 4096, 4096),
        (256, unlimited, most),
        (4096, 4096, 4096),
        (unlimited, unlimited, None),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, now=(soft, hard): now)
        assert raise_file_limit() == raised
    assert asked == [(4096, 4096), (connections._MAX_FILES, resource.RLIM_INFINITY)]

    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_file_limit() == 256


@pytest.mark.parametrize(
    ("wanted", "files", "expected"),
    [
        (4096, None, 4096),
        (4096, 65_536, 4096),
        (4096, 1024, 640),
        (100, 1024, 100),
        (4096, 256, 16),
    ],
)
def test_connections_leave_files_for_the_rest(wanted: int, files: Any, expected: int) -> None:
    assert bound_connections(wanted, files) == expected


def ask(connected: socket.socket, path: str = "/") -> bytes:
    connected.settimeout(60)
    connected.sendall(HEAD.replace(b"/ ", f"{path} ".encode(), 1) + b"\r\n")
    return read(connected)


def read(connected: socket.socket) -> bytes:
    """Reads a whole answer."""
    answer = b""
    while part := connected.recv(4096):
        answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if found and len(body) == int(found[1]):
            break
    return answer


def test_the_longest_silent_one_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    """Half requests, and kept connections without one, cannot lock others out."""
    with (
        caplog.at_level(logging.INFO, ACCESS_LOG),
        serving(create_protocol(60, 3)) as port,
        contextlib.ExitStack() as stack,
    ):
        first, second, third, fourth, fifth = (
            stack.enter_context(socket.socket()) for _ in range(5)
        )
        for one, sent in ((first, b""), (second, HEAD)):
            one.connect(("127.0.0.1", port))
            one.sendall(sent)
        third.connect(("127.0.0.1", port))
        assert ask(third).startswith(b"HTTP/1.1 200")
        fourth.connect(("127.0.0.1", port))
        assert ask(fourth).startswith(b"HTTP/1.1 200")
        assert not is_open(first, 10)
        fifth.connect(("127.0.0.1", port))
        assert ask(fifth).startswith(b"HTTP/1.1 200")
        assert not is_open(second, 10)
        assert ask(third).startswith(b"HTTP/1.1 200")
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == ACCESS_LOG]
    assert [line["code"] for line in lines] == ["connection_needed"] * 2


def test_where_all_are_at_work_one_more_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, ACCESS_LOG),
        serving(create_protocol(60, 2)) as port,
        contextlib.ExitStack() as stack,
    ):
        first, second, third, silent = (stack.enter_context(socket.socket()) for _ in range(4))
        first.connect(("127.0.0.1", port))
        assert ask(first).startswith(b"HTTP/1.1 200")
        second.connect(("127.0.0.1", port))
        for one in (first, second):
            one.sendall(HEAD.replace(b"/ ", b"/slow ", 1) + b"\r\n")
        time.sleep(0.2)
        third.connect(("127.0.0.1", port))
        head, _, body = ask(third).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"retry-after: 5" in head.lower()
        assert json.loads(body)["error"]["code"] == "connections_full"
        assert "as it may have: 2. Try again later." in json.loads(body)["error"]["message"]
        assert not is_open(third, 10)
        # One that says nothing is not waited for.
        silent.connect(("127.0.0.1", port))
        silent.settimeout(10)
        assert silent.recv(100).startswith(b"HTTP/1.1 503")
        second.close()
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port)) as again:
            assert b"released" in ask(again, "/release")
            assert b"slow" in read(first)
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == ACCESS_LOG]
    assert [(line["status"], line["code"]) for line in lines] == [(503, "connections_full")] * 2
