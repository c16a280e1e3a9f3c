"""The server under test and the clients that load it, for the benchmarks of `tessella serve`.

Why: client and server share the machine. What a client computes is taken from the server, so a
client here is one socket, kept open, and a parser of what this server answers; requests are
encoded before the clock starts and answers are read (JSON, base64, PNG) after it has stopped.

Nothing is measured here; run by itself, this file does nothing.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """A running `tessella serve`."""

    port: int
    pid: int

    def resident_bytes(self) -> int:
        """Reads how much memory the process holds (VmRSS; Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        if match is None:
            raise SystemExit("The server is gone.")
        return int(match.group(1)) * 1024


@dataclass(frozen=True)
class Answer:
    """One HTTP response."""

    status: int
    headers: Mapping[str, str]  # names in small letters
    body: bytes  # empty while a stream is being read

    def json(self) -> Any:
        """Parses the body."""
        return json.loads(self.body)


@contextlib.contextmanager
def serving(
    model: str,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "tessella"),
    port: int = 0,
    ends_with: int = 0,
) -> Iterator[Server]:
    """Starts a server, waits until it is ready, and ends it by SIGTERM; it must end as it should.

    Args:
        model: model folder or bundled name.
        flags: further words of the command.
        environment: variables to add.
        program: what Python runs.
        port: where it listens; 0: a free one.
        ends_with: the exit status that it should have.
    """
    port = port or find_port()
    command = [sys.executable, *program, "serve", model, "--host", HOST, "--port"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, str(port), *flags],
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
        try:
            asyncio.run(_wait_until_ready(process, port))
            yield Server(port, process.pid)
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=300)
        except BaseException:
            process.kill()
            process.wait()
            log.seek(0)
            print(log.read().decode(errors="replace")[-4000:], file=sys.stderr)
            raise
        if status != ends_with:
            log.seek(0)
            print(log.read().decode(errors="replace")[-4000:], file=sys.stderr)
            raise SystemExit(f"The server ended with status {status}, not {ends_with}.")


def find_port() -> int:
    """Finds a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port: int = taken.getsockname()[1]
    return port


async def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Asks /readyz until it says yes."""
    deadline = time.monotonic() + 300  # of a machine that is busy
    while time.monotonic() < deadline and process.poll() is None:
        client = Client(port)
        try:
            if (await client.ask("GET", "/readyz")).status == 200:
                return
        except OSError:
            pass
        finally:
            await client.close()
        await asyncio.sleep(0.1)
    raise SystemExit(f"The server did not become ready; its exit status: {process.poll()}.")


class Client:
    """One connection to the server, opened when needed and kept while the server keeps it.

    Args:
        port: the server's.
        key: its API key, if it wants one.
    """

    def __init__(self, port: int, key: str = ""):
        self.port = port
        self.key = key
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Sends a request and waits for the whole answer; a body is JSON unless typed otherwise."""
        return await self.send(encode_request(method, path, body, key=self.key, **headers))

    async def send(self, request: bytes, *, last: bool = False) -> Answer:
        """Sends the bytes of one request and waits for the whole answer.

        Args:
            request: all of it.
            last: tells the server that nothing more will come.

        Raises:
            ConnectionError: the connection ended before the answer did.
        """
        await self.start(request, last=last)
        answer = await self._head()
        body = b"".join([chunk async for chunk in self._body(request, answer)])
        return Answer(answer.status, answer.headers, body)

    async def events(self, request: bytes) -> AsyncIterator[tuple[str, Any]]:
        """Sends a request and yields the server-sent events of its answer as they come.

        Yields:
            The event's name and its data, parsed.
        """
        await self.start(request)
        answer = await self._head()
        if answer.status != 200:
            raise SystemExit(f"No stream but {answer.status}.")
        left = b""
        async for chunk in self._body(request, answer):
            *events, left = (left + chunk).split(b"\n\n")
            for event in events:
                fields = dict(line.split(": ", 1) for line in event.decode().splitlines())
                yield fields.get("event", ""), json.loads(fields["data"])

    async def start(self, request: bytes, *, last: bool = False) -> None:
        """Hands bytes to the socket, which sends them while the answer is read.

        Args:
            request: whole or in part.
            last: tells the server that nothing more will come.
        """
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(HOST, self.port)
        self._writer.write(request)
        if last:
            self._writer.write_eof()

    async def close(self) -> None:
        """Hangs up."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None

    @property
    def _stream(self) -> asyncio.StreamReader:
        """What the server sends."""
        if self._reader is None:
            raise ConnectionResetError("The connection is closed.")
        return self._reader

    async def _head(self) -> Answer:
        """Reads status and headers."""
        try:
            head = await self._stream.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as cut:
            await self.close()
            raise ConnectionResetError(f"No answer; after {cut.partial!r}.") from None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip() for name, value in pairs}
        return Answer(int(first.split(" ")[1]), headers, b"")

    async def _body(self, request: bytes, answer: Answer) -> AsyncIterator[bytes]:
        """Reads what follows the headers; hangs up where the server does."""
        try:
            if request.startswith(b"HEAD "):
                pass
            elif answer.headers.get("transfer-encoding") == "chunked":
                while size := int(await self._stream.readuntil(b"\r\n"), 16):
                    yield (await self._stream.readexactly(size + 2))[:-2]
                await self._stream.readexactly(2)
            elif "content-length" in answer.headers:
                yield await self._stream.readexactly(int(answer.headers["content-length"]))
            else:
                yield await self._stream.read()
        except asyncio.IncompleteReadError as cut:
            await self.close()
            raise ConnectionResetError(f"Half an answer: {len(cut.partial)} bytes.") from None
        if answer.headers.get("connection", "").lower() == "close":
            await self.close()


def encode_request(
    method: str, path: str, body: bytes = b"", *, key: str = "", **headers: str
) -> bytes:
    """Encodes a whole request.

    Args:
        method: GET, POST, …
        path: with its query.
        body: its length is told.
        key: API key, if the server wants one.
        headers: more of them; an underscore stands for a hyphen. A body is JSON unless
            `content_type` says otherwise.
    """
    named = {"Host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if key:
        named.setdefault("Authorization", f"Bearer {key}")
    if body or method == "POST":
        named = {"content-type": "application/json", "Content-Length": str(len(body)), **named}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def encode_generation(key: str = "", **fields: Any) -> bytes:
    """Encodes a request for pictures."""
    body = json.dumps(fields).encode()
    return encode_request("POST", "/v1/images/generations", body, key=key)


def decode_picture(text: str) -> np.ndarray:
    """Turns a `b64_json` into (H, W, 3) pixels."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image.convert("RGB"))
