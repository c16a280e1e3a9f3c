"""How bodies are read: JSON and forms, strictly.

FastAPI reads neither strictly enough. Of JSON it reads bodies of any type before it looks at the
type, takes UTF-16, NaN and half surrogate pairs, and answers 400 to whatever interrupts the reading
(a limit, a client that hangs up). Of forms starlette silently drops the last field of one that was
cut off, decodes texts by whatever codec the client names, and takes fields that are not there.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Generic

from fastapi import Request
from PIL import Image
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from tessella.errors import GenerationError
from tessella.images import ImageError, read_with_transparency
from tessella.model.canvas import Mask, fit_images, fit_mask
from tessella.serving.api_errors import ApiError, explain_validation
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import B
from tessella.serving.service import PaintingService

_FORM_LIMITS = {"max_files": 2, "max_fields": 40, "max_part_size": 65_536}
_FORM_SLICE_BYTES = 65_536  # parsed in one go, while the event loop waits
# The client names the codec of its texts, and some of Python's are slow on purpose.
_CHARSETS = frozenset({b"", b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1"})
_SCALAR = re.compile(r"true|false|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_NOT_TEXT = ("int_type", "float_type", "bool_type")  # pydantic's words for a text in such a field


@dataclass(frozen=True)
class ReadForm(Generic[B]):
    """A form with a picture, read at the size of the model that it names."""

    body: B
    served: ServedModel
    image: Image.Image
    mask: Mask | None  # what to repaint: the form's mask, or the picture's own transparency


def check_type(request: Request, expected: str) -> None:
    """Refuses a body of another type.

    Raises:
        ApiError: 415.
    """
    got = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if got != expected:
        raise ApiError(
            415,
            f"The body must be {expected}: `{got[:60] or 'no type'}`. Send that, and name it in "
            "the header Content-Type.",
            code="wrong_content_type",
        )


async def read_json(request: Request, kind: type[B]) -> B:
    """Reads a request from JSON.

    Raises:
        ApiError: 400, describes the first fault; 415, the body is of another type.
    """
    check_type(request, "application/json")
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise explain_validation(error, kind.model_fields) from None


def read_fields(kind: type[B], fields: Mapping[str, str]) -> B:
    """Reads a request from the fields of a form, in which a number is its JSON text.

    Raises:
        ApiError: 400, describes the first fault.
    """
    values: dict[str, object] = dict(fields)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        for fault in error.errors():
            text = fields.get(name := str(fault["loc"][0]), "")
            if fault["type"] in _NOT_TEXT and len(text) <= 40 and _SCALAR.fullmatch(text):
                values[name] = json.loads(text)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain_validation(error, kind.model_fields) from None


async def read_form(
    request: Request, service: PaintingService, kind: type[B], *files: str
) -> ReadForm[B]:
    """Reads a form with a picture, and what of the picture to repaint.

    A picture that waits to be painted is small, and few are held at their own size at once: a
    file of some kilobytes may have as many pixels as are allowed.

    Args:
        request: with the form.
        service: counts uploads and decodes pictures.
        kind: of the other fields.
        *files: names of the parts that hold files; a mask is read if `mask` is among them.

    Raises:
        ApiError: 400, the form is damaged, a field is wrong, or the picture or mask is missing,
            broken, too large or without a marked part; 404, the model is unknown; 415, the body is
            not a form; 429, too much is being uploaded; as `PaintingService.decode`.
    """
    check_type(request, "multipart/form-data")
    content = bytearray()
    with service.hold_upload() as hold:
        async for part in request.stream():
            hold(len(part))
            content += part
        fields, contents = await _parse_form(request, content, files)
        content.clear()
        body = read_fields(kind, fields)
        served = service.find(body.model)
        if "image" not in contents:
            raise ApiError(400, "A part is missing: `image`.", param="image", code="missing")
        size, max_pixels = served.model.config.image_size, service.settings.max_upload_pixels
        fitted = await service.decode(
            request, lambda: _read_pictures(contents, size, max_pixels, "mask" in files)
        )
    return ReadForm(body, served, *fitted)


async def _parse_form(
    request: Request, content: bytearray, files: tuple[str, ...]
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Parses a form.

    Returns:
        Its texts by name, and its files by name, which has no `[]`.

    Raises:
        ApiError: 400, it is cut off, or damaged, or its charset is not one that forms have; a part
            is there twice, or a file is where a text belongs, or the other way round.
    """
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"").lower() not in _CHARSETS:
        raise ApiError(400, "The form's charset cannot be read. Send UTF-8.", code="invalid_form")
    # The parser would silently drop the last field of a form that was cut off.
    boundary = options.get(b"boundary", b"")
    if b"--" + boundary + b"--" not in content[-len(boundary) - 64 :]:
        message = "The form is cut off: its last boundary is missing. Send all of it."
        raise ApiError(400, message, code="invalid_form")

    async def slices() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(content), _FORM_SLICE_BYTES):
            yield bytes(content[start : start + _FORM_SLICE_BYTES])
            await asyncio.sleep(0)

    try:
        form = await MultiPartParser(request.headers, slices(), **_FORM_LIMITS).parse()
    except MultiPartException as error:
        raise ApiError(400, error.message, code="invalid_form") from None
    texts: dict[str, str] = {}
    contents: dict[str, bytes] = {}
    try:
        for name, value in form.multi_items():
            shown, part = name[:60], name.removesuffix("[]")
            if part in contents or name in texts:
                message = f"There is more than one `{part[:60]}`. Send one."
                raise ApiError(400, message, param=shown)
            if isinstance(value, UploadFile) != (name in files):
                kind = "a file" if name in files else "text"
                message = f"A part has to be {kind}: `{shown}`."
                raise ApiError(400, message, param=shown, code="invalid_value")
            if isinstance(value, UploadFile):
                contents[part] = await value.read()
            else:
                texts[name] = value
    finally:
        await form.close()
    return texts, contents


def _read_pictures(
    contents: Mapping[str, bytes], size: int, max_pixels: int, is_masked: bool
) -> tuple[Image.Image, Mask | None]:
    """Decodes a picture and what of it to repaint, both fitted to a model's size."""
    picture, transparent = _decode(contents["image"], "image", max_pixels)
    anew: Mask | Image.Image | None = transparent
    if "mask" in contents:
        drawn, transparent = _decode(contents["mask"], "mask", max_pixels)
        anew = drawn if transparent is None else transparent
    fitted = None
    if is_masked and anew is not None:
        try:
            fitted = fit_mask(anew, picture, size)
        except GenerationError as error:
            raise ApiError(400, str(error), param="mask", code="invalid_mask") from None
    return Image.fromarray(fit_images([picture], size)[0]), fitted


def _decode(content: bytes, name: str, max_pixels: int) -> tuple[Image.Image, Mask | None]:
    """Decodes an uploaded picture, and where it is fully transparent."""
    try:
        return read_with_transparency(content, max_pixels=max_pixels)
    except ImageError as error:
        message = str(error)
        if error.kind == "too_large":
            message = f"The picture has too many pixels: at most {max_pixels:,} are read."
        raise ApiError(400, f"`{name}`: {message}", param=name, code="invalid_image") from None
