"""What AUTOMATIC1111's API is asked, and the same as a request of OpenAI's API.

The document of these bodies says all that is refused of them; other fields are taken and ignored.
"""

import functools
from typing import Annotated, Any, TypeVar

from PIL import Image
from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema, create_model

from tessella.generation import GenerationSettings
from tessella.model.mask import Marking, read_channels
from tessella.serving import schemas
from tessella.serving.api_errors import ApiError, explain_validation
from tessella.serving.bodies import decode_base64
from tessella.serving.schemas import MAX_API_SEED, StrictBody
from tessella.serving.settings import MAX_SIDE_PX, ServeSettings

P = TypeVar("P", bound="PaintBody")

SAMPLER = "tessella"
"""The one sampler there is."""

_USUAL = (-1, 7, "None", SAMPLER)  # values of fields that nobody has set: 7 is of `cfg_scale`
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
_STRENGTH = 0.75

_Side = Annotated[int | None, Field(ge=16, le=MAX_SIDE_PX)]
_File = Annotated[str, WithJsonSchema({"type": "string", "format": "data-url"})]


class OptionsBody(StrictBody):
    """The options that a client can see and set; others are ignored."""

    model_config = ConfigDict(extra="ignore")

    sd_model_checkpoint: Annotated[str | None, Field(max_length=200)] = None
    """A model of `GET /sdapi/v1/sd-models`."""


class PaintBody(StrictBody):
    """Fields of both requests; null is the same as left out."""

    model_config = ConfigDict(extra="allow")

    prompt: str | None = None
    """What to paint; unless given, only the picture guides it."""
    negative_prompt: str | None = None
    """What guidance moves away from."""
    seed: Annotated[int | None, Field(le=MAX_API_SEED)] = None
    """One is drawn unless given, or if it is below 0."""
    batch_size: schemas.Count = None
    """Pictures of a batch; 1 unless given."""
    n_iter: schemas.Count = None
    """Batches; 1 unless given."""
    steps: Annotated[int | None, Field(ge=1)] = None
    """Sampling steps, at most as many as the server allows; the model's own unless given."""
    guidance_scale: float | None = None
    """Tessella's own; the model's unless given. `cfg_scale` has no effect: programs send the 7 of
    diffusion models without being asked, at which these models paint scraps."""
    width: _Side = None
    """Pixels; the model's own size unless width and height are given."""
    height: _Side = None
    """Pixels."""
    override_settings: OptionsBody | None = None
    """`sd_model_checkpoint` names a model."""

    @property
    def count(self) -> int:
        """Pictures in all."""
        return (self.batch_size or 1) * (self.n_iter or 1)

    @property
    def model_name(self) -> str | None:
        """The model that it names."""
        return self.override_settings.sd_model_checkpoint if self.override_settings else None

    def to_values(self, max_steps: int) -> dict[str, Any]:
        """Says the same in fields of OpenAI's API, and of ours beside them."""
        has_size = self.width is not None and self.height is not None
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt or None,
            "seed": None if self.seed is None or self.seed < 0 else self.seed,
            "n": self.count,
            "steps": None if self.steps is None else min(self.steps, max_steps),
            "guidance_scale": self.guidance_scale,
            "size": f"{self.width}x{self.height}" if has_size else None,
            "response_format": "b64_json",
        }


class TextToImageBody(PaintBody):
    """`POST /sdapi/v1/txt2img`; null is the same as left out."""

    prompt: schemas.Prompt
    """What to paint."""


