"""`POST /v1/posts`: social-media posts with pictures, as `tessella post` writes them.

The texts are written in threads, a few requests at once: a language model may take minutes.
Pictures go the way of all others, through the worker's queue.
"""

import asyncio
import dataclasses
import functools
import logging
import queue
from collections.abc import Awaitable, Sequence
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from tessella.images import encode_picture
from tessella.model.request import ImageRequest, list_requests
from tessella.posts import request as post_request
from tessella.posts.deadline import Deadline
from tessella.posts.errors import LanguageModelError
from tessella.posts.folder import NO_CHOICE, NO_LANGUAGE_MODEL
from tessella.posts.image_language import ImageLanguage
from tessella.posts.language_model import LanguageModel
from tessella.posts.model_writer import ModelWriter
from tessella.posts.offline import OfflineWriter
from tessella.posts.platforms import PlatformName
from tessella.posts.post import Post
from tessella.posts.writer import PostWriter
from tessella.serving.access_log import hide_words
from tessella.serving.api_errors import ApiError
from tessella.serving.bodies import read_json
from tessella.serving.document import describe_body
from tessella.serving.image_answer import encode_base64, list_examples
from tessella.serving.image_job import ImageJob, PaintedPicture
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import Count, ExampleBody, RequestBody, Seed, create_body
from tessella.serving.service import PaintingService, wait_for
from tessella.serving.threads import DaemonThreads

_log = logging.getLogger(__name__)

_AT_ONCE = 4  # requests that are written at the same time
_MAX_WAITING = 16
_RETRY_SECONDS = 10
# What cleaning a text leaves, in an expression that all of JSON Schema's readers know.
_NOT_BLANK = r"[^\s\x00-\x1f\x7f-\xa0\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
_Text = functools.partial(Field, min_length=1, pattern=_NOT_BLANK)


class PostsBody(RequestBody):
    """`POST /v1/posts`."""

    business: Annotated[str, _Text(max_length=post_request.MAX_NAME_CHARACTERS)]
    """The name of the business."""
    about: Annotated[str, _Text(max_length=post_request.MAX_ABOUT_CHARACTERS)]
    """What the business does, in sentences."""
    count: Count = None
    """Posts; unless given 3, or as many as are allowed."""
    platform: PlatformName | None = None
    """Where the posts are published, which limits their length; instagram unless given."""
    tone: Annotated[str | None, _Text(max_length=post_request.MAX_TONE_CHARACTERS)] = None
    """Any; templates, unlike a language model, know warm, playful, professional and bold, and take
    others as warm. Warm unless given."""
    seed: Seed = None
    """Post i has a picture of the seed `seed + i · best_of`; 0 unless given, and for -1."""
    best_of: Count = None
    """Candidates a picture; unless given 4, or as many as are allowed."""
    offline: bool | None = None
    """Let templates write the posts instead of the language model."""

    def to_request(self) -> post_request.PostRequest:
        """Returns the request as writers take it."""
        return post_request.PostRequest.create(
            self.business,
            self.about,
            platform=self.platform or "instagram",
            tone=self.tone or "warm",
            seed=self.seed or 0,
        )


class PostPicture(BaseModel):
    """A post's picture."""

    b64_json: str
    seed: int
    examples: list[ExampleBody] | None = None


class PostAnswer(BaseModel):
    """One post."""

    text: str
    hashtags: Sequence[str]
    alt_text: str
    label: str
    picture: PostPicture


class PostsAnswer(BaseModel):
    """Posts."""

    offline: bool
    model: str
    posts: list[PostAnswer]
    notes: list[str]


