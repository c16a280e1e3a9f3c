"""Edits in JSON, as OpenAI takes them: `images[].image_url` with `data:` URLs, and a `mask`."""

import functools
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from tessella.generation import MAX_NEIGHBORS
from tessella.serving.api_errors import ApiError
from tessella.serving.bodies import decode_base64, validate_json
from tessella.serving.schemas import B, describe_kind


class Source(BaseModel):
    """A picture."""

    # A picture without an address is refused in words of ours, and so is any address but `data:`.
    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"required": ["image_url"]},
    )

    image_url: Annotated[str | None, WithJsonSchema({"type": "string", "format": "data-url"})] = (
        None
    )
    """A `data:` URL of its file, or the file as base64."""
    file_id: Annotated[str | None, WithJsonSchema({"type": "null"})] = None
    """Refused: the server keeps no files."""


def read_json_edit(content: bytearray, kind: type[B]) -> tuple[B, dict[str, list[bytes]]]:
    """Reads an edit from JSON.

    Args:
        content: the body.
        kind: of its fields beside the pictures.

    Returns:
        The fields, and the files: `image`, the first of which is the picture, and perhaps `mask`.

    Raises:
        ApiError: 400, describes the first fault.
    """
    whole = _create_whole(kind)
    body = validate_json(content, whole)
    said: dict[str, Any] = vars(body)
    images, mask = said.pop("images"), said.pop("mask")
    files = {"image": [_read(one, f"images[{i}]") for i, one in enumerate(images)]}
    if mask is not None:
        files["mask"] = [_read(mask, "mask")]
    return kind(**said), files


def add_json_edit(described: dict[str, Any], kind: type[B]) -> dict[str, Any]:
    """Adds JSON to what is told of an operation that reads a form.

    Args:
        described: as by `describe_body`.
        kind: of the fields beside the pictures.
    """
    whole = _create_whole(kind)
    schema = describe_kind(whole)
    # A part of the document has no definitions of its own.
    source = schema.pop("$defs")["Source"]
    schema["properties"]["images"]["items"] = source
    schema["properties"]["mask"] = {
        "anyOf": [source, {"type": "null"}],
        "description": schema["properties"]["mask"]["description"],
    }
    described["requestBody"]["content"]["application/json"] = {"schema": schema}
    return described


@functools.lru_cache(maxsize=16)  # making it takes longer than reading a body
def _create_whole(kind: type[B]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        "images": (
            Annotated[list[Source], Field(min_length=1, max_length=1 + MAX_NEIGHBORS)],
            Field(description="The picture, and others to look at, as `image[]` of a form."),
        ),
        "mask": (Source | None, Field(None, description="As of a form.")),
    }
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **fields)


def _read(source: Source, name: str) -> bytes:
    """Reads a picture's file.

    Raises:
        ApiError: 400, it is not in the request itself.
    """
    param = name.partition("[")[0]
    text = source.image_url or ""
    is_address = text[:8].lower().startswith(("http://", "https://"))
    if not text or is_address or source.file_id is not None:
        raise ApiError(
            400,
            f"`{name}`: This server fetches no addresses and keeps no files. Send the picture "
            "itself as `image_url`: data:image/png;base64,….",
            param=param,
            code="invalid_image",
        )
    return decode_base64(text, f"{name}.image_url")
