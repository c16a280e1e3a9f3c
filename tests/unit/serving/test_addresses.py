"""Addresses: the one that a client means, below a proxy's path, and HEAD."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tessella.serving.addresses import find_address

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWN = (
    "/healthz",
    "/sdapi/v1/txt2img",
    "/v1/images/edits",
    "/v1/images/generations",
    "/v1/models",
    "/v1/models/{name}",
)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/images/generations", "/v1/images/generations"),
        ("/v1/v1/images/generations", "/v1/images/generations"),
        ("/v1/images/generations/", "/v1/images/generations"),
        ("//v1//images//edits", "/v1/images/edits"),
        ("/api/v1/models", "/v1/models"),
        ("/models/stars", "/v1/models/stars"),
        ("/openai/deployments/dall-e-3/images/generations", "/v1/images/generations"),
        ("/v1/image/generation", "/v1/images/generations"),
        ("/v1/sdapi/v1/txt2img", "/sdapi/v1/txt2img"),
        ("/v1/healthz", "/healthz"),
        ("/", None),
        ("/v1", None),
        ("/v1/chat/completions", None),
        ("/" * 5000 + "x" * 5000, None),
    ],
)
def test_the_address_that_is_meant(path: str, meant: str | None) -> None:
    assert find_address(path, KNOWN) == meant


def test_a_wrong_address_is_told_the_right_one(server: Any) -> None:
    for path in ("/images/generations", "/v1/v1/images/generations", "/v1/images/generations/"):
        answer = server.client.post(path, json={"prompt": "a star"})
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == (
            "There is nothing at this address. Did you mean `/v1/images/generations`? The base URL "
            "of OpenAI's clients ends in `/v1`, AUTOMATIC1111's has no path. "
            f"Got: `{path}`."
        )
    said = server.get("/v1/chat/completions").json()["error"]["message"]
    assert "GET `/v1/models` lists the models, `/openapi.json` all addresses." in said
    # What a client made up is quoted only where it looks like an address.
    said = server.get("/a%60b").json()["error"]["message"]
    assert "Got" not in said


def test_a_wrong_method_is_told_the_right_one(server: Any) -> None:
    answer = server.get("/v1/images/generations")
    assert answer.status_code == 405
    assert answer.json()["error"]["message"] == (
        "The method is wrong for this address: `GET`. It takes POST."
    )


def test_head_is_answered_wherever_get_is(server: Any) -> None:
    """Load balancers ask for the health by HEAD, which got a 405."""
    for path in ("/healthz", "/readyz", "/v1/models", "/metrics", "/", "/sdapi/v1/options"):
        got, head = server.get(path), server.client.head(path)
        assert head.status_code == got.status_code == 200, path
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
    assert server.client.head("/v1/images/generations").status_code == 405


def test_below_the_path_of_a_proxy(serve: Callable[..., Any]) -> None:
    """Whether the proxy passes its path on, or removes it."""
    server = serve(root_path="/paint/", keys=["k" * 32])
    headers = {"Authorization": "Bearer " + "k" * 32}
    for prefix in ("", "/paint"):
        page = server.get(f"{prefix}/")
        assert page.status_code == 200
        for address in re.findall(r'(?:href|src)="([^"#]+)"', page.text):
            assert not address.startswith("/")
            assert server.get(f"{prefix}/{address}").status_code == 200
        assert server.get(f"{prefix}/v1/models").status_code == 401
        assert server.get(f"{prefix}/v1/models", headers=headers).status_code == 200
        said = {"prompt": "a star", "response_format": "url"}
        answer = server.client.post(
            f"{prefix}/v1/images/generations", json=said, headers=headers
        ).json()
        url = answer["data"][0]["url"]
        assert url.startswith(f"{server.url}/paint/v1/pictures/")
        assert server.client.get(url).status_code == 200
    bare = server.get("/paint")
    assert (bare.status_code, bare.headers["location"]) == (308, "/paint/")
    document = server.get("/openapi.json", headers=headers).json()
    assert document["servers"] == [{"url": "/paint"}]
    assert server.get("/painter/v1/models", headers=headers).status_code == 404


def test_modules_of_the_page_name_no_absolute_address(server: Any) -> None:
    from tessella.serving.studio import STUDIO_FOLDER

    for file in STUDIO_FOLDER.rglob("*"):
        if file.suffix in (".js", ".css") and "vendor" not in file.parts:
            found = re.findall(r"""(?:from |import\(|url\()["']/""", file.read_text("utf-8"))
            assert not found, file
