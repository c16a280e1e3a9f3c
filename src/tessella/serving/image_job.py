"""One HTTP request's pictures as the worker takes them: what is sampled, and how it comes back."""

import functools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from tessella.generation import GenerationSettings
from tessella.images import Pixels
from tessella.model.canvas import Canvas
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest, list_requests
from tessella.retrieval import Example
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import ImageBody

CanvasPlan = Callable[[Sequence[int]], Sequence[Canvas]]
"""Makes one canvas a seed. Runs in the worker's thread: it may use the network."""

_MAX_ASPECT = 4.0


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
        plan: makes the canvases; empty ones of the shape of the size unless given.
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
    if plan is None and (size := body.pixel_size()):
        # In the worker's thread, which alone uses torch.
        canvas_size = find_canvas_size(model, size)
        plan = lambda seeds: [model.canvases.new(canvas_size)] * len(seeds)  # noqa: E731

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


def find_canvas_size(model: TextToImage, size: tuple[int, int]) -> tuple[int, int]:
    """Finds the smallest canvas (width, height) that has about a picture's shape.

    At most four times as long as the model's own size: of a longer picture the middle is used.
    """
    side, factor = model.config.image_size, model.config.tokenizer.downsampling
    aspect = min(_MAX_ASPECT, max(size) / min(size))
    longest = max(side, round(side * aspect / factor) * factor)
    return (longest, side) if size[0] >= size[1] else (side, longest)
