"""A language model over real HTTP: good, slow, busy, broken and hostile servers."""

import builtins
import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from typer.testing import CliRunner

from tessella.cli import app, llm_options
from tessella.errors import ConfigError
from tessella.posts import chat_client, language_model
from tessella.posts.deadline import Deadline
from tessella.posts.errors import LanguageModelError
from tessella.posts.language_model import LanguageModel

Open = Callable[..., LanguageModel]
CHAT = [{"role": "user", "content": "a number?"}]


class Number(BaseModel):
    """The answer that these tests ask for."""

    model_config = ConfigDict(extra="forbid")

    number: int


GOOD = '{"number": 7}'


def test_a_good_answer_is_read(chat_server: Any, open_model: Open) -> None:
    model = open_model([chat_server.say(GOOD)])
    assert model.ask(CHAT, Number) == Number(number=7)
    [request], [headers] = chat_server.requests, chat_server.headers
    assert (request["model"], request["messages"]) == ("tiny", CHAT)
    assert request["response_format"]["type"] == "json_schema"
    assert request["response_format"]["json_schema"]["strict"] is True
    assert request["response_format"]["json_schema"]["schema"]["additionalProperties"] is False
    assert headers["path"] == "/v1/chat/completions"
    assert (model.name, model.server) == ("tiny", chat_server.url)


@pytest.mark.parametrize(
    "content",
    [
        'Here it is:\n```json\n{"number": 7}\n```\nAnything else?',
        '<think>{"number" is {...}?</think> {"number": 7}',
        '{"no": 1} {"number": 7}',
    ],
)
def test_json_is_found_among_other_words(chat_server: Any, open_model: Open, content: str) -> None:
    assert open_model([chat_server.say(content)]).ask(CHAT, Number).number == 7


def test_servers_without_schemas_are_asked_more_simply(chat_server: Any, open_model: Open) -> None:
    refused = chat_server.fail(400, "response_format is not supported")
    unprocessable = chat_server.fail(422)
    model = open_model([refused, unprocessable, *[chat_server.say(GOOD)] * 2])
    for _ in range(2):
        assert model.ask(CHAT, Number).number == 7
    kinds = [request.get("response_format", {}).get("type") for request in chat_server.requests]
    # What the server does not know is not tried again.
    assert kinds == ["json_schema", "json_object", None, None]


def test_a_server_that_calls_every_request_wrong(chat_server: Any, open_model: Open) -> None:
    model = open_model([chat_server.fail(400, "too\nlong \x1b[31m" + "x" * 999)] * 3)
    with pytest.raises(LanguageModelError) as error:
        model.ask(CHAT, Number)
    assert "rejects the request" in str(error.value)
    assert "says `too long [31mxxx" in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_busy_servers_are_asked_again(chat_server: Any, open_model: Open, status: int) -> None:
    script = [chat_server.fail(status), chat_server.fail(status), chat_server.say(GOOD)]
    assert open_model(script).ask(CHAT, Number).number == 7
    assert len(chat_server.requests) == 3


def test_the_wait_that_a_server_asks_for_is_kept(
    chat_server: Any, open_model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Deadline, "sleep", lambda deadline, seconds: waits.append(seconds))
    busy = [chat_server.fail(429, **{"Retry-After": wait}) for wait in ("7", "0.5", "120")]
    open_model([*busy, chat_server.say(GOOD)]).ask(CHAT, Number)
    assert waits == [7.0, 0.5, 120.0]

    # It wants to be left alone for longer than anybody waits.
    with pytest.raises(LanguageModelError, match="server failed with status 429"):
        open_model([chat_server.fail(429, **{"Retry-After": "121"})]).ask(CHAT, Number)


