"""What requests may say and answers hold: OpenAI's fields, and tessella's own beside them.

A request is read strictly, from JSON or from the fields of a form: what the document does not
allow is refused with the field's name, so that a misspelt setting is never ignored.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from tessella.serving.api_errors import explain_validation
from tessella.serving.settings import MAX_SIDE_PX, ServeSettings

B = TypeVar("B", bound="RequestBody")

MAX_API_SEED = 2**48 - 1
"""Seeds stay whole numbers in every language's JSON, also with the candidates' added."""
MAX_PARTIALS = 16

# A side of 16 to MAX_SIDE_PX = 2048 pixels.
_SIDE = "(1[6-9]|[2-9][0-9]|[1-9][0-9]{2}|1[0-9]{3}|20[0-3][0-9]|204[0-8])"
# The control characters that Python takes for blanks and other languages do not.
_NOT_BLANK = r"[^\s\x1c-\x1f]"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def _to_whole(value: object) -> object:
    """Takes 4.0 for the integer that it is to JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_to_whole)


class RequestBody(BaseModel):
    """Base of all requests: strict, nothing unknown; null is as if it were left out."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class PaintingBody(RequestBody):
    """What every request for pictures may say."""

    model: Annotated[str | None, Field(max_length=200)] = None
    """One of `GET /v1/models`; the first unless given."""
    n: Annotated[int | None, Field(ge=1), Whole] = None
    """Pictures; 1 unless given."""
    size: Annotated[str | None, Field(pattern=rf"^(auto|{_SIDE}x{_SIDE})$")] = None
    """`auto`, the size that the model paints, or WIDTHxHEIGHT in pixels. A picture of another shape
    is painted on the smallest canvas of that shape (at most four times as long as wide), and then
    resized; one that is edited or varied is cropped and resized."""
    response_format: Literal["b64_json", "url"] | None = None
    """`b64_json` unless given; a `url` can be fetched for an hour, from this server alone."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    """`png` unless given."""
    output_compression: Annotated[int | None, Field(ge=0, le=100), Whole] = None
    """Quality of `jpeg` and `webp`; 100 unless given."""
    stream: bool | None = None
    """Answers with server-sent events."""
    partial_images: Annotated[int | None, Field(ge=0, le=MAX_PARTIALS), Whole] = None
    """Pictures that are sent while each one is laid; streaming only."""
    seed: Annotated[int | None, Field(ge=0, le=MAX_API_SEED), Whole] = None
    """Picture i has the seed `seed + i · best_of`; the same request gives the same pictures. Drawn,
    and told, unless given."""
    steps: Annotated[int | None, Field(ge=1), Whole] = None
    """Rounds in which the places of a picture are filled; the model's own unless given."""
    guidance_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    """How far the prompt is followed beyond what was learned; 1 is off."""
    temperature: Annotated[float | None, Field(ge=0, le=100)] = None
    """Below 1 the likely codes get likelier; 0 takes the likeliest."""
    top_k: Annotated[int | None, Field(ge=1, le=1_000_000), Whole] = None
    """Choose among so many of the likeliest codes."""
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    """Choose among the likeliest codes that together have this probability."""
    best_of: Annotated[int | None, Field(ge=1), Whole] = None
    """Candidates a picture, of which the one that the model finds most like the prompt is sent."""
    negative_prompt: str | None = None
    """What guidance moves away from; without guidance it has no effect."""
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    """Taken for compatibility; of no effect."""
    background: Literal["auto", "opaque"] | None = None
    """Taken for compatibility: pictures are opaque."""
    user: Annotated[str | None, Field(max_length=1000)] = None
    """Taken for compatibility; neither kept nor logged."""
    safety_identifier: Annotated[str | None, Field(max_length=1000)] = None
    """Taken for compatibility; neither kept nor logged."""


class GenerationBody(PaintingBody):
    """`POST /v1/images/generations`."""

    prompt: Annotated[str, Field(min_length=1, pattern=_NOT_BLANK)]
    """What to paint, in words like those of the model's captions."""
    style: Literal["vivid", "natural"] | None = None
    """Taken for compatibility; of no effect."""
    moderation: Literal["auto", "low"] | None = None
    """Taken for compatibility; of no effect."""


class ChangingBody(PaintingBody):
    """What requests that change a picture may say beside the picture."""

    strength: Annotated[float | None, Field(gt=0, le=1)] = None
    """Share of the picture that a variation paints anew; 0.5 unless given."""
    input_fidelity: Literal["high", "low"] | None = None
    """Taken for compatibility; of no effect: what is not painted anew stays pixel for pixel."""


