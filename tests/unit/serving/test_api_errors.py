"""Errors: OpenAI's object, and never more than a person may know."""

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import torch

from tessella.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GenerationError,
    ShapeError,
    TessellaError,
)
from tessella.serving.api_errors import ApiError, JsonResponse, to_api_error
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel
from tessella.serving.settings import ServeSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SECRETS = ("Traceback", "/root", "secret", ".py", "tessella.", "site-packages", "uvicorn")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_each_status_has_its_type(status: int, kind: str) -> None:
    error = ApiError(status, "What.", param="n", code="wrong", retry_after=7)
    expected = {"message": "What.", "type": kind, "param": "n", "code": "wrong"}
    assert error.body == {"error": expected}
    answer = error.to_response({"Connection": "close"})
    assert answer.status_code == status
    assert json.loads(bytes(answer.body)) == error.body
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["connection"] == "close"
    assert ("www-authenticate" in answer.headers) is (status == 401)


def test_no_text_breaks_the_json() -> None:
    odd = "\ud800 \x00 \u2028 </script> 🌈"
    answer = JsonResponse({"odd": odd})
    assert bytes(answer.body).isascii()
    assert json.loads(bytes(answer.body)) == {"odd": odd}
    with pytest.raises(ValueError, match="not JSON compliant"):
        JsonResponse({"value": float("nan")})