def create_posts_router(
    language_model: LanguageModel | None, service: PaintingService
) -> APIRouter:
    """Serves posts.

    Args:
        language_model: writes them; None: templates do.
        service: paints, and has the models and limits.
    """
    router = APIRouter(prefix="/v1", tags=["posts"])
    settings = service.settings
    body_type = create_body(PostsBody, settings)
    # Templates never wait for the language model.
    writing, filling_in = (DaemonThreads("writing", _AT_ONCE, _MAX_WAITING) for _ in range(2))
    languages = _create_languages(service)

    @router.post(
        "/posts",
        summary="Write social-media posts and paint their pictures",
        openapi_extra=describe_body(body_type),
        response_model_exclude_none=True,
    )
    async def answer(request: Request) -> PostsAnswer:
        body = await read_json(request, body_type)
        service.log_prompt(request, f"{body.business}: {body.about}")
        business = body.to_request()
        served = service.find(body.model)
        request.state.painted = count = body.count or min(3, settings.max_pictures)
        best_of = body.best_of or min(4, settings.max_best_of)
        deadline = Deadline(request.state.deadline - asyncio.get_running_loop().time())
        writer: PostWriter = OfflineWriter(languages[served.name])
        threads, notes = filling_in, [NO_LANGUAGE_MODEL]
        if language_model is not None and not body.offline:
            writer = ModelWriter(language_model, languages[served.name], deadline)
            threads, notes = writing, []
        if best_of > 1 and not served.model.objective.has_likelihood:
            best_of = 1
            notes.append(NO_CHOICE)

        def write() -> list[Post]:
            return [post for batch in writer.write(business, count) for post in batch]

        try:
            posts = await _wait_for_posts(request, threads.run(write))
        finally:
            deadline.call_off()
        job = _create_job(served, posts, business.seed, best_of)
        pictures = await service.paint_all(request, job, lambda one: encode_picture(one.pixels))
        notes += [f"Post {i}: {one}." for i, post in enumerate(posts, 1) for one in post.repairs]
        return PostsAnswer(
            offline=writer.language_model is None,
            model=served.name,
            posts=[_describe(served, *pair) for pair in zip(posts, pictures, strict=True)],
            notes=notes,
        )

    return router


def _create_languages(service: PaintingService) -> dict[str, ImageLanguage]:
    """Creates what is known of the words of each model."""
    return {
        name: ImageLanguage(served.model.text_tokenizer, served.captions)
        for name, served in service.models.items()
    }


def _create_job(served: ServedModel, posts: Sequence[Post], seed: int, best_of: int) -> ImageJob:
    """Makes one picture a post, post i with the seed of picture i."""
    settings = served.model.config.generation
    prompts = [served.model.text_tokenizer.shorten(post.label) for post in posts]
    unlabelled = list_requests([""], count=len(posts), seed=seed, best_of=best_of)

    def list_labelled() -> list[ImageRequest]:
        """Looks the labels up, in the worker's thread."""
        return [
            dataclasses.replace(
                request, prompt=prompt, examples=served.examples.find(prompt, settings.neighbors)
            )
            for request, prompt in zip(unlabelled, prompts, strict=True)
        ]

    return ImageJob(served, len(unlabelled), list_labelled, settings, best_of)


async def _wait_for_posts(request: Request, writing: Awaitable[list[Post]]) -> list[Post]:
    """Waits for the texts.

    Raises:
        ApiError: 429, too many requests wait; 499, the client has gone; 503, the language model
            fails, or it took too long.
    """
    try:
        return await wait_for(request, writing)
    except queue.Full:
        message = f"Too many posts are being written. Try again in {_RETRY_SECONDS} s."
        raise ApiError(429, message, code="queue_full", retry_after=_RETRY_SECONDS) from None
    except LanguageModelError as error:
        _log.warning("The language model fails: %s", hide_words(str(error), ()))
        raise ApiError(
            503,
            "The language model gives no usable answer now. Try again later, or with "
            "`offline`: templates write the posts then.",
            code="language_model_failed",
            retry_after=_RETRY_SECONDS,
        ) from None


def _describe(served: ServedModel, post: Post, picture: PaintedPicture) -> PostAnswer:
    encoded = PostPicture(
        b64_json=encode_base64(picture.content),
        seed=picture.request.seed,
        examples=list_examples(picture.request) if served.examples.most else None,
    )
    # Its repairs are left out: they are among the notes.
    return PostAnswer(**vars(post), picture=encoded)