class EditBody(ChangingBody):
    """The fields of `POST /v1/images/edits`."""

    prompt: Annotated[str, Field(min_length=1, pattern=_NOT_BLANK)]
    """What the whole picture shows."""


class VariationBody(ChangingBody):
    """The fields of `POST /v1/images/variations`."""

    prompt: str | None = None
    """What the variations show; nothing in particular unless given."""


class ReconstructionBody(RequestBody):
    """The fields of `POST /v1/images/reconstructions`."""

    model: Annotated[str | None, Field(max_length=200)] = None
    """One of `GET /v1/models`; the first unless given."""


def with_limits(kind: type[B], settings: ServeSettings) -> type[B]:
    """Returns a request's class with a server's own limits, so that the document tells them."""
    most = {
        "n": settings.max_pictures,
        "count": settings.max_pictures,
        "steps": settings.max_steps,
        "best_of": settings.max_best_of,
    }
    longest = dict.fromkeys(("prompt", "negative_prompt"), settings.max_prompt_characters)
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name in most or name in longest:
            bound = Field(le=most[name]) if name in most else Field(max_length=longest[name])
            fields[name] = (
                Annotated[field.annotation, bound, *field.metadata],
                Field(field.default, description=field.description),
            )
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **fields)


def read_json(kind: type[B], content: bytes) -> B:
    """Reads a request from JSON.

    Raises:
        ApiError: 400, says what is wrong.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise explain_validation(error, kind.model_fields) from None


def read_fields(kind: type[B], fields: Mapping[str, str]) -> B:
    """Reads a request from the fields of a form, in which a number is its JSON text.

    Raises:
        ApiError: 400, says what is wrong.
    """
    try:
        return kind.model_validate(
            {name: _from_text(kind, name, text) for name, text in fields.items()}
        )
    except ValidationError as error:
        raise explain_validation(error, kind.model_fields) from None


def _from_text(kind: type[RequestBody], name: str, text: str) -> object:
    """Reads a field's text as the number or boolean that it has to be; else leaves it."""
    field = kind.model_fields.get(name)
    if field is None or "str" in str(field.annotation) or "Literal" in str(field.annotation):
        return text
    if text in ("true", "false") or (len(text) <= 40 and _NUMBER.fullmatch(text)):
        return json.loads(text)
    return text


# --- answers --------------------------------------------------------------------------------


Grid = Annotated[list[int], Field(min_length=2, max_length=2)]
"""Rows and columns of codes."""


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail


class TokenDetails(BaseModel):
    """Tokens read, by kind."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens read and codes laid."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class PaintedPicture(BaseModel):
    """One picture: its contents or its address, and what it was painted from."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    revised_prompt: str | None = None


class PicturesBody(BaseModel):
    """Pictures."""

    created: int
    background: str
    output_format: str
    size: str
    data: list[PaintedPicture]
    usage: Usage
    unknown_words: list[str] | None = None


class ReconstructedBody(BaseModel):
    """A picture as the model reads it, its codes, and what they decode to."""

    model: str
    original: str
    reconstruction: str
    codes: list[list[int]]
    grid: Grid
    codebook_size: int


class ModelGeneration(BaseModel):
    """A model's own settings."""

    steps: int
    temperature: float
    top_k: int | None
    top_p: float
    guidance_scale: float


class ModelAbilities(BaseModel):
    """What a model's objective can do."""

    guidance: bool
    best_of: bool
    partial_images: bool
    edit: bool


class ModelLimits(BaseModel):
    """The most that a request may ask for."""

    n: int
    steps: int
    best_of: int
    prompt_characters: int
    side_px: int = MAX_SIDE_PX


class ModelBody(BaseModel):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    image_size: int
    grid: Grid
    codebook_size: int
    objective: str
    max_prompt_tokens: int
    generation: ModelGeneration
    can: ModelAbilities
    limits: ModelLimits
    examples: list[str]


class ModelsBody(BaseModel):
    """All models that can be asked for."""

    object: Literal["list"]
    data: list[ModelBody]


class CardBody(BaseModel):
    """A model's card."""

    id: str
    markdown: str
    metrics: dict[str, Any]
    samples: str


class CodebookBody(BaseModel):
    """The codebook as a sheet of tiles."""

    codebook_size: int
    columns: int
    tile_px: int
    b64_png: str


class StudioBody(BaseModel):
    """What the page has to show."""

    models: list[str]
    run: bool
    posts: Literal["off", "offline", "llm"]
    key_required: bool
    post_platforms: list[str]
    post_tones: list[str]
    max_seed: int
