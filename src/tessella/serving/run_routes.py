"""`GET /v1/run` and the run's pictures: what the studio shows of a training run, as it goes on.

No name from a request is ever opened as a file: a picture is sent if the run's record lists it
under this very name. The routes are plain functions, which run in threads: reading a run never
holds up the event loop.
"""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response

from tessella.serving.api_errors import ApiError
from tessella.serving.run_state import PICTURES_URL, RunState, RunWatch

# Pages look every two seconds: what they have is asked about, not sent again.
_CACHE = "private, no-cache"
# A picture's address changes with the picture.
_PICTURE_CACHE = "private, max-age=86400"


def create_run_router(run: Path) -> APIRouter:
    """Creates the routes that show a run.

    Args:
        run: `--out` of a `tessella fit`: finished, going on, or not even begun.
    """
    router = APIRouter(tags=["run"])
    watch = RunWatch(run)

    @router.get(
        "/v1/run",
        summary="Tell how far the training run is",
        response_class=Response,
        responses={
            200: {"model": RunState, "headers": {"ETag": {"schema": {"type": "string"}}}},
            304: {"description": "Nothing has changed since the version in If-None-Match."},
        },
    )
    def show_run(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        """State, curves, pictures, notes and metrics of the run that is shown."""
        snapshot = watch.look()
        etag = f'"{snapshot.version}"'
        headers = {"ETag": etag, "Cache-Control": _CACHE}
        if _is_among(etag, if_none_match or ""):
            return Response(status_code=304, headers=headers)
        return Response(snapshot.body, media_type="application/json", headers=headers)

    @router.get(
        PICTURES_URL + "{name:path}",
        summary="Fetch a picture that the training run has drawn",
        response_class=Response,
        responses={
            200: {
                "description": "The picture",
                "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    def show_picture(name: str) -> Response:
        """A picture by an address that `GET /v1/run` lists."""
        path = watch.look().pictures.get(name)
        try:
            content = None if path is None else path.read_bytes()
        except OSError:
            content = None  # it went away, as when a run is begun again
        if content is None:
            raise ApiError(
                404, "The run has no such picture. GET /v1/run lists them.", code="not_found"
            )
        headers = {"Cache-Control": _PICTURE_CACHE}
        return Response(content, media_type="image/png", headers=headers)

    return router


def _is_among(etag: str, wanted: str) -> bool:
    """Tells whether an If-None-Match header names a version."""
    # A proxy that compresses marks the tag as weak.
    return etag in [tag.strip().removeprefix("W/") for tag in wanted.split(",")]
