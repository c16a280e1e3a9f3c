"""Connections: how long headers may take, and how many files the process may open."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI

from tessella.serving import connections
from tessella.serving.access_log import ACCESS_LOG
from tessella.serving.connections import create_protocol, raise_file_limit

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that waits 0.4 s for headers."""
    app = FastAPI()

    @app.get("/")
    async def answer() -> str:
        return "here"

    config = uvicorn.Config(
        app, http=create_protocol(0.4), log_config=None, ws="none", timeout_keep_alive=30
    )
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
    for soft, hard in ((256, 4096), (256, resource.RLIM_INFINITY), (4096, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, now=(soft, hard): now)
        raise_file_limit()
    assert asked == [(4096, 4096), (connections._MAX_FILES, resource.RLIM_INFINITY)]

    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_file_limit()
