"""AUTOMATIC1111's API, in its own shape: Open WebUI and many scripts speak it.

    /sdapi/v1/txt2img, img2img ─▶ fields of `schemas.py` ─▶ as OpenAI's routes ─▶ images, info

What it has and tessella has not, samplers for example, is ignored there as unknown fields are;
`warnings` in the answer's `info` names what was ignored.
"""

import io
import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.responses import Response

from tessella.serving import schemas
from tessella.serving.api_errors import explain_validation
from tessella.serving.bodies import ReadRequest, decode_base64, read_form, read_json, validate_json
from tessella.serving.images import answer_pictures, plan_change
from tessella.serving.service import PaintingService

_SAMPLER = "tessella"
_USUAL = (-1, 7, "None", _SAMPLER)  # values of fields that nobody has set: 7 is of `cfg_scale`
_Size = Annotated[int | None, Field(ge=1, le=100_000)]
_Count = Annotated[int, Field(ge=1, le=1000)]
# What programs send with every request, and what changes nothing here.
_IDLE_TEXT = """
comments denoising_strength disable_extra_networks do_not_save_grid do_not_save_samples eta
firstphase_height firstphase_width hr_resize_x hr_resize_y hr_scale hr_second_pass_steps
hr_upscaler image_cfg_scale include_init_images initial_noise_multiplier inpaint_full_res
inpaint_full_res_padding mask_blur mask_blur_x mask_blur_y override_settings_restore_afterwards
s_churn s_min_uncond s_noise s_tmax s_tmin save_images seed_resize_from_h seed_resize_from_w
send_images subseed subseed_strength use_deprecated_controlnet
"""
_IDLE = frozenset(_IDLE_TEXT.split())


class OptionsBody(BaseModel):
    """The options that a client can see and set; others are ignored."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    sd_model_checkpoint: Annotated[str | None, Field(max_length=200)] = None
    """A model of `GET /sdapi/v1/sd-models`."""


class TextToImageBody(BaseModel):
    """`POST /sdapi/v1/txt2img`; null is the same as left out."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    prompt: str = ""
    """What to paint."""
    negative_prompt: str = ""
    """What guidance moves away from."""
    seed: int = -1
    """-1 draws one."""
    batch_size: _Count = 1
    """Pictures of a batch."""
    n_iter: _Count = 1
    """Batches."""
    steps: Annotated[int | None, Field(ge=1)] = None
    """Sampling steps, at most as many as the server allows; the model's own unless given."""
    guidance_scale: float | None = None
    """Tessella's own; the model's unless given. `cfg_scale` has no effect: programs send the 7 of
    diffusion models without being asked, at which these models paint scraps."""
    width: _Size = None
    """Pixels; the model's own size unless width and height are given."""
    height: _Size = None
    """Pixels."""
    override_settings: OptionsBody = OptionsBody()
    """`sd_model_checkpoint` names a model."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_null(cls, values: Any) -> Any:
        is_table = isinstance(values, dict)
        return {n: v for n, v in values.items() if v is not None} if is_table else values


class ImageToImageBody(TextToImageBody):
    """`POST /sdapi/v1/img2img`."""

    init_images: Annotated[list[str], Field(min_length=1, max_length=1)]
    """The picture, as base64 or as a `data:` URL."""
    mask: str | None = None
    """What to repaint: where it is white, or opaque if some of it is transparent."""
    inpainting_mask_invert: bool = False
    """Repaint the rest instead."""
    denoising_strength: float = 0.75
    """Fraction of the picture that is repainted where there is no mask."""


class ImagesBody(BaseModel):
    """Pictures in AUTOMATIC1111's shape."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


