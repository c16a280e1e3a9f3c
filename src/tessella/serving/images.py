"""The routes of OpenAI's image API, and reconstruction beside them."""

import functools
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import Response, StreamingResponse

from tessella.generation import MAX_NEIGHBORS
from tessella.images import encode_picture
from tessella.model.canvas import fit_images
from tessella.serving import schemas
from tessella.serving.api_errors import ApiError, JsonResponse, note_error, to_api_error
from tessella.serving.bodies import ReadForm, ReadRequest, read_form, read_pictures_json
from tessella.serving.document import PICTURES, describe_body, describe_file
from tessella.serving.image_answer import ImageAnswer, encode_base64, write_event
from tessella.serving.image_job import CanvasPlan, create_job, plan_canvas, plan_size
from tessella.serving.json_edit import add_json_edit, read_json_edit
from tessella.serving.models_served import ServedModel
from tessella.serving.picture_store import MEDIA_TYPES
from tessella.serving.service import PaintingService

_DEFAULT_STRENGTH = 0.5

_Asked = (
    ReadRequest[schemas.GenerationBody]
    | ReadForm[schemas.EditBody]
    | ReadForm[schemas.VariationBody]
)


def create_images_router(service: PaintingService) -> APIRouter:
    """Serves generations, edits, variations, reconstructions and stored pictures."""
    router = APIRouter(prefix="/v1", tags=["images"])
    most = max((one.examples.most for one in service.models.values()), default=MAX_NEIGHBORS)
    generation_type = schemas.create_body(schemas.GenerationBody, service.settings, most)
    edit_type = schemas.create_body(schemas.EditBody, service.settings, most)
    variation_type = schemas.create_body(schemas.VariationBody, service.settings, most)

    @router.post(
        "/images/generations",
        summary="Paint pictures from a prompt",
        openapi_extra=describe_body(generation_type),
        responses=PICTURES,
    )
    async def generate(request: Request) -> Response:
        read = await read_pictures_json(request, service, generation_type)
        return await answer_pictures(service, request, read)

    @router.post(
        "/images/edits",
        summary="Repaint a part of a picture",
        openapi_extra=add_json_edit(
            describe_body(edit_type, "image", "mask", takes_several=True), edit_type
        ),
        responses=PICTURES,
    )
    async def edit(request: Request) -> Response:
        is_json = request.headers.get("content-type", "").lower().startswith("application/json")
        parse = read_json_edit if is_json else None
        form = await read_form(request, service, edit_type, "image", "image[]", "mask", parse=parse)
        return await answer_pictures(service, request, form, plan_change(form))

    @router.post(
        "/images/variations",
        summary="Paint variations of a picture",
        openapi_extra=describe_body(variation_type, "image", takes_several=True),
        responses=PICTURES,
    )
    async def vary(request: Request) -> Response:
        form = await read_form(request, service, variation_type, "image", "image[]")
        return await answer_pictures(service, request, form, plan_change(form))

    _add_reconstructions(router, service)
    return router


def _add_reconstructions(router: APIRouter, service: PaintingService) -> None:
    """Adds reconstructions, and pictures that were answered as URLs."""

    @router.post(
        "/images/reconstructions",
        summary="Encode a picture into codes and decode them",
        openapi_extra=describe_body(schemas.ReconstructionBody, "image"),
    )
    async def reconstruct(request: Request) -> schemas.ReconstructedBody:
        form = await read_form(request, service, schemas.ReconstructionBody, "image")
        return await service.call(request, lambda: _reconstruct(form.served, form.image))

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


async def answer_pictures(
    service: PaintingService,
    request: Request,
    asked: _Asked,
    plan: CanvasPlan | None = None,
) -> Response:
    """Paints pictures and answers with all of them, or with a stream of events.

    Args:
        service: paints.
        request: of the client.
        asked: what it says.
        plan: makes the canvases of pictures that are changed; None: they are new.

    Raises:
        ApiError: as `PaintingService.paint`.
    """
    served, body = asked.served, service.settle(asked.body)
    prompt = body.prompt or ""
    service.log_prompt(request, prompt)
    read = served.model.text_tokenizer.shorten(prompt)
    event_type = "image_generation" if plan is None else "image_edit"
    size = plan_size(served, body)
    changed = asked if isinstance(asked, ReadForm) else None
    answer = ImageAnswer(
        served,
        body,
        prompt,
        read,
        event_type,
        size,
        marking=changed.marking if changed else None,
        unused=changed.warnings if changed else (),
    )
    job = create_job(served, body, read, plan or plan_canvas(served, size), asked.references)
    if not body.stream:
        pictures = await service.paint_all(request, job, answer.encode)
        store = functools.partial(service.store, request)
        # Any name may have been asked for: the answer has the model's own.
        return JsonResponse(answer.to_json(pictures, store) | {"model": served.name})
    painted = service.paint(request, job, answer.encode)
    # An error before the first event still has a status of its own.
    first = await anext(painted)

    async def stream() -> AsyncIterator[bytes]:
        try:
            yield answer.to_event(first)
            async for picture in painted:
                yield answer.to_event(picture)
        except Exception as error:  # noqa: BLE001  the status is sent: only an event can tell
            note_error(request.scope, told := to_api_error(error))
            yield write_event("error", told.body)
        finally:
            await painted.aclose()

    return StreamingResponse(
        stream(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def plan_change(form: ReadForm[schemas.EditBody] | ReadForm[schemas.VariationBody]) -> CanvasPlan:
    """Repaints what the mask marks; without a mask, makes variations."""
    model, image, marking, strength = (
        form.served.model,
        form.image,
        form.marking,
        form.body.strength,
    )
    if marking is None:
        strength = _DEFAULT_STRENGTH if strength is None else strength
        return functools.partial(model.canvases.variations, image, strength=strength)
    return lambda seeds: [model.canvases.edit(image, marking)] * len(seeds)


def _reconstruct(served: ServedModel, image: Image.Image) -> schemas.ReconstructedBody:
    """Encodes a picture and decodes it."""
    model = served.model
    pixels = fit_images([image], model.config.image_size)
    codes = model.encode_images(pixels)
    [decoded] = model.decode_codes(codes)
    return schemas.ReconstructedBody(
        model=served.name,
        original=encode_base64(encode_picture(pixels[0])),
        reconstruction=encode_base64(encode_picture(decoded)),
        codes=codes[0].tolist(),
        grid=list(model.config.grid),
        codebook_size=model.config.tokenizer.quantizer.codebook_size,
        codes_per_position=model.config.tokenizer.quantizer.codes_per_position,
    )
