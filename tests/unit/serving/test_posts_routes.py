"""`POST /v1/posts`: what it answers, what it refuses, and that it never gives its insides away."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

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

    def complete(self, model: str, messages: Sequence[Mapping[str, str]], how: Any) -> str:
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
            chat: Any = Chat(*script)
            language_model = LanguageModel("writer", chat, sleep=lambda seconds: None)
        app = create_app(models, ServeSettings(**limits), language_model=language_model)
        client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


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
    assert found["notes"] == ["No language model was asked (offline): templates write the posts."]
    assert all("Star Shop" in post["text"] for post in found["posts"])
    again = start(AssertionError("it was asked")).post("/v1/posts", json={**ASKED, "offline": True})
    assert again.json() == found


def test_a_model_that_cannot_choose_paints_one(start: Start) -> None:
    found = start().post("/v1/posts", json={**ASKED, "model": "mean", "seed": 3}).json()
    assert [post["picture"]["seed"] for post in found["posts"]] == [3, 4, 5]
    assert "cannot choose the best of several pictures" in found["notes"][1]


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
        ({"seed": -1}, 400, "seed"),
        ({"best_of": 17}, 400, "best_of"),
        ({"bussiness": "x"}, 400, "bussiness"),
        ({"model": "../tiny"}, 404, "model"),
    ],
)
def test_wrong_requests_are_refused(
    start: Start, changes: dict[str, Any], status: int, param: str | None
) -> None:
    answer = start().post("/v1/posts", json={**ASKED, **changes})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_json_is_refused(start: Start, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = start().post("/v1/posts", content=body, headers=headers)
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


def test_a_language_model_that_hangs_is_a_503(start: Start) -> None:
    """The thread that waits for it is left behind; the server goes on."""
    end = threading.Event()

    def hang() -> Exception:
        end.wait(20)
        return LanguageModelError("too late")

    client = start(hang, request_timeout_seconds=0.3)
    try:
        assert client.post("/v1/posts", json=ASKED).status_code == 503
        assert client.get("/healthz").status_code == 200
    finally:
        end.set()


def test_too_many_requests_are_a_429(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.serving.posts_routes._MAX_WAITING", 0)
    answer = start().post("/v1/posts", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(answer.headers["Retry-After"]) > 0
