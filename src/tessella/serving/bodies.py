"""How bodies are read: JSON and forms, strictly.

FastAPI reads neither strictly enough. Of JSON it reads bodies of any type before it looks at the
type, takes UTF-16, NaN and half surrogate pairs, and answers 400 to whatever interrupts the reading
(a limit, a client that hangs up). Of forms starlette silently drops the last field of one that was
cut off, decodes texts by whatever codec the client names, and takes fields that are not there.
"""

import asyncio
import base64
import binascii
import functools
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from PIL import Image
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from tessella.errors import GenerationError
from tessella.generation import MAX_NEIGHBORS
from tessella.images import ImageError, read_with_transparency
from tessella.model.canvas import fit_images
from tessella.model.mask import Marking, read_channels, read_hole
from tessella.model.notices import warn_idle
from tessella.serving.api_errors import ApiError, explain_validation
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import MAX_INDICES, B, GenerationBody
from tessella.serving.service import PaintingService

_LISTS = ("pinned[]", "excluded[]")  # as OpenAI's client names the members of a list in a form
_FORM_LIMITS = {
    "max_files": 2 + MAX_NEIGHBORS,
    "max_fields": 40 + len(_LISTS) * MAX_INDICES,
    "max_part_size": 65_536,
}
_FORM_SLICE_BYTES = 65_536  # parsed in one go, while the event loop waits
# The client names the codec of its texts, and some of Python's are slow on purpose.
_CHARSETS = frozenset({b"", b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1"})
_SCALAR = re.compile(r"true|false|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_INDEX = " *(?:0|[1-9][0-9]{0,14}) *"
_INDICES = re.compile(rf"\[(?:{_INDEX}(?:,{_INDEX})*)?\]")
# pydantic's words for a text in such a field
_NOT_TEXT = ("int_type", "float_type", "bool_type", "list_type")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\\"
_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.ASCII | re.IGNORECASE)


M = TypeVar("M", bound=BaseModel)
ParseOther = Callable[[bytearray, type[B]], tuple[B, dict[str, list[bytes]]]]
"""Reads a body into its fields, and its files by the names of a form's parts without their `[]`."""
ReadMask = Callable[[Image.Image, Image.Image | None], Marking]
"""Reads a mask that was decoded, as `read_channels` does."""


@dataclass(frozen=True)
class ReadRequest(Generic[B]):
    """A request with pictures, read at the size of the model that it names."""

    body: B
    served: ServedModel
    references: Sequence[Image.Image]  # pictures to look at


@dataclass(frozen=True)
class ReadForm(ReadRequest[B]):
    """A form with a picture."""

    image: Image.Image
    marking: Marking | None  # what to repaint: the form's mask, or the picture's own transparency
    warnings: Sequence[str]  # what of the form had no effect


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


async def read_json(request: Request, kind: type[M]) -> M:
    """Reads a request from JSON.

    Raises:
        ApiError: 400, describes the first fault; 415, the body is of another type.
    """
    check_type(request, "application/json")
    return validate_json(await request.body(), kind)


def validate_json(content: bytes | bytearray, kind: type[M]) -> M:
    """Reads a body of JSON.

    Raises:
        ApiError: 400, describes the first fault.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise explain_validation(error, kind.model_fields) from None


async def read_pictures_json(
    request: Request, service: PaintingService, kind: type[GenerationBody]
) -> ReadRequest[GenerationBody]:
    """Reads a request from JSON that may hold pictures as base64, in its field `references`.

    Raises:
        ApiError: as `read_json`; 400, a picture is broken or too large; 404, the model is unknown;
            413, all but the pictures is too large; 429, too much is being uploaded; as
            `PaintingService.decode`.
        GenerationError: there are more pictures than the model looks at.
    """
    check_type(request, "application/json")
    with service.hold_upload() as hold:
        content = await _read_body(request, hold)
        check_structure(content, service.settings.max_json_bytes)
        body = validate_json(content, kind)
        content.clear()
        served = service.find(body.model)
        texts = body.references or []
        served.examples.check(len(texts))
        size, max_pixels = served.model.config.image_size, service.settings.max_upload_pixels

        def read() -> list[Image.Image]:
            names = [f"references[{number}]" for number in range(len(texts))]
            return [
                _read_reference(decode_base64(text, name), name, size, max_pixels)
                for text, name in zip(texts, names, strict=True)
            ]

        references = await service.decode(request, read) if texts else []
    return ReadRequest(body.model_copy(update={"references": None}), served, references)


def check_structure(content: bytearray, limit: int) -> None:
    """Refuses JSON of which too much could not be base64: its parts are what takes time to read.

    Raises:
        ApiError: 413.
    """
    if len(content) > limit and len(content.translate(None, _BASE64)) > limit:
        raise ApiError(
            413,
            f"The body is too large: beside its pictures, at most {limit:,} bytes are read. Send "
            "shorter texts.",
            code="body_too_large",
        )


async def _read_body(request: Request, hold: Callable[[int], None]) -> bytearray:
    content = bytearray()
    async for part in request.stream():
        hold(len(part))
        content += part
    return content


def read_fields(kind: type[B], fields: Mapping[str, str | list[str]]) -> B:
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
            if fault["type"] in _NOT_TEXT:
                values[name] = _read_value(text)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain_validation(error, kind.model_fields) from None


def _read_value(text: str | list[str]) -> object:
    """Reads a number, true or false, or a list of whole numbers; whatever else as it is."""
    if isinstance(text, list):
        return [_read_value(one) for one in text]
    # As Python's clients write a bool into a form.
    text = text.lower() if text in ("True", "False") else text
    is_scalar = len(text) <= 40 and _SCALAR.fullmatch(text)
    return json.loads(text) if is_scalar or _INDICES.fullmatch(text) else text


async def read_form(
    request: Request,
    service: PaintingService,
    kind: type[B],
    *files: str,
    parse: "ParseOther[B] | None" = None,
    read_mask: ReadMask = read_channels,
) -> ReadForm[B]:
    """Reads a form with a picture, and what of the picture to repaint.

    A picture that waits to be painted is small, and few are held at their own size at once: a
    file of some kilobytes may have as many pixels as are allowed.

    Args:
        request: with the form.
        service: counts uploads and decodes pictures.
        kind: of the other fields.
        *files: names of the parts that hold files; a mask is read if `mask` is among them, and
            references if `image[]` is.
        parse: reads the same from another kind of body, in a thread; None: it is a form.
        read_mask: says what a mask marks.

    Raises:
        ApiError: 400, the form is damaged, a field is wrong, or the picture or mask is missing,
            broken, too large or without a marked part; 404, the model is unknown; 415, the body is
            not a form; 429, too much is being uploaded; as `PaintingService.decode`.
    """
    if parse is None:
        check_type(request, "multipart/form-data")
    with service.hold_upload() as hold:
        content = await _read_body(request, hold)
        if parse is None:
            fields, contents = await _parse_form(request, content, files)
            body = read_fields(kind, fields)
        else:
            check_structure(content, service.settings.max_json_bytes)
            body, contents = await service.decode(request, functools.partial(parse, content, kind))
        content.clear()
        served = service.find(body.model)
        if "image" not in contents:
            raise ApiError(400, "A part is missing: `image`.", param="image", code="missing")
        most = served.examples.most
        others, unused = contents["image"][1 : 1 + most], contents["image"][1 + most :]
        size, max_pixels = served.model.config.image_size, service.settings.max_upload_pixels

        def read() -> tuple[list[Image.Image], Image.Image, Marking | None]:
            fitted = _read_pictures(
                contents, size, max_pixels, read_mask if "mask" in files else None
            )
            names = [f"image[{number}]" for number in range(1, len(others) + 1)]
            references = [
                _read_reference(content, name, size, max_pixels)
                for content, name in zip(others, names, strict=True)
            ]
            return references, *fitted

        read_pictures = await service.decode(request, read)
    return ReadForm(body, served, *read_pictures, _warn_unused(len(others), len(unused)))


def _warn_unused(num_looked_at: int, num_unused: int) -> list[str]:
    """Says which pictures beside the first were left out, if any were."""
    if not num_unused:
        return []
    first = 1 + num_looked_at
    last = first + num_unused - 1
    names = [f"image[{number}]" for number in ((first,) if first == last else (first, last))]
    looks_at = f"{num_looked_at} pictures at most" if num_looked_at else "no pictures"
    [said] = warn_idle(names, f"The model looks at {looks_at} beside the one that it changes.")
    return [said.replace("`, `", "` to `")]


async def _parse_form(
    request: Request, content: bytearray, files: tuple[str, ...]
) -> tuple[dict[str, str | list[str]], dict[str, list[bytes]]]:
    """Parses a form.

    Returns:
        Its texts by name, and its files by name; no name has its `[]`. `image` comes first, then
        each `image[]`.

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
    try:
        return await _sort_parts(form, files)
    finally:
        await form.close()


async def _sort_parts(
    form: FormData, files: tuple[str, ...]
) -> tuple[dict[str, str | list[str]], dict[str, list[bytes]]]:
    """Sorts a form's parts into texts and files, as `_parse_form`."""
    texts: dict[str, str | list[str]] = {}
    contents: dict[str, list[bytes]] = {}
    single: set[str] = set()
    # Lists last: what they are added to comes first.
    for name, value in sorted(form.multi_items(), key=lambda item: item[0].endswith("[]")):
        # What a page's form leaves blank: a text of no letters, a file that nobody chose.
        if value == "" or (isinstance(value, UploadFile) and not (value.filename or value.size)):
            continue
        shown, part = name[:60], name.removesuffix("[]")
        is_file, is_listed = name in files, name in _LISTS or (name in files and name != part)
        if name in single or (name in _LISTS and part in single):
            several = f", or name them all `{name}[]`" if f"{name}[]" in files else ""
            message = f"There is more than one `{part[:60]}`. Send one{several}."
            raise ApiError(400, message, param=shown)
        if isinstance(value, UploadFile) != is_file:
            wanted = (
                "a file" if is_file else f"text, unlike {', '.join(f'`{one}`' for one in files)}"
            )
            message = f"A part has to be {wanted}: `{shown}`."
            raise ApiError(400, message, param=shown, code="invalid_value")
        if not is_listed:
            single.add(name)
        if isinstance(value, UploadFile):
            contents.setdefault(part, []).append(await value.read())
        elif is_listed:
            texts[part] = [*texts.get(part, ()), value]
        else:
            texts[name] = value
    return texts, contents


def _read_pictures(
    contents: Mapping[str, Sequence[bytes]],
    size: int,
    max_pixels: int,
    read_mask: ReadMask | None,
) -> tuple[Image.Image, Marking | None]:
    """Decodes a picture and what of it to repaint, both fitted to a model's size."""
    picture, alpha = _decode(contents["image"][0], "image", max_pixels)
    marking = read_hole(alpha) if read_mask else None
    if read_mask and "mask" in contents:
        marking = read_mask(*_decode(contents["mask"][0], "mask", max_pixels))
    if marking is not None:
        try:
            marking = marking.fit(picture.size, size)
        except GenerationError as error:
            raise ApiError(400, str(error), param="mask", code="invalid_mask") from None
    return Image.fromarray(fit_images([picture], size)[0]), marking


def _read_reference(content: bytes, name: str, size: int, max_pixels: int) -> Image.Image:
    """Decodes a picture to look at, fitted to a model's size."""
    picture, _ = _decode(content, name, max_pixels)
    return Image.fromarray(fit_images([picture], size)[0])


def decode_base64(text: str, name: str) -> bytes:
    """Decodes a file that is base64, or a data URL.

    Raises:
        ApiError: 400, it is neither.
    """
    prefix = _DATA_URL.match(text)
    try:
        return base64.b64decode(text[prefix.end() if prefix else 0 :], validate=True)
    except (binascii.Error, ValueError):
        shown = text if len(text) <= 40 else text[:40] + "…"
        raise ApiError(
            400,
            f"`{name}` is not base64: `{shown}`. Send a picture's file as base64, alone or as "
            "data:image/png;base64,….",
            param=name.partition("[")[0],
            code="invalid_image",
        ) from None


def _decode(content: bytes, name: str, max_pixels: int) -> tuple[Image.Image, Image.Image | None]:
    """Decodes an uploaded picture, and how opaque it is."""
    try:
        return read_with_transparency(
            content, max_pixels=max_pixels, setting="serve.max_upload_pixels"
        )
    except ImageError as error:
        param = name.partition("[")[0]
        raise ApiError(400, f"`{name}`: {error}", param=param, code="invalid_image") from None
