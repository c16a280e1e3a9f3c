"""`POST /v1/posts`: social-media posts with pictures, as `tessella post` writes them.

A language model is asked in a thread of its own, a few requests at once; pictures go the way of all
others, through the worker's queue.
"""

import base64
import logging
from dataclasses import dataclass
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from tessella.posts.errors import LanguageModelError
from tessella.posts.folder import NO_CHOICE, NO_LANGUAGE_MODEL
from tessella.posts.image_language import ImageLanguage
from tessella.posts.language_model import LanguageModel
from tessella.posts.model_writer import ModelWriter
from tessella.posts.offline import OfflineWriter
from tessella.posts.platforms import PlatformName
from tessella.posts.post import Post
from tessella.posts.request import (
    MAX_ABOUT_CHARACTERS,
    MAX_NAME_CHARACTERS,
    MAX_TONE_CHARACTERS,
    PostRequest,
)
from tessella.posts.writer import PostWriter
from tessella.serving.api_errors import ApiError, JsonResponse
from tessella.serving.document import describe_json
from tessella.serving.images import check_type
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import MAX_API_SEED, RequestBody, Whole, read_json
from tessella.serving.service import PaintingService

_log = logging.getLogger(__name__)

_AT_ONCE = 4  # requests that are written at the same time
_MAX_WAITING = 16
_RETRY_SECONDS = 10
# What is left when a text is cleaned, in an expression that all of JSON Schema's readers know.
_NOT_BLANK = r"[^\s\x00-\x1f\x7f-\xa0\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"


class PostsBody(RequestBody):
    """`POST /v1/posts`."""

    business: Annotated[
        str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=_NOT_BLANK)
    ]
    """The name of the business."""
    about: Annotated[str, Field(min_length=1, max_length=MAX_ABOUT_CHARACTERS, pattern=_NOT_BLANK)]
    """What it does, in sentences."""
    count: Annotated[int | None, Field(ge=1, le=10), Whole] = None
    """Posts; 3 unless given."""
    platform: PlatformName | None = None
    """Where they are published, which limits their length; instagram unless given."""
    tone: Annotated[
        str | None, Field(min_length=1, max_length=MAX_TONE_CHARACTERS, pattern=_NOT_BLANK)
    ] = None
    """Any; without a language model warm, playful, professional and bold are known, and others are
    taken as warm. Warm unless given."""
    model: Annotated[str | None, Field(max_length=200)] = None
    """One of `GET /v1/models`; the first unless given."""
    seed: Annotated[int | None, Field(ge=0, le=MAX_API_SEED), Whole] = None
    """Post i has a picture of the seed `seed + i · best_of`; 0 unless given."""
    best_of: Annotated[int | None, Field(ge=1, le=16), Whole] = None
    """Candidates a picture; 4 unless given."""
    offline: bool | None = None
    """Asks no language model: templates write the posts."""


class PostPicture(BaseModel):
    """A post's picture."""

    b64_json: str
    seed: int


class PostAnswer(BaseModel):
    """One post."""

    text: str
    hashtags: list[str]
    alt_text: str
    label: str
    picture: PostPicture


class PostsAnswer(BaseModel):
    """Posts."""

    offline: bool
    model: str
    posts: list[PostAnswer]
    notes: list[str]


@dataclass(frozen=True)
class _Writers:
    """Who writes posts for the pictures of one model."""

    offline: PostWriter
    by_model: PostWriter | None  # None: there is no language model


def create_posts_router(
    language_model: LanguageModel | None, service: PaintingService
) -> APIRouter:
    """Serves posts.

    Args:
        language_model: that is asked; None: templates write all posts.
        service: finds models and paints.

    Raises:
        CheckpointError: a model's summary of its captions is damaged.
    """
    router = APIRouter(prefix="/v1", tags=["posts"])
    writers = {
        name: _create_writers(language_model, served) for name, served in service.models.items()
    }
    limiter = anyio.CapacityLimiter(_AT_ONCE)

    @router.post(
        "/posts",
        summary="Write social-media posts and paint their pictures",
        openapi_extra=describe_json(PostsBody),
        response_model=PostsAnswer,
    )
    async def write_posts(request: Request) -> Response:
        check_type(request, "application/json")
        body = read_json(PostsBody, await request.body())
        asked = PostRequest.ask(
            body.business,
            body.about,
            platform=body.platform or "instagram",
            tone=body.tone or "warm",
            seed=body.seed or 0,
        )
        served = service.find(body.model)
        own = writers[served.name]
        writer = own.offline if body.offline or own.by_model is None else own.by_model
        offline = writer is own.offline
        notes = [NO_LANGUAGE_MODEL] if offline else []
        best_of = body.best_of or 4
        if best_of > 1 and not served.model.objective.has_likelihood:
            best_of = 1
            notes.append(NO_CHOICE)
        request.state.painted = body.count or 3
        posts = await _write(writer, asked, body.count or 3)
        labels = [post.label for post in posts]
        pictures = await service.paint_png(served.name, labels, seed=asked.seed, best_of=best_of)
        for number, post in enumerate(posts, start=1):
            notes += [f"Post {number}: {repair}." for repair in post.repairs]
        described = [
            _describe(post, picture, asked.seed + number * best_of)
            for number, (post, picture) in enumerate(zip(posts, pictures, strict=True))
        ]
        return JsonResponse(
            {"offline": offline, "model": served.name, "posts": described, "notes": notes}
        )

    async def _write(writer: PostWriter, asked: PostRequest, count: int) -> list[Post]:
        """Writes posts in a thread.

        Raises:
            ApiError: 429, too many requests wait; 503, the language model fails.
        """
        if limiter.statistics().tasks_waiting >= _MAX_WAITING:
            raise ApiError(
                429,
                f"Too many posts are being written. Try again in {_RETRY_SECONDS} s.",
                code="queue_full",
                retry_after=_RETRY_SECONDS,
            )

        def run() -> list[Post]:
            return [post for some in writer.write(asked, count) for post in some]

        try:
            with anyio.fail_after(service.settings.request_timeout_seconds):
                return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
        except (LanguageModelError, TimeoutError) as error:
            _log.warning("The language model fails: %s", str(error) or "it takes too long")
            raise ApiError(
                503,
                "The language model gives no usable answer now. Try again later, or with "
                "`offline`: templates write the posts then.",
                code="language_model_failed",
                retry_after=_RETRY_SECONDS,
            ) from None

    return router


def _create_writers(language_model: LanguageModel | None, served: ServedModel) -> _Writers:
    language = ImageLanguage(served.model.text_tokenizer, served.captions)
    by_model = None if language_model is None else ModelWriter(language_model, language)
    return _Writers(OfflineWriter(language), by_model)


def _describe(post: Post, picture: bytes, seed: int) -> dict[str, object]:
    """Says a post as `PostAnswer` has it."""
    return {
        "text": post.text,
        "hashtags": post.hashtags,
        "alt_text": post.alt_text,
        "label": post.label,
        "picture": {"b64_json": base64.b64encode(picture).decode("ascii"), "seed": seed},
    }
