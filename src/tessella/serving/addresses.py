"""Addresses: below a proxy's path, by HEAD, and the one that a client means."""

import difflib
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

_BASES = frozenset({"v1", "api", "openai"})  # what clients put before an address, often twice
_FIELD = re.compile(r"\\\{\w+\\\}")  # as `re.escape` writes it
_MIN_SIMILARITY = 0.8  # of difflib, between 0 and 1


class OneAddress:
    """Gives each address one form, whichever way a request came.

    - A proxy that serves everything below a path may pass it on or remove it: it is removed here.
    - HEAD is GET without the body, which uvicorn leaves out.

    Args:
        app: answers.
        root_path: the path; "" for none.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] == "http":
            path, root = scope["path"], self.root_path
            if root and path == root:
                # The page's own addresses are relative: they need the slash.
                location = [(b"location", f"{root}/".encode("ascii")), (b"content-length", b"0")]
                start = {"type": "http.response.start", "status": 308, "headers": location}
                await send(start)
                await send({"type": "http.response.body"})
                return
            # A copy: uvicorn looks at its own to know whether it has to send a body.
            scope = {**scope, "asked_method": scope["method"]}
            if root and path.startswith(f"{root}/"):
                scope["path"] = path.removeprefix(root)
            if scope["method"] == "HEAD":
                scope["method"] = "GET"
        await self.app(scope, receive, send)


def find_address(path: str, known: Collection[str]) -> str | None:
    """Finds the address that a client means.

    Args:
        path: where there is nothing.
        known: addresses, with their fields in braces.

    Returns:
        The address; None if it is like none of them.
    """
    parts = [part for part in path[:200].split("/") if part]
    while parts and parts[0] in _BASES:
        parts = parts[1:]
    if parts[:1] == ["deployments"]:  # Azure's: the model is in the address
        parts = parts[2:]
    meant = "/".join(parts)
    for likely in (f"/v1/{meant}", f"/{meant}"):
        for address in known:
            if re.fullmatch(_FIELD.sub("[^/]+", re.escape(address)), likely):
                return likely
    whole = [address for address in known if "{" not in address]
    near = difflib.get_close_matches(f"/v1/{meant}", whole, 1, _MIN_SIMILARITY)
    return next(iter(near), None)
