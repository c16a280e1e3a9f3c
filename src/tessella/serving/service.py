"""From a checked request to its answer: prompts, seeds and canvases in, encoded pictures out.

Everything here runs in the event loop and waits: painting is done by the worker's thread, reading
and writing picture files by a few others.
"""

import asyncio
import base64
import contextlib
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tessella.images import Pixels, encode_picture
from tessella.pipeline import TextToImage
from tessella.serving.api_errors import GONE, ApiError, JsonResponse, to_api_error
from tessella.serving.metrics import ServerMetrics
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import PaintingBody
from tessella.serving.settings import ServeSettings
from tessella.serving.worker import (
    ClosingError,
    Event,
    FailedJob,
    FinishedPicture,
    PaintingRequest,
    PaintingWorker,
    PartialPicture,
    Plan,
    QueueFullError,
)

T = TypeVar("T")

_MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_KEPT_BYTES = 64 * 2**20
_KEPT_SECONDS = 3600.0
_RETRY_SECONDS = 5
_DECODED_AT_ONCE = 4  # uploaded pictures


@dataclass(frozen=True)
class Wanted:
    """What a request asks for, with what it leaves open decided."""

    painting: PaintingRequest
    size: tuple[int, int]  # (width, height) in pixels of the pictures that are sent
    num_places: int  # of the canvas of one picture
    output_format: str
    quality: int
    revised_prompt: str | None  # what was read of a prompt that is too long
    event_type: str  # of a stream: image_generation or image_edit
    as_url: bool


