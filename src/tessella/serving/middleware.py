"""Who may send requests, how large and how long: hosts, origins, API keys, bodies, time.

Plain ASGI, around the whole application, so that a refused request is not looked into.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessella.errors import ConfigError
from tessella.serving.api_errors import ApiError, RequestTimeoutError, note_error
from tessella.serving.settings import ServeSettings

API_KEYS_VARIABLE = "TESSELLA_API_KEYS"
"""Environment variable: keys, separated by commas."""

_GRACE_SECONDS = 5.0
_DRAIN_SECONDS = 5.0
_MIN_KEY_LENGTH = 16
_KEY = re.compile(r"[\x21-\x7e]+")
# What a refusal quotes of headers, and nothing else.
_HOST = re.compile(r"[A-Za-z0-9._-]{1,100}(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9._:\[\]-]{1,100}")
_CODING = re.compile(r"[a-z0-9, -]{1,40}")
_OWN_HOSTS = ("localhost", "127.0.0.1", "::1")
# Without a key: the page and its files, what the page has to know, and addresses that are secrets.
_OPEN = ("/healthz", "/readyz", "/v1/studio")
_OPEN_BELOW = ("/v1/pictures/",)
# Their routes limit the rest of the body.
_PICTURES_IN_JSON = ("/v1/images/generations", "/v1/images/edits", "/sdapi/v1/img2img")


class ApiKeys:
    """The keys that open the API; only their hashes are kept.

    Args:
        keys: any number; none leaves the API open.
    """

    def __init__(self, keys: Collection[str] = ()) -> None:
        self._hashes = [_hash(key) for key in keys]

    def __bool__(self) -> bool:
        """Returns whether a key is required."""
        return bool(self._hashes)

    def accept(self, authorization: str, *, takes_basic: bool = False) -> bool:
        """Returns whether a header has one of them; how long it takes reveals nothing.

        Args:
            authorization: `Bearer KEY`.
            takes_basic: whether it may be `Basic` instead, with the key as any user's password.
        """
        scheme, _, key = authorization.partition(" ")
        if is_basic := takes_basic and scheme.lower() == "basic":
            key = _read_password(key)
        key_hash = _hash(key.strip())
        # Each one is compared, whichever matches.
        matches = [hmac.compare_digest(key_hash, known) for known in self._hashes]
        return any(matches) and (is_basic or scheme.lower() == "bearer")


def read_api_keys(variable: str | None, file: Path | None) -> list[str]:
    """Reads API keys: those of the environment variable, and those of a file, one a line.

    Lines of the file that begin with `#` and blank ones are skipped.

    Raises:
        ConfigError: the file cannot be read or holds none, or a key is too short or has
            characters that a header cannot carry.
    """
    keys = [key.strip() for key in (variable or "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "It is not UTF-8"
            raise ConfigError(f"Cannot read the API keys: `{file}`. {reason}.") from None
        file_keys = [line for line in lines if line and not line.startswith("#")]
        if not file_keys:
            raise ConfigError(f"The file holds no API key: `{file}`. Write one a line.")
        keys += file_keys
    for number, key in enumerate(keys, start=1):
        if len(key) < _MIN_KEY_LENGTH or not _KEY.fullmatch(key):
            # Without the key itself: this goes to a terminal or a log.
            raise ConfigError(
                f"API key {number} must have at least {_MIN_KEY_LENGTH} characters, all of them "
                f"visible ASCII without blanks: it has {len(key)}. Make one: "
                "`openssl rand -hex 32`."
            )
    return keys


def check_exposure(settings: ServeSettings, keys: ApiKeys, *, insecure: bool) -> None:
    """Refuses to listen without a key where others can reach the server.

    Raises:
        ConfigError: the address is not this machine's own and there is no key.
    """
    if settings.host not in _OWN_HOSTS and not keys and not insecure:
        raise ConfigError(
            f"Anyone who can reach this address could paint: `{settings.host}`. Set API keys "
            f"({API_KEYS_VARIABLE} or --api-keys FILE), or pass --insecure."
        )


class Guard:
    """Refuses requests before anything looks into them, and ends those that take too long.

    - Without keys the server trusts everybody who reaches it, so a web page must not: the header
      Host has to name this machine (or an allowed host) or be a numeric address, which a page that
      points its own name at 127.0.0.1 cannot send; and a page of another origin, even of another
      port of this machine, is refused unless it is named.
    - With keys, all of `/v1/`, `/sdapi/`, `/metrics` and `/openapi.json` need one.

    Args:
        app: the application.
        settings: limits.
        keys: open the API.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, keys: ApiKeys) -> None:
        self.app, self.settings, self.keys = app, settings, keys
        self.hosts = {host.lower() for host in (*_OWN_HOSTS, *settings.allowed_hosts)}
        if settings.host not in ("0.0.0.0", "::"):
            self.hosts.add(settings.host.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_json = headers.get("content-type", "").lower().startswith("application/json")
        is_text = is_json and scope["path"] not in _PICTURES_IN_JSON
        limit = self.settings.max_json_bytes if is_text else self.settings.max_body_bytes
        body = _LimitedBody(receive, self.settings, limit)
        is_begun = False

        async def watch(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        deadline = asyncio.get_running_loop().time() + self.settings.request_timeout_seconds
        scope.setdefault("state", {})["deadline"] = deadline
        try:
            self._check(scope, headers, limit)
            # Whoever waits for a picture ends by itself, with a message; the rest has longer.
            async with asyncio.timeout_at(deadline + _GRACE_SECONDS):
                await self.app(scope, body.receive, watch)
        except TimeoutError:
            note_error(scope, late := RequestTimeoutError())
            if not is_begun:
                await late.to_response()(scope, receive, send)
        except _RefusedError as refused:
            note_error(scope, refused.error)
            # A slow body is not waited for.
            if refused.error.status != 408:
                await body.drain()
            await refused.error.to_response({"Connection": "close"})(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers, limit: int) -> None:
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        # A preflight request has no key.
        if self.keys and scope["method"] != "OPTIONS" and needs_key(scope["path"]):
            authorization = headers.get("authorization", "")
            # Only where bodies are JSON: browsers send a password along to any other page's form.
            takes_basic = scope["path"].startswith("/sdapi/")
            if not self.keys.accept(authorization, takes_basic=takes_basic):
                fault = "This API key is unknown" if authorization else "An API key is missing"
                message = f"{fault}. Send the header `Authorization: Bearer KEY`."
                raise _RefusedError(401, message, "invalid_api_key")
        coding = headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            name = _quote(_CODING, coding)
            raise _RefusedError(
                415,
                f"The body is compressed{f': `{name}`' if name else ''}. Send it as it is, without "
                "the header Content-Encoding.",
                "compressed_body",
                name,
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > limit:
            raise _refuse_large(limit)

    def _check_host(self, header: str) -> None:
        is_any_host = bool(self.keys) and not self.settings.allowed_hosts
        if not is_any_host and not self._knows_host(header):
            name = _quote(_HOST, header).partition(":")[0]
            raise _RefusedError(
                403,
                f"This server does not answer to this host name{f': `{name}`' if name else ''}. "
                f"If it is yours, start the server with --allowed-host {name or 'NAME'}.",
                "unknown_host",
                name,
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if (
            origin is not None
            and origin not in self.settings.allow_origins
            and not origin.endswith(f"://{headers.get('host', '')}")
            and not self.keys
        ):
            page = _quote(_ORIGIN, origin)
            raise _RefusedError(
                403,
                f"Web pages of other origins may not use this server{f': `{page}`' if page else ''}"
                f". If the page is yours, start the server with --allow-origin "
                f"{page or 'https://NAME'}.",
                "foreign_origin",
                page,
            )

    def _knows_host(self, header: str) -> bool:
        """Returns whether the header Host names this machine or is a numeric address."""
        try:
            host = urlsplit(f"//{header}").hostname or ""
            if host not in self.hosts:
                ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


class _RefusedError(Exception):
    """A request is refused; holds the `ApiError`, which the application itself would answer."""

    def __init__(self, status: int, message: str, code: str, shown: str = "") -> None:
        self.error = ApiError(status, message, code=code, shown=(shown,))


class _LimitedBody:
    """Limits a body's bytes and seconds while it is read."""

    def __init__(self, receive: Receive, settings: ServeSettings, limit: int) -> None:
        self._receive, self._settings, self._limit = receive, settings, limit
        self._size = 0
        self._is_whole = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """Returns the next part of the body, or the message after it.

        Raises:
            _RefusedError: it is too large or too slow.
        """
        if self._is_whole:
            return await self._receive()
        loop = asyncio.get_running_loop()
        seconds = self._settings.body_timeout_seconds
        self._deadline = self._deadline or loop.time() + seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            reason = f"The body took longer than {seconds:g} s."
            raise _RefusedError(408, reason, "body_timeout") from None
        self._size += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._size > self._limit:
            raise _refuse_large(self._limit)
        return message

    async def drain(self) -> None:
        """Reads what is still coming, of any type and up to the largest body.

        A proxy whose connection is closed while it sends takes that for a failure of the server,
        and never reads the answer.
        """
        self._limit = self._size + self._settings.max_body_bytes
        with contextlib.suppress(TimeoutError, _RefusedError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._is_whole:
                    await self.receive()


def _refuse_large(limit: int) -> _RefusedError:
    return _RefusedError(
        413,
        f"The body is too large: at most {limit:,} bytes are read. Send a smaller picture, or "
        "shorter texts.",
        "body_too_large",
    )


def needs_key(path: str) -> bool:
    """Returns whether a path is closed to requests without a key, if there are keys."""
    if path in _OPEN or path.startswith(_OPEN_BELOW):
        return False
    return path.startswith(("/v1", "/sdapi", "/metrics", "/openapi.json"))


def _read_password(basic: str) -> str:
    """Reads the password of the header's `Basic`; "" if it is damaged."""
    try:
        return base64.b64decode(basic.strip(), validate=True).decode("utf-8").partition(":")[2]
    except ValueError:
        return ""


def _quote(pattern: re.Pattern[str], word: str) -> str:
    """Returns a client's word if it looks as it should; "" if not."""
    return word if pattern.fullmatch(word) else ""


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="replace")).digest()
