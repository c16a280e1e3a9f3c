"""What requests may say: read strictly, refused by name."""

import asyncio
import json
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.generation import GenerationSettings
from tessella.serving import bodies, schemas
from tessella.serving.api_errors import ApiError
from tessella.serving.bodies import read_fields
from tessella.serving.schemas import RequestBody, create_body
from tessella.serving.settings import ServeSettings

GenerationBody = create_body(schemas.GenerationBody, ServeSettings())
EditBody = create_body(schemas.EditBody, ServeSettings())
VariationBody = create_body(schemas.VariationBody, ServeSettings())


class Received:
    """A request that has arrived."""

    headers: ClassVar = {"content-type": "application/json"}

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def body(self) -> bytes:
        return self.content


def read_json(kind: type[RequestBody], content: bytes) -> Any:
    return asyncio.run(bodies.read_json(Received(content), kind))  # type: ignore[arg-type]


NUMBERS = ("n", "seed", "steps", "best_of", "top_k", "partial_images", "output_compression")
EVERYTHING = {
    "prompt": "a red star",
    "model": "tiny",
    "n": 10,
    "size": "64x64",
    "canvas": "2x1",
    "response_format": "url",
    "output_format": "webp",
    "output_compression": 0,
    "stream": False,
    "partial_images": 16,
    "seed": 2**48 - 1,
    "steps": 64,
    "guidance_scale": 0,
    "temperature": 0,
    "top_k": 1,
    "top_p": 1,
    "guidance_schedule": "linear",
    "order": "halton",
    "confidence_temperature": 1000,
    "neighbors": 16,
    "step_schedule": "arccos",
    "best_of": 16,
    "negative_prompt": "",
    "pinned": [0, 7],
    "excluded": [3],
    "references": ["AAAA"],
    "quality": "hd",
    "complexity": "low",
    "style": "vivid",
    "background": "opaque",
    "moderation": "low",
    "user": "me",
    "safety_identifier": "x",
}


def refuse(content: bytes | dict[str, Any], kind: type[RequestBody] = GenerationBody) -> ApiError:
    """Reads what has to be refused."""
    sent = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(ApiError) as caught:
        read_json(kind, sent)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 300
    return caught.value


def refuse_value(**said: Any) -> ApiError:
    error = refuse({"prompt": "a"} | said)
    [name] = said
    assert error.code == "invalid_value"
    assert error.param == name
    assert str(error).startswith(f"`{name}` is wrong: `")
    return error


# The settings.


def test_every_generation_setting_is_a_field() -> None:
    """With its type, its limits, or a server's narrower ones, and its help."""
    settings = GenerationSettings.model_json_schema()["properties"]
    fields = GenerationBody.model_json_schema()["properties"]
    for name, setting in settings.items():
        [kind, null] = fields[name]["anyOf"]
        own = {"steps": 64, "top_k": 1_000_000}
        limits = {"maximum": own[name]} if name in own else {}
        expected = setting.get("anyOf", [setting])[0] | limits
        ignored = {"description", "title", "default"}
        assert kind == {key: value for key, value in expected.items() if key not in ignored}
        assert null == {"type": "null"}
        assert fields[name]["description"].startswith(setting["description"])


def test_settings_that_are_given_are_passed_on() -> None:
    settings = {name: EVERYTHING[name] for name in GenerationSettings.model_fields}
    body = read_json(GenerationBody, json.dumps(EVERYTHING).encode())
    assert body.sampling() == settings
    assert read_json(GenerationBody, b'{"prompt":"a","top_k":null}').sampling() == {}
    assert read_fields(EditBody, {"prompt": "a", "order": "random"}).sampling() == {
        "order": "random"
    }


# JSON.


def test_all_that_may_be_said_and_nothing_but_the_prompt() -> None:
    body = read_json(GenerationBody, json.dumps(EVERYTHING).encode())
    assert body.model_dump() == EVERYTHING
    assert set(GenerationBody.model_fields) == set(EVERYTHING)
    least = read_json(GenerationBody, b'{"prompt":"a"}')
    assert set(least.model_dump(exclude={"prompt"}).values()) == {None}
    nothing = {name: None for name in EVERYTHING} | {"prompt": "a"}
    assert read_json(GenerationBody, json.dumps(nothing).encode()) == least


@pytest.mark.parametrize("name", NUMBERS)
def test_a_whole_number_is_one_however_it_is_written(name: str) -> None:
    for written in ("4", "4.0", "4e0", "40.0e-1", "0.4E+1"):
        body = read_json(GenerationBody, f'{{"prompt":"a","{name}":{written}}}'.encode())
        assert getattr(body, name) == 4
        assert type(getattr(body, name)) is int


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "written",
    ["true", '"4"', "4.5", "1e999", "-1e999", "NaN", "-Infinity", "[4]", '{"a":4}', "-2", "1e300"],
)
def test_what_is_no_number(name: str, written: str) -> None:
    error = refuse(f'{{"prompt":"a","{name}":{written}}}'.encode())
    assert (error.param, error.code) == (name, "invalid_value")


