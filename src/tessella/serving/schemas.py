"""Fields of requests and answers: OpenAI's, and tessella's own beside them.

A request is read strictly: whatever the document does not allow is refused with the field's name,
so that a misspelt setting is never ignored. The sampling fields are those of `GenerationSettings`.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from tessella.generation import MAX_NEIGHBORS, GenerationSettings
from tessella.model.mask import MaskReading
from tessella.precision import Precision
from tessella.serving.settings import MAX_SIDE_PX, ServeSettings

B = TypeVar("B", bound="RequestBody")

MAX_API_SEED = 2**48 - 1
"""Seeds stay whole numbers in every language's JSON, also with the candidates' added."""
MAX_PARTIALS = 16
MAX_TOP_K = 1_000_000
MAX_INDICES = 1000

# A side of 16 to MAX_SIDE_PX = 2048 pixels.
_SIDE = "(1[6-9]|[2-9][0-9]|[1-9][0-9]{2}|1[0-9]{3}|20[0-3][0-9]|204[0-8])"
_TIMES = r"([1-3](\.[0-9]{1,2})?|4)"  # a canvas's side of 1 to 4 of the model's own pictures
# The control characters that Python takes for blanks and other languages do not.
_NOT_BLANK = r"[^\s\x1c-\x1f]"

Seed = Annotated[int | None, Field(ge=-1, le=MAX_API_SEED)]  # -1 is read as None
Count = Annotated[int | None, Field(ge=1)]
Prompt = Annotated[str, Field(min_length=1, pattern=_NOT_BLANK)]
_Quality = Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"]
_Index = Annotated[int, Field(ge=0)]
_Ignored = Annotated[str | None, Field(max_length=1000)]


class StrictBody(BaseModel):
    """Base of all bodies: what they hold is what JSON says that it is."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole_number(cls, value: object) -> object:
        """Reads 4.0 as the integer that it is to JSON."""
        return int(value) if isinstance(value, float) and value.is_integer() else value


class RequestBody(StrictBody):
    """Base of OpenAI's requests: without unknown fields; null is the same as left out."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str | None, Field(max_length=200)] = None
    """One of `GET /v1/models`; the first unless given."""

    @field_validator("seed", mode="before", check_fields=False)
    @classmethod
    def _read_no_seed(cls, value: object) -> object:
        """Reads -1, which other programs send for a seed to be drawn."""
        return None if value == -1 else value


class ImageBody(RequestBody):
    """Fields of every request for pictures; `create_body` adds those of `GenerationSettings`."""

    n: Count = None
    """Pictures; 1 unless given."""
    size: Annotated[str | None, Field(pattern=rf"^(auto|{_SIDE}x{_SIDE})$")] = None
    """`auto`, the size that the model paints, or WIDTHxHEIGHT in pixels. The picture is painted at
    the model's own size and resized; for another shape it is padded where its edges are mostly of
    one colour, and cropped elsewhere. `warnings` says which."""
    response_format: Literal["b64_json", "url"] | None = None
    """A `url` can be fetched for an hour, from this server alone. Unless given it is `url` for
    requests that name the model dall-e-2 or dall-e-3, as at OpenAI, and `b64_json` for all others;
    or what the server was started with (`--response-format`)."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    """`png` unless given."""
    output_compression: Annotated[int | None, Field(ge=0, le=100)] = None
    """Quality of `jpeg` and `webp`; 100 unless given."""
    stream: bool | None = None
    """Answer with server-sent events."""
    partial_images: Annotated[int | None, Field(ge=0, le=MAX_PARTIALS)] = None
    """Partial pictures to send while each one is painted; streaming only."""
    seed: Seed = None
    """Picture i has the seed `seed + i · best_of`; the same request gives the same pictures. Drawn
    at random unless given, or if it is -1; the answer has it."""
    best_of: Count = None
    """Candidates a picture; the one that the model finds closest to the prompt is sent."""
    negative_prompt: str | None = None
    """What guidance moves away from; without guidance it has no effect."""
    pinned: Annotated[list[_Index] | None, Field(max_length=MAX_NEIGHBORS)] = None
    """Examples of the model that are looked at before what the prompt finds, by `index`: the answer
    has those of what was looked at."""
    excluded: Annotated[list[_Index] | None, Field(max_length=MAX_INDICES)] = None
    """Examples that are not looked at, by `index`."""
    quality: _Quality | None = None
    """Accepted for compatibility; has no effect."""
    complexity: Literal["low", "medium", "high"] | None = None
    """Accepted for compatibility; has no effect."""
    background: Literal["auto", "opaque"] | None = None
    """Accepted for compatibility: pictures are opaque."""
    user: _Ignored = None
    """Accepted for compatibility; neither kept nor logged."""
    safety_identifier: _Ignored = None
    """Accepted for compatibility; neither kept nor logged."""

    def sampling(self) -> dict[str, Any]:
        """Returns the settings that it changes."""
        return self.model_dump(include=set(GenerationSettings.model_fields), exclude_none=True)

    def canvas_shape(self) -> str | None:
        """Returns what is painted on; None: the model's own picture."""
        return None

    def pixel_size(self) -> tuple[int, int] | None:
        """Returns (width, height) of the size; None: the model's own."""
        if self.size in (None, "auto"):
            return None
        width, _, height = str(self.size).partition("x")
        return int(width), int(height)


