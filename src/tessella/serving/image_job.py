"""One HTTP request's pictures as the worker takes them: what is sampled, and how it comes back."""

import functools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from tessella.generation import GenerationSettings
from tessella.images import Pixels
from tessella.model.canvas import Canvas
from tessella.model.request import ImageRequest, list_requests
from tessella.model.size import PictureSize
from tessella.retrieval import Example
from tessella.serving.api_errors import ApiError
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import ImageBody
from tessella.serving.settings import MAX_SIDE_PX

CanvasPlan = Callable[[Sequence[int]], Sequence[Canvas]]
"""Makes one canvas a seed. Runs in the worker's thread: it may use the network."""


@dataclass(frozen=True, eq=False)
class ImageJob:
    """The pictures that one HTTP request asks for."""

    served: ServedModel
    count: int  # pictures
    list_requests: Callable[[], Sequence[ImageRequest]]  # as `CanvasPlan`
    settings: GenerationSettings
    best_of: int = 1
    num_partials: int = 0  # a picture


@dataclass(frozen=True, eq=False)
class PaintedPicture:
    """A picture, or a partial one, as the worker paints it."""

    index: int  # of the job's pictures
    request: ImageRequest
    pixels: Pixels  # (H, W, 3)
    partial_index: int | None = None  # of this picture's partial ones; None: it is finished
    content: bytes = b""  # its file, once it is written


JobEvent = PaintedPicture | Exception
"""What a job reports: its pictures, or the error after which no more come."""


def create_job(
    served: ServedModel,
    body: ImageBody,
    prompt: str,
    plan: CanvasPlan | None,
    references: Sequence[Image.Image] = (),
) -> ImageJob:
    """Decides what a request leaves open.

    Args:
        served: the model that paints.
        body: the request.
        prompt: as the model reads it; "" is no prompt.
        plan: makes the canvases; empty ones of the model's own size unless given.
        references: pictures to look at.

    Raises:
        ConfigError: a setting is out of the model's range.
    """
    model = served.model
    settings = model.generation_settings(**body.sampling())
    is_guided = model.objective.is_guided and settings.guidance_scale != 1
    negative_prompt = (body.negative_prompt or "") if is_guided else ""
    # Without a prompt candidates cannot be ranked.
    best_of = (body.best_of or 1) if prompt.strip() else 1

    def look_up(prompt: str) -> tuple[Example, ...]:
        """Finds what is looked at; in the worker's thread, as `CanvasPlan`."""
        return served.examples.find(
            prompt,
            settings.neighbors,
            references=model.encode_references(references),
            pinned=body.pinned or (),
            excluded=body.excluded or (),
        )

    return ImageJob(
        served=served,
        count=body.n or 1,
        list_requests=functools.partial(
            list_requests,
            [prompt],
            count=body.n or 1,
            seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
            best_of=best_of,
            negative_prompt=model.text_tokenizer.shorten(negative_prompt),
            plan=plan,
            look_up=look_up,
        ),
        settings=settings,
        best_of=best_of,
        num_partials=(body.partial_images or 0) if body.stream else 0,
    )


def plan_size(served: ServedModel, body: ImageBody) -> PictureSize:
    """Plans how large a request's pictures are painted.

    Raises:
        ApiError: 400, the canvas is larger than pictures that are sent.
        GenerationError: the canvas is larger than any.
    """
    size = served.model.canvases.plan_size(body.pixel_size(), body.canvas_shape())
    if max(size.asked) > MAX_SIDE_PX:
        width, height = size.asked
        raise ApiError(
            400,
            f"A picture has at most {MAX_SIDE_PX} pixels a side: `{width}x{height}`, the size of "
            "the canvas. Give a size, or a smaller canvas.",
            param="canvas",
        )
    return size


def plan_canvas(served: ServedModel, size: PictureSize) -> CanvasPlan | None:
    """Plans empty canvases; None: those of the model's own size."""
    side = served.model.config.image_size
    if size.painted == (side, side):
        return None
    # Made in the worker's thread, which alone uses torch.
    return lambda seeds: [served.model.canvases.new(size.painted)] * len(seeds)