def create_sdapi_router(service: PaintingService) -> APIRouter:
    """Serves the parts of AUTOMATIC1111's API that paint, and those that its clients ask first."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])
    chosen = OptionsBody()  # by a client, for all of them: it is so there
    limits = service.settings
    generation_type = schemas.create_body(schemas.GenerationBody, limits)
    change_type = schemas.create_body(schemas.VariationBody, limits)

    def translate(kind: type[schemas.B], asked: TextToImageBody) -> schemas.B:
        return _translate(kind, asked, chosen.sd_model_checkpoint, limits.max_steps)

    @router.post("/txt2img", summary="Paint pictures", openapi_extra=_describe(TextToImageBody))
    async def paint(request: Request) -> ImagesBody:
        asked = await read_json(request, TextToImageBody)
        body = translate(generation_type, asked)
        read = ReadRequest(body, service.find(body.model), ())
        return _reshape(asked, body, await answer_pictures(service, request, read))

    @router.post("/img2img", summary="Change a picture", openapi_extra=_describe(ImageToImageBody))
    async def change(request: Request) -> ImagesBody:
        asked: list[ImageToImageBody] = []

        def parse(
            content: bytearray, kind: type[schemas.VariationBody]
        ) -> tuple[schemas.VariationBody, dict[str, list[bytes]]]:
            asked.append(validate_json(content, ImageToImageBody))
            return translate(kind, asked[0]), _read_files(asked[0], limits.max_upload_pixels)

        form = await read_form(request, service, change_type, "image", "mask", parse=parse)
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
        return [{"name": _SAMPLER, "aliases": [], "options": {}}]

    @router.get("/options", summary="Tell which model paints")
    def show_options() -> dict[str, str]:
        return {"sd_model_checkpoint": service.find(chosen.sd_model_checkpoint).name}

    @router.post(
        "/options", summary="Choose the model that paints", openapi_extra=_describe(OptionsBody)
    )
    async def set_options(request: Request) -> dict[str, str]:
        said = await read_json(request, OptionsBody)
        if said.sd_model_checkpoint is not None:
            chosen.sd_model_checkpoint = service.find(said.sd_model_checkpoint).name
        return {}


def _describe(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    options = schema.pop("$defs", {}).get("OptionsBody")
    if options:
        schema["properties"]["override_settings"] = options
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def _translate(
    kind: type[schemas.B], asked: TextToImageBody, model: str | None, max_steps: int
) -> schemas.B:
    """Says the same as a request of OpenAI's API.

    Raises:
        ApiError: 400, describes the first fault.
    """
    has_size = asked.width is not None and asked.height is not None
    values = {
        "model": asked.override_settings.sd_model_checkpoint or model,
        "prompt": asked.prompt if asked.prompt.strip() or not _may_be_blank(kind) else None,
        "negative_prompt": asked.negative_prompt or None,
        "seed": None if asked.seed < 0 else asked.seed,
        "n": asked.batch_size * asked.n_iter,
        "steps": None if asked.steps is None else min(asked.steps, max_steps),
        "guidance_scale": asked.guidance_scale,
        "size": f"{asked.width}x{asked.height}" if has_size else None,
        "response_format": "b64_json",
    }
    if isinstance(asked, ImageToImageBody) and asked.mask is None:
        values["strength"] = asked.denoising_strength
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain_validation(error, kind.model_fields) from None


def _may_be_blank(kind: type[BaseModel]) -> bool:
    return not kind.model_fields["prompt"].is_required()


def _read_files(asked: ImageToImageBody, max_pixels: int) -> dict[str, list[bytes]]:
    """Reads the picture and the mask, as parts of a form have them.

    Raises:
        ApiError: 400, one is not base64.
    """
    files = {"image": [decode_base64(asked.init_images[0], "init_images[0]")]}
    if asked.mask is not None:
        mask = decode_base64(asked.mask, "mask")
        files["mask"] = [_turn_mask(mask, max_pixels, is_inverted=asked.inpainting_mask_invert)]
    return files


def _turn_mask(content: bytes, max_pixels: int, *, is_inverted: bool) -> bytes:
    """Draws a mask in black and white, of which white is repainted.

    There transparency means the opposite of what it means to OpenAI: it stays.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if opened.width * opened.height > max_pixels:
                return content  # whoever reads it says so
            alpha = opened.convert("RGBA").getchannel("A")
            drawn = opened.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return content  # the same
    if alpha.getextrema() != (255, 255):
        drawn = alpha.point(lambda value: 255 if value > 128 else 0)
    if is_inverted:
        drawn = drawn.point(lambda value: 255 - value)
    stream = io.BytesIO()
    drawn.save(stream, "PNG")
    return stream.getvalue()


def _reshape(asked: TextToImageBody, body: schemas.ImageBody, answer: Response) -> ImagesBody:
    """Writes OpenAI's answer in AUTOMATIC1111's shape."""
    said = json.loads(bytes(answer.body))
    pictures, size = said["data"], said["size"]
    width, height = map(int, size.split("x"))
    seeds = [one["seed"] for one in pictures]
    sampling = body.sampling()
    settings = {"Steps": sampling.get("steps"), "CFG scale": sampling.get("guidance_scale")}
    shown = {name: value for name, value in settings.items() if value is not None}
    texts = [_write_text(asked, shown | {"Seed": one, "Size": size, "Model": said["model"]})
             for one in seeds]  # fmt: skip
    info = {
        "prompt": asked.prompt,
        "all_prompts": [asked.prompt] * len(seeds),
        "negative_prompt": asked.negative_prompt,
        "all_negative_prompts": [asked.negative_prompt] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "width": width,
        "height": height,
        "sampler_name": _SAMPLER,
        "cfg_scale": sampling.get("guidance_scale"),
        "steps": sampling.get("steps"),
        "batch_size": asked.batch_size,
        "sd_model_name": said["model"],
        "index_of_first_image": 0,
        "infotexts": texts,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "warnings": [*said.get("warnings", ()), *_list_ignored(asked, body)],
    }
    parameters = asked.model_dump(exclude={"init_images", "mask"})
    return ImagesBody(
        images=[one["b64_json"] for one in pictures], parameters=parameters, info=json.dumps(info)
    )


def _write_text(asked: TextToImageBody, shown: dict[str, Any]) -> str:
    lines = [asked.prompt]
    if asked.negative_prompt:
        lines.append(f"Negative prompt: {asked.negative_prompt}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in shown.items())])


def _list_ignored(asked: TextToImageBody, body: schemas.ImageBody) -> list[str]:
    """Says what of a request had no effect."""
    told = []
    steps = body.sampling().get("steps")
    if asked.steps != steps:
        told.append(f"steps: {steps} instead of {asked.steps}, the most that the server allows.")
    if (asked.width is None) != (asked.height is None):
        told.append("Of width and height only one was given: the size is the model's own.")
    ignored = [
        name
        for name, value in (asked.model_extra or {}).items()
        if value and name not in _IDLE and value not in _USUAL
    ]
    if ignored:
        told.append(f"Without effect: {', '.join(name[:60] for name in ignored[:20])}.")
    return told
