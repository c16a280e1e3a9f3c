"""A language model behind any server that speaks OpenAI's chat completions.

Its answers are parsed as JSON of a schema and checked, whatever the server promises about them.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tessella.errors import ConfigError
from tessella.posts.deadline import Deadline
from tessella.posts.errors import LanguageModelError, RefusedFormatError, quote

if TYPE_CHECKING:
    from tessella.posts.chat_client import ChatClient

A = TypeVar("A", bound=BaseModel)
Message = dict[str, str]  # role, content

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
TIMEOUT_SECONDS = 60.0
_MAX_ANSWERS = 3  # until one fits the schema
_MAX_STARTS = 50  # braces at which the JSON of an answer may begin


# The parts of a chat completion that are read; others are ignored.
class _Reply(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Reply
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _UnusableError(Exception):
    """An answer cannot be used; the message tells the language model why."""


class LanguageModel:
    """Answers questions in JSON of a schema.

    Args:
        name: the model's name on its server.
        client: sends the questions.
    """

    def __init__(self, name: str, client: "ChatClient") -> None:
        self.name = name
        self.server = client.server
        self._client = client
        self._num_refused = 0  # response formats that the server has rejected

    @classmethod
    def open(
        cls,
        name: str | None,
        *,
        base_url: str | None = None,
        key_variable: str = DEFAULT_KEY_VARIABLE,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> "LanguageModel":
        """Opens a language model by flags and the usual environment variables; sends nothing yet.

        Args:
            name: OPENAI_MODEL if None.
            base_url: OPENAI_BASE_URL if None, or else OpenAI's own server.
            key_variable: the environment variable that holds the key; optional for a server
                that is named.
            timeout_seconds: of each attempt.

        Raises:
            ConfigError: the extra `llm`, the name or the key is missing, or the address or the
                key cannot be one.
        """
        name = name or os.environ.get("OPENAI_MODEL")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get(key_variable)
        if not name:
            raise ConfigError(
                "No language model is named: `--llm` and OPENAI_MODEL are empty. Name one, or let "
                "templates write: `tessella post --offline`."
            )
        if not key and (not base_url or key_variable != DEFAULT_KEY_VARIABLE):
            raise ConfigError(
                f"The language model's key is missing: `{key_variable}` is empty. Set this "
                "environment variable, name a server that needs no key (--llm-base-url), or let "
                "templates write: `tessella post --offline`."
            )
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"The language model's key is not valid: `{key_variable}` holds characters other "
                "than printable ASCII. Copy the key again."
            )
        try:
            from tessella.posts.chat_client import OPENAI_URL, ChatClient
        except ImportError:
            raise ConfigError(
                "Asking a language model needs the package `httpx`: pip install 'tessella[llm]'. "
                "Templates need none: `tessella post --offline`."
            ) from None
        return cls(name, ChatClient(base_url or OPENAI_URL, key or "none", timeout_seconds))

    def ask(
        self,
        messages: Sequence[Message],
        schema: type[A],
        check: Callable[[A], str | None] = lambda answer: None,
        *,
        deadline: Deadline | None = None,
    ) -> A:
        """Asks until an answer is usable, a few times at most.

        Args:
            messages: of a chat.
            schema: of the answer.
            check: describes any other problem with an answer; None: it is good.
            deadline: after which nothing more is asked.

        Raises:
            LanguageModelError: the server gave no answer, or no usable one.
        """
        deadline = deadline or Deadline()
        chat = messages
        for _ in range(_MAX_ANSWERS):
            try:
                answer = _read_answer(self._complete(chat, schema, deadline), schema)
            except _UnusableError as error:
                problem = str(error)
            else:
                problem = check(answer) or ""
                if not problem:
                    return answer
            again = f"Your last answer could not be used: {problem}. Answer again, in JSON only."
            chat = [*messages, {"role": "user", "content": again}]
        raise LanguageModelError(
            f"The language model gave no usable answer in {_MAX_ANSWERS} attempts: {problem}. "
            f"`{self.name}` at `{self.server}`. Try again, name another one (--llm), or let "
            "templates write: `tessella post --offline`."
        )

    def _complete(
        self, messages: Sequence[Message], schema: type[BaseModel], deadline: Deadline
    ) -> str:
        """Asks once, in the strictest response format that the server accepts."""
        definition = {"name": "answer", "strict": True, "schema": schema.model_json_schema()}
        formats: tuple[dict[str, Any], ...] = (
            {"response_format": {"type": "json_schema", "json_schema": definition}},
            {"response_format": {"type": "json_object"}},
            {},
        )
        reason = ""
        for number in range(self._num_refused, len(formats)):
            request = {"model": self.name, "messages": messages, **formats[number]}
            try:
                body = self._client.complete(request, deadline)
            except RefusedFormatError as error:
                reason = str(error)
                continue
            self._num_refused = number
            return body
        raise LanguageModelError(
            f"The language model's server rejects the request: `{self.server}` says `{reason}`. "
            "Check --llm, or name another one."
        )


def _read_answer(body: str, schema: type[A]) -> A:
    """Reads the answer out of a chat completion.

    Raises:
        _UnusableError: it was refused, cut off, or does not fit the schema.
    """
    try:
        choice = _Completion.model_validate_json(body).choices[0]
    except ValidationError:
        raise _UnusableError("the server's answer is not a chat completion") from None
    if choice.message.refusal or choice.finish_reason == "content_filter":
        raise _UnusableError("it refused to answer")
    if choice.finish_reason == "length":
        raise _UnusableError("it was cut off at the server's length limit")
    problem = "it contains no JSON object"
    for values in _find_objects(choice.message.content or ""):
        try:
            return schema.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            field = quote(".".join(map(str, first["loc"])), 100)
            problem = f"its JSON does not fit the schema: {field}: {quote(first['msg'], 100)}"
    raise _UnusableError(problem)


def _find_objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Finds the JSON objects of a text, which may stand among other words."""
    decoder, start = json.JSONDecoder(), 0
    for _ in range(_MAX_STARTS):
        start = text.find("{", start)
        if start < 0:
            return
        try:
            values, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
        else:
            yield values
