"""Connections: how long one may take to send its headers, and how many there may be.

Uvicorn waits for the rest of a request's headers for ever, so that some hundreds of connections
that never send it use up the files that the process may open.
"""

import asyncio
import contextlib
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tessella.serving.access_log import log_connection

_MAX_FILES = 65_536


def create_protocol(header_timeout_seconds: float) -> type[asyncio.Protocol]:
    """Creates uvicorn's protocol, which closes connections whose headers come too slowly.

    Args:
        header_timeout_seconds: from the connection, or from the first bytes of a further request,
            to the end of the headers.
    """

    class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # which one it is depends
        _closing_headers: asyncio.TimerHandle | None = None
        _has_begun = False  # the headers that are awaited

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # Both of uvicorn's protocols make a cycle of a request once they have its headers.
            if self.cycle is None or self.cycle.response_complete:
                self._has_begun = True
                self._await_headers()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _await_headers(self) -> None:
            if self._closing_headers is None:
                self._closing_headers = self.loop.call_later(header_timeout_seconds, self._close)

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
                    client = (self.client or ("",))[0]
                    log_connection(client, f"The headers took over {header_timeout_seconds:g} s.")
                self.transport.close()

    return Protocol


def raise_file_limit() -> None:
    """Lets the process open as many files, connections included, as the system permits it."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            # macOS promises more than it grants.
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
