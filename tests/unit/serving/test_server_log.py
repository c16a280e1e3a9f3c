"""What the whole log holds: lines of JSON, and nothing that a client sent."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tessella.serving.access_log import ACCESS_LOG
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel
from tessella.serving.server_log import PrivateFormatter, log_to_stderr
from tessella.serving.settings import ServeSettings

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "hush-a-key-of-some-length"
Read = Callable[[], str]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    """All that is logged so far."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with log_to_stderr():
        yield stream.getvalue


def write(error: BaseException, name: str = "tessella.x", **options: Any) -> dict[str, Any]:
    """The line of an error that was raised."""
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001
        found = (type(raised), raised, raised.__traceback__)
        record = logging.LogRecord(name, logging.ERROR, "a.py", 1, "It %s.", ("failed",), found)
    return dict(json.loads(PrivateFormatter(**options).format(record)))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("hush"), "left out; --log-prompts shows it"),
        (KeyError("hush"), "left out; --log-prompts shows it"),
        (RuntimeError("hush"), "left out; --log-prompts shows it"),
        (OSError(28, "No space left on device", "/hush"), "No space left on device"),
        (MemoryError(), ""),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory."),
        (RuntimeError("alloc_cpu: can't allocate memory: 9 bytes"),
         "alloc_cpu: can't allocate memory: 9 bytes"),
    ],
)  # fmt: skip
def test_an_error_is_told_without_what_it_may_quote(error: Exception, message: str) -> None:
    line = write(error)
    assert list(line) == ["time", "level", "source", "message", "errors"]
    assert (line["level"], line["source"], line["message"]) == ("error", "tessella.x", "It failed.")
    [told] = line["errors"]
    assert (told["kind"], told["message"]) == (type(error).__name__, message)
    assert told["frames"][-1].rpartition(" ")[2] == "write"
    assert "hush" not in json.dumps(line)


def test_what_led_to_an_error_is_told_too() -> None:
    try:
        try:
            raise KeyError("hush")
        except KeyError as first:
            raise ValueError("hush") from first
    except ValueError as second:
        line = write(second)
    assert [one["kind"] for one in line["errors"]] == ["KeyError", "ValueError"]


def test_with_log_prompts_messages_are_shown() -> None:
    [told] = write(ValueError("a red star"), shows_prompts=True)["errors"]
    assert told["message"] == "a red star"


def test_what_asyncio_says_of_its_objects_is_left_out(read: Read) -> None:
    async def fail() -> None:
        raise ValueError("hush")

    async def forget() -> None:
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0.01)
        del task
        asyncio.get_running_loop().call_soon(int, "hush")
        await asyncio.sleep(0.01)

    asyncio.run(forget())
    lines = [json.loads(line) for line in read().splitlines()]
    assert {line["source"] for line in lines} == {"asyncio"}
    assert lines[0]["message"].strip().startswith("Exception in callback") or lines[0]["message"]
    assert "hush" not in read()


def test_all_is_as_before_afterwards() -> None:
    root = logging.getLogger()
    before = list(root.handlers), logging.getLogger(ACCESS_LOG).level
    with log_to_stderr():
        assert len(root.handlers) == len(before[0]) + 1
    assert (list(root.handlers), logging.getLogger(ACCESS_LOG).level) == before


def list_requests() -> list[tuple[str, str, dict[str, Any]]]:
    """Requests of every kind that hold the word, by method, path and what is sent."""
    said = {"prompt": "hush hush", "negative_prompt": "hush", "user": "hush"}
    file = {"image": ("hush", b"hush")}
    edit = {"images": [{"image_url": "hush"}]}
    strange = {"headers": {"Authorization": "Bearer hush", "Host": "hush"}}
    return [
        ("post", "/v1/images/generations", {"json": said, "headers": {}}),
        ("post", "/v1/images/generations", {"json": said | {"n": 2}}),
        ("post", "/v1/images/generations", {"json": said | {"hush hush": 1}}),
        ("post", "/v1/images/generations", {"json": said | {"size": "hush"}}),
        ("post", "/v1/images/generations", {"content": b"hush"}),
        ("post", "/v1/images/edits", {"data": said}),
        ("post", "/v1/images/edits", {"data": said, "files": file}),
        ("post", "/v1/images/edits", {"json": said | edit}),
        ("post", "/sdapi/v1/txt2img", {"json": said | {"hush hush": 1}}),
        ("post", "/v1/posts", {"json": {"business": "hush", "about": "hush hush"}}),
        ("get", "/v1/models/hush%20hush/card?hush=hush", {}),
        ("get", "/hush", strange),
    ]


def test_nothing_that_a_client_sends_is_logged(
    tiny: ServedModel,
    run_app: Callable[..., Any],
    read: Read,
    until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts, keys and bodies, also where a fault quotes them."""

    def fail(requests: Any, *given: Any, **more: Any) -> Any:
        quoted = [request.prompt for request in requests]
        if "" in quoted:  # the worker's own, to learn whether it can paint at all
            return generate(requests, *given, **more)
        raise RuntimeError(f"cannot paint {quoted}")

    generate = tiny.model.generate_images
    monkeypatch.setattr(tiny.model, "generate_images", fail)
    key = {"Authorization": f"Bearer {KEY}"}
    app = create_app({"tiny": tiny}, ServeSettings(), keys=[KEY])
    with run_app(app) as server:
        answers = [
            getattr(server.client, method)(path, **{"headers": key, **content}).status_code
            for method, path, content in list_requests()
        ]
        assert answers[:2] == [401, 500]
        assert all(status >= 400 for status in answers)
        until(lambda: read().count('"route"') == len(answers))
    assert "cannot" not in read()
    assert "hush" not in read()
    lines = [json.loads(line) for line in read().splitlines()]
    told = [line for line in lines if "errors" in line]
    assert {one["kind"] for line in told for one in line["errors"]} == {"RuntimeError"}
