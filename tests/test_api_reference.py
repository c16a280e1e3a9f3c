"""The API's reference is written from its OpenAPI document, which must not have gaps."""

import copy
import importlib.util
import types
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "docs" / "api_reference.py"


@pytest.fixture(scope="module")
def api_reference() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("api_reference", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCUMENT: dict[str, Any] = {
    "paths": {
        "/v1/paint": {
            "post": {
                "summary": "Paint",
                "requestBody": {
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Wish"}}
                    }
                },
                "responses": {
                    "200": {
                        "description": "Pictures.",
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Got"}}
                        },
                    },
                    "400": {"description": "Wrong."},
                    "429": {"description": "Full."},
                },
            }
        },
        "/v1/last": {
            "get": {
                "summary": "Show the last ones",
                "parameters": [
                    {"name": "n", "in": "query", "schema": {"type": "integer", "minimum": 1}}
                ],
                "responses": {
                    "200": {
                        "description": "Successful Response",
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Got"}}
                        },
                    },
                    "400": {"description": "Wrong."},
                },
            }
        },
    },
    "components": {
        "schemas": {
            "Wish": {
                "properties": {
                    "seed": {
                        "anyOf": [
                            {"type": "integer", "minimum": 0, "maximum": 281474976710655.0},
                            {"type": "null"},
                        ],
                        "description": "Of\nchance.",
                    },
                    "prompt": {"type": "string", "minLength": 1, "description": "What | which."},
                },
                "required": ["prompt"],
            },
            "Got": {
                "properties": {
                    "data": {"type": "array", "items": {"$ref": "#/components/schemas/One"}},
                    "grid": {
                        "type": "array",
                        "prefixItems": [{"type": "integer"}, {"type": "integer"}],
                    },
                }
            },
            "One": {"properties": {"url": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
        }
    },
}


def test_an_operation_shows_its_fields_answers_and_errors(
    api_reference: types.ModuleType,
) -> None:
    page = api_reference.api_page(DOCUMENT, "<!-- generated -->")
    _, rest = page.split("## POST /v1/paint\n\n")
    assert rest == (
        "Paint.\n\n"
        "Body, `application/json`:\n\n"
        "| field | type | required | range | description |\n"
        "|---|---|---|---|---|\n"
        "| `prompt` | text | yes | length ≥ 1 | What \\| which. |\n"
        "| `seed` | whole number |  | ≥ 0, ≤ 281474976710655 | Of chance. |\n\n"
        "Answer 200, `application/json`: Pictures.\n\n"
        "| field | type |\n"
        "|---|---|\n"
        "| `data[].url` | text or null |\n"
        "| `grid` | [whole number, whole number] |\n\n"
        "Errors beside [those of all](#errors):\n\n"
        "| status | when |\n"
        "|---|---|\n"
        "| 429 | Full. |\n\n"
        "## GET /v1/last\n\n"
        "Show the last ones.\n\n"
        "| parameter | in | type | range |\n"
        "|---|---|---|---|\n"
        "| `n` | query | whole number | ≥ 1 |\n\n"
        "Answer 200, `application/json`.\n\n"
        "Its fields are those of [POST /v1/paint](#post-v1paint).\n\n"
        "## Errors\n\n"
        "Every operation may answer these, with an error object as the body.\n\n"
        "| status | when |\n"
        "|---|---|\n"
        "| 400 | Wrong. |\n"
    )


def test_a_field_or_an_operation_that_nobody_described_is_refused(
    api_reference: types.ModuleType,
) -> None:
    document = copy.deepcopy(DOCUMENT)
    del document["components"]["schemas"]["Wish"]["properties"]["seed"]["description"]
    del document["paths"]["/v1/last"]["get"]["summary"]
    with pytest.raises(api_reference.UndocumentedApiError) as refused:
        api_reference.api_page(document, "")
    assert str(refused.value).startswith(
        "Without a description: `POST /v1/paint seed`, `GET /v1/last`. "
    )
