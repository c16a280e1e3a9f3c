"""`POST /v1/posts`: social-media posts with pictures, as `tessella post` writes them.

A language model is asked in a thread of its own, a few requests at once; pictures go the way of all
others, through the worker's queue.
"""

import asyncio
import base64
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from tessella.posts.deadline import Deadline
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
from tessella.serving.schemas import MAX_API_SEED, RequestBody, Whole, read_json, with_limits
from tessella.serving.service import PaintingService, while_there

T = TypeVar("T")

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
    count: Annotated[int | None, Field(ge=1), Whole] = None
    """Posts; unless given 3, or as many as are allowed."""
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
    best_of: Annotated[int | None, Field(ge=1), Whole] = None
    """Candidates a picture; unless given 4, or as many as are allowed."""
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


class _Threads:
    """Runs calls in threads, a few at once, for which the process does not wait when it ends.

    A call that nobody waits for any more keeps its place until it ends.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._num_waiting = 0

    async def run(self, call: Callable[[], T]) -> T:
        """Runs one call.

        Raises:
            ApiError: 429, too many wait.
        """
        if self._free.locked() and self._num_waiting >= _MAX_WAITING:
            raise ApiError(
                429,
                f"Too many posts are being written. Try again in {_RETRY_SECONDS} s.",
                code="queue_full",
                retry_after=_RETRY_SECONDS,
            )
        self._num_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._num_waiting -= 1
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(tell: Callable[[], None]) -> None:
            self._free.release()
            if not done.cancelled():
                tell()

        def run() -> None:
            try:
                tell = functools.partial(done.set_result, call())
            except Exception as error:  # noqa: BLE001  who waits is told
                tell = functools.partial(done.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish, tell)

        threading.Thread(target=run, name="writing", daemon=True).start()
        return await done


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
    settings = service.settings
    # Templates do not wait for a language model that others have asked.
    asking, filling_in = _Threads(), _Threads()
    wanted = with_limits(PostsBody, settings)
    languages = {
        name: ImageLanguage(served.model.text_tokenizer, served.captions)
        for name, served in service.models.items()
    }

    @router.post(
        "/posts",
        summary="Write social-media posts and paint their pictures",
        openapi_extra=describe_json(wanted),
        response_model=PostsAnswer,
    )
    async def answer(request: Request) -> Response:
        check_type(request, "application/json")
        body = read_json(wanted, await request.body())
        if settings.log_prompts:
            request.state.prompt = f"{body.business}: {body.about}"
        asked = PostRequest.create(
            body.business,
            body.about,
            platform=body.platform or "instagram",
            tone=body.tone or "warm",
            seed=body.seed or 0,
        )
        count = body.count or min(3, settings.max_pictures)
        best_of = body.best_of or min(4, settings.max_best_of)
        served = service.find(body.model)
        asks = None if body.offline else language_model
        notes = [] if asks else [NO_LANGUAGE_MODEL]
        if best_of > 1 and not served.model.objective.has_likelihood:
            best_of = 1
            notes.append(NO_CHOICE)
        request.state.painted = count
        threads = asking if asks else filling_in
        posts = await _write(request, threads, asks, languages[served.name], asked, count)
        labels = [post.label for post in posts]
        pictures = await service.paint_png(
            request, served.name, labels, seed=asked.seed, best_of=best_of
        )
        for number, post in enumerate(posts, start=1):
            notes += [f"Post {number}: {repair}." for repair in post.repairs]
        described = [
            _describe(post, picture, asked.seed + number * best_of)
            for number, (post, picture) in enumerate(zip(posts, pictures, strict=True))
        ]
        return JsonResponse(
            {"offline": asks is None, "model": served.name, "posts": described, "notes": notes}
        )

    return router


async def _write(
    request: Request,
    threads: _Threads,
    language_model: LanguageModel | None,
    language: ImageLanguage,
    asked: PostRequest,
    count: int,
) -> Sequence[Post]:
    """Writes posts in a thread, which asks nothing more once the client has gone.

    Raises:
        ApiError: 429, too many requests wait; 499, the client has gone; 503, the language model
            fails, or it took too long.
    """
    deadline = Deadline(request.state.deadline - asyncio.get_running_loop().time())
    writer: PostWriter = OfflineWriter(language)
    if language_model is not None:
        writer = ModelWriter(language_model, language, deadline)

    def write() -> Sequence[Post]:
        return [post for some in writer.write(asked, count) for post in some]

    try:
        return await while_there(request, asyncio.ensure_future(threads.run(write)))
    except LanguageModelError as error:
        _log.warning("The language model fails: %s", error)
        raise ApiError(
            503,
            "The language model gives no usable answer now. Try again later, or with "
            "`offline`: templates write the posts then.",
            code="language_model_failed",
            retry_after=_RETRY_SECONDS,
        ) from None
    finally:
        deadline.call_off()


def _describe(post: Post, picture: bytes, seed: int) -> dict[str, object]:
    """Says a post as `PostAnswer` has it."""
    return {
        "text": post.text,
        "hashtags": post.hashtags,
        "alt_text": post.alt_text,
        "label": post.label,
        "picture": {"b64_json": base64.b64encode(picture).decode("ascii"), "seed": seed},
    }