@pytest.mark.parametrize("name", ["temperature", "guidance_scale", "top_p"])
@pytest.mark.parametrize(
    "written", ["true", '"1"', "1e999", "NaN", "Infinity", "-0.1", "100.1", "[]"]
)
def test_what_is_no_real_number(name: str, written: str) -> None:
    assert refuse(f'{{"prompt":"a","{name}":{written}}}'.encode()).param == name


@pytest.mark.parametrize("written", ["1", "0", '"true"', '""', "1.0", "[]"])
def test_what_is_neither_true_nor_false(written: str) -> None:
    assert refuse(f'{{"prompt":"a","stream":{written}}}'.encode()).param == "stream"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 11), ("n", 0), ("steps", 65), ("best_of", 17), ("seed", 2**48), ("seed", -2),
        ("partial_images", 17), ("output_compression", 101), ("top_k", 0), ("top_k", 1_000_001),
        ("order", "spiral"),
        ("top_p", 0), ("top_p", 1.001), ("prompt", ""), ("prompt", "x" * 4001), ("prompt", 1),
        ("prompt", ["a"]), ("prompt", " \t\n\u00a0\u2003\u3000\x1c\x85"), ("model", "m" * 201),
        ("negative_prompt", "x" * 4001), ("user", "u" * 1001), ("response_format", "png"),
        ("output_format", "gif"), ("background", "transparent"), ("quality", "best"),
        ("style", ""), ("moderation", "off"), ("model", 7),
    ],
)  # fmt: skip
def test_out_of_range(name: str, value: object) -> None:
    refuse_value(**{name: value})


@pytest.mark.parametrize("digits", [20, 309, 400, 4300])
def test_numbers_of_many_digits(digits: int) -> None:
    error = refuse(b'{"prompt":"a","n":' + b"9" * digits + b"}")
    assert error.param == "n"
    assert len(str(error)) < 200


@pytest.mark.parametrize(
    "size",
    [
        "15x16", "16x15", "2049x16", "16x2049", "64", "64x", "x64", "64X64", "64 x 64", "064x64",
        "64x64\n", "\n64x64", "64x64x64", "-64x64", "1e2x64", "٦٤x٦٤", "Auto", "", "99999x64",
        "2100x2100", "64x64 ",
    ],
)  # fmt: skip
def test_sizes_that_are_none(size: str) -> None:
    refuse_value(size=size)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_sizes_have_sides_of_16_to_2048(width: int, height: int) -> None:
    content = json.dumps({"prompt": "a", "size": f"{width}x{height}"}).encode()
    if min(width, height) >= 16 and max(width, height) <= 2048:
        assert read_json(GenerationBody, content).size == f"{width}x{height}"
    else:
        assert refuse(content).param == "size"


def test_each_side_of_the_range() -> None:
    for side in range(1, 2100):
        content = f'{{"prompt":"a","size":"{side}x{side}"}}'.encode()
        if 16 <= side <= 2048:
            read_json(GenerationBody, content)
        else:
            refuse(content)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b'"prompt"', b"7", b"{", b'{"prompt"', b'{"prompt":"a"', b"{}x",
        b'{"prompt":"a",}', b"{'prompt':'a'}", b'{"prompt":"\xff"}', b'{"\xff":1}',
        b'{"prompt":"\\ud800"}', b'{"prompt":"\\udc00\\ud800"}', b'{"prompt":"a\nb"}',
        b'{"prompt":"\x00"}', b'{"prompt":"a","n":' + b"9" * 5000 + b"}",
        b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":' + b'{"x":' * 9000 + b"1" + b"}" * 9001,
        '{"prompt":"a"}'.encode("utf-16"), '{"prompt":"a"}'.encode("utf-32"),
        b'\xef\xbb\xbf{"prompt":"a"}', b"\x00", b"--b\r\n", b"prompt=a&n=1",
    ],
)  # fmt: skip
def test_what_is_no_json_object(content: bytes) -> None:
    error = refuse(content)
    assert str(error).startswith("The body is not a JSON object: ")
    assert (error.param, error.code) == (None, "invalid_json")
    assert "pydantic" not in str(error)


def test_odd_prompts_are_prompts() -> None:
    for prompt in ("\x00", "a\x00b", "🌈" * 4000, "\u202eright to left", "x" * 4000, "\ufeff"):
        body = read_json(GenerationBody, json.dumps({"prompt": prompt}).encode())
        assert body.prompt == prompt


def test_something_missing() -> None:
    error = refuse(b'{"n":1}')
    assert str(error) == "A parameter is missing: `prompt`."
    assert (error.param, error.code) == ("prompt", "missing")
    assert refuse(b'{"prompt":null}').param == "prompt"


@pytest.mark.parametrize(
    ("name", "near"),
    [("prompts", "prompt"), ("guidance", "guidance_scale"), ("step", "steps"), ("N", None),
     ("negativeprompt", "negative_prompt"), ("strength", None), ("image", None), ("", None)],
)  # fmt: skip
def test_a_misspelt_name_is_said_first(name: str, near: str | None) -> None:
    error = refuse({name: 1, "n": "wrong too"})
    hint = f" Did you mean `{near}`?" if near else ""
    assert str(error) == f"Unknown parameter: `{name}`.{hint}"
    assert (error.param, error.code) == (name, "unknown_parameter")


