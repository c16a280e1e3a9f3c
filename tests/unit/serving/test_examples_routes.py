"""Examples and references over real HTTP: in requests, in answers, as pictures."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from tessella.model.request import ImageRequest
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel
from tessella.serving.settings import ServeSettings
from untrained import create_memory, create_untrained, save_untrained

pytestmark = pytest.mark.usefixtures("one_thread")

Pixels = np.ndarray[Any, Any]


def draw(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))


A, B, C = (draw(seed) for seed in range(3))


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def text(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    return base64.b64encode(png(image, kind, **options)).decode()


def pixels(answer: httpx.Response) -> list[Pixels]:
    assert answer.status_code == 200, answer.text
    files = [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def looked_at(answer: httpx.Response) -> list[list[str]]:
    assert answer.status_code == 200, answer.text
    return [[one["name"] for one in entry["examples"]] for entry in answer.json()["data"]]


def fault(answer: httpx.Response, status: int = 400) -> tuple[str, str | None, str | None]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return error["message"], error["param"], error["code"]


def form(server: Any, path: str, *files: tuple[str, bytes], **said: Any) -> httpx.Response:
    parts: list[tuple[str, Any]] = [(name, ("f.png", content)) for name, content in files]
    for name, values in ({"prompt": "a red star", "seed": 7} | said).items():
        for value in values if isinstance(values, list) else [values]:
            parts.append((name, (None, str(value))))
    answer: httpx.Response = server.post(path, files=parts)
    return answer


def equal(first: Sequence[Pixels], second: Sequence[Any]) -> bool:
    return all(np.array_equal(a, np.asarray(b)) for a, b in zip(first, second, strict=True))


# What was looked at.


def test_each_picture_says_what_it_was_painted_beside(
    album_server: Any, album: ServedModel
) -> None:
    answer = album_server.generate(n=2, seed=7)
    expected = album.model.generate("a red star", count=2, seed=7)
    assert equal(pixels(answer), expected)
    for entry in answer.json()["data"]:
        assert entry["examples"] == [
            {"name": "0.png", "caption": "a red star", "index": 0},
            {"name": "3.png", "caption": "a red moon", "index": 3},
        ]
    assert "examples" not in album_server.generate(model="tiny").json()["data"][0]
    assert looked_at(album_server.generate(prompt="zebra")) == [[]]


def test_words_of_an_example_are_known(album_server: Any) -> None:
    """Added examples bring words that training did not have."""
    assert "unknown_words" not in album_server.generate(prompt="a red star").json()
    for said in ({"prompt": "a red star", "neighbors": 0}, {"prompt": "red zebra"}):
        [*_, last] = album_server.generate(**said).json()["unknown_words"]
        assert last == ("zebra" if "neighbors" not in said else "red")


def test_the_completed_events_of_a_stream_say_it_too(album_server: Any) -> None:
    answer = album_server.generate(n=2, seed=7, stream=True, partial_images=1)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:5] == "data:"]
    for event in events:
        if event["type"].endswith("completed"):
            assert [one["index"] for one in event["examples"]] == [0, 3]
        else:
            assert "examples" not in event
    assert len(events) == 4
    tiny = album_server.generate(model="tiny", stream=True)
    assert "examples" not in tiny.text


@pytest.mark.parametrize("path", ["/images/edits", "/images/variations"])
def test_changed_pictures_say_it_too(path: str, album_server: Any, album: ServedModel) -> None:
    answer = form(album_server, path, ("image", png(A)))
    assert looked_at(answer) == [["0.png", "3.png"]]
    assert equal(pixels(answer), album.model.vary(A, "a red star", seed=7))


def test_posts_say_it_too(album_server: Any) -> None:
    said = {"business": "Stars", "about": "We sell red stars.", "count": 1, "best_of": 1}
    for model in ("album", "tiny"):
        answer = album_server.post("/posts", json=said | {"model": model})
        assert answer.status_code == 200, answer.text
        picture = answer.json()["posts"][0]["picture"]
        assert ("examples" in picture) is (model == "album")


# Which ones.


def test_neighbors(album_server: Any, album: ServedModel) -> None:
    for count, names in ((0, []), (1, ["0.png"]), (2, ["0.png", "3.png"])):
        answer = album_server.generate(neighbors=count, seed=7)
        assert looked_at(answer) == [names]
        assert equal(pixels(answer), album.model.generate("a red star", seed=7, neighbors=count))
    message, _, _ = fault(album_server.generate(neighbors=3))
    assert message == (
        "The model learned to look at 2 examples at most: neighbors `3`. Give fewer."
    )


def test_a_model_without_examples_refuses_them(album_server: Any) -> None:
    said: dict[str, Any]
    for said in ({"neighbors": 0}, {"neighbors": None, "pinned": [], "references": None}):
        assert album_server.generate(model="tiny", **said).status_code == 200
    for said in ({"neighbors": 1}, {"references": [text(A)]}):
        message, _, _ = fault(album_server.generate(model="tiny", **said))
        assert message.startswith("The model does not look at examples: it was trained without")
    for name in ("pinned", "excluded"):
        message, param, _ = fault(album_server.generate(model="tiny", **{name: [0]}))
        assert message == f"`{name}`: There is no such example: `0`. The model has none."
        assert param == name


def test_pinned_and_excluded_ones(album_server: Any) -> None:
    def names(**said: Any) -> list[str]:
        [found] = looked_at(album_server.generate(**said))
        return found

    assert names(pinned=[1]) == ["1.png", "0.png"]
    assert names(excluded=[0]) == ["3.png", "1.png"]
    assert names(pinned=[2], excluded=[0]) == ["2.png", "3.png"]
    assert names(pinned=[4]) == ["4.png", "0.png"]  # it has no words, and nobody finds it
    same, again = (album_server.generate(seed=7, **said) for said in ({}, {"pinned": [0]}))
    assert equal(pixels(same), pixels(again))


@pytest.mark.parametrize(
    ("said", "message", "param"),
    [
        ({"pinned": [5]}, "`pinned`: There is no such example: `5`. The model has 5", "pinned"),
        ({"excluded": [0, 9]}, "`excluded`: There is no such example: `9`", "excluded"),
        ({"pinned": [0], "excluded": [0]}, "An example is pinned and excluded: `0`", "excluded"),
        ({"pinned": [0, 1, 2]}, "The model looks at 2 pictures at most", None),
        ({"pinned": [-1]}, "`pinned` is wrong: `-1`", "pinned"),
        ({"pinned": ["1"]}, "`pinned` is wrong: `'1'`", "pinned"),
        ({"pinned": 1}, "`pinned` is wrong: `1`", "pinned"),
        ({"excluded": [0] * 1001}, "`excluded` is wrong", "excluded"),
    ],
)
def test_examples_that_cannot_be_chosen(
    said: dict[str, Any], message: str, param: str | None, album_server: Any
) -> None:
    got, place, _ = fault(album_server.generate(**said))
    assert got.startswith(message)
    assert place == param


def test_lists_in_forms(album_server: Any) -> None:
    """As OpenAI's client writes them, and as JSON."""
    said: dict[str, Any]
    for said in ({"pinned[]": [1, 2]}, {"pinned": "[1, 2]"}, {"pinned": "[1,2]", "excluded[]": 0}):
        answer = form(album_server, "/images/variations", ("image", png(A)), **said)
        assert looked_at(answer) == [["1.png", "2.png"]]
    answer = form(album_server, "/images/variations", ("image", png(A)), pinned="[]")
    assert looked_at(answer) == [["0.png", "3.png"]]
    for said in (
        {"pinned": "1"}, {"pinned": "[1,]"}, {"pinned": "[01]"}, {"pinned": "[a]"},
        {"pinned[]": "x"}, {"pinned[]": "1.5"}, {"pinned[]": "[1]"}, {"pinned": "x" * 9999},
    ):  # fmt: skip
        answer = form(album_server, "/images/variations", ("image", png(A)), **said)
        message, param, _ = fault(answer)
        assert message.startswith("`pinned` is wrong")
        assert param == "pinned"
    said = {"pinned": "[1]", "pinned[]": [1]}
    message, _, _ = fault(form(album_server, "/images/edits", ("image", png(A)), **said))
    assert message == "There is more than one `pinned`. Send one."


