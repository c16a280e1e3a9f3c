"""The studio page: files of the package, served as they are.

The page may load only these files and talk only to this server; its headers tell the browser so.
"""

import hashlib
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from tessella.runs import report
from tessella.serving.schemas import StudioBody

STUDIO_FOLDER = Path(__file__).parent / "studio"

_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self'; style-src 'self'; "
    "script-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors "
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The browser asks each time and gets a 304: a new version shows at once.
    "Cache-Control": "no-cache",
}


def create_studio_router(page: StudioBody, allow_frames: Sequence[str] = ()) -> APIRouter:
    """Serves the page at `/`, its files below `/studio/`, and what it has to know.

    The files are listed once: no part of a request's path ever reaches the file system.

    Args:
        page: what it has to know.
        allow_frames: origins of pages that may show it in a frame.
    """
    router = APIRouter(tags=["studio"])
    policy = _POLICY + (" ".join(allow_frames) or "'none'")
    headers = {"Content-Security-Policy": policy, **_HEADERS}

    @router.get("/v1/studio", summary="Tell what the page can show")
    async def describe() -> StudioBody:
        return page

    for path, file in _list_files():
        router.add_api_route(
            path, _serve(file, headers), methods=["GET", "HEAD"], include_in_schema=False
        )
    return router


def _list_files() -> Iterator[tuple[str, Path]]:
    yield "/", STUDIO_FOLDER / "index.html"
    for name in report.STYLES:
        yield f"/studio/{name}", Path(report.__file__).parent / name
    for file in sorted(STUDIO_FOLDER.rglob("*")):
        if file.is_file() and not file.name.startswith(".") and file.name != "index.html":
            yield f"/studio/{file.relative_to(STUDIO_FOLDER).as_posix()}", file


# FastAPI reads the inner function's type.
def _serve(file: Path, common: Mapping[str, str]):  # type: ignore[no-untyped-def]
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    kind = _TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "text/plain"
    headers = {**common, "ETag": tag}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match")
        return answer_unless_known(content, kind, headers, known)

    return answer


def answer_unless_known(
    content: bytes, media_type: str, headers: Mapping[str, str], known: str | None
) -> Response:
    """Sends something, or 304 if the client has it already.

    Args:
        content: what to send.
        media_type: of the content.
        headers: with an ETag.
        known: the client's header If-None-Match.
    """
    # A substring test: a proxy that compresses the file turns the tag into W/"…".
    if headers["ETag"] in (known or ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
