"""A client for servers that speak OpenAI's chat completions, with a limit on every answer.

Time-outs, broken connections and busy or failing servers (408, 409, 429, 5xx) are tried again
after a growing pause, or after the pause that `Retry-After` asks for. A redirect is never
followed: it would send the business's description to another server.
"""

import asyncio
import json
import random
import re
from typing import Any

import httpx

from tessella.errors import ConfigError
from tessella.posts.deadline import Deadline
from tessella.posts.errors import LanguageModelError, RefusedFormatError, quote

OPENAI_URL = "https://api.openai.com/v1"
_MAX_ANSWER_BYTES = 1_000_000
_MAX_RETRIES = 3
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 120.0  # the longest `Retry-After` that is obeyed


class _AttemptError(Exception):
    """An attempt failed; the message says why and what to do."""

    def __init__(self, message: str, can_retry: bool = True, retry_after: str = "") -> None:
        super().__init__(message)
        self.can_retry = can_retry
        self.retry_after = retry_after  # the header


class ChatClient:
    """Sends chats to one server and returns its raw answers.

    Args:
        base_url: of the API; `/chat/completions` is added.
        api_key: sent as a bearer token.
        timeout_seconds: of each attempt, from connecting to the last byte of the answer.

    Raises:
        ConfigError: the address cannot be one.
    """

    def __init__(self, base_url: str, api_key: str, timeout_seconds: float) -> None:
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host or (url.port or 0) >= 2**16:
            raise ConfigError(
                f"Not the address of a language model's server: `{base_url}`. Expected one like "
                "--llm-base-url http://localhost:11434/v1"
            )
        self._url = url.copy_with(path=url.path.rstrip("/") + "/chat/completions")
        self.server = str(url.copy_with(userinfo=b"", query=None, fragment=None))
        """The address without anything that may be secret."""
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._timeout_seconds = timeout_seconds
        self._tls = httpx.create_ssl_context()  # takes as long as a request

    def complete(self, request: dict[str, Any], deadline: Deadline) -> str:
        """Asks for one completion; no attempt starts after the deadline or outlasts it.

        Args:
            request: the API's fields.
            deadline: of the last attempt.

        Returns:
            The body of a successful answer.

        Raises:
            RefusedFormatError: the server rejects the request as malformed (400 or 422).
            LanguageModelError: every attempt failed, or the deadline has passed.
        """
        problem = (
            f"There is no time left to ask the language model: `{self.server}`. Ask for fewer "
            "posts, or allow more time."
        )
        for retry in range(_MAX_RETRIES + 1):
            seconds = min(self._timeout_seconds, deadline.left_seconds)
            if not seconds:
                break
            try:
                return self._attempt(request, seconds)
            except _AttemptError as error:
                problem = f"{error} Tried {retry + 1} times." if retry else str(error)
                pause = _choose_pause(error.retry_after, retry)
                if not error.can_retry or pause is None or retry == _MAX_RETRIES:
                    break
            deadline.sleep(pause)
        raise LanguageModelError(problem)

    def _attempt(self, request: dict[str, Any], seconds: float) -> str:
        """Asks once.

        Raises:
            RefusedFormatError: the server rejects the request as malformed.
            _AttemptError: anything else went wrong.
        """
        try:
            response, body = asyncio.run(self._post(request, seconds))
        except TimeoutError:
            raise _AttemptError(
                f"The language model did not answer within {round(seconds, 1):g} s: "
                f"`{self.server}`. Try again, or raise --llm-timeout-seconds."
            ) from None
        except (httpx.RequestError, UnicodeError):  # a host's name may have no encoding
            raise _AttemptError(
                f"Cannot reach the language model: `{self.server}`. Check --llm-base-url "
                "(OPENAI_BASE_URL) and the network; templates need neither."
            ) from None
        status = response.status_code
        if response.is_success:
            return body.decode(errors="replace")
        if status in (400, 422):
            raise RefusedFormatError(_quote_error(body))
        if status in (401, 403):
            message = (
                f"The language model's server refused the key: `{self.server}`. Check the "
                "environment variable that holds it."
            )
        elif status == 404:
            message = (
                "The server has no such language model, or no chat completions: "
                f"`{request['model']}` at `{self.server}`. Check --llm and --llm-base-url."
            )
        else:
            message = (
                f"The language model's server failed with status {status}: `{self.server}` says "
                f"`{_quote_error(body)}`. Try again later."
            )
        can_retry = status in (408, 409, 429) or status >= 500
        raise _AttemptError(message, can_retry, response.headers.get("Retry-After", ""))

    async def _post(self, request: dict[str, Any], seconds: float) -> tuple[httpx.Response, bytes]:
        """Sends a request and reads the whole answer.

        Raises:
            TimeoutError: the time is up, even if bytes were still coming.
            _AttemptError: the answer is too long.
            httpx.RequestError: the connection failed.
        """
        body = bytearray()
        # httpx's own time-outs start again with every byte.
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(verify=self._tls, timeout=None) as client,
            client.stream("POST", self._url, json=request, headers=self._headers) as response,
        ):
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _MAX_ANSWER_BYTES:
                    raise _AttemptError(
                        f"The language model's answer is longer than {_MAX_ANSWER_BYTES:,} bytes: "
                        f"`{self.server}`. Check that this is the address of its API.",
                        can_retry=False,
                    )
        return response, bytes(body)


def _choose_pause(retry_after: str, retry: int) -> float | None:
    """Chooses how many seconds to wait; None if the server asks for too many."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", retry_after):
        return float(retry_after) if float(retry_after) <= _MAX_PAUSE_SECONDS else None
    return _FIRST_PAUSE_SECONDS * 2.0**retry * (1 - 0.25 * random.random())


def _quote_error(body: bytes) -> str:
    """Quotes a server's error message, or its whole answer if it has none in OpenAI's form."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = body.decode(errors="replace")
    return quote(str(message))
