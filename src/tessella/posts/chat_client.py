"""The official `openai` client, bounded: no answer may be endless, in bytes or in time.

What may go better next time is tried again (time-outs, broken connections, 408, 409, 429 and 5xx),
with exponential back-off and jitter or as long as `Retry-After` says. The official client would do
so too, but past any deadline.
"""

import contextlib
import random
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import openai
from openai import DefaultHttpxClient, OpenAI

from tessella.posts.deadline import Deadline
from tessella.posts.errors import LanguageModelError, quote

_MAX_ANSWER_BYTES = 1_000_000
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 120.0  # that a server may ask for


class RefusedFormatError(Exception):
    """The server does not take this request; perhaps it does not know the response format."""


class _TooLongError(Exception):
    """An answer that goes on and on."""


class _BoundedClient(DefaultHttpxClient):
    """Reads an answer up to a size and within a time, whatever its status."""

    def __init__(self) -> None:
        # Of a redirection the key would not be sent along, but what is asked would. Connections
        # are not kept: questions are few and far between, and nobody has to close the client.
        super().__init__(follow_redirects=False, headers={"Connection": "close"})

    def send(self, request: Any, **how: Any) -> Any:
        seconds = request.extensions["timeout"]["read"]
        end = time.monotonic() + seconds
        body = bytearray()
        with _cut_after(seconds, request):
            try:
                response = super().send(request, **{**how, "stream": True})
                with contextlib.closing(response):
                    for part in response.iter_bytes():
                        body += part
                        if len(body) > _MAX_ANSWER_BYTES:
                            raise _TooLongError
            except _TooLongError:
                raise
            except Exception:
                if time.monotonic() < end:
                    raise
            # A body that was cut may look whole.
            if time.monotonic() >= end:
                raise TimeoutError
        # The body is no longer compressed, nor in chunks.
        headers = [
            (name, value)
            for name, value in response.headers.items()
            if name not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        return type(response)(
            response.status_code, headers=headers, content=bytes(body), request=request
        )


@contextlib.contextmanager
def _cut_after(seconds: float, request: Any) -> Iterator[None]:
    """Cuts a request's connection after some seconds, however much of its answer has come.

    The client's own time-outs begin again with every byte.
    """
    connected: list[Any] = []

    def watch(_: str, told: dict[str, Any]) -> None:
        if hasattr(stream := told.get("return_value"), "get_extra_info"):
            connected.append(stream)

    def cut() -> None:
        for stream in connected[-1:]:  # the first one is below TLS
            with contextlib.suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    request.extensions = {**request.extensions, "trace": watch}
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
            max_retries=0,
            http_client=_BoundedClient(),
        )

    @property
    def server(self) -> str:
        """Where it is, without what a URL may keep secret."""
        url = self._client.base_url
        port = f":{url.port}" if url.port else ""
        return f"{url.scheme}://{url.host}{port}{url.path}"

    def complete(
        self,
        model: str,
        messages: Sequence[dict[str, str]],
        response_format: dict[str, Any] | None,
        deadline: Deadline,
    ) -> str:
        """Asks for one completion; no try begins after the deadline or lasts longer.

        Returns:
            The body of the answer, of status 200.

        Raises:
            RefusedFormatError: the server calls the request wrong (400 or 422).
            LanguageModelError: there is no answer, after all tries or at the deadline.
        """
        wanted: dict[str, Any] = {"model": model, "messages": list(messages)}
        if response_format is not None:
            wanted["response_format"] = response_format
        create = self._client.chat.completions.with_raw_response.create
        problem = (
            f"There is no time left to ask the language model: `{self.server}`. Ask for fewer "
            "posts, or allow more time."
        )
        for number in range(self._tries):
            seconds = min(self._timeout_seconds, deadline.left_seconds)
            if not seconds:
                break
            try:
                return str(create(**wanted, timeout=seconds).http_response.text)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                raise RefusedFormatError(_quote(error)) from None
            except (openai.APIError, _TooLongError, TimeoutError) as error:
                # What reading raises comes as it is, or as the cause of the client's own error.
                cause = error.__cause__
                failed = cause if isinstance(cause, _TooLongError | TimeoutError) else error
            problem = self._explain(failed, model, seconds, number + 1)
            pause = _find_pause(failed, number)
            if pause is None or number + 1 == self._tries:
                break
            deadline.sleep(pause)
        raise LanguageModelError(problem)

    def _explain(self, error: Exception, model: str, seconds: float, num_tries: int) -> str:
        """Says what went wrong and what to do."""
        if isinstance(error, _TooLongError):
            return (
                f"The language model's answer is longer than {_MAX_ANSWER_BYTES:,} bytes: "
                f"`{self.server}`. Check that this is the address of its API."
            )
        if isinstance(error, openai.APITimeoutError | TimeoutError):
            return (
                f"The language model did not answer within {round(seconds, 1):g} s: "
                f"`{self.server}`. Try again, or give more --llm-timeout-seconds."
            )
        if isinstance(error, openai.APIConnectionError):
            return (
                f"Cannot reach the language model, tried {num_tries} times: `{self.server}`. "
                "Check --llm-base-url (OPENAI_BASE_URL) and the network; offline, templates need "
                "neither."
            )
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return (
                f"The language model's server refused the key: `{self.server}`. Check the "
                "environment variable that holds it."
            )
        if isinstance(error, openai.NotFoundError):
            return (
                f"The server has no such language model, or no chat completions: `{model}` at "
                f"`{self.server}`. Check --llm and --llm-base-url."
            )
        status = error.status_code if isinstance(error, openai.APIStatusError) else "unknown"
        said = _quote(error) if isinstance(error, openai.APIError) else ""
        return (
            f"The language model's server failed, tried {num_tries} times: status {status} from "
            f"`{self.server}`; it says `{said}`. Try again later."
        )


def _find_pause(error: Exception, number: int) -> float | None:
    """Finds the seconds to wait after a try; None if the next one would go no better."""
    if isinstance(error, openai.APIStatusError):
        if error.status_code not in (408, 409, 429) and error.status_code < 500:
            return None
        asked = error.response.headers.get("Retry-After", "")
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", asked):
            return float(asked) if float(asked) <= _MAX_PAUSE_SECONDS else None
    elif not isinstance(error, openai.APIConnectionError | TimeoutError):
        return None
    return _FIRST_PAUSE_SECONDS * 2.0**number * (1 - 0.25 * random.random())


def _quote(error: openai.APIError) -> str:
    """Repeats what a server says."""
    body = error.body if isinstance(error.body, dict) else {}
    return quote(str(body.get("message") or error.message))
