"""AUTOMATIC1111's API, in its own shape: Open WebUI and many scripts speak it.

    /sdapi/v1/txt2img, img2img ─▶ fields of `schemas.py` ─▶ as OpenAI's routes ─▶ images, info

What it has and tessella has not, samplers for example, is ignored there as unknown fields are;
`warnings` in the answer's `info` names what was ignored.
"""

import json
import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from tessella.serving import schemas
from tessella.serving.bodies import ReadRequest, read_form, read_json, validate_json
from tessella.serving.images import answer_pictures, plan_change
from tessella.serving.sdapi_bodies import (
    SAMPLER,
    ImageToImageBody,
    OptionsBody,
    PaintBody,
    TextToImageBody,
    create_paint_body,
    describe_paint_body,
    list_ignored,
    translate,
)
from tessella.serving.service import PaintingService


class ImagesBody(BaseModel):
    """Pictures in AUTOMATIC1111's shape."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class ProgressState(BaseModel):
    """What is being done."""

    job_count: int  # pictures that wait
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0
    skipped: bool = False
    interrupted: bool = False
    job: str = ""


class ProgressBody(BaseModel):
    """How far painting is: pictures of all clients are painted together, so no number of one."""

    progress: float = 0.0
    eta_relative: float = 0.0
    state: ProgressState
    current_image: None = None
    textinfo: None = None


def create_sdapi_router(service: PaintingService) -> APIRouter:
    """Serves the parts of AUTOMATIC1111's API that paint, and those that its clients ask first."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])
    chosen = OptionsBody()  # by a client, for all of them: it is so there
    limits = service.settings
    generation_type = schemas.create_body(schemas.GenerationBody, limits)
    change_type = schemas.create_body(schemas.VariationBody, limits)
    paint_type = create_paint_body(TextToImageBody, limits)
    repaint_type = create_paint_body(ImageToImageBody, limits)

    def describe(kind: type[PaintBody]) -> dict[str, Any]:
        return _describe(describe_paint_body(kind, limits))

    @router.post("/txt2img", summary="Paint pictures", openapi_extra=describe(paint_type))
    async def paint(request: Request) -> ImagesBody:
        asked = await read_json(request, paint_type)
        body = translate(generation_type, asked, chosen.sd_model_checkpoint, limits)
        read = ReadRequest(body, service.find(body.model), ())
        return _reshape(asked, body, await answer_pictures(service, request, read))

    @router.post("/img2img", summary="Change a picture", openapi_extra=describe(repaint_type))
    async def change(request: Request) -> ImagesBody:
        asked: list[ImageToImageBody] = []

        def parse(
            content: bytearray, kind: type[schemas.VariationBody]
        ) -> tuple[schemas.VariationBody, dict[str, list[bytes]]]:
            asked.append(validate_json(content, repaint_type))
            body = translate(kind, asked[0], chosen.sd_model_checkpoint, limits)
            return body, asked[0].read_files()

        form = await read_form(
            request,
            service,
            change_type,
            "image",
            "mask",
            parse=parse,
            read_mask=lambda colors, alpha: asked[0].read_mask(colors, alpha),
        )
        answer = await answer_pictures(service, request, form, plan_change(form))
        return _reshape(asked[0], form.body, answer)

    _add_questions(router, service, chosen)
    return router


def _add_questions(router: APIRouter, service: PaintingService, chosen: OptionsBody) -> None:
    """Adds what clients ask before they paint: models, options, samplers."""

    @router.get("/sd-models", summary="List the models")
    def list_models() -> list[dict[str, str | None]]:
        return [
            {"title": name, "model_name": name, "filename": name, "hash": None, "sha256": None}
            for name in service.models
        ]

    @router.get("/samplers", summary="List the one sampler")
    def list_samplers() -> list[dict[str, Any]]:
        return [{"name": SAMPLER, "aliases": [], "options": {}}]

    @router.get("/schedulers", summary="List the one scheduler")
    def list_schedulers() -> list[dict[str, str]]:
        return [{"name": "automatic", "label": "Automatic"}]

    @router.get("/scripts", summary="List scripts, of which there are none")
    def list_scripts() -> dict[str, list[str]]:
        return {"txt2img": [], "img2img": []}

    @router.get("/progress", summary="Tell how many pictures wait")
    def show_progress() -> ProgressBody:
        count = service.worker.num_waiting
        return ProgressBody(state=ProgressState(job_count=count))

    @router.get("/options", summary="Tell which model paints")
    def show_options() -> dict[str, str]:
        return {"sd_model_checkpoint": service.find(chosen.sd_model_checkpoint).name}

    @router.post(
        "/options",
        summary="Choose the model that paints",
        openapi_extra=_describe(OptionsBody.model_json_schema()),
    )
    async def set_options(request: Request) -> dict[str, str]:
        said = await read_json(request, OptionsBody)
        if said.sd_model_checkpoint is not None:
            chosen.sd_model_checkpoint = service.find(said.sd_model_checkpoint).name
        return {}


def _describe(schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def _reshape(asked: PaintBody, body: schemas.ImageBody, answer: Response) -> ImagesBody:
    """Writes OpenAI's answer in AUTOMATIC1111's shape."""
    said = json.loads(bytes(answer.body))
    pictures, size = said["data"], said["size"]
    width, height = map(int, size.split("x"))
    seeds = [one["seed"] for one in pictures]
    prompt, negative_prompt = asked.prompt or "", asked.negative_prompt or ""
    sampling = body.sampling()
    settings = {"Steps": sampling.get("steps"), "CFG scale": sampling.get("guidance_scale")}
    shown = {name: value for name, value in settings.items() if value is not None}
    texts = [_write_text(asked, shown | {"Seed": one, "Size": size, "Model": said["model"]})
             for one in seeds]  # fmt: skip
    info = {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": negative_prompt,
        "all_negative_prompts": [negative_prompt] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "width": width,
        "height": height,
        "sampler_name": SAMPLER,
        "cfg_scale": sampling.get("guidance_scale"),
        "steps": sampling.get("steps"),
        "batch_size": asked.batch_size or 1,
        "sd_model_name": said["model"],
        "index_of_first_image": 0,
        "infotexts": texts,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "warnings": [*said.get("warnings", ()), *list_ignored(asked, body)],
    }
    parameters = asked.model_dump(exclude={"init_images", "mask"})
    return ImagesBody(
        images=[one["b64_json"] for one in pictures], parameters=parameters, info=json.dumps(info)
    )


def _write_text(asked: PaintBody, shown: dict[str, Any]) -> str:
    lines = [asked.prompt or ""]
    if asked.negative_prompt:
        lines.append(f"Negative prompt: {asked.negative_prompt}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in shown.items())])