def test_a_long_name_is_cut() -> None:
    error = refuse({"prompt": "a", "n" * 9999: 1})
    assert error.param == "n" * 60
    assert refuse({"prompt": "a", "\ud83c\udf08\x00<script>": 1}).param == "🌈\x00<script>"


def test_a_long_name_costs_no_time() -> None:
    """A megabyte of it was compared with every known one: a second, in which nobody was heard."""
    content = b'{"' + b"ab" * 500_000 + b'":1}'
    with pytest.raises(ApiError, match="Unknown parameter"):
        read_json(GenerationBody, content)


def test_a_long_value_is_cut() -> None:
    error = refuse_value(prompt="y" * 5000)
    assert str(error) == (
        f"`prompt` is wrong: `'{'y' * 59}…`. String should have at most 4000 characters."
    )
    error = refuse_value(size="1" * 999)
    assert len(str(error)) < 160


# Forms.


def test_fields_of_a_form_are_read_as_json() -> None:
    fields = {
        "prompt": "7",
        "n": "4.0",
        "seed": "281474976710655",
        "stream": "true",
        "temperature": "1e-1",
        "top_p": "1",
        "strength": "0.25",
        "user": "true",
        "size": "auto",
    }
    body = read_fields(EditBody, fields)
    assert body.model_dump(exclude_none=True) == {
        "prompt": "7",
        "n": 4,
        "seed": 2**48 - 1,
        "stream": True,
        "temperature": 0.1,
        "top_p": 1.0,
        "strength": 0.25,
        "user": "true",
        "size": "auto",
    }
    assert read_fields(EditBody, {"prompt": "a", "stream": "false"}).stream is False


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n", ""), ("n", "one"), ("n", "1_0"), ("n", " 1"), ("n", "1 "), ("n", "+1"), ("n", "01"),
        ("n", "0x1"), ("n", "1.5"), ("n", "true"), ("n", "null"), ("n", "NaN"), ("n", "1e999"),
        ("n", "9" * 400), ("n", "9" * 40), ("n", "[1]"), ("n", "\u0661"), ("n", "1\x00"),
        ("n", "--1"),
        ("n", "1e99999999999"), ("seed", "1e300"), ("temperature", "Infinity"),
        ("temperature", "1e400"), ("temperature", "-1"), ("temperature", "1,5"),
        ("stream", "TRUE"), ("stream", "1"), ("stream", "yes"), ("stream", ""),
        ("strength", "0"), ("strength", "1.01"), ("size", "64"), ("prompt", " "), ("prompt", ""),
        ("response_format", "URL"), ("input_fidelity", "true"),
    ],
)  # fmt: skip
def test_fields_that_are_wrong(name: str, text: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_fields(EditBody, {"prompt": "a", name: text})
    assert (caught.value.status, caught.value.param) == (400, name)
    assert caught.value.code == "invalid_value"


def test_names_of_a_form() -> None:
    with pytest.raises(ApiError, match=r"Unknown parameter: `strengths`\. Did you mean `strength`"):
        read_fields(VariationBody, {"strengths": "1"})
    with pytest.raises(ApiError, match=r"A parameter is missing: `prompt`"):
        read_fields(EditBody, {})
    assert read_fields(VariationBody, {}).prompt is None


# A server's own limits.


def test_a_servers_limits_hold() -> None:
    own = ServeSettings(max_pictures=2, max_steps=3, max_best_of=4, max_prompt_characters=5)
    kind = create_body(schemas.GenerationBody, own)
    most = {"prompt": "12345", "n": 2, "steps": 3, "best_of": 4, "negative_prompt": "12345"}
    assert read_json(kind, json.dumps(most).encode()).model_dump(exclude_none=True) == most
    assert read_json(kind, b'{"prompt":"a","n":2.0}').n == 2
    for name, value in (("n", 3), ("steps", 4), ("best_of", 5), ("negative_prompt", "123456")):
        assert refuse({"prompt": "a", name: value}, kind).param == name
    assert refuse({"prompt": "123456"}, kind).param == "prompt"
    assert refuse({"prompt": " "}, kind).param == "prompt"
    assert refuse({}, kind).code == "missing"
    assert refuse({"prompt": "a", "n": True}, kind).param == "n"
    variation = create_body(schemas.VariationBody, own)
    assert read_fields(variation, {}).prompt is None
    with pytest.raises(ApiError):
        read_fields(variation, {"prompt": "123456"})
    schema = kind.model_json_schema()["properties"]
    assert schema["n"]["anyOf"][0]["maximum"] == 2
    assert schema["n"]["description"] == "Pictures; 1 unless given."
    assert schema["prompt"]["maxLength"] == 5


def test_larger_limits_than_the_usual_hold_too() -> None:
    own = ServeSettings(max_pictures=100, max_steps=4096, max_prompt_characters=32_000)
    most = {"prompt": "x" * 32_000, "n": 100, "steps": 4096}
    kind = create_body(schemas.GenerationBody, own)
    assert read_json(kind, json.dumps(most).encode()).n == 100