class GenerationBody(ImageBody):
    """`POST /v1/images/generations`."""

    prompt: Prompt
    """What to paint, in words like those of the model's captions."""
    canvas: Annotated[str | None, Field(pattern=rf"^(wide|{_TIMES}x{_TIMES})$")] = None
    """Paints a larger picture, window by window: `wide` has the shape of `size` (at most four times
    as long as wide), `2x1` is two of the model's own pictures wide. Each window reads the whole
    prompt: for scenery and textures rather than one object."""
    references: Annotated[list[str] | None, Field(max_length=MAX_NEIGHBORS)] = None
    """Pictures of yours to look at, before any example: files (PNG, JPEG, WebP and the like) as
    base64, or as `data:` URLs; at most as many as the model learned to look at."""
    style: Literal["vivid", "natural"] | None = None
    """Accepted for compatibility; has no effect."""
    moderation: Literal["auto", "low"] | None = None
    """Accepted for compatibility; has no effect."""

    def canvas_shape(self) -> str | None:
        """Returns what is painted on; None: the model's own picture."""
        return self.canvas


class ChangeBody(ImageBody):
    """Fields of requests that change a picture, beside the picture."""

    strength: Annotated[float | None, Field(gt=0, le=1)] = None
    """Fraction of the picture that a variation repaints; 0.5 unless given."""
    input_fidelity: Literal["high", "low"] | None = None
    """Accepted for compatibility; has no effect: whatever is not repainted stays pixel for pixel.
    """


class EditBody(ChangeBody):
    """The fields of `POST /v1/images/edits`."""

    prompt: Prompt
    """What the whole picture shows."""


class VariationBody(ChangeBody):
    """The fields of `POST /v1/images/variations`."""

    prompt: str | None = None
    """What the variations show; unless given, only the picture guides them."""


class ReconstructionBody(RequestBody):
    """The fields of `POST /v1/images/reconstructions`."""


@functools.lru_cache(maxsize=64)
def create_body(
    kind: type[B], settings: ServeSettings, most_examples: int = MAX_NEIGHBORS
) -> type[B]:
    """Returns a request's class as one server takes it: so that its document has all limits.

    Args:
        kind: the request; if it is one for pictures, the fields of `GenerationSettings` are added.
        settings: with limits, which narrow the fields' own.
        most_examples: that any of the models looks at. Only told: a model that looks at fewer
            refuses in better words.
    """
    limits: dict[str, Any] = {
        "n": Field(le=settings.max_pictures),
        "count": Field(le=settings.max_pictures),
        "steps": Field(le=settings.max_steps),
        "top_k": Field(le=MAX_TOP_K),
        "best_of": Field(le=settings.max_best_of),
        "prompt": Field(max_length=settings.max_prompt_characters),
        "negative_prompt": Field(max_length=settings.max_prompt_characters),
    }
    told: dict[str, Any] = {
        "neighbors": {"maximum": most_examples},
        "pinned": {"maxItems": most_examples},
        "excluded": {"maxItems": MAX_INDICES if most_examples else 0},
        "references": {"maxItems": most_examples},
    }
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name in limits or name in told:
            annotation: Any = Annotated[field.annotation, *field.metadata, limits.get(name)]
            fields[name] = annotation, _redefine(field.default, field.description, told.get(name))
    if issubclass(kind, ImageBody):
        for name, field in GenerationSettings.model_fields.items():
            annotation = Annotated[field.annotation, *field.metadata, limits.get(name)]
            description = f"{field.description} The model's own unless given."
            fields[name] = annotation | None, _redefine(None, description, told.get(name))
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **fields)


