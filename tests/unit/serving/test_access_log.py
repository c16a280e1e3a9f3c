"""What is told of a request: one line, counters, an id; no prompt, no key, no address."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tessella.serving.access_log import ACCESS_LOG, hide_words

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "k" * 32
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    """The lines of the access log so far."""
    with caplog.at_level(logging.INFO, ACCESS_LOG):
        yield lambda: [json.loads(r.getMessage()) for r in caplog.records if r.name == ACCESS_LOG]


def test_a_line_for_each_request(server: Any, lines: Lines, until: Any) -> None:
    server.generate(n=2)
    until(lambda: len(lines()) == 1)
    [line] = lines()
    assert list(line) == [
        "time", "id", "client", "method", "route", "status", "seconds", "painted", "model",
    ]  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"])
    assert re.fullmatch(r"[0-9a-f]{16}", line["id"])
    assert (line["client"], line["method"], line["status"]) == ("127.0.0.1", "POST", 200)
    assert (line["route"], line["painted"]) == ("/v1/images/generations", 2)
    assert line["model"] == "tiny"
    assert 0 < line["seconds"] < 20


def test_no_line_says_what_is_nobodys_business(
    serve: Callable[..., Any], lines: Lines, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(keys=[KEY])
    headers = {"Authorization": f"Bearer {KEY}"}
    said = {"prompt": "hush hush", "user": "hush me", "negative_prompt": "hush no"}
    path = "/images/generations"
    answer = server.post(path, json={**said, "response_format": "url"}, headers=headers)
    url = answer.json()["data"][0]["url"]
    server.client.get(url)
    server.post(path, json=said, headers={"Authorization": "Bearer hush-wrong-key-00"})
    server.post(path, json=said | {"hush hush": 1}, headers=headers)
    server.get("/v1/models/hush%20hush/card", headers=headers)
    server.get("/hush?hush=hush", headers=headers)
    until(lambda: len(lines()) == 6)
    assert "hush" not in caplog.text
    assert KEY not in caplog.text
    assert url.rpartition("/")[2] not in caplog.text
    assert [line["status"] for line in lines()] == [200, 200, 401, 400, 404, 404]
    assert [line["route"] for line in lines()] == [
        "/v1/images/generations",
        "/v1/pictures/{name}",
        "other",
        "/v1/images/generations",
        "/v1/models/{name}/card",
        "other",
    ]


@pytest.mark.parametrize(
    ("said", "code", "param", "error"),
    [
        ({"stepz": 8}, "unknown_parameter", "stepz",
         "Unknown parameter: `stepz`. Did you mean `steps`?"),
        ({"model": "dall-e-3"}, "model_not_found", "model",
         "There is no such model: `dall-e-3`. This server has: `tiny`, `twin`, `raster`, `atonce`, "
         "`mean`. Ask for one of them, or serve one under this name: `tessella serve "
         "dall-e-3=MODEL`; with `--any-model` the first answers to every name."),
        ({"n": 11}, "invalid_value", "n",
         "`n` is wrong: `11`. Input should be less than or equal to 10."),
        ({"prompt": "hush " * 801}, "invalid_value", "prompt",
         "`prompt` is wrong: `…`. String should have at most 4000 characters."),
        ({"prompt": ["hush` n` hush `n"]}, "invalid_value", "prompt",
         "`prompt` is wrong: `…`. Input should be a valid string."),
        ({"size": "hush"}, "invalid_value", "size",
         "`size` is wrong: `…` or WIDTHxHEIGHT, each side of 16 to 2048 pixels."),
        ({"references": ["hush"]}, None, None, None),
    ],
)  # fmt: skip
def test_why_a_request_was_refused(
    said: Any, code: Any, param: Any, error: Any, server: Any, lines: Lines, until: Any
) -> None:
    answer = server.generate(**said)
    assert answer.status_code in (400, 404)
    until(lambda: len(lines()) == 1)
    [line] = lines()
    assert "hush" not in json.dumps(line)
    if error is not None:
        assert (line["code"], line["param"], line["error"]) == (code, param, error)


def test_refusals_of_every_kind_are_explained(
    serve: Callable[..., Any], lines: Lines, until: Any
) -> None:
    server = serve(max_body_bytes=1000)
    server.get("/v1/models", headers={"Host": "paint.example"})
    server.get("/v1/models", headers={"Origin": "https://page.example"})
    server.post("/images/generations", content=b"x" * 2000)
    server.get("/hush/hush")
    until(lambda: len(lines()) == 4)
    assert [line["code"] for line in lines()] == [
        "unknown_host", "foreign_origin", "body_too_large", "not_found",
    ]  # fmt: skip
    host, origin, large, address = (line["error"] for line in lines())
    assert "`paint.example`" in host
    assert "`https://page.example`" in origin
    assert "at most 1,000 bytes" in large
    assert address.startswith("There is nothing at this address. GET `/v1/models` lists")
    assert address.endswith("Got: `…`.")


def test_an_error_in_a_stream_is_explained(
    server: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, lines: Lines, until: Any
) -> None:
    decode, shown = tiny.model.decode_codes, []

    def fail_later(*codes: Any) -> Any:
        shown.append(codes)
        if len(shown) == 2:
            raise OSError("hush")
        return decode(*codes)

    monkeypatch.setattr(tiny.model, "decode_codes", fail_later)
    server.generate(stream=True, partial_images=2)
    until(lambda: len(lines()) == 1)
    assert (lines()[0]["status"], lines()[0]["code"]) == (200, "internal_error")


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        ("No words.", "No words."),
        ("`n` is wrong: `12`, or `1.5`.", "`n` is wrong: `12`, or `1.5`."),
        ("`n` is wrong: `hush`. Expected `n`.", "`n` is wrong: `…`."),
        ("Too long: `hu`sh`.", "Too long: `…`."),
        ("Unknown: `hush", "Unknown: `…`"),
    ],
)
def test_words_of_clients_are_hidden(message: str, logged: str) -> None:
    assert hide_words(message, {"n"}) == logged


def test_prompts_are_logged_if_asked(serve: Callable[..., Any], lines: Lines, until: Any) -> None:
    server = serve(log_prompts=True)
    server.generate(prompt='a "red"\nstar \u2028')
    until(lambda: len(lines()) == 1)
    assert lines()[0]["prompt"] == 'a "red"\nstar \u2028'


def test_ids_of_requests(server: Any, lines: Lines, until: Any) -> None:
    for given in ("mine-1.2_3", "x" * 64):
        assert (
            server.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given
        )
    drawn = set()
    for given in ("", "x" * 65, "a b", "<script>", b"\xff", "a/../b"):
        answer = server.get("/nothing", headers={"X-Request-Id": given})
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])
        drawn.add(answer.headers["x-request-id"])
    assert len(drawn) == 6
    until(lambda: len(lines()) == 8)
    assert {line["id"] for line in lines()} == {"mine-1.2_3", "x" * 64, *drawn}


def test_all_answers_have_an_id(serve: Callable[..., Any]) -> None:
    server = serve(keys=[KEY], max_body_bytes=1000, allow_origins=("https://a.example",))
    for answer in (
        server.get("/"),
        server.get("/v1/models"),
        server.post("/images/edits", content=b"x" * 2000),
        server.client.options("/v1/models"),
        server.generate(stream=True),
    ):
        assert answer.headers["x-request-id"]


def test_requests_are_counted(serve: Callable[..., Any], until: Any) -> None:
    server = serve()
    for path in ("/made/up/1", "/made/up/2", "/v1/models/a/card", "/v1/models/b/card", "/healthz"):
        server.get(path)
    server.generate(n=3, stream=True)
    until(lambda: server.metric("tessella_seconds_count", phase="request") == 1)
    until(lambda: server.metric("tessella_pictures_total", model="tiny") == 3)
    told = server.get("/metrics").text
    assert 'tessella_requests_total{route="other",status="404"} 2.0' in told
    assert 'tessella_requests_total{route="/v1/models/{name}/card",status="404"} 2.0' in told
    assert 'tessella_requests_total{route="/healthz",status="200"} 1.0' in told
    assert 'tessella_pictures_total{model="tiny"} 3.0' in told
    assert "tessella_batch_size_sum 3.0" in told
    assert "tessella_queue_pictures 0.0" in told
    for phase, count in (("wait", 3), ("paint", 1), ("encode", 3), ("request", 1)):
        assert f'tessella_seconds_count{{phase="{phase}"}} {count}.0' in told
    assert "made" not in told


def test_servers_count_for_themselves(serve: Callable[..., Any], until: Any) -> None:
    first, second = serve(), serve()
    first.generate()
    until(lambda: first.metric("tessella_pictures_total", model="tiny") == 1)
    assert second.metric("tessella_pictures_total", model="tiny") == 0
