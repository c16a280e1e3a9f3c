"""Every error as OpenAI's error object, and never more than its message.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

`tessella`'s own errors say what is wrong with the request and are sent as they are, except those
that name a path; what nobody foresaw goes to the log and is answered by a sentence that says so.
"""

import difflib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tessella.errors import ConfigError, DataError, GenerationError, ShapeError, TessellaError

GONE = 499
"""The status, told to the log alone, of a request whose client has hung up."""

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 5

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PATTERNS = {"size": "Expected `auto` or WIDTHxHEIGHT, each side of 16 to 2048 pixels"}
_BLANK = "It must say something"
_CODES = {404: "not_found", 405: "method_not_allowed"}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what, got, expected, what next.
        param: the field that it is about.
        code: a word for programs.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, fallback),
                "param": self.param,
                "code": self.code,
            }
        }

    def to_response(self, headers: Mapping[str, str] | None = None) -> "JsonResponse":
        """Returns the answer."""
        found = dict(headers or {})
        if self.retry_after is not None:
            found["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return JsonResponse(self.body, self.status, headers=found)


class JsonResponse(Response):
    """JSON in plain ASCII, so that no text can break its encoding."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Writes the value."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def queue_full_error(retry_after: int) -> ApiError:
    """Says that too many pictures wait."""
    return ApiError(
        429,
        f"Too many pictures wait. Try again in {retry_after} s.",
        code="queue_full",
        retry_after=retry_after,
    )


def closing_error() -> ApiError:
    """Says that the server is about to end."""
    return ApiError(
        503,
        "The server is about to end and takes nothing more. Try again later.",
        code="shutting_down",
        retry_after=_RETRY_SECONDS,
    )


def cut_error() -> ApiError:
    """Says that the server ended before the pictures were done."""
    return ApiError(
        503,
        "The server had to end before this was done. Try again later.",
        code="shutting_down",
        retry_after=_RETRY_SECONDS,
    )


def timeout_error() -> ApiError:
    """Says that a request took too long."""
    return ApiError(
        503,
        "It took too long. Ask for less, or try again later.",
        code="timeout",
        retry_after=_RETRY_SECONDS,
    )


def to_api_error(error: Exception) -> ApiError:
    """Says an error as the API says it; what nobody foresaw goes to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GenerationError | ConfigError | DataError | ShapeError):
        return ApiError(400, str(error))
    _log.error("A request failed.", exc_info=error)
    what = "A model's files are damaged" if isinstance(error, TessellaError) else "Something failed"
    return ApiError(500, f"{what} on the server; its log says what.", code="internal_error")


def explain_validation(error: ValidationError, known: Iterable[str]) -> ApiError:
    """Says the first thing that is wrong with a request's fields.

    Args:
        error: of one of `schemas.py`.
        known: the fields that there are.
    """
    found = error.errors(include_url=False, include_context=False)
    # A misspelt name is said before that the right one is missing.
    first = min(found, key=lambda fault: fault["type"] != "extra_forbidden")
    kind, place = first["type"], [str(part) for part in first["loc"]]
    if kind == "json_invalid" or not place:
        what = first["msg"].removeprefix("Invalid JSON: ")
        return ApiError(400, f"The body is not a JSON object: {what}.", code="invalid_json")
    name, got = place[0], repr(first["input"])
    shown = got if len(got) <= 60 else got[:60] + "…"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(name[:60], list(known), n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        message = f"Unknown parameter: `{name[:60]}`.{hint}"
        return ApiError(400, message, param=name[:60], code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"A parameter is missing: `{name}`.", param=name, code="missing")
    expected = first["msg"]
    if kind == "string_pattern_mismatch":
        expected = _PATTERNS.get(name, _BLANK)
    elif kind == "string_too_short":
        expected = _BLANK
    message = f"`{name}` is wrong: `{shown}`. {expected}."
    return ApiError(400, message, param=name, code="invalid_value")


def install_error_handlers(app: FastAPI) -> None:
    """Makes every error of an application one of the API's."""

    async def answer(request: Request, error: Exception) -> Response:
        return to_api_error(error).to_response()

    async def answer_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return await answer(request, error)
        known = {
            404: "There is nothing at this address. GET /v1/models lists the models.",
            405: "This address does not take this method; the header Allow names those it takes.",
        }
        message = known.get(error.status_code, str(error.detail))
        said = ApiError(error.status_code, message, code=_CODES.get(error.status_code))
        return said.to_response(error.headers)

    app.add_exception_handler(ApiError, answer)
    app.add_exception_handler(TessellaError, answer)
    app.add_exception_handler(HTTPException, answer_http)
