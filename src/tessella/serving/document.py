"""What the OpenAPI document says beyond what FastAPI finds by itself.

Requests are read by `schemas.py`, which is stricter than FastAPI, so their schemas are put into the
document from there.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tessella.serving.schemas import ErrorBody, PicturesBody, RequestBody

_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_FILES = {
    "image": "The picture: PNG, JPEG, WebP, GIF, TIFF, BMP and the like, of any size. It is "
    "cropped to the square in the middle and resized to the model's size.",
    "mask": "What is painted anew, of the picture's size: where it is fully transparent; if it is "
    "so nowhere, where it is not black. Without a mask: where the picture itself is fully "
    "transparent; if it is so nowhere, a variation of it is painted.",
}

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is wrong."},
    401: {"model": ErrorBody, "description": "The API key is missing or unknown."},
    403: {"model": ErrorBody, "description": "The host name or the web page's origin is foreign."},
    404: {"model": ErrorBody, "description": "There is no such model or address."},
    405: {"model": ErrorBody, "description": "The address does not take this method."},
    408: {"model": ErrorBody, "description": "The body came too slowly."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    415: {"model": ErrorBody, "description": "The body is of another type."},
    429: {
        "model": ErrorBody,
        "description": "Too many pictures wait.",
        "headers": _RETRY_AFTER,
    },
    500: {"model": ErrorBody, "description": "Something failed on the server."},
    503: {
        "model": ErrorBody,
        "description": "It took too long, or the server is about to end.",
        "headers": _RETRY_AFTER,
    },
}


def describe_json(kind: type[RequestBody]) -> dict[str, Any]:
    """Says that an operation reads a JSON body."""
    content = {"application/json": {"schema": kind.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def describe_form(kind: type[RequestBody], *files: str) -> dict[str, Any]:
    """Says that an operation reads a form with files, of which the first is required."""
    schema = kind.model_json_schema()
    properties = {name: _without_null(field) for name, field in schema["properties"].items()}
    for name in files:
        properties[name] = {"type": "string", "format": "binary", "description": _FILES[name]}
    schema |= {
        "properties": properties,
        "required": [files[0], *schema.get("required", ())],
    }
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def describe_pictures() -> dict[int | str, dict[str, Any]]:
    """Says that an operation answers with pictures, or with a stream of them."""
    return {
        200: {
            "model": PicturesBody,
            "description": "The pictures; with `stream`, events: `….partial_image` and, for each "
            "picture, `….completed`.",
            "content": {"text/event-stream": {}},
        }
    }


def install_document(app: FastAPI, *, has_keys: bool) -> None:
    """Makes the application's document, in which all of `/v1/` needs a key if there are keys."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            _forget_validation(document)
            if has_keys:
                document["components"]["securitySchemes"] = {
                    "key": {"type": "http", "scheme": "bearer"}
                }
                for path, operations in document["paths"].items():
                    if path not in ("/v1/studio", "/v1/pictures/{name}", "/healthz", "/readyz"):
                        for operation in operations.values():
                            operation["security"] = [{"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]  # as FastAPI says to do it


def _forget_validation(document: dict[str, Any]) -> None:
    """Leaves out FastAPI's own refusal, 422: what is wrong with a request is a 400 here."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """Leaves out that a field may be null, which a form cannot say."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return field
    kept = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    return {**kept, **kinds[0]}
