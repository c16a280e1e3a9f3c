"""The official `openai` client, bounded: no answer may be endless, in bytes or in time.

It retries by itself what may go better next time (time-outs, broken connections, 408, 409, 429 and
5xx), with exponential back-off and jitter or as long as `Retry-After` says.
"""

import time
from collections.abc import Sequence
from typing import Any

import openai
from openai import DefaultHttpxClient, OpenAI

from tessella.posts.errors import LanguageModelError

_MAX_ANSWER_BYTES = 1_000_000
_MAX_SAID_CHARACTERS = 200  # of a server's own error message


class RefusedFormatError(Exception):
    """The server does not take this request; perhaps it does not know the response format."""


class _TooLongError(Exception):
    """An answer that goes on and on."""


class _BoundedClient(DefaultHttpxClient):
    """Reads an answer up to a size and within a time, whatever its status."""

    def __init__(self, timeout_seconds: float) -> None:
        # Of a redirection the key would not be sent along, but what is asked would. Connections
        # are not kept: questions are few and far between, and nobody has to close the client.
        super().__init__(
            timeout=timeout_seconds, follow_redirects=False, headers={"Connection": "close"}
        )
        self._timeout_seconds = timeout_seconds

    def send(self, request: Any, **how: Any) -> Any:
        deadline = time.monotonic() + self._timeout_seconds
        response = super().send(request, **{**how, "stream": True})
        body = bytearray()
        try:
            for part in response.iter_bytes():
                body += part
                if len(body) > _MAX_ANSWER_BYTES:
                    raise _TooLongError
                if time.monotonic() > deadline:
                    raise TimeoutError
        finally:
            response.close()
        # The body is no longer compressed, nor in chunks.
        headers = [
            (name, value)
            for name, value in response.headers.items()
            if name not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        return type(response)(
            response.status_code, headers=headers, content=bytes(body), request=request
        )


class ChatClient:
    """Asks a server that speaks the chat-completions protocol.

    Args:
        base_url: None: OpenAI's own.
        api_key: sent to it.
        timeout_seconds: of each try, from the question to the last byte of the answer.
        max_retries: after the first try.
    """

    def __init__(
        self, base_url: str | None, api_key: str, *, timeout_seconds: float, max_retries: int
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._tries = max_retries + 1
        self._client = OpenAI(
            base_url=base_url,
            api_key=api_key,
            timeout=timeout_seconds,
            max_retries=max_retries,
            http_client=_BoundedClient(timeout_seconds),
        )

    @property
    def server(self) -> str:
        """Where it is, without what a URL may keep secret."""
        url = self._client.base_url
        port = f":{url.port}" if url.port else ""
        return f"{url.scheme}://{url.host}{port}{url.path}"

    def complete(
        self, model: str, messages: Sequence[dict[str, str]], response_format: dict[str, Any] | None
    ) -> str:
        """Asks for one completion.

        Returns:
            The body of the answer, of status 200.

        Raises:
            RefusedFormatError: the server calls the request wrong (400 or 422).
            LanguageModelError: there is no answer, after all tries.
        """
        wanted: dict[str, Any] = {"model": model, "messages": list(messages)}
        if response_format is not None:
            wanted["response_format"] = response_format
        try:
            raw = self._client.chat.completions.with_raw_response.create(**wanted)
            return str(raw.http_response.text)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise RefusedFormatError(_quote(error)) from None
        except (openai.APIError, _TooLongError, TimeoutError) as error:
            raise LanguageModelError(self._explain(error, model)) from None

    def _explain(self, error: Exception, model: str) -> str:
        """Says what went wrong and what to do."""
        # What reading raises comes as it is, or as the cause of the client's own error.
        if isinstance(error.__cause__, _TooLongError | TimeoutError):
            error = error.__cause__
        if isinstance(error, _TooLongError):
            return (
                f"The language model's answer is longer than {_MAX_ANSWER_BYTES:,} bytes: "
                f"`{self.server}`. Check that this is the address of its API."
            )
        if isinstance(error, openai.APITimeoutError | TimeoutError):
            return (
                f"The language model did not answer within {self._timeout_seconds:g} s: "
                f"`{self.server}`. Try again, or give more --timeout-seconds."
            )
        if isinstance(error, openai.APIConnectionError):
            return (
                f"Cannot reach the language model, tried {self._tries} times: `{self.server}`. "
                "Check --base-url (OPENAI_BASE_URL) and the network; --offline needs neither."
            )
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return (
                f"The language model's server refused the key: `{self.server}`. Check the "
                "environment variable that holds it."
            )
        if isinstance(error, openai.NotFoundError):
            return (
                f"The server has no such language model, or no chat completions: `{model}` at "
                f"`{self.server}`. Check --llm and --base-url."
            )
        status = error.status_code if isinstance(error, openai.APIStatusError) else "unknown"
        said = _quote(error) if isinstance(error, openai.APIError) else ""
        return (
            f"The language model's server failed: status {status} from `{self.server}`; it says "
            f"`{said}`. What was busy or broken was tried {self._tries} times: try again later."
        )


def _quote(error: openai.APIError) -> str:
    """Shortens what a server says to one line."""
    body = error.body if isinstance(error.body, dict) else {}
    said = str(body.get("message") or error.message)
    said = "".join(sign if sign.isprintable() else " " for sign in said)
    return " ".join(said.split())[:_MAX_SAID_CHARACTERS]
