"""The record of each request: a line of JSON in the log, counters, an id in the answer."""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Collection
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessella.serving.api_errors import GONE, ApiError, ClosingError, note_error, to_api_error
from tessella.serving.metrics import ServerMetrics

ACCESS_LOG = "tessella.access"

_log = logging.getLogger(ACCESS_LOG)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUOTED = re.compile(r"`([^`]*)`?")
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")


class AccessLog:
    """Logs and counts each request once it is answered, or given up.

    The line of a refused request says why. It has no prompt (unless the route put one into the
    request's state, which it does with `log_prompts`), no key and no address of a picture.

    Args:
        app: answers.
        metrics: count.
        words: of the server's own, which errors quote: fields, models, options.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, words: Collection[str] = ()) -> None:
        self.app, self.metrics, self.words = app, metrics, frozenset(words)

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
                note_error(scope, closing := ClosingError())
                await closing.to_response()(scope, receive, send_with_id)
        except Exception as error:
            note_error(scope, told := to_api_error(error))
            if status:  # half of an answer is sent: uvicorn closes the connection
                raise
            await told.to_response()(scope, receive, send_with_id)
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
            "method": scope.get("asked_method", scope["method"]),
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        line |= {name: state[name] for name in ("painted", "model", "prompt") if name in state}
        if error := state.get("error"):
            line |= self._explain(error)
        _log.info(json.dumps(line))

    def _explain(self, error: ApiError) -> dict[str, str]:
        """Says what was wrong, in an error's words without those of the client."""
        known = self.words.union(error.shown)
        said = {"code": error.code, "error": hide_words(error.message, known)}
        if error.param in known:
            said["param"] = error.param
        return {name: word for name, word in said.items() if word}


def log_connection(client: str, status: int, code: str, reason: str) -> None:
    """Logs that a connection was closed before its request was there."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"time": stamp, "client": client, "status": status, "code": code, "error": reason}
    _log.info(json.dumps(line))


def hide_words(message: str, known: Collection[str]) -> str:
    """Hides what a message quotes in backticks, from the first word that is not known to the last.

    Whatever a client sends, also backticks, lies between these two.
    """
    for quoted in _QUOTED.finditer(message):
        if quoted[1] not in known and not _NUMBER.fullmatch(quoted[1]):
            _, _, rest = message[quoted.start() + 1 :].rpartition("`")
            is_closed = message.count("`", quoted.start()) > 1
            return f"{message[: quoted.start()]}`…`{rest if is_closed else ''}"
    return message
