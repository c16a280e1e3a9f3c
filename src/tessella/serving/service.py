"""From a checked request to its answer: prompts, seeds and canvases in, encoded pictures out.

Everything here runs in the event loop and waits: painting is done by the worker's thread, reading
and writing picture files by a few others. What waits, waits as long as the client is there and its
request has time (`request.state.deadline`, which `guard.py` sets).
"""

import asyncio
import base64
import contextlib
import functools
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tessella.images import encode_picture
from tessella.model.canvas import Canvas
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.serving.api_errors import (
    GONE,
    ApiError,
    JsonResponse,
    closing_error,
    queue_full_error,
    timeout_error,
    to_api_error,
)
from tessella.serving.image_job import Wanted, find_canvas_size
from tessella.serving.kept_pictures import KeptPictures
from tessella.serving.metrics import ServerMetrics
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import PaintingBody
from tessella.serving.settings import ServeSettings
from tessella.serving.worker import (
    ClosingError,
    Event,
    FailedJob,
    FinishedPicture,
    ImageJob,
    PaintingWorker,
    PartialPicture,
    QueueFullError,
)

T = TypeVar("T")
CanvasPlan = Callable[[TextToImage, Sequence[int]], Sequence[Canvas]]
"""Makes one canvas a seed, in the worker's thread."""

_DECODED_AT_ONCE = 4  # uploaded pictures
_MAX_UNKNOWN = 20  # words that are told
_ENCODED_AT_ONCE = 2  # painted ones; others use the cores too

Painted = PartialPicture | FinishedPicture


class PaintingService:
    """The models, the worker and what is kept: all that the routes share.

    Args:
        models: by name; the first is the default.
        settings: limits.
        worker: that paints; made here unless given.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        settings: ServeSettings,
        worker: PaintingWorker | None = None,
    ) -> None:
        self.models, self.settings = models, settings
        self.worker = worker or create_worker(settings)
        self.metrics = self.worker.metrics
        self.kept = KeptPictures()
        # A call that nobody waits for any more keeps its thread until it ends.
        self._decoding = ThreadPoolExecutor(_DECODED_AT_ONCE, "decoding")
        self._encoding = ThreadPoolExecutor(_ENCODED_AT_ONCE, "encoding")
        self._num_encoding = 0
        self._told: set[asyncio.Queue[Event]] = set()  # of each job: painted, not yet encoded
        self._uploaded_bytes = 0

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

    @contextlib.contextmanager
    def hold_upload(self) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of an upload as they come, until it is read.

        Raises:
            ApiError: 429, all uploads together are too large.
        """
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            held += count
            self._uploaded_bytes += count
            if self._uploaded_bytes > self.settings.max_uploads_bytes:
                raise ApiError(
                    429,
                    "Too much is being uploaded at once. Try again in 1 s.",
                    code="uploads_full",
                    retry_after=1,
                )

        try:
            yield hold
        finally:
            self._uploaded_bytes -= held

    async def decode(self, request: Request, read: Callable[[], T]) -> T:
        """Reads uploaded pictures in a thread.

        Raises:
            ApiError: 499, the client has hung up; 503, it took too long; what reading raises.
        """
        started = time.monotonic()
        found = await while_there(request, _in_thread(self._decoding, read))
        self.metrics.seconds.labels("read").observe(time.monotonic() - started)
        return found

    async def call(self, request: Request, function: Callable[..., T], *arguments: object) -> T:
        """Runs what uses a network but paints nothing, in the worker's thread.

        Raises:
            ApiError: as `paint`.
        """
        with _told_refusals():
            future = self.worker.call(functools.partial(function, *arguments))
            return await while_there(request, asyncio.wrap_future(future))

    def read(
        self,
        body: PaintingBody,
        prompt: str,
        plan: CanvasPlan | None = None,
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
        seeds = [seed + index * best_of for index in range(count)]
        negative_prompt = text.shorten(body.negative_prompt or "") if is_guided else ""

        def list_images(model: TextToImage) -> list[ImageRequest]:
            canvases = (
                [model.plan_picture(canvas_size)] * count if plan is None else plan(model, seeds)
            )
            return [
                ImageRequest(read, seed, negative_prompt, canvas)
                for seed, canvas in zip(seeds, canvases, strict=True)
            ]

        painting = ImageJob(
            served=served,
            count=count,
            plan=list_images,
            settings=settings,
            best_of=best_of,
            num_partials=(body.partial_images or 0) if body.stream else 0,
        )
        return Wanted(
            painting=painting,
            prompt=read,
            seeds=seeds,
            size=size,
            num_positions=canvas_size[0] * canvas_size[1] // factor**2,
            output_format=body.output_format or "png",
            quality=100 if body.output_compression is None else body.output_compression,
            revised_prompt=None if read == prompt else read,
            unknown_words=served.words.find_unknown(read)[:_MAX_UNKNOWN],
            event_type="image_edit" if is_changing else "image_generation",
            is_streamed=bool(body.stream),
            as_url=body.response_format == "url",
        )

    async def answer(self, request: Request, wanted: Wanted) -> Response:
        """Paints what is wanted and answers with all of it, or with a stream of events.

        Raises:
            ApiError: as `paint`.
        """
        request.state.painted = wanted.painting.count
        if wanted.is_streamed:
            events = self.paint(request, wanted.painting, wanted.write)
            # An error before the first event still has a status of its own.
            first = await anext(events)
            return StreamingResponse(
                self._stream(wanted, first, events),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        data = []
        contents = await self._paint_all(request, wanted.painting, wanted.write)
        for content, seed in zip(contents, wanted.seeds, strict=True):
            entry: dict[str, Any] = {"seed": seed}
            if wanted.as_url:
                entry["url"] = self._address(request, content, wanted.output_format)
            else:
                entry["b64_json"] = base64.b64encode(content).decode("ascii")
            if wanted.revised_prompt is not None:
                entry["revised_prompt"] = wanted.revised_prompt
            data.append(entry)
        answer = wanted.describe(wanted.size) | {"created": int(time.time()), "data": data}
        if wanted.unknown_words:
            answer["unknown_words"] = wanted.unknown_words
        return JsonResponse(answer | {"usage": wanted.count_usage(len(data))})

    async def paint_png(
        self,
        request: Request,
        model: str | None,
        prompts: Sequence[str],
        *,
        seed: int,
        best_of: int,
    ) -> list[bytes]:
        """Paints one picture a prompt, in one job; picture i has the seed `seed + i · best_of`.

        Raises:
            ApiError: as `paint`.
        """
        served = self.find(model)
        shorten = served.model.text_tokenizer.shorten
        requests = [
            ImageRequest(shorten(prompt), seed + index * best_of)
            for index, prompt in enumerate(prompts)
        ]
        painting = ImageJob(
            served=served,
            count=len(requests),
            plan=lambda model: requests,
            settings=served.model.generation_settings(),
            best_of=best_of,
        )
        return await self._paint_all(request, painting, lambda one: encode_picture(one.pixels))

    async def paint(
        self, request: Request, painting: ImageJob, write: Callable[[Painted], bytes]
    ) -> AsyncGenerator[tuple[Painted, bytes], None]:
        """Yields a job's pictures, each with its file, until the last.

        Who hangs up is dropped from the queue, and nothing more is written for them.

        Args:
            request: for whom.
            painting: the job.
            write: makes a picture's file; called in a thread.

        Raises:
            ApiError: 429, too many pictures wait; 503, it took too long or the server is about to
                end; the job's own error as the API says it.
        """
        self._check_written()
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        with _told_refusals():
            job = self.worker.submit(painting, tell)
        self._told.add(events)
        try:
            async with _leaving(request) as gone:
                num_open = painting.count
                while num_open:
                    event = await _wait(asyncio.ensure_future(events.get()), gone, request)
                    if isinstance(event, FailedJob):
                        with _told_refusals():
                            raise event.error
                    encoding = asyncio.ensure_future(self._encode(write, event))
                    content = await _wait(encoding, gone, request)
                    num_open -= isinstance(event, FinishedPicture)
                    yield event, content
        finally:
            self._told.discard(events)
            job.drop()

    async def _paint_all(
        self, request: Request, painting: ImageJob, write: Callable[[Painted], bytes]
    ) -> list[bytes]:
        """Paints a job to its end and returns its pictures' files in order."""
        files: dict[int, bytes] = {}
        async with contextlib.aclosing(self.paint(request, painting, write)) as events:
            async for event, content in events:
                if isinstance(event, FinishedPicture):
                    files[event.index] = content
        return [files[index] for index in range(painting.count)]

    async def _stream(
        self,
        wanted: Wanted,
        first: tuple[Painted, bytes],
        events: AsyncGenerator[tuple[Painted, bytes], None],
    ) -> AsyncIterator[bytes]:
        """Writes events as OpenAI does."""
        try:
            async with contextlib.aclosing(events):
                yield self._write_event(wanted, *first)
                async for event, content in events:
                    yield self._write_event(wanted, event, content)
        except Exception as error:  # noqa: BLE001  the status is sent: only an event can say it
            yield _to_sse("error", to_api_error(error).body)

    def _write_event(self, wanted: Wanted, event: Painted, content: bytes) -> bytes:
        is_partial = isinstance(event, PartialPicture)
        name = f"{wanted.event_type}.{'partial_image' if is_partial else 'completed'}"
        said: dict[str, Any] = wanted.describe(wanted.find_size(event)) | {
            "type": name,
            "b64_json": base64.b64encode(content).decode("ascii"),
            "created_at": int(time.time()),
            "quality": "auto",
            "index": event.index,
            "seed": wanted.seeds[event.index],
        }
        if isinstance(event, PartialPicture):
            said["partial_image_index"] = event.number
        else:
            said["usage"] = wanted.count_usage(1)
            if wanted.revised_prompt is not None:
                said["revised_prompt"] = wanted.revised_prompt
            if wanted.unknown_words:
                said["unknown_words"] = wanted.unknown_words
        return _to_sse(name, said)

    async def _encode(self, write: Callable[[Painted], bytes], painted: Painted) -> bytes:
        started = time.monotonic()
        self._num_encoding += 1
        try:
            content = await _in_thread(self._encoding, write, painted)
        finally:
            self._num_encoding -= 1
        self.metrics.seconds.labels("encode").observe(time.monotonic() - started)
        return content

    def _check_written(self) -> None:
        """Takes no more jobs while as many painted pictures wait to be written as may wait at all.

        Large pictures are written more slowly than they are painted.

        Raises:
            ApiError: 429.
        """
        waiting = self._num_encoding + sum(told.qsize() for told in self._told)
        if waiting >= self.settings.max_queue:
            raise queue_full_error(1)

    def _address(self, request: Request, content: bytes, output_format: str) -> str:
        base = self.settings.public_url or str(request.base_url)
        return f"{base.rstrip('/')}/v1/pictures/{self.kept.keep(content, output_format)}"


def create_worker(settings: ServeSettings) -> PaintingWorker:
    """Creates the worker of a service."""
    return PaintingWorker(settings.batch_size, settings.max_queue, ServerMetrics())


def _in_thread(
    pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: object
) -> "asyncio.Future[T]":
    """Calls a function in one of a pool's threads; if cancelled before it began, not at all."""
    return asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


async def while_there(request: Request, coming: "asyncio.Future[T]") -> T:
    """Waits for something as long as the client is there and its request has time.

    Raises:
        ApiError: 499, the client has hung up; 503, it took too long. What was waited for is
            cancelled.
    """
    async with _leaving(request) as gone:
        return await _wait(coming, gone, request)


async def wait_until_gone(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def _leaving(request: Request) -> AsyncIterator["asyncio.Future[None]"]:
    """Gives what is done when the client has hung up."""
    gone = asyncio.ensure_future(wait_until_gone(request))
    try:
        yield gone
    finally:
        gone.cancel()


async def _wait(coming: "asyncio.Future[T]", gone: "asyncio.Future[None]", request: Request) -> T:
    try:
        seconds = request.state.deadline - asyncio.get_running_loop().time()
        if seconds > 0:
            both: set[asyncio.Future[Any]] = {coming, gone}
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
            if gone.done():
                raise ApiError(GONE, "The client has gone.", code="client_gone")
        raise timeout_error()
    finally:
        coming.cancel()


@contextlib.contextmanager
def _told_refusals() -> Iterator[None]:
    """Says what the worker refuses as the API says it."""
    try:
        yield
    except QueueFullError as error:
        raise queue_full_error(error.retry_after) from None
    except ClosingError:
        raise closing_error() from None


def _to_sse(name: str, said: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(said, allow_nan=False)}\n\n".encode("ascii")
