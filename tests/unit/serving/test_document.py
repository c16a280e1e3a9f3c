"""The OpenAPI document: what FastAPI does not find out by itself."""

from collections.abc import Callable
from typing import Any

import pytest

from tessella.serving.app import create_app
from tessella.serving.document import ERRORS
from tessella.serving.schemas import EditBody, GenerationBody, create_body
from tessella.serving.settings import ServeSettings

OPEN = {"/v1/studio", "/v1/pictures/{name}", "/healthz", "/readyz"}


@pytest.fixture(scope="module")
def document(models: Any) -> dict[str, Any]:
    return create_app(models).openapi()


def test_it_is_served_and_made_once(server: Any) -> None:
    first = server.get("/openapi.json")
    assert first.json() == server.get("/openapi.json").json()
    assert server.app.openapi() is server.app.openapi()
    for path in ("/docs", "/redoc"):
        assert server.get(path).status_code == 404


def test_it_names_every_address_that_is_served(document: dict[str, Any], server: Any) -> None:
    for path, operations in document["paths"].items():
        for method in operations:
            found = path.replace("{name}", "tiny")
            answer = server.client.request(method, found)
            assert answer.status_code not in (405, 500), (method, path)
    assert "/studio/main.js" not in document["paths"]
    assert "/" not in document["paths"]


def test_bodies_are_told_with_their_limits(models: Any) -> None:
    document = create_app(models, ServeSettings(max_pictures=3)).openapi()
    request = document["paths"]["/v1/images/generations"]["post"]["requestBody"]
    assert request["required"] is True
    schema = request["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(
        create_body(GenerationBody, ServeSettings()).model_fields
    )
    assert schema["required"] == ["prompt"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["n"]["anyOf"][0]["maximum"] == 3
    for field in schema["properties"].values():
        assert field["description"]


def test_forms_are_told_with_their_files(document: dict[str, Any]) -> None:
    def form(path: str) -> dict[str, Any]:
        body = document["paths"][f"/v1/images/{path}"]["post"]["requestBody"]
        return dict(body["content"]["multipart/form-data"]["schema"])

    edits = form("edits")
    assert set(edits["properties"]) == {
        *create_body(EditBody, ServeSettings()).model_fields,
        "image",
        "image[]",
        "mask",
    }
    assert edits["required"] == ["image", "prompt"]
    assert edits["properties"]["mask"]["format"] == "binary"
    # A form cannot say null.
    for field in edits["properties"].values():
        assert {"type": "null"} not in field.get("anyOf", ())
    assert edits["properties"]["n"]["type"] == "integer"
    assert form("variations")["required"] == ["image"]
    assert set(form("reconstructions")["properties"]) == {"image", "model"}


@pytest.mark.parametrize("keys", [(), ("k" * 32,)])
def test_what_needs_a_key(keys: tuple[str, ...], models: Any, run_app: Callable[..., Any]) -> None:
    """It says so of exactly what is answered 401 without one."""
    app = create_app(models, keys=keys)
    document = app.openapi()
    assert ("securitySchemes" in document["components"]) is bool(keys)
    with run_app(app) as server:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                answer = server.client.request(method, path.replace("{name}", "none"))
                assert (answer.status_code == 401) is ("security" in operation), path
                assert ("security" in operation) is (bool(keys) and path not in OPEN)


def test_all_errors_are_told(document: dict[str, Any]) -> None:
    for operations in document["paths"].values():
        for operation in operations.values():
            assert {str(status) for status in ERRORS} <= set(operation["responses"])