@pytest.mark.parametrize("kind", [GenerationError, ConfigError, DataError, ShapeError])
def test_what_is_wrong_with_a_request_is_said(
    kind: type[TessellaError], caplog: pytest.LogCaptureFixture
) -> None:
    error = to_api_error(kind("Too long: `x`. Shorten it."))
    assert (error.status, str(error)) == (400, "Too long: `x`. Shorten it.")
    assert caplog.text == ""
    assert to_api_error(error) is error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CheckpointError("Damaged: `/root/m/config.json`."), "A model's files are damaged on the"),
        (OSError(28, "No space left", "/root/secret"), "Something failed on the server; its log"),
    ],
)
def test_what_is_wrong_with_the_server_goes_to_its_log(
    error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = to_api_error(error)
    assert (found.status, found.code) == (500, "internal_error")
    assert str(found).startswith(said)
    assert "/root" not in str(found)
    assert type(error).__name__ in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_said(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    found = to_api_error(error)
    assert (found.status, found.code, found.retry_after) == (503, "out_of_memory", 5)
    assert str(found).startswith("The server has too little memory for this. Ask for fewer")
    assert type(error).__name__ in caplog.text


def check(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Checks an error's form and that it says nothing of the inside; returns it."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    said = answer.text + str(answer.headers)
    assert not [secret for secret in SECRETS if secret in said]
    body: dict[str, Any] = answer.json()["error"]
    assert list(body) == ["message", "type", "param", "code"]
    return body


def test_an_internal_failure_says_nothing_of_the_inside(
    server: Any, tiny: ServedModel, watch: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    watch(tiny.model).broken = "a red star"

    def count() -> float:
        route = "/v1/images/generations"
        return float(server.metric("tessella_requests_total", route=route, status="500"))

    before = count()
    body = check(server.generate(), 500)
    assert body == {
        "message": "Something failed on the server; its log says what.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "secret: /root/weights.bin" in caplog.text
    assert server.num_waiting == 0
    until(lambda: count() == before + 1)
    streamed = server.generate(stream=True)
    check(streamed, 500)  # before the first event the status still says it


def test_failures_in_a_stream_are_an_event(
    server: Any, tiny: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, shown = tiny.model.decode_codes, []

    def fail_later(*codes: Any) -> Any:
        shown.append(codes)
        if len(shown) == 2:
            raise OSError("/root/secret")
        return decode(*codes)

    monkeypatch.setattr(tiny.model, "decode_codes", fail_later)
    answer = server.generate(stream=True, partial_images=2)
    assert answer.status_code == 200
    *_, last = answer.text.strip().split("\n\n")
    name, data = last.split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert not [secret for secret in SECRETS if secret in answer.text]


def test_failures_of_a_route_are_counted_have_an_id_and_are_told_once(
    tiny: ServedModel,
    run_app: Callable[..., Any],
    until: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They were answered outside of the access log: status 0, no id, told twice."""
    broken = dataclasses.replace(tiny, name="broken", card=object())
    route = "/v1/models/{name}/card"
    with run_app(create_app({"broken": broken})) as found:
        answer = found.get("/v1/models/broken/card", headers={"X-Request-Id": "mine"})
        check(answer, 500)
        assert answer.headers["x-request-id"] == "mine"
        until(lambda: found.metric("tessella_requests_total", route=route, status="500") == 1)
        assert found.metric("tessella_requests_total", route=route, status="0") == 0
        assert found.get("/healthz").status_code == 200
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/unknown", 404),
        ("GET", "/v1/models/unknown/card", 404),
        ("GET", "/v1/models/unknown/samples.png", 404),
        ("GET", "/v1/models/unknown/codebook", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/studio/../../settings.py", 404),
        ("GET", "/studio/%2e%2e/settings.py", 404),
        ("GET", "/studio/", 404),
        ("GET", "/studio", 404),
        ("GET", "/v1/pictures/nothing.png", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/images/generations", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/", 405),
        ("PUT", "/healthz", 405),
        ("TRACE", "/v1/models", 405),
        ("POST", "/v1/images/generations", 415),
        ("POST", "/v1/images/edits", 415),
    ],
)
def test_addresses_and_methods(method: str, path: str, status: int, server: Any) -> None:
    answer = server.client.request(method, path)
    check(answer, status)
    if status == 405:
        assert answer.headers["allow"]


def test_all_methods_of_an_address_are_told(server: Any) -> None:
    """Each is a route of its own; the first alone was told."""
    answer = server.client.request("DELETE", "/sdapi/v1/options")
    assert answer.headers["allow"] == "GET, POST"
    assert answer.json()["error"]["message"].endswith("It takes GET, POST.")


def test_a_model_that_is_not_there(server: Any) -> None:
    body = check(server.generate(model="dall-e-2"), 404)
    assert body["code"] == "model_not_found"
    assert body["param"] == "model"
    assert body["message"].startswith(
        "There is no such model: `dall-e-2`. This server has: `tiny`, `twin`"
    )
    assert "`tessella serve dall-e-2=MODEL`; with `--any-model` the first" in body["message"]


@pytest.mark.parametrize("name", ["dall-e-3", "gpt-image-1", "with blank", "x" * 200])
def test_one_model_answers_to_any_name(name: str, serve: Callable[..., Any]) -> None:
    """Clients have names hard-coded; the answer says who painted."""
    server = serve()
    answer = server.generate(model=name)
    assert answer.status_code == 200
    assert answer.json()["model"] == "tiny"
    assert server.get("/v1/models/dall-e-3").json()["id"] == "tiny"
    assert server.get("/v1/models/dall-e-3/card").status_code == 404
    check(serve(any_model=False).generate(model=name), 404)


def test_the_first_of_several_answers_if_it_was_told_to(
    models: Any, run_app: Callable[..., Any]
) -> None:
    with run_app(create_app(models, ServeSettings(any_model=True))) as found:
        assert found.generate(model="dall-e-3").json()["model"] == "tiny"
        assert found.generate(model="twin").json()["model"] == "twin"


def test_a_server_without_models(run_app: Callable[..., Any]) -> None:
    with run_app(create_app({})) as found:
        assert found.get("/v1/models").json() == {"object": "list", "data": []}
        body = check(found.generate(), 404)
        assert body["message"] == "There is no such model: `any`. This server has: none yet."
        assert check(found.get("/v1/models/a"), 404)["code"] == "model_not_found"
        assert found.get("/").status_code == 200


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("width", " Here it is `size`, WIDTHxHEIGHT in pixels, such as `512x512`."),
        ("aspect_ratio", " Here it is `size`, WIDTHxHEIGHT in pixels, such as `512x512`."),
        ("num_inference_steps", " Here it is `steps`."),
        ("cfg_scale", " Here it is `guidance_scale`."),
        ("CFG-Scale", " Here it is `guidance_scale`."),
        ("sampler_name", " Here it is `order`, in which the positions of a picture are filled."),
        ("num_images", " Here it is `n`."),
        ("denoising_strength", ""),  # of edits
        ("sizes", " Did you mean `size`?"),
        ("zebra", ""),
    ],
)
def test_hints_go_by_meaning(name: str, hint: str, server: Any) -> None:
    body = check(server.generate(**{name: 1}), 400)
    assert body["message"] == f"Unknown parameter: `{name}`.{hint}"