# References.


def test_references_in_json(album_server: Any, album: ServedModel) -> None:
    answer = album_server.generate(
        seed=7, references=[text(A), f"data:image/webp;base64,{text(B, 'WEBP', lossless=True)}"]
    )
    assert equal(pixels(answer), album.model.generate("a red star", seed=7, references=[A, B]))
    assert answer.json()["data"][0]["examples"] == [
        {"name": "reference 1", "caption": ""},
        {"name": "reference 2", "caption": ""},
    ]
    answer = album_server.generate(seed=7, references=[text(A)])
    assert looked_at(answer) == [["reference 1", "0.png"]]
    answer = album_server.generate(seed=7, references=[text(A)], pinned=[2], neighbors=0)
    assert looked_at(answer) == [["reference 1", "2.png"]]


def test_a_large_reference(album_server: Any) -> None:
    """Larger than other JSON may be, and with its slashes escaped, as PHP does."""
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    content = json.dumps({"prompt": "star", "references": [text(large)]}).replace("/", "\\/")
    assert len(content) > 1_000_000
    answer = album_server.post(
        "/images/generations", content=content, headers={"Content-Type": "application/json"}
    )
    assert looked_at(answer)[0][0] == "reference 1"


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([text(A), "no base64!"], "`references[1]` is not base64: `no base64!`. Send a picture's"),
        (["data:text/plain;base64,AAAA"], "`references[0]` is not base64"),
        (["https://example.org/a.png"], "`references[0]` is not base64"),
        (["ü" * 99], "`references[0]` is not base64: `" + "ü" * 40 + "…`"),
        ([text(A), ""], "`references[1]`: The file is empty"),
        ([text(A)[:80], text(A)], "`references[0]`: The picture is broken or cut off"),
        (["AAAA"], "`references[0]`: Not a picture of a known format"),
        ([text(A)] * 3, "The model looks at 2 pictures at most: `3` references. Give fewer."),
        ([3], "`references` is wrong: `3`"),
        (text(A), "`references` is wrong"),
    ],
)
def test_references_that_are_none(references: Any, message: str, album_server: Any) -> None:
    got, _, _ = fault(album_server.generate(references=references))
    assert got.startswith(message)


