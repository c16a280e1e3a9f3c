"""The routes of OpenAI's image API, and reconstruction beside them."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response

from tessella.errors import GenerationError
from tessella.images import ImageError, encode_picture, read_with_transparency
from tessella.model.canvas import Canvas, Mask, fit_images, fit_mask
from tessella.model.pipeline import TextToImage
from tessella.serving.api_errors import ApiError, JsonResponse
from tessella.serving.document import describe_form, describe_json, describe_pictures
from tessella.serving.schemas import (
    EditBody,
    GenerationBody,
    ReconstructedBody,
    ReconstructionBody,
    VariationBody,
    read_fields,
    read_json,
    with_limits,
)
from tessella.serving.service import PaintingService

_FORM_LIMITS = {"max_files": 2, "max_fields": 40, "max_part_size": 65_536}
_FORM_SLICE_BYTES = 65_536  # that are taken apart at once: the event loop waits meanwhile
# The client names what its texts are decoded by, and some of Python's codecs are slow on purpose.
_CHARSETS = frozenset({b"", b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1"})
_DEFAULT_STRENGTH = 0.5


def create_images_router(service: PaintingService) -> APIRouter:
    """Serves generations, edits, variations, reconstructions and kept pictures."""
    router = APIRouter(prefix="/v1", tags=["images"])
    generation = with_limits(GenerationBody, service.settings)
    edit = with_limits(EditBody, service.settings)
    variation = with_limits(VariationBody, service.settings)

    @router.post(
        "/images/generations",
        summary="Paint pictures from a prompt",
        openapi_extra=describe_json(generation),
        responses=describe_pictures(),
    )
    async def generate(request: Request) -> Response:
        check_type(request, "application/json")
        body = read_json(generation, await request.body())
        _note_prompt(request, service, body.prompt)
        wanted = service.read(body, body.prompt)
        return await service.answer(request, wanted)

    @router.post(
        "/images/edits",
        summary="Paint a part of a picture anew",
        openapi_extra=describe_form(edit, "image", "mask"),
        responses=describe_pictures(),
    )
    async def change(request: Request) -> Response:
        async with _open_form(request, service) as form:
            body = read_fields(edit, _list_fields(form, "image", "image[]", "mask"))
            model = service.find(body.model).model
            image, mask = await _read_pictures(request, form, service, model, is_masked=True)
        if mask is None:
            return await _vary(request, body, body.prompt, image)

        def plan(model: TextToImage, seeds: Sequence[int]) -> list[Canvas]:
            return [model.plan_edit(image, mask)] * len(seeds)

        _note_prompt(request, service, body.prompt)
        wanted = service.read(body, body.prompt, plan, is_changing=True)
        return await service.answer(request, wanted)

    @router.post(
        "/images/variations",
        summary="Paint variations of a picture",
        openapi_extra=describe_form(variation, "image"),
        responses=describe_pictures(),
    )
    async def vary(request: Request) -> Response:
        async with _open_form(request, service) as form:
            body = read_fields(variation, _list_fields(form, "image"))
            model = service.find(body.model).model
            image, _ = await _read_pictures(request, form, service, model)
        return await _vary(request, body, body.prompt or "", image)

    async def _vary(
        request: Request, body: EditBody | VariationBody, prompt: str, image: Image.Image
    ) -> Response:
        strength = _DEFAULT_STRENGTH if body.strength is None else body.strength

        def plan(model: TextToImage, seeds: Sequence[int]) -> list[Canvas]:
            return model.plan_variations(image, seeds, strength=strength)

        _note_prompt(request, service, prompt)
        wanted = service.read(body, prompt, plan, is_changing=True)
        return await service.answer(request, wanted)

    @router.post(
        "/images/reconstructions",
        summary="Encode a picture into codes and decode them",
        openapi_extra=describe_form(ReconstructionBody, "image"),
        response_model=ReconstructedBody,
    )
    async def reconstruct(request: Request) -> Response:
        async with _open_form(request, service) as form:
            body = read_fields(ReconstructionBody, _list_fields(form, "image"))
            served = service.find(body.model)
            image, _ = await _read_pictures(request, form, service, served.model)
        found = await service.call(request, _reconstruct, served.model, image)
        return JsonResponse({"model": served.name, **found})

    @router.get(
        "/pictures/{name}",
        summary="Fetch a picture that was answered as a URL",
        response_class=Response,
        responses={
            200: {
                "description": "The picture",
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary"}}
                    for kind in ("image/png", "image/jpeg", "image/webp")
                },
            }
        },
    )
    async def fetch(name: str) -> Response:
        found = service.kept.find(name)
        if found is None:
            raise ApiError(
                404, "There is no such picture (any more): it is kept for an hour at most."
            )
        content, kind = found
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(content, media_type=kind, headers=headers)

    return router


def check_type(request: Request, expected: str) -> None:
    """Refuses a body of another type.

    Raises:
        ApiError: 415.
    """
    got = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if got != expected:
        raise ApiError(
            415,
            f"The body must be {expected}: `{got[:60] or 'nothing said'}`. Send it so, and say it "
            "in the header Content-Type.",
            code="wrong_content_type",
        )


@contextlib.asynccontextmanager
async def _open_form(request: Request, service: PaintingService) -> AsyncIterator[FormData]:
    """Reads a form, and closes its files in the end."""
    check_type(request, "multipart/form-data")
    with service.hold_upload() as hold:
        parts = []
        async for part in request.stream():
            hold(len(part))
            parts.append(part)
        form = await _parse_form(request, b"".join(parts))
        parts.clear()
        try:
            yield form
        finally:
            await form.close()


async def _parse_form(request: Request, content: bytes) -> FormData:
    """Takes a form apart.

    Raises:
        ApiError: 400, it is cut off, or damaged, or its charset is not one that forms have.
    """
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"").lower() not in _CHARSETS:
        said = "The form's charset cannot be read. Send UTF-8."
        raise ApiError(400, said, code="invalid_form")
    # Of a form that was cut off the parser would drop the last field unsaid.
    boundary = options.get(b"boundary", b"")
    if b"--" + boundary + b"--" not in content[-len(boundary) - 64 :]:
        said = "The form is cut off: its last boundary is missing. Send all of it."
        raise ApiError(400, said, code="invalid_form")

    async def pass_on() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(content), _FORM_SLICE_BYTES):
            yield content[start : start + _FORM_SLICE_BYTES]
            await asyncio.sleep(0)

    try:
        return await MultiPartParser(request.headers, pass_on(), **_FORM_LIMITS).parse()
    except MultiPartException as error:
        raise ApiError(400, error.message, code="invalid_form") from None


def _list_fields(form: FormData, *files: str) -> dict[str, str]:
    """Lists the text fields of a form.

    Args:
        form: as it was sent.
        files: names of the parts that hold files.

    Raises:
        ApiError: 400, a part is there twice, or a file is where a text belongs, or the other way
            round.
    """
    fields: dict[str, str] = {}
    seen: set[str] = set()
    for name, value in form.multi_items():
        shown = name[:60]
        if (part := name.removesuffix("[]")) in seen:
            said = f"There is more than one `{part[:60]}`. One is taken."
            raise ApiError(400, said, param=shown)
        seen.add(part)
        if isinstance(value, UploadFile) != (name in files):
            what = "a file" if name in files else "text"
            raise ApiError(
                400, f"A part has to be {what}: `{shown}`.", param=shown, code="invalid_value"
            )
        if not isinstance(value, UploadFile):
            fields[name] = value
    return fields


async def _read_pictures(
    request: Request,
    form: FormData,
    service: PaintingService,
    model: TextToImage,
    *,
    is_masked: bool = False,
) -> tuple[Image.Image, Mask | None]:
    """Reads the picture of a form, and what of it is to be painted anew, at a model's size.

    What waits to be painted is small, and few pictures are held at their own size at once: a
    file of some kilobytes may have as many pixels as are allowed.

    Returns:
        The picture; and, if that is asked for, the mask, or the picture's own transparency, or
        None.

    Raises:
        ApiError: 400, there is no picture, or one is broken or too large, or the mask marks
            nothing or is no mask of this picture; as `decode`.
    """
    image = form.get("image") or form.get("image[]")
    mask = form.get("mask")
    if not isinstance(image, UploadFile):
        raise ApiError(400, "A part is missing: `image`.", param="image", code="missing")
    content = await image.read()
    drawn = await mask.read() if isinstance(mask, UploadFile) else None
    size, limit = model.config.image_size, service.settings.max_upload_pixels

    def read() -> tuple[Image.Image, Mask | None]:
        picture, transparent = _decode(content, "image", limit)
        anew: Mask | Image.Image | None = transparent
        if drawn is not None:
            shown, transparent = _decode(drawn, "mask", limit)
            anew = shown if transparent is None else transparent
        fitted = None
        if is_masked and anew is not None:
            try:
                fitted = fit_mask(anew, picture, size)
            except GenerationError as error:
                raise ApiError(400, str(error), param="mask", code="invalid_mask") from None
        return Image.fromarray(fit_images([picture], size)[0]), fitted

    return await service.decode(request, read)


def _decode(content: bytes, name: str, max_pixels: int) -> tuple[Image.Image, Mask | None]:
    """Reads an uploaded picture, and where it is fully transparent."""
    try:
        return read_with_transparency(content, max_pixels=max_pixels)
    except ImageError as error:
        message = str(error)
        if error.kind == "too_large":
            message = f"The picture has too many pixels: at most {max_pixels:,} are read."
        raise ApiError(400, f"`{name}`: {message}", param=name, code="invalid_image") from None


def _reconstruct(model: TextToImage, image: Image.Image) -> dict[str, Any]:
    """Encodes a picture and decodes it."""
    own = fit_images([image], model.config.image_size)
    codes = model.encode_images(own)
    [decoded] = model.decode_codes(codes)
    return {
        "original": base64.b64encode(encode_picture(own[0])).decode("ascii"),
        "reconstruction": base64.b64encode(encode_picture(decoded)).decode("ascii"),
        "codes": codes[0].tolist(),
        "grid": model.config.grid,
        "codebook_size": model.config.tokenizer.quantizer.codebook_size,
    }


def _note_prompt(request: Request, service: PaintingService, prompt: str) -> None:
    """Puts a prompt into the access log, if that is asked for."""
    if service.settings.log_prompts:
        request.state.prompt = prompt