class ImageToImageBody(PaintBody):
    """`POST /sdapi/v1/img2img`; null is the same as left out."""

    init_images: Annotated[list[_File], Field(min_length=1, max_length=1)]
    """The picture, as base64 or as a `data:` URL."""
    mask: _File | None = None
    """What to repaint: where it is white, or opaque if some of it is transparent."""
    inpainting_mask_invert: bool | int | None = None
    """Repaint the rest instead."""
    denoising_strength: Annotated[float | None, Field(gt=0, le=1)] = None
    """Fraction of the picture that is repainted where there is no mask; 0.75 unless given."""

    def to_values(self, max_steps: int) -> dict[str, Any]:
        """Says the same in fields of OpenAI's API, and of ours beside them."""
        values = super().to_values(max_steps)
        values["prompt"] = self.prompt if (self.prompt or "").strip() else None
        if self.mask is None:
            given = self.denoising_strength
            values["strength"] = _STRENGTH if given is None else given
        return values

    def read_files(self) -> dict[str, list[bytes]]:
        """Reads the picture and the mask, as parts of a form have them.

        Raises:
            ApiError: 400, one is not base64.
        """
        files = {"image": [decode_base64(self.init_images[0], "init_images[0]")]}
        if self.mask is not None:
            files["mask"] = [decode_base64(self.mask, "mask")]
        return files

    def read_mask(self, colors: Image.Image, alpha: Image.Image | None) -> Marking:
        """Reads a mask as there, where transparency means the opposite of what it is to OpenAI.

        Raises:
            ApiError: 400, it marks nothing.
        """
        read = read_channels(colors, alpha)
        is_turned = (read.read_by == "transparency") != bool(self.inpainting_mask_invert)
        marked = ~read.marked if is_turned else read.marked
        if not marked.any():
            raise ApiError(
                400,
                "The mask marks nothing: what is white is repainted or, if some of it is "
                "transparent, what is opaque; with `inpainting_mask_invert` the rest. Draw what "
                "should be repainted.",
                param="mask",
                code="invalid_mask",
            )
        return Marking(marked, read.read_by, read.between, read.brightest)


@functools.lru_cache(maxsize=16)
def create_paint_body(kind: type[P], limits: ServeSettings) -> type[P]:
    """Returns a request's class as one server takes it: so that its document has all limits."""
    longest, most = (
        [Field(max_length=limits.max_prompt_characters)],
        [Field(le=limits.max_pictures)],
    )
    narrowed: dict[str, list[Any]] = {
        "prompt": longest,
        "negative_prompt": longest,
        "batch_size": most,
        "n_iter": most,
        "guidance_scale": GenerationSettings.model_fields["guidance_scale"].metadata,
    }
    fields: dict[str, Any] = {}
    for name, limit in narrowed.items():
        field = kind.model_fields[name]
        annotation: Any = Annotated[field.annotation, *field.metadata, *limit]
        fields[name] = annotation, Field(field.default, description=field.description)
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **fields)


def describe_paint_body(kind: type[PaintBody], limits: ServeSettings) -> dict[str, Any]:
    """Describes a body from `create_paint_body`, its two counts together too."""
    schema = schemas.describe_kind(kind)
    schema["properties"]["override_settings"]["anyOf"][0] = schema.pop("$defs")["OptionsBody"]
    most = limits.max_pictures
    # Every pair whose product is at most that, in as few rectangles as they fit in.
    schema["anyOf"] = [
        {"properties": {"batch_size": {"maximum": size}, "n_iter": {"maximum": most // size}}}
        for size in sorted({most // number for number in range(1, most + 1)})
    ]
    return schema


def translate(
    kind: type[schemas.B], asked: PaintBody, model: str | None, limits: ServeSettings
) -> schemas.B:
    """Says the same as a request of OpenAI's API.

    Args:
        kind: of that request.
        asked: what was asked.
        model: paints unless the request names one.
        limits: of the server.

    Raises:
        ApiError: 400, describes the first fault.
    """
    if asked.count > limits.max_pictures:
        raise ApiError(
            400,
            f"`batch_size` times `n_iter` is wrong: `{asked.count}`. At most "
            f"{limits.max_pictures} pictures are painted for a request.",
            param="batch_size",
            code="invalid_value",
        )
    try:
        return kind.model_validate(
            {"model": asked.model_name or model, **asked.to_values(limits.max_steps)}
        )
    except ValidationError as error:
        raise explain_validation(error, kind.model_fields) from None


def list_ignored(asked: PaintBody, body: schemas.ImageBody) -> list[str]:
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