def describe_kind(kind: type[BaseModel]) -> dict[str, Any]:
    """Returns a class's JSON schema, for whoever asks to change."""
    schema: dict[str, Any] = json.loads(_write_schema(kind))
    return schema


@functools.lru_cache(maxsize=64)
def _write_schema(kind: type[BaseModel]) -> str:
    return json.dumps(kind.model_json_schema())


def _redefine(default: Any, description: str | None, told: dict[str, Any] | None) -> Any:
    return Field(default, description=description, json_schema_extra=told)


# --- answers --------------------------------------------------------------------------------


Grid = Annotated[list[int], Field(min_length=2, max_length=2)]
"""Rows and columns of codes."""


class ErrorDetail(BaseModel):
    """The fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class TokenDetails(BaseModel):
    """Tokens read, by kind."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens read and codes sampled."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class ExampleBody(BaseModel):
    """What a picture was painted beside: an example of the model, or a reference of a request."""

    name: str
    caption: str
    index: int | None = None  # among the model's examples; None: it is a reference


class PictureBody(BaseModel):
    """One picture: its contents or its address, and what it was painted from."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    revised_prompt: str | None = None
    examples: list[ExampleBody] | None = None


class MaskBody(BaseModel):
    """How an edit's mask was read, and the fraction of the picture that is repainted."""

    read_by: MaskReading
    repainted: float


class PicturesBody(BaseModel):
    """Pictures."""

    created: int
    model: str
    background: str
    output_format: str
    size: str
    painted_size: str  # what the model painted, before it was resized
    warnings: list[str]  # what of the request had no effect
    mask: MaskBody | None = None
    data: list[PictureBody]
    usage: Usage
    unknown_words: list[str] | None = None


class ReconstructedBody(BaseModel):
    """A picture as the model reads it, its codes, and what they decode to."""

    model: str
    original: str
    reconstruction: str
    codes: list[list[list[int]]]
    grid: Grid
    codebook_size: int
    codes_per_position: int


class ModelAbilities(BaseModel, from_attributes=True):
    """Abilities of a model's objective."""

    # Read from the objective, each under the name that it has there.
    guidance: Annotated[bool, Field(validation_alias="is_guided")]
    best_of: Annotated[bool, Field(validation_alias="has_likelihood")]
    partial_images: Annotated[bool, Field(validation_alias="has_steps")]
    edit: Annotated[bool, Field(validation_alias="can_edit")]


class ModelLimits(BaseModel, from_attributes=True):
    """The most that a request may ask for."""

    # Read from `ServeSettings`, each under the name that it has there.
    n: Annotated[int, Field(validation_alias="max_pictures")]
    steps: Annotated[int, Field(validation_alias="max_steps")]
    best_of: Annotated[int, Field(validation_alias="max_best_of")]
    prompt_characters: Annotated[int, Field(validation_alias="max_prompt_characters")]
    side_px: int = MAX_SIDE_PX


class ModelMemory(BaseModel):
    """What a model looks things up in."""

    examples: int
    neighbors: int


class ModelBody(BaseModel):
    """A model that requests can name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    image_size: int
    grid: Grid
    codebook_size: int
    codes_per_position: int
    objective: str
    precision: Precision
    max_prompt_tokens: int
    generation: GenerationSettings
    can: ModelAbilities
    limits: ModelLimits
    memory: ModelMemory | None
    examples: Sequence[str]


class ModelsBody(BaseModel):
    """All models that requests can name."""

    object: Literal["list"]
    data: list[ModelBody]


class CardBody(BaseModel):
    """A model's card."""

    id: str
    markdown: str
    metrics: Mapping[str, Any]
    samples: str


class CodebookBody(BaseModel):
    """The codebooks as a sheet of tiles, one codebook after the other."""

    codebook_size: int
    codes_per_position: int
    columns: int
    tile_px: int
    b64_png: str


class StudioBody(BaseModel):
    """What the page shows."""

    models: list[str]
    run: bool
    posts: Literal["off", "offline", "llm"]
    key_required: bool
    post_platforms: list[str]
    post_tones: list[str]
    max_seed: int