def test_pauses_grow(chat_server: Any, open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model, waits = open_model([chat_server.fail(500)] * 4), []
    monkeypatch.setattr(chat_client, "_FIRST_PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(Deadline, "sleep", lambda deadline, seconds: waits.append(seconds))
    with pytest.raises(LanguageModelError):
        model.ask(CHAT, Number)
    for wait, most in zip(waits, (0.5, 1.0, 2.0), strict=True):
        assert 0.75 * most <= wait <= most


def test_a_server_that_stays_broken(chat_server: Any, open_model: Open) -> None:
    model = open_model([chat_server.fail(500, "out of\nmemory")] * 3, max_retries=2)
    with pytest.raises(LanguageModelError) as error:
        model.ask(CHAT, Number)
    assert "server failed with status 500: `http" in str(error.value)
    assert "says `out of memory`. Try again later. Tried 3 times." in str(error.value)
    assert len(chat_server.requests) == 3


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refused the key: `"),
        (403, "refused the key: `"),
        (404, "has no such language model, or no chat completions: `tiny` at `"),
        (301, "server failed with status 301: `"),
    ],
)
def test_what_no_second_try_mends(
    chat_server: Any, open_model: Open, status: int, message: str
) -> None:
    secret = chat_server.fail(status, "Incorrect API key: sk-secret")
    model = open_model([secret], key_variable="OPENAI_API_KEY")
    with pytest.raises(LanguageModelError) as error:
        model.ask(CHAT, Number)
    assert message in str(error.value)
    assert len(chat_server.requests) == 1
    if status in (401, 403):
        assert "secret" not in str(error.value)


def test_a_slow_server(chat_server: Any, open_model: Open) -> None:
    slow = chat_server.answer(b"{}", wait_seconds=0.4)
    model = open_model([slow], timeout_seconds=0.1, max_retries=0)
    with pytest.raises(LanguageModelError) as error:
        model.ask(CHAT, Number)
    assert "did not answer within 0.1 s: `http://127.0.0.1" in str(error.value)
    assert "--llm-timeout-seconds" in str(error.value)


# A request that had 30 s left could go on asking, and paying, for minutes.
def test_no_try_begins_after_the_deadline_or_outlasts_it(
    chat_server: Any, open_model: Open
) -> None:
    slow = chat_server.answer(b"{}", wait_seconds=30)
    started = time.monotonic()
    with pytest.raises(LanguageModelError, match=r"did not answer within 0.3 s"):
        open_model([slow] * 4).ask(CHAT, Number, deadline=Deadline(0.3))
    assert time.monotonic() - started < 15
    assert len(chat_server.requests) == 1

    over = Deadline()
    over.call_off()
    with pytest.raises(LanguageModelError, match="no time left to ask the language model: `http"):
        open_model([chat_server.say(GOOD)]).ask(CHAT, Number, deadline=over)
    assert len(chat_server.requests) == 1


def test_a_deadline_that_comes_ends_a_pause(chat_server: Any, open_model: Open) -> None:
    busy = [chat_server.fail(429, "too many", **{"Retry-After": "100"})]
    with pytest.raises(LanguageModelError, match="says `too many`"):
        open_model(busy).ask(CHAT, Number, deadline=Deadline(0.2))
    assert len(chat_server.requests) == 1


def test_a_server_that_is_not_there(open_model: Open) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    model = open_model([], base_url=url.replace("//", "//me:secret@") + "?k=v", max_retries=0)
    with pytest.raises(LanguageModelError) as error:
        model.ask(CHAT, Number)
    assert f"Cannot reach the language model: `{url}`" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "more", "why"),
    [
        ("I would rather not.", {}, "it contains no JSON object"),
        ('{"number": ', {}, "it contains no JSON object"),
        ('{"number": "x"}', {}, "its JSON does not fit the schema: number: Input should be"),
        ('{"number": 7, "file": "../x"}', {}, "does not fit the schema: file: Extra inputs"),
        # A key once went into the message as it was: a terminal obeyed it, a log had a forged line.
        (
            json.dumps({"number": 7, "a\x1b]0;evil\x07\nERROR forged\u202e": 1}),
            {},
            "does not fit the schema: a ]0;evil ERROR forged: Extra inputs",
        ),
        ("{}", {}, "its JSON does not fit the schema: number: Field required"),
        (None, {"refusal": "I cannot help."}, "it refused to answer"),
        ("", {"finish_reason": "content_filter"}, "it refused to answer"),
        ('{"number"', {"finish_reason": "length"}, "it was cut off at the server's length limit"),
        ('{"a": ' * 2_000, {}, "it contains no JSON object"),
        ([1], {}, "the server's answer is not a chat completion"),
    ],
)
def test_unusable_answers_are_asked_again_and_told(
    chat_server: Any, open_model: Open, content: Any, more: dict[str, Any], why: str
) -> None:
    bad = chat_server.say(content, **more)
    model = open_model([bad, chat_server.say(GOOD)])
    assert model.ask(CHAT, Number).number == 7
    again = chat_server.requests[1]["messages"]
    assert again[:-1] == CHAT
    assert "Your last answer could not be used: " in again[-1]["content"]
    assert why in again[-1]["content"]

    model = open_model([bad] * 3)
    with pytest.raises(LanguageModelError) as error:
        model.ask(CHAT, Number)
    assert "gave no usable answer in 3 attempts: " in str(error.value)
    assert why in str(error.value)
    assert "`tiny` at `http" in str(error.value)


