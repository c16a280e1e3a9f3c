"""The record of each request: a line of JSON in the log, counters, an id in the answer."""

import asyncio
import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessella.serving.api_errors import GONE, ClosingError, to_api_error
from tessella.serving.metrics import ServerMetrics

ACCESS_LOG = "tessella.access"

_log = logging.getLogger(ACCESS_LOG)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class AccessLog:
    """Logs and counts each request once it is answered, or given up.

    The line has no prompt (unless the route put one into the request's state, which it does with
    `log_prompts`), no key and no address of a picture.

    Args:
        app: answers.
        metrics: count.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and logs it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        client_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = client_id if _ID.fullmatch(client_id) else secrets.token_hex(8)
        scope.setdefault("state", {})

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (b"x-request-id", request_id.encode("ascii"))
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = GONE
        except asyncio.CancelledError:
            # The time to shut down is over; nothing else cancels a request, or waits for it.
            if not status:
                await ClosingError().to_response()(scope, receive, send_with_id)
        except Exception as error:
            if status:  # half of an answer is sent: uvicorn closes the connection
                raise
            await to_api_error(error).to_response()(scope, receive, send_with_id)
        finally:
            self._write(scope, request_id, status, time.monotonic() - started)

    def _write(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        state: dict[str, Any] = scope["state"]
        # The pattern of the route, not the path: clients make up paths.
        route = getattr(scope.get("route"), "path", None) or "other"
        self.metrics.requests.labels(route, str(status)).inc()
        if "painted" in state:
            self.metrics.seconds.labels("request").observe(seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": request_id,
            "client": (scope.get("client") or ("", 0))[0],
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        line |= {name: state[name] for name in ("painted", "prompt") if name in state}
        _log.info(json.dumps(line))
