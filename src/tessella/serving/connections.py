"""Connections: how long one may take to send its headers, and how many there may be.

Uvicorn waits for the rest of a request's headers for ever, so that some hundreds of connections
that never send it use up the files that the process may open.
"""

import asyncio
import contextlib
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tessella.serving.access_log import log_connection
from tessella.serving.api_errors import ApiError, JsonResponse

_MAX_FILES = 65_536
_OTHER_FILES = 384  # than connections: those just accepted, uploads on their way, models
_MIN_CONNECTIONS = 16
_MAX_REFUSED = 32  # connections at a time that are told so; more are closed without a word
_REFUSED_SECONDS = 1.0


def create_protocol(
    header_timeout_seconds: float, max_connections: int = 1_000_000
) -> type[asyncio.Protocol]:
    """Creates uvicorn's protocol, which closes connections whose headers come too slowly.

    Args:
        header_timeout_seconds: from the connection, or from the first bytes of a further request,
            to the end of the headers.
        max_connections: at a time. For one more, the one that has been silent longest is closed; if
            all are at work, the new one gets a 503.
    """
    common = {
        "header_timeout_seconds": header_timeout_seconds,
        "max_connections": max_connections,
        "silent": {},
    }
    return cast(type[asyncio.Protocol], type("Connection", (_Connection,), common))


class _Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # which one it is depends
    """One connection; `create_protocol` says what it has in common with the others."""

    header_timeout_seconds: float
    max_connections: int
    silent: dict[Any, None]  # no request of theirs is being answered; the longest silent one first

    _closing_headers: asyncio.TimerHandle | None = None
    _has_begun = False  # the headers that are awaited
    _is_refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            if self.silent:
                next(iter(self.silent))._make_room()
            else:
                self._refuse()
                return
        self.silent[self] = None
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._close_refused()
            return
        super().data_received(data)
        # Both of uvicorn's protocols make a cycle of a request once they have its headers.
        if self.cycle is None or self.cycle.response_complete:
            self._has_begun = True
            self._await_headers()
        else:
            self.silent.pop(self, None)
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self.silent[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.silent.pop(self, None)
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        if self._closing_headers is None:
            self._closing_headers = self.loop.call_later(self.header_timeout_seconds, self._close)

    def _stop_waiting(self) -> None:
        self._has_begun = False
        if self._closing_headers is not None:
            self._closing_headers.cancel()
            self._closing_headers = None

    def _close(self) -> None:
        self._closing_headers = None
        # Between two requests nothing is awaited: that is what the keep-alive is for.
        if self.cycle is None or self.cycle.response_complete:
            # Browsers and probes connect and say nothing: no word about them.
            if self._has_begun:
                reason = f"The headers took over {self.header_timeout_seconds:g} s."
                self._log(408, "header_timeout", reason)
            self.transport.close()

    def _make_room(self) -> None:
        self.silent.pop(self, None)
        self._log(408, "connection_needed", "Another one needs this silent connection's place.")
        self.transport.close()

    def _refuse(self) -> None:
        """Answers the first bytes that come, so that the client reads the answer."""
        if len(self.connections) > self.max_connections + _MAX_REFUSED:
            self.transport.abort()
            return
        self._is_refused = True
        self._closing_headers = self.loop.call_later(_REFUSED_SECONDS, self._close_refused)

    def _close_refused(self) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            refused = ConnectionsFullError(self.max_connections)
            self._log(refused.status, refused.code or "", refused.message)
            self.transport.write(_write_answer(refused))
            self.transport.close()

    def _log(self, status: int, code: str, reason: str) -> None:
        log_connection((self.client or ("",))[0], status, code, reason)


class ConnectionsFullError(ApiError):
    """All connections that there may be are at work."""

    def __init__(self, max_connections: int) -> None:
        message = f"The server is at work on as many connections as it may have: {max_connections}."
        super().__init__(503, f"{message} Try again later.", code="connections_full")


def _write_answer(error: ApiError) -> bytes:
    """Writes an error as HTTP, for a connection that no application has seen."""
    answer: JsonResponse = error.to_response({"Connection": "close"})
    lines = [b"%s: %s\r\n" % pair for pair in answer.raw_headers]
    return b"HTTP/1.1 503 Service Unavailable\r\n%s\r\n%s" % (b"".join(lines), bytes(answer.body))


def bound_connections(wanted: int, max_files: int | None) -> int:
    """Returns how many connections there may be.

    Args:
        wanted: by the settings.
        max_files: that the process may open, connections included; None: any number.
    """
    if max_files is None:
        return wanted
    return max(_MIN_CONNECTIONS, min(wanted, max_files - _OTHER_FILES))


def raise_file_limit() -> int | None:
    """Lets the process open as many files, connections included, as the system permits it.

    Returns:
        How many that are; None: any number, or nobody knows.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft >= wanted:
        return soft
    # macOS promises more than it grants.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft
