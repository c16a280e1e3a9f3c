"""Everything the routes share: the models, the worker, threads for files, stored pictures.

The event loop only waits: the worker's thread paints, a few others read and write picture files.
It waits as long as the client stays and its request has time (`request.state.deadline`, set in
`middleware.py`).
"""

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TypeVar

from starlette.requests import Request

from tessella.serving.api_errors import GONE, ApiError, QueueFullError, RequestTimeoutError
from tessella.serving.image_job import ImageJob, JobEvent, PaintedPicture
from tessella.serving.models_served import NAME, ServedModel
from tessella.serving.picture_store import PictureStore
from tessella.serving.schemas import ImageBody
from tessella.serving.settings import ServeSettings
from tessella.serving.threads import DaemonThreads
from tessella.serving.worker import PaintingWorker

T = TypeVar("T")
B = TypeVar("B", bound=ImageBody)

_ANSWERED_AS_URLS = ("dall-e-2", "dall-e-3")  # by OpenAI, unless asked otherwise
_JOIN_SECONDS = 5.0
_MAX_DECODING = 4  # uploaded pictures at once
_MAX_ENCODING = 2  # painted ones; others use the cores too


class PaintingService:
    """Paints jobs for the routes, and refuses more than the server can hold.

    Args:
        models: by name; the first is the default.
        settings: limits.
        worker: paints; made here unless given.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        settings: ServeSettings,
        worker: PaintingWorker | None = None,
    ) -> None:
        self.models, self.settings = models, settings
        self.worker = worker or PaintingWorker(settings)
        self.metrics = self.worker.metrics
        self.pictures = PictureStore()
        self._decoding = DaemonThreads("decoding", _MAX_DECODING)
        self._encoding = DaemonThreads("encoding", _MAX_ENCODING)
        self._events: set[asyncio.Queue[JobEvent]] = set()  # of each job: painted, not yet encoded
        self._uploaded_bytes = 0

    @contextlib.asynccontextmanager
    async def live(self, app: object) -> AsyncIterator[None]:
        """Works as long as an application does."""
        self.worker.start()
        yield
        self.worker.close()
        # The server has waited for the answers already.
        self.worker.join(_JOIN_SECONDS)

    def find(self, name: str | None) -> ServedModel:
        """Finds a model by its name; the first one unless given.

        If any name will do (`any_model`), an unknown one finds the first too.

        Raises:
            ApiError: 404, the server has no such model, or none at all.
        """
        takes_any = self.settings.any_model
        if takes_any is None:
            takes_any = len(self.models) == 1
        first = next(iter(self.models), "")
        return self.find_exactly(first if takes_any and name not in self.models else name)

    def find_exactly(self, name: str | None) -> ServedModel:
        """Finds a model by its own name; the first one unless given.

        Raises:
            ApiError: as `find`.
        """
        key = name or next(iter(self.models), "")
        if key in self.models:
            return self.models[key]
        if not self.models:
            known, hint = "none yet", ""
        else:
            known = ", ".join(f"`{known}`" for known in self.models)
            shown = name if name and NAME.fullmatch(name) else "NAME"
            hint = (
                f" Ask for one of them, or serve one under this name: `tessella serve {shown}="
                "MODEL`; with `--any-model` the first answers to every name."
            )
        raise ApiError(
            404,
            f"There is no such model: `{name or 'any'}`. This server has: {known}.{hint}",
            param="model",
            code="model_not_found",
            shown=[name, f"tessella serve {name}=MODEL"] if name and NAME.fullmatch(name) else (),
        )

    def settle(self, body: B) -> B:
        """Decides how the pictures of a request are sent, where it leaves that open."""
        if body.response_format is not None:
            return body
        chosen = self.settings.response_format
        if chosen == "auto":
            chosen = "url" if body.model in _ANSWERED_AS_URLS else "b64_json"
        return body.model_copy(update={"response_format": chosen})

    @contextlib.contextmanager
    def hold_upload(self) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of an upload as they come, until it is read.

        Raises:
            ApiError: 429, all uploads together are too large.
        """
        size = 0

        def hold(count: int) -> None:
            nonlocal size
            size += count
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
            self._uploaded_bytes -= size

    async def decode(self, request: Request, read: Callable[[], T]) -> T:
        """Reads uploaded pictures in a thread.

        Raises:
            ApiError: as `wait_for`, or by `read`.
        """
        with self.metrics.seconds.labels("read").time():
            return await wait_for(request, self._decoding.run(read))

    async def call(self, request: Request, function: Callable[[], T]) -> T:
        """Runs anything that uses a network but paints nothing, in the worker's thread.

        Raises:
            ApiError: as `paint`.
        """
        return await wait_for(request, asyncio.wrap_future(self.worker.call(function)))

    async def paint(
        self, request: Request, job: ImageJob, encode: Callable[[PaintedPicture], bytes]
    ) -> AsyncGenerator[PaintedPicture, None]:
        """Yields a job's pictures, each with its file, until the last.

        If the client hangs up, the job leaves the queue and no more files are written.

        Args:
            request: of the client.
            job: the pictures.
            encode: writes a picture's file; called in a thread.

        Raises:
            ApiError: as `wait_for`; 429, too many pictures wait; 503, the server is shutting down.
            TessellaError: the job cannot be met.
        """
        request.state.painted, request.state.model = job.count, job.served.name
        # Large pictures are written more slowly than they are painted.
        num_painted = sum(events.qsize() for events in self._events)
        num_encoding = self._encoding.num_waiting + self._encoding.num_running
        if num_painted + num_encoding >= self.settings.max_queue:
            raise QueueFullError(1)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[JobEvent] = asyncio.Queue()

        def emit(event: JobEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        queued = self.worker.submit(job, emit)
        self._events.add(events)
        try:
            num_open = job.count
            while num_open:
                event = await wait_for(request, events.get())
                if isinstance(event, Exception):
                    raise event
                with self.metrics.seconds.labels("encode").time():
                    content = await wait_for(
                        request, self._encoding.run(functools.partial(encode, event))
                    )
                num_open -= event.partial_index is None
                yield dataclasses.replace(event, content=content)
        finally:
            self._events.discard(events)
            queued.cancel()

    async def paint_all(
        self, request: Request, job: ImageJob, encode: Callable[[PaintedPicture], bytes]
    ) -> list[PaintedPicture]:
        """Paints a job to its end and returns its finished pictures in order.

        Raises:
            ApiError: as `paint`.
        """
        async with contextlib.aclosing(self.paint(request, job, encode)) as painted:
            pictures = [one async for one in painted if one.partial_index is None]
        return sorted(pictures, key=lambda one: one.index)

    def store(self, request: Request, content: bytes, output_format: str) -> str:
        """Stores a picture and returns its URL."""
        own = str(request.base_url).rstrip("/") + self.settings.root_path
        base = self.settings.public_url or own
        return f"{base.rstrip('/')}/v1/pictures/{self.pictures.add(content, output_format)}"

    def log_prompt(self, request: Request, prompt: str) -> None:
        """Puts a prompt into the access log, if the settings say so."""
        if self.settings.log_prompts:
            request.state.prompt = prompt


async def wait_for(request: Request, result: Awaitable[T]) -> T:
    """Waits as long as the client stays and its request has time; then cancels the wait.

    Raises:
        ApiError: 499, the client has hung up; 503, it took too long.
    """
    waiting = asyncio.ensure_future(result)
    leaving = asyncio.ensure_future(_wait_until_gone(request))
    try:
        seconds = request.state.deadline - asyncio.get_running_loop().time()
        if seconds > 0:
            both: set[asyncio.Future[object]] = {waiting, leaving}  # type: ignore[arg-type]
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if leaving.done():
            raise ApiError(GONE, "The client has gone.", code="client_gone")
        raise RequestTimeoutError
    finally:
        waiting.cancel()
        leaving.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
