"""`POST /v1/posts`: what it answers, what it refuses, and that it never gives its insides away."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tessella.posts.deadline import Deadline
from tessella.posts.errors import LanguageModelError
from tessella.posts.language_model import LanguageModel
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel
from tessella.serving.settings import ServeSettings

ASKED = {"business": "Star Shop", "about": "We sell stars. And moons."}


class Chat:
    """A client of a language model that answers by a script."""

    server = "http://secret.example/v1/"

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.deadlines: list[Deadline] = []  # one a question

    def complete(self, request: Any, deadline: Deadline) -> str:
        self.deadlines.append(deadline)
        answer = self.script.pop(0)
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        content = json.dumps({"posts": answer})
        return json.dumps({"choices": [{"message": {"content": content}}]})


def draft(**changes: Any) -> dict[str, Any]:
    good = {"text": "Stars!", "hashtags": ["stars"], "alt_text": "A star.", "label": "star"}
    return good | changes


Start = Callable[..., TestClient]


@pytest.fixture
def start(models: Mapping[str, ServedModel]) -> Iterator[Start]:
    """Serves all models, with a language model that answers by a script, or without one."""
    clients = []

    def start(*script: Any, **limits: Any) -> TestClient:
        language_model = None
        if script:
            chat: Any = script[0] if isinstance(script[0], Chat) else Chat(*script)
            language_model = LanguageModel("writer", chat)
        app = create_app(models, ServeSettings(**limits), language_model=language_model)
        client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def offline(models: Mapping[str, ServedModel]) -> Iterator[TestClient]:
    """Serves all models without a language model; one server for what it refuses."""
    app = create_app(models)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def test_a_language_model_writes_and_the_model_paints(start: Start) -> None:
    client = start([draft(), draft(text="More <b>stars</b>!", label="stars")], [draft()] * 2)
    answer = client.post("/v1/posts", json={**ASKED, "count": 2, "seed": 7, "best_of": 2})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["offline"], found["model"]) == (False, "tiny")
    first, second = found["posts"]
    picture = first.pop("picture")
    assert first == {
        "text": "Stars!",
        "hashtags": ["stars"],
        "alt_text": "A star.",
        "label": "star",
    }
    assert (picture["seed"], second["picture"]["seed"]) == (7, 9)
    with Image.open(io.BytesIO(base64.b64decode(picture["b64_json"]))) as image:
        assert (image.format, image.size) == ("PNG", (16, 16))
    assert found["notes"] == ["Post 2: asked again: the label has unknown words: stars."]


def test_pictures_are_those_of_the_image_api(start: Start) -> None:
    client = start()
    asked = {**ASKED, "seed": 7, "best_of": 2, "count": 2, "model": "twin"}
    posts = client.post("/v1/posts", json=asked).json()["posts"]
    for post in posts:
        said = {"prompt": post["label"], "seed": post["picture"]["seed"], "best_of": 2}
        painted = client.post("/v1/images/generations", json={**said, "model": "twin"}).json()
        assert post["picture"]["b64_json"] == painted["data"][0]["b64_json"]


def test_without_a_language_model_templates_write(start: Start) -> None:
    found = start().post("/v1/posts", json=ASKED).json()
    assert (found["offline"], len(found["posts"])) == (True, 3)
    offline, *others = found["notes"]
    assert offline == "No language model was asked (offline): templates write the posts."
    assert [note.partition(":")[0] for note in others] == ["Post 2", "Post 3"]
    assert all("Star Shop" in post["text"] for post in found["posts"])
    again = start(AssertionError("it was asked")).post("/v1/posts", json={**ASKED, "offline": True})
    assert again.json() == found


def test_a_model_that_cannot_choose_paints_one(start: Start) -> None:
    found = start().post("/v1/posts", json={**ASKED, "model": "mean", "seed": 3}).json()
    assert [post["picture"]["seed"] for post in found["posts"]] == [3, 4, 5]
    assert "cannot rank candidates" in found["notes"][1]


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"business": None}, 400, "business"),
        ({"business": " \x00 "}, 400, "business"),
        ({"about": ""}, 400, "about"),
        ({"about": "a" * 2001}, 400, "about"),
        ({"about": "\u202e \x85\ufeff"}, 400, "about"),
        ({"count": 0}, 400, "count"),
        ({"count": 11}, 400, "count"),
        ({"count": "3"}, 400, "count"),
        ({"platform": "myspace"}, 400, "platform"),
        ({"tone": ""}, 400, "tone"),
        ({"seed": -2}, 400, "seed"),
        ({"best_of": 17}, 400, "best_of"),
        ({"bussiness": "x"}, 400, "bussiness"),
        ({"model": "../tiny"}, 404, "model"),
    ],
)
def test_wrong_requests_are_refused(
    offline: TestClient, changes: dict[str, Any], status: int, param: str | None
) -> None:
    answer = offline.post("/v1/posts", json={**ASKED, **changes})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_json_is_refused(offline: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = offline.post("/v1/posts", content=body, headers=headers)
    assert answer.status_code == 400


def test_a_language_model_that_fails_is_a_503_without_its_insides(start: Start) -> None:
    failure = LanguageModelError("No key sk-secret at http://secret.example")
    answer = start(failure).post("/v1/posts", json=ASKED)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "language_model_failed")
    assert "secret" not in answer.text
    assert "offline" in error["message"]


class HangingChat(Chat):
    """Answers nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()

    def complete(self, *asked: Any) -> str:
        self.script.append([draft()] * 3)
        answer = super().complete(*asked)
        if not self.may_answer.wait(20):
            raise TimeoutError("it may never answer")
        return answer


