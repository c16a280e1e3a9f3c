"""The parts of the OpenAPI document that FastAPI cannot find out: bodies, streams, keys, errors."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from tessella.serving.schemas import ErrorBody, PicturesBody, RequestBody, describe_kind

_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_FILES = {
    "image": "The picture: PNG, JPEG, WebP, GIF, TIFF, BMP and the like, of any size. It is "
    "cropped to the square in the middle and resized to the model's size.",
    "mask": "What to repaint, of the picture's size: where it is fully transparent; if it is "
    "so nowhere, where it is not black. Without a mask: where the picture itself is fully "
    "transparent; if it is so nowhere, a variation of it is painted.",
}
_REFERENCES = (
    "References: more pictures, which the model looks at, as many as it learned to; the rest is "
    "left out, and `warnings` says so. Without `image` the first of them is the picture."
)
_BINARY = {"type": "string", "format": "binary"}
_BLANK = {"type": "string", "maxLength": 0}

_STATUSES = {
    400: "The request is wrong.",
    401: "The API key is missing or unknown.",
    403: "The host name or the web page's origin is foreign.",
    404: "There is no such model or address.",
    405: "The address does not take the method.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "Too many pictures wait.",
    500: "Something failed on the server.",
    503: "It took too long, or the server is shutting down.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
    for status, description in _STATUSES.items()
}
PICTURES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PicturesBody,
        "description": "The pictures; with `stream`, events: `….partial_image` and, for each "
        "picture, `….completed`.",
        "content": {"text/event-stream": {}},
    }
}
"""The answer of an operation that paints."""


def describe_body(
    kind: type[RequestBody], *files: str, takes_several: bool = False
) -> dict[str, Any]:
    """Describes an operation that reads JSON, or a form with files.

    Args:
        kind: of the fields.
        *files: names of the parts that hold one; the first is required.
        takes_several: whether a form may have pictures beside the first.
    """
    schema = describe_kind(kind)
    media_type = "multipart/form-data" if files else "application/json"
    if files:
        required = [files[0], *schema.get("required", ())]
        fields = {
            name: field if name in required else _or_blank(field)
            for name, field in schema["properties"].items()
        }
        parts: dict[str, Any] = {name: {**_BINARY, "description": _FILES[name]} for name in files}
        if takes_several:
            several = {"type": "array", "items": _BINARY}
            parts["image[]"] = {**several, "description": _REFERENCES}
        schema |= {"properties": fields | parts, "required": required}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def describe_file(description: str, *media_types: str) -> dict[int | str, dict[str, Any]]:
    """Describes an operation that answers with a file."""
    content = {media_type: {"schema": _BINARY} for media_type in media_types}
    return {200: {"description": description, "content": content}}


def install_document(app: FastAPI, needs_key: Callable[[str], bool], root_path: str = "") -> None:
    """Completes the document that FastAPI makes of an application.

    Args:
        app: the application.
        needs_key: of a path.
        root_path: below which all paths are.
    """
    make = app.openapi  # once; then it is kept

    def build() -> dict[str, Any]:
        document = make()
        components = document["components"]
        if root_path:
            document["servers"] = [{"url": root_path}]
        for path, operations in document["paths"].items():
            for operation in operations.values():
                # Not FastAPI's own refusal: what is wrong with a request is a 400 here.
                operation["responses"].pop("422", None)
                if needs_key(path):
                    operation["security"] = [{"key": []}]
                    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        return document

    app.openapi = build  # type: ignore[method-assign]  # as FastAPI says to do it


def _or_blank(field: dict[str, Any]) -> dict[str, Any]:
    """Says that a form may leave a text blank; that it is null a form cannot say."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    others = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    if len(kinds) > 1:
        return field
    # What is told of the field narrows what its kind allows.
    kind = {**next(iter(kinds), {}), **others}
    if "pattern" not in kind and "enum" not in kind:
        return kind
    told = {name: kind.pop(name) for name in ("description", "title") if name in kind}
    return {**told, "anyOf": [kind, _BLANK]}