def test_references_have_the_limits_of_uploads(
    album: ServedModel, run_app: Callable[..., Any]
) -> None:
    settings = ServeSettings(max_upload_pixels=255, max_body_bytes=3000, max_uploads_bytes=1500)
    with run_app(create_app({"album": album}, settings)) as server:
        message, param, _ = fault(server.generate(references=[text(A)]))
        assert message.startswith("`references[0]`: The picture is too large: 16x16")
        assert param == "references"
        assert server.generate(references=["A" * 3000]).status_code == 413
        message, _, code = fault(server.generate(references=["A" * 2000]), 429)
        assert code == "uploads_full"
    with run_app(create_app({"album": album}, ServeSettings())) as server:
        message, _, code = fault(server.generate(references=["," * 170_000]), 413)
        assert message.startswith("The body is too large: beside its pictures, at most 161,536")
        assert code == "body_too_large"


def test_several_pictures_with_openais_client(album_server: Any, album: ServedModel) -> None:
    """The first is edited, the others are looked at."""
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    files = [(f"{number}.png", png(image)) for number, image in enumerate((A, B, C))]
    with openai.OpenAI(
        base_url=f"{album_server.url}/v1", api_key="unused", max_retries=0
    ) as client:
        extra: dict[str, Any] = {"seed": 7}
        answer = client.images.edit(
            image=files, mask=("m.png", png(mask)), prompt="a red star", extra_body=extra
        )
        [expected] = album.model.edit(A, "a red star", mask, seed=7, references=[B, C])
        assert answer.data is not None
        painted = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
        assert np.array_equal(np.asarray(painted), np.asarray(expected))
        names = [one["name"] for one in (answer.data[0].model_extra or {})["examples"]]
        assert names == ["reference 1", "reference 2"]
        # Without a mask the first is varied.
        extra |= {"pinned": [2], "strength": 0.3}
        answer = client.images.edit(image=files[:2], prompt="a red star", extra_body=extra)
        assert answer.data is not None
        names = [one["name"] for one in (answer.data[0].model_extra or {})["examples"]]
        assert names == ["reference 1", "2.png"]
        # The rest is left out, and it is said.
        answer = client.images.edit(
            image=[*files, files[0], files[1]], prompt="a red star", extra_body={"seed": 7}
        )
        assert answer.data is not None
        names = [one["name"] for one in (answer.data[0].model_extra or {})["examples"]]
        assert names == ["reference 1", "reference 2"]
        assert (answer.model_extra or {})["warnings"][-1] == (
            "No effect: `image[3]` to `image[4]`. The model looks at 2 pictures at most beside the "
            "one that it changes."
        )


def test_pictures_of_a_form(album_server: Any, album: ServedModel) -> None:
    [expected] = album.model.vary(A, "a red star", seed=7, references=[B])
    for files in (
        [("image", png(A)), ("image[]", png(B))],
        [("image[]", png(B)), ("image", png(A))],
        [("image[]", png(A)), ("image[]", png(B))],
    ):
        for path in ("/images/variations", "/images/edits"):
            answer = form(album_server, path, *files)
            assert equal(pixels(answer), [expected])
    broken = form(album_server, "/images/edits", ("image[]", png(A)), ("image[]", png(B)[:60]))
    message, param, _ = fault(broken)
    assert message.startswith("`image[1]`: The picture is broken or cut off")
    assert param == "image"
    twice = form(album_server, "/images/edits", ("image", png(A)), ("image", png(B)))
    assert fault(twice)[0] == (
        "There is more than one `image`. Send one, or name them all `image[]`."
    )