@pytest.mark.parametrize(
    "body", [b"", b"<html>hello</html>", b"[]", b'{"choices": []}', b"\xff\xfe", b"[" * 50_000]
)
def test_what_is_no_completion_is_refused(chat_server: Any, open_model: Open, body: bytes) -> None:
    with pytest.raises(LanguageModelError, match="answer is not a chat completion"):
        open_model([chat_server.answer(body)] * 3).ask(CHAT, Number)


def test_what_else_is_wrong_with_an_answer(chat_server: Any, open_model: Open) -> None:
    model = open_model([chat_server.say(GOOD), chat_server.say('{"number": 8}')])
    found = model.ask(CHAT, Number, lambda n: "it is odd" if n.number % 2 else None)
    assert found.number == 8
    assert "it is odd" in chat_server.requests[1]["messages"][-1]["content"]


# A server could fill the memory with one answer that never ends, good or not.
@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_huge_answer_is_not_read_to_its_end(
    chat_server: Any, open_model: Open, status: int
) -> None:
    huge = chat_server.answer(b" " * 30_000_000, status)
    with pytest.raises(LanguageModelError) as error:
        open_model([huge], max_retries=0).ask(CHAT, Number)
    assert "answer is longer than 1,000,000 bytes: `http" in str(error.value)


@pytest.mark.parametrize("begun", [b"X-Long: ", b"Content-Type: application/json\r\n\r\n{"])
def test_an_answer_that_trickles_ends_in_time(
    begun: bytes, chat_server: Any, open_model: Open
) -> None:
    """In its headers or in its body: no single byte is late."""
    trickling = chat_server.answer(b"HTTP/1.1 200 OK\r\n" + begun, trickles=True)
    model = open_model([trickling] * 2, timeout_seconds=0.2, max_retries=1)
    with pytest.raises(LanguageModelError, match=r"did not answer within 0\.2 s"):
        model.ask(CHAT, Number)
    assert len(chat_server.requests) == 2


def test_huge_headers_are_not_read_to_their_end(chat_server: Any, open_model: Open) -> None:
    huge = chat_server.answer(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 30_000_000, trickles=True)
    started = time.monotonic()
    with pytest.raises(LanguageModelError, match="Cannot reach the language model"):
        open_model([huge], max_retries=0).ask(CHAT, Number)
    assert time.monotonic() - started < 15


# A redirect would send the description of the business, and the key, to somebody else.
def test_redirects_are_not_followed(chat_server: Any, open_model: Open) -> None:
    elsewhere = chat_server.fail(307, Location=f"{chat_server.url}/elsewhere")
    with pytest.raises(LanguageModelError, match="failed with status 307"):
        open_model([elsewhere]).ask(CHAT, Number)
    assert len(chat_server.requests) == 1


def test_a_query_in_the_address_is_sent(chat_server: Any, open_model: Open) -> None:
    url = f"{chat_server.url}/?version=2"
    open_model([chat_server.say(GOOD)], base_url=url).ask(CHAT, Number)
    assert chat_server.headers[0]["path"] == "/v1/chat/completions?version=2"


