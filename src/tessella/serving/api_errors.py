"""Every error as OpenAI's error object, and never more than its message.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

`tessella`'s own errors describe what is wrong with the request and are sent as they are, except
those that name a path. Anything unforeseen is logged, and the client only learns that it happened.
"""

import difflib
import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from tessella.errors import ConfigError, DataError, GenerationError, ShapeError, TessellaError
from tessella.serving.addresses import find_address

GONE = 499
"""The status of a request whose client has hung up; only the log ever sees it."""

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 5  # of a 503, unless it has its own

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PATTERNS = {"size": "Expected `auto` or WIDTHxHEIGHT, each side of 16 to 2048 pixels"}
_BLANK = "It must not be blank"
# Names that other programs and services have for a field.
_ELSEWHERE = {
    other: field
    for field, others in {
        "size": "width height aspect_ratio resolution image_size dimensions",
        "steps": "num_inference_steps num_steps sampling_steps inference_steps timesteps",
        "guidance_scale": "cfg_scale cfg scale classifier_free_guidance",
        "order": "sampler_name sampler scheduler sampler_index sampling_method",
        "n": "num_images num_images_per_prompt batch_size n_iter num_outputs samples count "
        "number_of_images sample_count",
        "negative_prompt": "negative neg_prompt",
        "strength": "denoising_strength image_strength prompt_strength",
        "output_compression": "quality_percent jpeg_quality output_quality",
        "references": "image_prompt reference_image reference_images",
    }.items()
    for other in others.split()
}
_FORMS = {
    "size": ", WIDTHxHEIGHT in pixels, such as `512x512`",
    "order": ", in which the positions of a picture are filled",
}
_PATH = re.compile(r"[\w/-]{1,100}", re.ASCII)
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}(?:\[\])?")


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what, got, expected, what next.
        param: the field at fault.
        code: a word for programs.
        retry_after: seconds after which to try again; a 503 has some unless given.
        shown: words of the client's in the message that may stand in a log: never of a prompt.
    """

    status: int
    message: str
    _: KW_ONLY
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None
    shown: Collection[str] = ()

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


class MemoryFullError(ApiError):
    """A request takes more memory than there is."""

    def __init__(self) -> None:
        message = (
            "The server has too little memory for this. Ask for fewer pictures or candidates or a "
            "smaller canvas, or try again later."
        )
        super().__init__(503, message, code="out_of_memory")


class UnforeseenError(ApiError):
    """Something failed that nobody thought of; the log says what."""

    def __init__(self, what: str = "Something failed") -> None:
        message = f"{what} on the server; its log says what."
        super().__init__(500, message, code="internal_error")


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
            return ApiError(error.status_code, str(error.detail))
        case GenerationError() | ConfigError() | DataError() | ShapeError():
            return ApiError(400, str(error))
    _log.error("A request failed.", exc_info=error)
    if isinstance(error, TessellaError):
        return UnforeseenError("A model's files are damaged")
    return describe_fault(error)


def describe_fault(error: BaseException) -> ApiError:
    """Says to a client what it may know of an unforeseen error."""
    return MemoryFullError() if is_out_of_memory(error) else UnforeseenError()


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error is Python's, a processor's or an accelerator's want of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # PyTorch has no kind of its own for a processor's.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def note_error(scope: Scope, error: ApiError) -> None:
    """Leaves an error with its request, for the access log."""
    scope.setdefault("state", {})["error"] = error


def explain_validation(error: ValidationError, known: Collection[str]) -> ApiError:
    """Describes the first fault that pydantic found in a request, which has the known fields."""
    faults = error.errors(include_url=False, include_context=False)
    # A misspelt name, before anything says that the right one is missing.
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    # A backtick would end the quotation, also for the log, which leaves such words out.
    kind, place, got = first["type"], first["loc"], repr(first["input"]).replace("`", "'")
    if not place:
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return ApiError(400, f"The body is not a JSON object: {reason}.", code="invalid_json")
    name = str(place[0])
    if kind == "extra_forbidden":
        name = name[:60].replace("`", "'")
        shown = (name,) if _FIELD.fullmatch(name) else ()
        message = f"Unknown parameter: `{name}`.{_hint_at(name, known)}"
        return ApiError(400, message, param=name, code="unknown_parameter", shown=shown)
    if kind == "missing":
        return ApiError(400, f"A parameter is missing: `{name}`.", param=name, code="missing")
    expected = first["msg"]
    if kind == "string_pattern_mismatch":
        expected = _PATTERNS.get(name, _BLANK)
    elif kind == "string_too_short":
        expected = _BLANK
    value = got if len(got) <= 60 else got[:60] + "…"
    message = f"`{name}` is wrong: `{value}`. {expected}."
    return ApiError(400, message, param=name, code="invalid_value")


def _hint_at(name: str, known: Collection[str]) -> str:
    """Says which known field an unknown one means: by what it is elsewhere, or by its letters."""
    field = _ELSEWHERE.get(name.lower().replace("-", "_"), "")
    if field in known:
        return f" Here it is `{field}`{_FORMS.get(field, '')}."
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean `{near[0]}`?" if near else ""


def install_error_handlers(app: FastAPI) -> None:
    """Makes every error of an application one of the API's."""

    async def answer(request: Request, error: Exception) -> Response:
        headers = error.headers if isinstance(error, HTTPException) else None
        told = to_api_error(error)
        if isinstance(error, HTTPException) and error.status_code == 405:
            headers = {"Allow": ", ".join(_list_methods(request))}
            told = _explain_method(request, headers["Allow"])
        elif isinstance(error, HTTPException) and error.status_code == 404:
            told = _explain_address(request)
        note_error(request.scope, told)
        return told.to_response(headers)

    for kind in (ApiError, TessellaError, HTTPException):
        app.add_exception_handler(kind, answer)


def _list_methods(request: Request) -> list[str]:
    """Lists the methods that an address takes, each of which is a route of its own."""
    found: set[str] = set()
    for route in request.app.state.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def _explain_method(request: Request, allowed: str) -> ApiError:
    """Says which methods an address takes."""
    message = f"The method is wrong for this address: `{request.method}`. It takes {allowed}."
    return ApiError(405, message, code="method_not_allowed", shown=[request.method])


def _explain_address(request: Request) -> ApiError:
    """Says which address a client means."""
    path, known = request.scope["path"], request.app.state.addresses
    meant = find_address(path, known)
    hint = (
        f"Did you mean `{meant}`? The base URL of OpenAI's clients ends in `/v1`, AUTOMATIC1111's "
        "has no path."
        if meant
        else "GET `/v1/models` lists the models, `/openapi.json` all addresses."
    )
    got = f" Got: `{path}`." if _PATH.fullmatch(path) else ""
    own = [meant] if meant and meant in known else []
    shown = ["/v1", "/v1/models", "/openapi.json", *own]
    message = f"There is nothing at this address. {hint}{got}"
    return ApiError(404, message, code="not_found", shown=shown)