class KeptPictures:
    """Pictures that can be fetched by an address that cannot be guessed, for an hour at most."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, bytes, str]] = OrderedDict()
        self._size = 0

    def keep(self, content: bytes, output_format: str) -> str:
        """Keeps a file and returns the name that it can be fetched by."""
        name = f"{secrets.token_urlsafe(24)}.{output_format}"
        self._kept[name] = (time.monotonic(), content, _MEDIA_TYPES[output_format])
        self._size += len(content)
        while self._size > _KEPT_BYTES and len(self._kept) > 1:
            self._drop()
        return name

    def find(self, name: str) -> tuple[bytes, str] | None:
        """Returns a file and its media type; None if there is none (any more)."""
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values()))[0] < now - _KEPT_SECONDS:
            self._drop()
        found = self._kept.get(name)
        return found[1:] if found else None

    def _drop(self) -> None:
        _, (_, content, _) = self._kept.popitem(last=False)
        self._size -= len(content)


class PaintingService:
    """The models, the worker and what is kept: all that the routes share."""

    def __init__(self, models: Mapping[str, ServedModel], settings: ServeSettings) -> None:
        self.models, self.settings = models, settings
        self.metrics = ServerMetrics()
        self.worker = PaintingWorker(settings.batch_size, settings.max_queue, self.metrics)
        self.kept = KeptPictures()
        # Networks are used in few threads: each would have PyTorch begin threads of its own.
        self.decoding = anyio.CapacityLimiter(_DECODED_AT_ONCE)
        self._network = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")

    def find(self, name: str | None) -> ServedModel:
        """Finds a model by its name; the first one by none.

        Raises:
            ApiError: 404, there is no such model, or none at all.
        """
        chosen = name or next(iter(self.models), "")
        if chosen not in self.models:
            known = ", ".join(f"`{known}`" for known in self.models) or "none yet"
            raise ApiError(
                404,
                f"There is no such model: `{name or 'any'}`. This server has: {known}.",
                param="model",
                code="model_not_found",
            )
        return self.models[chosen]

    async def run_network(self, call: Callable[..., T], *arguments: object) -> T:
        """Runs what uses a network but paints nothing, one call after the other."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._network, call, *arguments)

    def read(
        self,
        body: PaintingBody,
        prompt: str,
        plan: Plan | None = None,
        *,
        is_changing: bool = False,
    ) -> Wanted:
        """Decides what a request leaves open.

        Args:
            body: the request.
            prompt: its prompt, "" is none.
            plan: makes its canvases; empty ones of the shape of its size unless given.
            is_changing: whether a picture is changed.

        Raises:
            ApiError: there is no such model.
            ConfigError: a setting is out of the model's range.
        """
        served = self.find(body.model)
        model = served.model
        settings = model.generation_settings(
            steps=body.steps,
            guidance_scale=body.guidance_scale,
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
        )
        text = model.text_tokenizer
        read = text.shorten(prompt)
        count = body.n or 1
        # Without a prompt there is nothing to choose candidates by.
        best_of = (body.best_of or 1) if read.strip() else 1
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        own, factor = model.config.image_size, model.config.tokenizer.downsampling
        size, canvas_size = (own, own), (own, own)
        if body.size not in (None, "auto"):
            width, _, height = str(body.size).partition("x")
            size = int(width), int(height)
            if plan is None:
                canvas_size = find_canvas_size(model, size)
        is_guided = model.objective.is_guided and settings.guidance_scale != 1
        painting = PaintingRequest(
            served=served,
            prompt=read,
            negative_prompt=text.shorten(body.negative_prompt or "") if is_guided else "",
            seeds=[seed + index * best_of for index in range(count)],
            settings=settings,
            best_of=best_of,
            plan=plan or (lambda model: [model.plan_picture(canvas_size)] * count),
            num_partials=(body.partial_images or 0) if body.stream else 0,
        )
        return Wanted(
            painting=painting,
            size=size,
            num_places=canvas_size[0] * canvas_size[1] // factor**2,
            output_format=body.output_format or "png",
            quality=100 if body.output_compression is None else body.output_compression,
            revised_prompt=None if read == prompt else read,
            event_type="image_edit" if is_changing else "image_generation",
            as_url=body.response_format == "url" and not body.stream,
        )

    async def answer(self, request: Request, wanted: Wanted, *, stream: bool) -> Response:
        """Paints what is wanted and answers with all of it, or with a stream of events.

        Raises:
            ApiError: too many pictures wait, it took too long, or the server is about to end.
        """
        request.state.painted = len(wanted.painting.seeds)
        events = self.paint(request, wanted.painting)
        if stream:
            # An error before the first event still has a status of its own.
            first = await anext(events)
            return StreamingResponse(
                self._stream(wanted, first, events),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        painted: dict[int, Pixels] = {}
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, FinishedPicture):
                    painted[event.index] = event.pixels
        data = []
        for index, seed in enumerate(wanted.painting.seeds):
            content = await self._encode(painted[index], wanted)
            entry: dict[str, Any] = {"seed": seed}
            if wanted.as_url:
                entry["url"] = self._address(request, content, wanted.output_format)
            else:
                entry["b64_json"] = base64.b64encode(content).decode("ascii")
            if wanted.revised_prompt is not None:
                entry["revised_prompt"] = wanted.revised_prompt
            data.append(entry)
        answer = _describe(wanted) | {"created": int(time.time()), "data": data}
        return JsonResponse(answer | {"usage": _count_usage(wanted, len(data))})

    async def paint(
        self, request: Request | None, painting: PaintingRequest
    ) -> AsyncGenerator[PartialPicture | FinishedPicture, None]:
        """Yields a job's events until its last picture; who hangs up is dropped from the queue.

        Raises:
            ApiError: 429, too many pictures wait; 503, it took too long or the server is about to
                end; the job's own error as the API says it.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            job = self.worker.submit(painting, tell)
        except QueueFullError as error:
            raise ApiError(
                429,
                f"Too many pictures wait. Try again in {error.retry_after} s.",
                code="queue_full",
                retry_after=error.retry_after,
            ) from None
        except ClosingError:
            raise _closing() from None
        gone = asyncio.ensure_future(_wait_until_gone(request))
        deadline = loop.time() + self.settings.request_timeout_seconds
        try:
            num_open = len(painting.seeds)
            while num_open:
                event = await self._next_event(events, gone, deadline)
                if isinstance(event, FailedJob):
                    if isinstance(event.error, ClosingError):
                        raise _closing()
                    raise to_api_error(event.error)
                num_open -= isinstance(event, FinishedPicture)
                yield event
        finally:
            job.drop()
            gone.cancel()

    async def _next_event(
        self, events: "asyncio.Queue[Event]", gone: "asyncio.Future[None]", deadline: float
    ) -> Event:
        if not events.empty():
            return events.get_nowait()
        loop = asyncio.get_running_loop()
        coming = asyncio.ensure_future(events.get())
        try:
            await asyncio.wait(
                (coming, gone),
                timeout=max(0.0, deadline - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if coming.done():
                return coming.result()
            if gone.done():
                raise ApiError(GONE, "The client has gone.", code="client_gone")
            raise ApiError(
                503,
                f"It took longer than {self.settings.request_timeout_seconds:g} s. Ask for less, "
                "or try again later.",
                code="timeout",
                retry_after=_RETRY_SECONDS,
            )
        finally:
            coming.cancel()

    async def _stream(
        self,
        wanted: Wanted,
        first: PartialPicture | FinishedPicture,
        events: AsyncGenerator[PartialPicture | FinishedPicture, None],
    ) -> AsyncIterator[bytes]:
        """Writes events as OpenAI does."""
        try:
            async with contextlib.aclosing(events):
                yield await self._write_event(wanted, first)
                async for event in events:
                    yield await self._write_event(wanted, event)
        except Exception as error:  # noqa: BLE001  the status is sent: only an event can say it
            yield _to_sse("error", to_api_error(error).body)

    async def _write_event(self, wanted: Wanted, event: PartialPicture | FinishedPicture) -> bytes:
        content = await self._encode(event.pixels, wanted)
        is_partial = isinstance(event, PartialPicture)
        name = f"{wanted.event_type}.{'partial_image' if is_partial else 'completed'}"
        said: dict[str, Any] = _describe(wanted) | {
            "type": name,
            "b64_json": base64.b64encode(content).decode("ascii"),
            "created_at": int(time.time()),
            "quality": "auto",
            "index": event.index,
            "seed": wanted.painting.seeds[event.index],
        }
        if isinstance(event, PartialPicture):
            said["partial_image_index"] = event.number
        else:
            said["usage"] = _count_usage(wanted, 1)
            if wanted.revised_prompt is not None:
                said["revised_prompt"] = wanted.revised_prompt
        return _to_sse(name, said)

    async def _encode(self, pixels: Pixels, wanted: Wanted) -> bytes:
        started = time.monotonic()
        content = await run_in_threadpool(
            encode_picture, pixels, wanted.size, wanted.output_format, wanted.quality
        )
        self.metrics.seconds.labels("encode").observe(time.monotonic() - started)
        return content

    def _address(self, request: Request, content: bytes, output_format: str) -> str:
        base = self.settings.public_url or str(request.base_url)
        return f"{base.rstrip('/')}/v1/pictures/{self.kept.keep(content, output_format)}"

    async def paint_png(
        self, model: str | None, prompts: Sequence[str], *, seed: int, best_of: int
    ) -> list[bytes]:
        """Paints one picture a prompt, for the server's own use; picture i has seed + i · best_of.

        Raises:
            ApiError: as `paint`.
        """
        bodies = [
            self.read(PaintingBody(model=model, seed=seed + i * best_of, best_of=best_of), prompt)
            for i, prompt in enumerate(prompts)
        ]

        async def paint_one(wanted: Wanted) -> bytes:
            async with contextlib.aclosing(self.paint(None, wanted.painting)) as events:
                async for event in events:
                    if isinstance(event, FinishedPicture):
                        return await self._encode(event.pixels, wanted)
            raise ApiError(500, "A picture was lost.", code="internal_error")

        painting = [asyncio.ensure_future(paint_one(wanted)) for wanted in bodies]
        try:
            return await asyncio.gather(*painting)
        finally:
            # If one fails, nobody waits for the others.
            for picture in painting:
                picture.cancel()


def find_canvas_size(model: TextToImage, size: tuple[int, int]) -> tuple[int, int]:
    """Finds the smallest canvas (width, height) that a model can lay of about a picture's shape.

    At most four times as long as the model's own size; of a longer picture the middle is taken.
    """
    own, factor = model.config.image_size, model.config.tokenizer.downsampling
    longest = min(4.0, max(size) / min(size))
    side = max(own, round(own * longest / factor) * factor)
    return (side, own) if size[0] >= size[1] else (own, side)


def _describe(wanted: Wanted) -> dict[str, Any]:
    width, height = wanted.size
    return {
        "background": "opaque",
        "output_format": wanted.output_format,
        "size": f"{width}x{height}",
    }


def _count_usage(wanted: Wanted, count: int) -> dict[str, Any]:
    model = wanted.painting.served.model
    text = model.text_tokenizer.count_tokens(wanted.painting.prompt)
    laid = count * wanted.num_places
    return {
        "input_tokens": text,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": text},
        "output_tokens": laid,
        "total_tokens": text + laid,
    }


def _to_sse(name: str, said: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(said, allow_nan=False)}\n\n".encode("ascii")


def _closing() -> ApiError:
    return ApiError(
        503,
        "The server is about to end and takes nothing more. Try again later.",
        code="shutting_down",
        retry_after=_RETRY_SECONDS,
    )


async def _wait_until_gone(request: Request | None) -> None:
    """Returns when the client has hung up; never for the server's own requests."""
    if request is None:
        await asyncio.Event().wait()
        return
    while (await request.receive())["type"] != "http.disconnect":
        pass
