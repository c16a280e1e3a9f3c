"""The routes of OpenAI's image API, and reconstruction beside them."""

import base64
import functools
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import Response, StreamingResponse

from tessella.images import encode_picture
from tessella.model.canvas import Canvas, fit_images
from tessella.model.pipeline import TextToImage
from tessella.serving.api_errors import ApiError, JsonResponse, to_api_error
from tessella.serving.bodies import ReadForm, read_form, read_json
from tessella.serving.document import describe_body, describe_file, describe_pictures
from tessella.serving.image_answer import ImageAnswer, write_event
from tessella.serving.image_job import CanvasPlan, create_job
from tessella.serving.models_served import ServedModel
from tessella.serving.picture_store import MEDIA_TYPES
from tessella.serving.schemas import (
    EditBody,
    GenerationBody,
    ImageBody,
    ReconstructedBody,
    ReconstructionBody,
    VariationBody,
    create_body,
)
from tessella.serving.service import PaintingService

_DEFAULT_STRENGTH = 0.5


def create_images_router(service: PaintingService) -> APIRouter:
    """Serves generations, edits, variations, reconstructions and stored pictures."""
    router = APIRouter(prefix="/v1", tags=["images"])
    _add_generations(router, service)
    _add_changes(router, service)
    _add_reconstructions(router, service)
    _add_stored_pictures(router, service)
    return router


def _add_generations(router: APIRouter, service: PaintingService) -> None:
    body_type = create_body(GenerationBody, service.settings)

    @router.post(
        "/images/generations",
        summary="Paint pictures from a prompt",
        openapi_extra=describe_body(body_type),
        responses=describe_pictures(),
    )
    async def generate(request: Request) -> Response:
        body = await read_json(request, body_type)
        served = service.find(body.model)
        return await _answer(service, request, served, body, body.prompt)


def _add_changes(router: APIRouter, service: PaintingService) -> None:
    edit_type = create_body(EditBody, service.settings)
    variation_type = create_body(VariationBody, service.settings)

    @router.post(
        "/images/edits",
        summary="Repaint a part of a picture",
        openapi_extra=describe_body(edit_type, "image", "mask"),
        responses=describe_pictures(),
    )
    async def edit(request: Request) -> Response:
        return await change(
            request, await read_form(request, service, edit_type, "image", "image[]", "mask")
        )

    @router.post(
        "/images/variations",
        summary="Paint variations of a picture",
        openapi_extra=describe_body(variation_type, "image"),
        responses=describe_pictures(),
    )
    async def vary(request: Request) -> Response:
        return await change(request, await read_form(request, service, variation_type, "image"))

    async def change(
        request: Request, form: ReadForm[EditBody] | ReadForm[VariationBody]
    ) -> Response:
        model, image, mask, body = form.served.model, form.image, form.mask, form.body
        if mask is None:
            strength = _DEFAULT_STRENGTH if body.strength is None else body.strength
            plan: CanvasPlan = functools.partial(model.plan_variations, image, strength=strength)
        else:
            plan = functools.partial(_plan_edits, model, image, mask)
        return await _answer(service, request, form.served, body, body.prompt or "", plan)


def _add_reconstructions(router: APIRouter, service: PaintingService) -> None:
    @router.post(
        "/images/reconstructions",
        summary="Encode a picture into codes and decode them",
        openapi_extra=describe_body(ReconstructionBody, "image"),
        response_model=ReconstructedBody,
    )
    async def reconstruct(request: Request) -> Response:
        form = await read_form(request, service, ReconstructionBody, "image")
        served = form.served
        answer = await service.call(request, _reconstruct, served.model, form.image)
        return JsonResponse({"model": served.name, **answer})


def _add_stored_pictures(router: APIRouter, service: PaintingService) -> None:
    @router.get(
        "/pictures/{name}",
        summary="Fetch a picture that was answered as a URL",
        response_class=Response,
        responses=describe_file("The picture", *MEDIA_TYPES.values()),
    )
    async def fetch(name: str) -> Response:
        picture = service.pictures.find(name)
        if picture is None:
            message = "There is no such picture, or no longer: it is kept for an hour at most."
            raise ApiError(404, message)
        content, media_type = picture
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(content, media_type=media_type, headers=headers)


async def _answer(
    service: PaintingService,
    request: Request,
    served: ServedModel,
    body: ImageBody,
    prompt: str,
    plan: CanvasPlan | None = None,
) -> Response:
    """Paints pictures and answers with all of them, or with a stream of events.

    Args:
        service: paints.
        request: of the client.
        served: the model.
        body: the request.
        prompt: "" is no prompt.
        plan: makes the canvases of pictures that are changed; None: they are new.

    Raises:
        ApiError: as `PaintingService.paint`.
    """
    service.log_prompt(request, prompt)
    read = served.model.text_tokenizer.shorten(prompt)
    revised = None if read == prompt else read
    event_type = "image_generation" if plan is None else "image_edit"
    answer = ImageAnswer(served, body, read, revised, event_type)
    job = create_job(served, body, read, plan)
    if not body.stream:
        pictures = await service.paint_all(request, job, answer.encode)
        store = functools.partial(service.store, request)
        return JsonResponse(answer.to_json(pictures, store))
    painted = service.paint(request, job, answer.encode)
    # An error before the first event still has a status of its own.
    first = await anext(painted)

    async def stream() -> AsyncIterator[bytes]:
        try:
            yield answer.to_event(*first)
            async for picture, content in painted:
                yield answer.to_event(picture, content)
        except Exception as error:  # noqa: BLE001  the status is sent: only an event can tell
            yield write_event("error", to_api_error(error).body)
        finally:
            await painted.aclose()

    return StreamingResponse(
        stream(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def _plan_edits(
    model: TextToImage, image: Image.Image, mask: Any, seeds: Sequence[int]
) -> list[Canvas]:
    return [model.plan_edit(image, mask)] * len(seeds)


def _reconstruct(model: TextToImage, image: Image.Image) -> dict[str, Any]:
    """Encodes a picture and decodes it."""
    pixels = fit_images([image], model.config.image_size)
    codes = model.encode_images(pixels)
    [decoded] = model.decode_codes(codes)
    return {
        "original": base64.b64encode(encode_picture(pixels[0])).decode("ascii"),
        "reconstruction": base64.b64encode(encode_picture(decoded)).decode("ascii"),
        "codes": codes[0].tolist(),
        "grid": model.config.grid,
        "codebook_size": model.config.tokenizer.quantizer.codebook_size,
    }
