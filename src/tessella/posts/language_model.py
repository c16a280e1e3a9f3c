"""A language model behind any server that speaks OpenAI's chat completions.

Its answers are read as JSON of a schema and checked, whatever the server promises of them.
"""

import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tessella.errors import ConfigError
from tessella.posts.deadline import Deadline
from tessella.posts.errors import LanguageModelError, quote

if TYPE_CHECKING:
    from tessella.posts.chat_client import ChatClient

A = TypeVar("A", bound=BaseModel)
Message = dict[str, str]  # role, content

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
TIMEOUT_SECONDS = 60.0
_MAX_RETRIES = 3
_TRIES = 3  # to get an answer of the schema
_FIRST_PAUSE_SECONDS = 0.5
_MAX_STARTS = 50  # places where the JSON of an answer may begin


class _Loose(BaseModel):
    """A part of an answer; what else is in it does not matter."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Reply(_Loose):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Loose):
    message: _Reply
    finish_reason: str | None = None


class _Completion(_Loose):
    choices: list[_Choice] = Field(min_length=1)


class _UnusableError(Exception):
    """An answer that is none; says why, for whoever asks again."""


class LanguageModel:
    """Answers questions in JSON of a schema.

    Args:
        name: of the model, as its server calls it.
        client: of the server.
    """

    def __init__(self, name: str, client: "ChatClient") -> None:
        self.name = name
        self._client = client
        self._num_refused = 0  # response formats that the server does not know

    @classmethod
    def open(
        cls,
        name: str | None,
        *,
        base_url: str | None = None,
        key_variable: str = DEFAULT_KEY_VARIABLE,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_retries: int = _MAX_RETRIES,
    ) -> "LanguageModel":
        """Opens a language model by flags and the usual environment variables; asks nothing yet.

        Args:
            name: None: as OPENAI_MODEL says.
            base_url: None: as OPENAI_BASE_URL says, else OpenAI's own.
            key_variable: the environment variable that holds the key. A server that is named
                needs none.
            timeout_seconds: of each try.
            max_retries: after the first try.

        Raises:
            ConfigError: the extra `llm`, the name or the key is missing.
        """
        name = name or os.environ.get("OPENAI_MODEL")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        key = os.environ.get(key_variable) or None
        if not name:
            raise ConfigError(
                "No language model is named: `--llm` and OPENAI_MODEL are empty. Name one, or let "
                "templates write: `tessella post --offline`."
            )
        if base_url is not None and not re.match(r"https?://[^/\s]+", base_url):
            raise ConfigError(
                f"This is no address of a language model's server: `{base_url}`. For example "
                "--llm-base-url http://localhost:11434/v1"
            )
        if key is None and (base_url is None or key_variable != DEFAULT_KEY_VARIABLE):
            raise ConfigError(
                f"There is no key for the language model: `{key_variable}` is empty. Set this "
                "environment variable, name a server that needs none (--llm-base-url), or let "
                "templates write: `tessella post --offline`."
            )
        try:
            from tessella.posts.chat_client import ChatClient
        except ImportError:
            raise ConfigError(
                "Asking a language model needs the package `openai`: pip install "
                "'tessella[llm]'. Templates need none: `tessella post --offline`."
            ) from None
        client = ChatClient(
            base_url, key or "none", timeout_seconds=timeout_seconds, max_retries=max_retries
        )
        return cls(name, client)

    @property
    def server(self) -> str:
        """Where it is asked."""
        return self._client.server

    def ask(
        self,
        messages: Sequence[Message],
        schema: type[A],
        check: Callable[[A], str | None] = lambda answer: None,
        *,
        deadline: Deadline | None = None,
    ) -> A:
        """Asks until there is a usable answer, a few times at most.

        Args:
            messages: of a chat.
            schema: of the answer.
            check: says what else is wrong with one.
            deadline: after which it is asked no more; None: there is none.

        Raises:
            LanguageModelError: there is none.
        """
        deadline = deadline or Deadline()
        asked, why = list(messages), ""
        for number in range(_TRIES):
            if number:
                pause = _FIRST_PAUSE_SECONDS * 2 ** (number - 1)
                deadline.sleep(pause * (1 - 0.25 * random.random()))
                again = f"Your last answer could not be used: {why}. Answer anew, in JSON alone."
                asked = [*messages, {"role": "user", "content": again}]
            try:
                answer = _read_answer(self._complete(asked, schema, deadline), schema)
            except _UnusableError as error:
                why = str(error)
                continue
            problem = check(answer)
            if problem is None:
                return answer
            why = problem
        raise LanguageModelError(
            f"The language model gave no usable answer, asked {_TRIES} times: {why}. `{self.name}` "
            f"at `{self.server}`. Try again, name another one (--llm), or let templates write: "
            "`tessella post --offline`."
        )

    def _complete(
        self, messages: Sequence[Message], schema: type[BaseModel], deadline: Deadline
    ) -> str:
        """Asks once, in the strictest response format that the server knows."""
        from tessella.posts.chat_client import RefusedFormatError

        formats, said = _response_formats(schema), ""
        for number in range(self._num_refused, len(formats)):
            try:
                body = self._client.complete(self.name, messages, formats[number], deadline)
            except RefusedFormatError as error:
                said = str(error)
                continue
            self._num_refused = number
            return body
        raise LanguageModelError(
            f"The language model's server calls the request wrong: `{self.server}` says `{said}`. "
            "Check --llm, or name another one."
        )


def _response_formats(schema: type[BaseModel]) -> tuple[dict[str, Any] | None, ...]:
    """Lists how an answer of a schema can be asked for, the strictest first."""
    definition = {"name": "answer", "strict": True, "schema": schema.model_json_schema()}
    return (
        {"type": "json_schema", "json_schema": definition},
        {"type": "json_object"},
        None,
    )


def _read_answer(body: str, schema: type[A]) -> A:
    """Reads a completion's answer.

    Raises:
        _UnusableError: it was refused, cut off, or is not of the schema.
    """
    try:
        choice = _Completion.model_validate_json(body).choices[0]
    except ValidationError:
        raise _UnusableError("the server's answer is no chat completion") from None
    content = choice.message.content or ""
    if choice.message.refusal or choice.finish_reason == "content_filter":
        raise _UnusableError("it refused to answer")
    if choice.finish_reason == "length":
        raise _UnusableError("it was cut off at the length that the server allows")
    problem = "there is no JSON object in it"
    for values in _find_objects(content):
        try:
            return schema.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = quote(".".join(map(str, first["loc"])), 100)
            problem = f"its JSON is not of the schema: {place}: {quote(first['msg'], 100)}"
    raise _UnusableError(problem)


def _find_objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Finds the JSON objects of a text, which may stand among other words."""
    decoder, start = json.JSONDecoder(), 0
    for _ in range(_MAX_STARTS):
        start = text.find("{", start)
        if start < 0:
            return
        try:
            values, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        yield values
        start = end