def test_a_host_that_cannot_be_is_not_reached(open_model: Open) -> None:
    with pytest.raises(LanguageModelError, match="Cannot reach the language model"):
        open_model([], base_url="http://a..b/", max_retries=0).ask(CHAT, Number)


def test_a_compressed_answer_is_read(chat_server: Any, open_model: Open) -> None:
    import gzip

    body = gzip.compress(chat_server.say(GOOD).body)
    answer = chat_server.answer(body, headers={"Content-Encoding": "gzip"})
    assert open_model([answer]).ask(CHAT, Number).number == 7
    bomb = chat_server.answer(gzip.compress(b" " * 30_000_000), headers=answer.headers)
    with pytest.raises(LanguageModelError, match="longer than 1,000,000 bytes"):
        open_model([bomb], max_retries=0).ask(CHAT, Number)


def test_the_environment_says_what_flags_leave_out(
    chat_server: Any, open_model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_model([chat_server.say(GOOD)] * 2)
    monkeypatch.setenv("OPENAI_MODEL", "small")
    monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("OTHER_KEY", "sk-2")
    LanguageModel.open(None).ask(CHAT, Number)
    LanguageModel.open("large", key_variable="OTHER_KEY").ask(CHAT, Number)
    assert [request["model"] for request in chat_server.requests] == ["small", "large"]
    keys = [headers["authorization"] for headers in chat_server.headers]
    assert keys == ["Bearer sk-1", "Bearer sk-2"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"name": None}, "No language model is named: `--llm` and OPENAI_MODEL"),
        (
            {"base_url": "localhost:1"},
            "Not the address of a language model's server: `localhost:1`",
        ),
        (
            {"base_url": "http://[::1"},
            "Not the address of a language model's server: `http://[::1`",
        ),
        ({}, "The language model's key is missing: `OPENAI_API_KEY` is empty."),
        (
            {"base_url": "http://localhost", "key_variable": "OTHER_KEY"},
            "The language model's key is missing: `OTHER_KEY` is empty.",
        ),
    ],
)
def test_what_is_missing_is_told(open_model: Open, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        LanguageModel.open(**{"name": "tiny", **how})
    assert message in str(error.value)
    assert "offline" in str(error.value) or "--llm-base-url" in str(error.value)


# HTTP libraries quote a header that they cannot send.
@pytest.mark.parametrize("key", ["secret\n", "secret\N{EM DASH}"])
def test_a_key_that_no_header_can_carry_is_refused_unquoted(
    open_model: Open, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="key is not valid: `OPENAI_API_KEY` holds") as error:
        open_model([])
    assert "secret" not in str(error.value)


# `tessella serve` was told of flags that it does not have: --base-url, --offline.
def test_messages_name_flags_that_every_command_has() -> None:
    folder = Path(language_model.__file__).parent
    said = "".join((folder / name).read_text() for name in ("language_model.py", "chat_client.py"))
    named = set(re.findall(r"--[a-z][a-z-]+", said))
    assert said.count("--offline") == said.count("`tessella post --offline`")
    named.remove("--offline")
    assert named == {"--llm", "--llm-base-url", "--llm-timeout-seconds"}
    for command in ("post", "serve"):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
        assert [flag for flag in [*named, "--llm-key-env"] if flag not in shown] == []


def test_the_options_have_the_defaults_of_the_language_model() -> None:
    assert llm_options.DEFAULT_KEY_ENV == language_model.DEFAULT_KEY_VARIABLE
    assert llm_options.DEFAULT_TIMEOUT_SECONDS == language_model.TIMEOUT_SECONDS


def test_the_missing_extra_is_named(open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_client(name: str, *rest: Any) -> Any:
        if name.endswith("chat_client"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_client)
    with pytest.raises(ConfigError, match=r"needs the package `httpx`: pip install 'tess"):
        LanguageModel.open("tiny", base_url="http://localhost")


def test_the_schema_of_the_answer_has_no_limits_that_servers_do_not_know() -> None:
    from tessella.posts.model_writer import _Drafts

    schema = json.dumps(_Drafts.model_json_schema())
    assert not any(word in schema for word in ("minItems", "maxLength", "minLength", "pattern"))
