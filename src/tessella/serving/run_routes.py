"""`GET /v1/run`, and what the studio shows of a training run while it is written.

    folder of a run ─▶ RunRecord ─▶ RunWatch ─▶ JSON for programs, the body of the page, pictures

The run is read again only when one of its files has changed. It may be damaged, begun again or
removed meanwhile: each of these is a state with a sentence, never an error of the server. The
routes are plain functions, which run in threads: reading a run never holds up the event loop.
"""

import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response

from tessella.errors import ConfigError
from tessella.runs.facts import list_metrics
from tessella.runs.pictures import Picture, link_picture
from tessella.runs.record import Note, RunRecord, find_last_news, is_running, stamp_file
from tessella.runs.report import render_body
from tessella.runs.status import QUIET_SECONDS, RunStatus, State, describe_no_run, find_status
from tessella.serving.api_errors import ApiError
from tessella.serving.studio import answer_unless_known

_log = logging.getLogger(__name__)

PICTURES_URL = "/v1/pictures/run/"
"""Below it no key is needed, since `<img>` cannot send one: the addresses cannot be guessed. The
page has them relative to its own address, which may be below the path of a proxy."""

# A picture's address changes with the picture.
_PICTURE_CACHE = "private, max-age=86400"


@dataclass(frozen=True)
class StageBody:
    """How far a stage has come."""

    name: str  # tokenizer or transformer
    images: int  # how many it will train on
    images_seen: int
    images_per_second: float | None  # recently
    seconds_left: float | None  # at that speed, evaluations excluded; None: unknown or not training
    latest: Mapping[str, Mapping[str, tuple[int, float]]]  # metric → train, validation → at, value


@dataclass(frozen=True)
class RunBody:
    """The state of a training run."""

    version: str  # changes with anything that the page shows
    name: str
    state: State  # none: the folder holds no run, or a damaged one
    said: str  # the state in words
    is_running: bool | None  # whether a process is training in it; None: unknown
    last_news: float | None = None  # when it last wrote something, in seconds since 1970
    stages: Sequence[StageBody] = ()
    notes: Sequence[Note] = ()  # warnings that training logged, up to 100 per stage
    unreadable_lines: int = 0  # of the logs; they are left out
    metrics: Sequence[tuple[str, str, str]] | None = None  # name, value, protocol; None: no model


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, as it is sent."""

    version: str
    body: bytes  # JSON
    page: bytes  # HTML
    pictures: Mapping[str, Path]  # name below PICTURES_URL → file; nothing else is sent

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of its answers."""
        # The page asks every two seconds: what it has is confirmed, not sent again.
        return {"ETag": f'"{self.version}"', "Cache-Control": "private, no-cache"}


class RunWatch:
    """Watches a run, for many threads; while nothing changes a look costs a few file stamps."""

    def __init__(self, folder: Path) -> None:
        """Remembers where the run is; nothing is read yet.

        Args:
            folder: the `--out` of a `tessella fit`.
        """
        self._folder = folder
        self._reader = RunRecord(folder)
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None

    def look(self) -> Snapshot:
        """Returns the run as it is now."""
        with self._lock:
            # Taken before reading: the next look finds what changes meanwhile.
            stamp = self._reader.stamp()
            running, now = is_running(self._folder), time.time()
            age = now - find_last_news(self._folder)
            # The page says for how many minutes a run that may be alive has been silent.
            silence = int(age / 60) if running is not False and age > QUIET_SECONDS else 0
            version = hashlib.sha256(repr((stamp, running, silence)).encode()).hexdigest()[:16]
            if self._snapshot is None or self._snapshot.version != version:
                try:
                    record = self._reader.read()
                    status = find_status(record, running, now)
                    self._snapshot = self._show(version, status, record)
                except Exception as error:  # noqa: BLE001  edited by hand; the report says where
                    if not isinstance(error, ConfigError):
                        _log.exception("The run cannot be shown: `%s`", self._folder)
                    self._reader = RunRecord(self._folder)
                    status = describe_no_run(self._folder, running)
                    self._snapshot = self._show(version, status)
            return self._snapshot

    def _show(self, version: str, status: RunStatus, record: RunRecord | None = None) -> Snapshot:
        """Shows the run, or in words why it cannot be read."""
        pictures: dict[str, Path] = {}

        def link(path: Path) -> Picture:
            stamped = f"{path} {stamp_file(path)}".encode(errors="surrogateescape")
            picture = hmac.new(self._secret, stamped, "sha256").hexdigest()[:40] + ".png"
            linked = link_picture(path, PICTURES_URL[1:] + picture)
            pictures[picture] = path
            return linked

        name, fields = self._folder.resolve().name, _describe(record, status) if record else {}
        body = RunBody(version, name, status.state, status.text, status.is_running, **fields)
        page = render_body(self._folder, status, record, link)
        content = json.dumps(body, default=vars, allow_nan=False, separators=(",", ":"))
        # In ASCII: a caption may hold half of a surrogate pair, which UTF-8 cannot.
        return Snapshot(version, content.encode("ascii"), page.encode("utf-8", "replace"), pictures)


def _describe(record: RunRecord, status: RunStatus) -> dict[str, Any]:
    """Returns the fields of a RunBody that only a readable run has."""
    return {
        "last_news": record.last_news,
        "stages": [
            StageBody(
                name=stage.name,
                images=stage.images,
                images_seen=stage.images_seen,
                images_per_second=stage.images_per_second,
                seconds_left=status.compute_seconds_left(stage),
                latest={
                    metric: {kind: points[-1] for kind, points in series.items()}
                    for metric, series in stage.curves.items()
                },
            )
            for stage in record.stages
        ],
        "notes": [note for stage in record.stages for note in stage.notes[-100:]],
        "unreadable_lines": record.unreadable_lines,
        "metrics": None if record.metrics is None else list(list_metrics(record.metrics)),
    }


def create_run_router(run: Path) -> APIRouter:
    """Creates the routes that show a run.

    Args:
        run: the `--out` of a `tessella fit`: finished, training, or not even started.
    """
    router = APIRouter(tags=["run"])
    watch = RunWatch(run)
    KnownTags = Annotated[str | None, Header(alias="If-None-Match")]  # a type

    @router.get(
        "/v1/run",
        summary="Tell how far the training run is",
        response_class=Response,
        responses={
            200: {"model": RunBody, "headers": {"ETag": {"schema": {"type": "string"}}}},
            304: {"description": "Nothing has changed since the version in If-None-Match."},
        },
    )
    def show_run(if_none_match: KnownTags = None) -> Response:
        """State, progress, latest values, warnings and final metrics of the run that is shown."""
        look = watch.look()
        return answer_unless_known(look.body, "application/json", look.headers, if_none_match)

    @router.get("/v1/run/page", include_in_schema=False)
    def show_page(if_none_match: KnownTags = None) -> Response:
        """The body of the page about the run."""
        look = watch.look()
        return answer_unless_known(look.page, "text/html", look.headers, if_none_match)

    @router.get(PICTURES_URL + "{name:path}", include_in_schema=False)
    def show_picture(name: str) -> Response:
        """A picture by an address on the page."""
        try:
            content = watch.look().pictures[name].read_bytes()
        except (KeyError, OSError):  # removed meanwhile, as when a run is begun again
            raise ApiError(404, "The run has no such picture.", code="not_found") from None
        headers = {"Cache-Control": _PICTURE_CACHE}
        return Response(content, media_type="image/png", headers=headers)

    return router