@pytest.fixture
def hanging() -> Iterator[HangingChat]:
    chat = HangingChat()
    yield chat
    chat.may_answer.set()


def test_a_language_model_that_hangs_is_a_503(start: Start, hanging: HangingChat) -> None:
    client = start(hanging, request_timeout_seconds=1)
    assert client.post("/v1/posts", json=ASKED).status_code == 503
    assert client.get("/healthz").status_code == 200
    # Once it answers it is asked nothing more.
    assert [deadline.left_seconds for deadline in hanging.deadlines] == [0.0]


# Requests that were given up once made room for others while their questions were still answered:
# more than four at a time were paid for.
def test_a_question_keeps_its_place_until_it_is_answered(
    start: Start, hanging: HangingChat, until: Callable[..., None]
) -> None:
    client = start(hanging, request_timeout_seconds=1)
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda _: client.post("/v1/posts", json=ASKED).status_code, range(6))
        assert list(answers) == [503] * 6
    assert client.post("/v1/posts", json=ASKED).status_code == 503
    assert len(hanging.deadlines) == 4
    hanging.may_answer.set()
    until(lambda: client.post("/v1/posts", json=ASKED).status_code == 200)


def test_too_many_requests_are_a_429(
    start: Start, hanging: HangingChat, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessella.serving.posts_routes._AT_ONCE", 1)
    monkeypatch.setattr("tessella.serving.posts_routes._MAX_WAITING", 1)
    client = start(hanging)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(client.post, "/v1/posts", json=ASKED) for _ in range(3)]
        until(lambda: any(answer.done() for answer in answers))
        hanging.may_answer.set()
    refused, *others = sorted((a.result() for a in answers), key=lambda a: -a.status_code)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(refused.headers["Retry-After"]) > 0
    assert [answer.status_code for answer in others] == [200, 200]


# The language model was once asked on, and pictures were painted, for nobody.
def test_a_client_that_hangs_up_stops_the_writing(
    tiny: ServedModel,
    hanging: HangingChat,
    run_app: Callable[..., Any],
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat: Any = hanging
    painted: list[Any] = []
    monkeypatch.setattr(tiny.model, "generate_images", lambda *asked, **how: painted.append(asked))
    app = create_app({"tiny": tiny}, language_model=LanguageModel("writer", chat))
    body = json.dumps(ASKED).encode()
    head = (
        "POST /v1/posts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with run_app(app) as server:
        with server.connect(head.encode() + body):
            until(lambda: hanging.deadlines)
            assert hanging.deadlines[0].left_seconds > 60
        until(lambda: not hanging.deadlines[0].left_seconds)
        hanging.may_answer.set()
        until(lambda: all(thread.name != "writing" for thread in threading.enumerate()))
    assert painted == []


# With settings of its own the server once painted as many pictures, of as many candidates, as
# anybody liked.
def test_the_limits_of_the_server_hold(start: Start) -> None:
    client = start(max_pictures=2, max_best_of=3)
    for changes in ({"count": 3}, {"best_of": 4}):
        answer = client.post("/v1/posts", json={**ASKED, **changes})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(changes))
    found = client.post("/v1/posts", json=ASKED).json()
    assert [post["picture"]["seed"] for post in found["posts"]] == [0, 3]
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/posts"]["post"]["requestBody"]["content"]["application/json"]
    said = body["schema"]["properties"]
    assert [said[name]["anyOf"][0]["maximum"] for name in ("count", "best_of")] == [2, 3]


# The log of prompts was empty for posts.
@pytest.mark.parametrize("is_logged", [True, False])
def test_what_is_asked_is_logged_when_asked_for(
    start: Start, caplog: pytest.LogCaptureFixture, is_logged: bool
) -> None:
    with caplog.at_level("INFO", "tessella.access"):
        start(log_prompts=is_logged).post("/v1/posts", json={**ASKED, "count": 1})
    line = json.loads(caplog.records[-1].message)
    prompt = "Star Shop: We sell stars. And moons." if is_logged else None
    assert line.get("prompt") == prompt


# SIGTERM once ended nothing as long as a language model was asked.
def test_sigterm_ends_a_server_that_waits_for_a_language_model() -> None:
    command = [sys.executable, "-m", "tessella", "serve", "scenes", "--port", "0"]
    command += ["--device", "cpu", "--set", "serve.shutdown_timeout_seconds=1", "--llm", "slow"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        process = subprocess.Popen(
            [*command, "--llm-base-url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[2].rpartition(":")[2])
            body = json.dumps(ASKED)
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(
                    b"POST /v1/posts HTTP/1.1\r\nHost: localhost\r\n"
                    b"Content-Type: application/json\r\n"
                    + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                asked, _ = silent.accept()
                with asked:
                    started = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                    _, log = process.communicate(timeout=60)
            assert process.returncode == 0, log
            assert time.monotonic() - started < 30
        finally:
            process.kill()
            process.communicate()