def test_the_first_is_taken_where_no_others_are_looked_at(
    album_server: Any, tiny: ServedModel
) -> None:
    """As programs send them that know OpenAI's models alone."""
    [expected] = tiny.model.vary(A, "a red star", seed=7)
    said = "No effect: `image[1]`. The model looks at no pictures beside the one that it changes."
    several = [("image[]", png(A)), ("image[]", png(B))]
    for path in ("/images/edits", "/images/variations"):
        answer = form(album_server, path, *several, model="tiny")
        assert equal(pixels(answer), [expected])
        assert said in answer.json()["warnings"]
    streamed = form(album_server, "/images/edits", *several, model="tiny", stream=True)
    assert json.loads(streamed.text.rpartition("data: ")[2])["warnings"][-1] == said
    images = [{"image_url": f"data:image/png;base64,{text(one)}"} for one in (A, B)]
    body = {"prompt": "a red star", "seed": 7, "model": "tiny", "images": images}
    answer = album_server.post("/images/edits", json=body)
    assert equal(pixels(answer), [expected])
    assert said in answer.json()["warnings"]


# The memory and its pictures.


def test_models_say_what_they_look_things_up_in(album_server: Any) -> None:
    album, tiny = album_server.get("/v1/models").json()["data"]
    assert album["memory"] == {"examples": 5, "neighbors": 2}
    assert tiny["memory"] is None


def test_an_example_as_a_picture(album_server: Any, album: ServedModel) -> None:
    memory = album.examples.memory
    assert memory is not None
    tags = set()
    for index in range(len(memory)):
        answer = album_server.get(f"/v1/models/album/examples/{index}.png")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["cache-control"] == "private, no-cache"
        codes = torch.from_numpy(memory.codes[index].astype(np.int64))[None]
        [expected] = album.model.decode_codes(codes)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected)
        tags.add(answer.headers["etag"])
        known = album_server.get(
            f"/v1/models/album/examples/{index}.png",
            headers={"If-None-Match": answer.headers["etag"]},
        )
        assert (known.status_code, known.content) == (304, b"")
    assert len(tags) == 5


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("album/examples/5", "There is no such example: `5`. The model has 5, counted from 0."),
        ("tiny/examples/0", "There is no such example: `0`. The model has none."),
        ("album/examples/-1", "An example has a number, from 0: `-1`."),
        ("album/examples/x", "An example has a number, from 0: `x`."),
        ("album/examples/" + "9" * 5000, "An example has a number, from 0: `" + "9" * 40 + "`."),
        ("other/examples/0", "There is no such model: `other`"),
    ],
)
def test_examples_that_have_no_picture(path: str, message: str, album_server: Any) -> None:
    got, _, _ = fault(album_server.get(f"/v1/models/{path}.png"), 404)
    assert got.startswith(message)


def test_a_memory_that_changes_while_it_is_served(
    tmp_path: Any, run_app: Callable[..., Any]
) -> None:
    model = create_untrained(neighbors=2)
    folder = tmp_path / "album"
    save_untrained(model.with_parts(memory=create_memory(model, ["a red star"])), folder)
    served = ServedModel.load("album", folder, model)
    with run_app(create_app({"album": served}, ServeSettings())) as server:
        assert looked_at(server.generate()) == [["0.png"]]
        tag = server.get("/v1/models/album/examples/0.png").headers["etag"]
        more = create_memory(model, ["a blue moon", "a red moon", "a red star"], seed=1)
        save_untrained(model.with_parts(memory=more), folder)
        assert looked_at(server.generate()) == [["2.png", "1.png"]]
        assert server.get("/v1/models/album").json()["memory"]["examples"] == 3
        changed = server.get("/v1/models/album/examples/0.png", headers={"If-None-Match": tag})
        assert changed.status_code == 200


def test_examples_are_looked_up_in_the_workers_thread(
    album_server: Any, album: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the pictures are batched: what a batch paints knows its examples."""
    seen: list[ImageRequest] = []
    generate = album.model.generate_images

    def record(requests: Sequence[ImageRequest], *arguments: Any, **options: Any) -> Any:
        seen.extend(requests)
        return generate(requests, *arguments, **options)

    monkeypatch.setattr(album.model, "generate_images", record)
    album_server.generate(n=2)
    assert [len(request.examples or ()) for request in seen] == [2, 2]
