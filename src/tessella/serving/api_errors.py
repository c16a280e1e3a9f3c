"""Every error as OpenAI's error object, and never more than its message.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

`tessella`'s own errors describe what is wrong with the request and are sent as they are, except
those that name a path. Anything unforeseen is logged, and the client only learns that it happened.
"""

import difflib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tessella.errors import ConfigError, DataError, GenerationError, ShapeError, TessellaError

GONE = 499
"""The status of a request whose client has hung up; only the log ever sees it."""

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 5  # of a 503, unless it has its own

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PATTERNS = {"size": "Expected `auto` or WIDTHxHEIGHT, each side of 16 to 2048 pixels"}
_BLANK = "It must not be blank"
_HTTP_ERRORS = {
    404: ("not_found", "There is nothing at this address. GET /v1/models lists the models."),
    405: (
        "method_not_allowed",
        "This address does not take this method; the header Allow names those it takes.",
    ),
}


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what, got, expected, what next.
        param: the field at fault.
        code: a word for programs.
        retry_after: seconds after which to try again; a 503 has some unless given.
    """

    status: int
    message: str
    _: KW_ONLY
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    def __post_init__(self) -> None:
        """Gives every 503 a time after which to try again."""
        super().__init__(self.message)
        if self.status == 503 and self.retry_after is None:
            self.retry_after = _RETRY_SECONDS

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, fallback),
                "param": self.param,
                "code": self.code,
            }
        }

    def to_response(self, headers: Mapping[str, str] | None = None) -> "JsonResponse":
        """Returns the answer."""
        sent = dict(headers or {})
        if self.retry_after is not None:
            sent["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            sent["WWW-Authenticate"] = "Bearer"
        return JsonResponse(self.body, self.status, headers=sent)


class QueueFullError(ApiError):
    """Too many pictures wait."""

    def __init__(self, retry_after: int) -> None:
        message = f"Too many pictures wait. Try again in {retry_after} s."
        super().__init__(429, message, code="queue_full", retry_after=retry_after)


class ClosingError(ApiError):
    """The server is shutting down."""

    def __init__(self) -> None:
        super().__init__(503, "The server is shutting down. Try again later.", code="shutting_down")


class RequestTimeoutError(ApiError):
    """A request took too long."""

    def __init__(self) -> None:
        super().__init__(503, "It took too long. Ask for less, or try again later.", code="timeout")


class JsonResponse(JSONResponse):
    """JSON in plain ASCII, so that no text can break its encoding."""

    def render(self, content: Any) -> bytes:
        """Writes the value."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def to_api_error(error: Exception) -> ApiError:
    """Turns any error into an answer; an unforeseen one is logged."""
    match error:
        case ApiError():
            return error
        case HTTPException():
            code, message = _HTTP_ERRORS.get(error.status_code, (None, str(error.detail)))
            return ApiError(error.status_code, message, code=code)
        case GenerationError() | ConfigError() | DataError() | ShapeError():
            return ApiError(400, str(error))
    _log.error("A request failed.", exc_info=error)
    what = "A model's files are damaged" if isinstance(error, TessellaError) else "Something failed"
    return ApiError(500, f"{what} on the server; its log says what.", code="internal_error")


def explain_validation(error: ValidationError, known: Collection[str]) -> ApiError:
    """Describes the first fault that pydantic found in a request, which has the known fields."""
    faults = error.errors(include_url=False, include_context=False)
    # A misspelt name, before anything says that the right one is missing.
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    kind, place, got = first["type"], first["loc"], repr(first["input"])
    if not place:
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return ApiError(400, f"The body is not a JSON object: {reason}.", code="invalid_json")
    name = str(place[0])
    if kind == "extra_forbidden":
        name = name[:60]
        hints = [f" Did you mean `{near}`?" for near in difflib.get_close_matches(name, known, n=1)]
        message = f"Unknown parameter: `{name}`.{''.join(hints)}"
        return ApiError(400, message, param=name, code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"A parameter is missing: `{name}`.", param=name, code="missing")
    expected = first["msg"]
    if kind == "string_pattern_mismatch":
        expected = _PATTERNS.get(name, _BLANK)
    elif kind == "string_too_short":
        expected = _BLANK
    shown = got if len(got) <= 60 else got[:60] + "…"
    message = f"`{name}` is wrong: `{shown}`. {expected}."
    return ApiError(400, message, param=name, code="invalid_value")


def install_error_handlers(app: FastAPI) -> None:
    """Makes every error of an application one of the API's."""

    async def answer(request: Request, error: Exception) -> Response:
        headers = error.headers if isinstance(error, HTTPException) else None
        return to_api_error(error).to_response(headers)

    for kind in (ApiError, TessellaError, HTTPException):
        app.add_exception_handler(kind, answer)
