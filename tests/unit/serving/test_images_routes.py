"""OpenAI's image routes over real HTTP: what is painted is what the model paints."""

import base64
import inspect
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from masks import HOLE, KINDS
from tessella.images import read_image, read_with_transparency
from tessella.model.canvas import fit_images
from tessella.model.mask import Marking
from tessella.serving import bodies
from tessella.serving.models_served import ServedModel

pytestmark = pytest.mark.usefixtures("one_thread")

Models = Mapping[str, ServedModel]

NOISE = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
IMAGE = Image.fromarray(NOISE)
MARKED = np.zeros((16, 16), dtype=bool)
MARKED[4:9, 2:10] = True


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def pictures(answer: httpx.Response) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    entries = answer.json()["data"]
    return [np.asarray(opened(base64.b64decode(entry["b64_json"]))) for entry in entries]


def pixels(images: list[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(image) for image in images]


def transparent(hidden: np.ndarray, image: Image.Image = IMAGE) -> Image.Image:
    """The picture, with nothing to be seen of some of it."""
    made = image.convert("RGBA")
    made.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    return made


def send(server: Any, path: str, image: bytes | None = None, **said: Any) -> httpx.Response:
    """Sends a form; what is bytes is a file."""
    parts: list[tuple[str, Any]] = []
    if image is not None:
        parts.append(("image", ("i.png", image)))
    for name, value in said.items():
        file = ("f.png", value) if isinstance(value, bytes) else (None, str(value))
        parts.append((name, file))
    response: httpx.Response = server.post(path, files=parts)
    return response


def fault(answer: httpx.Response, status: int = 400) -> tuple[str, str | None, str | None]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return error["message"], error["param"], error["code"]


# Generations.


def test_a_picture_is_that_of_the_model(server: Any, tiny: ServedModel) -> None:
    answer = server.generate(n=3, seed=7, best_of=2, guidance_scale=2, negative_prompt="blue")
    expected = tiny.model.generate(
        "a red star", count=3, seed=7, best_of=2, guidance_scale=2, negative_prompt="blue"
    )
    assert np.array_equal(pictures(answer), pixels(expected))
    body = answer.json()
    assert body.pop("unknown_words") == ["a", "red"]  # its captions' summary has one word
    [said] = body.pop("warnings")
    assert said.startswith("Not in the model's vocabulary: `a`, `red`. Its captions rarely")
    assert body.pop("painted_size") == "16x16"
    assert body.pop("model") == "tiny"
    assert set(body) == {"created", "background", "output_format", "size", "data", "usage"}
    assert isinstance(body["created"], int)
    assert (body["background"], body["output_format"], body["size"]) == ("opaque", "png", "16x16")
    assert [entry["seed"] for entry in body["data"]] == [7, 9, 11]
    assert all(set(entry) == {"b64_json", "seed"} for entry in body["data"])
    text = tiny.model.text_tokenizer.count_tokens("a red star")
    assert body["usage"] == {
        "input_tokens": text,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": text},
        "output_tokens": 48,
        "total_tokens": text + 48,
    }


@pytest.mark.parametrize("name", ["tiny", "twin", "raster", "atonce", "mean"])
def test_each_model_by_its_name(name: str, server: Any, models: Models) -> None:
    expected = models[name].model.generate("star", seed=1)
    answer = server.generate(model=name, prompt="star", seed=1)
    assert np.array_equal(pictures(answer), pixels(expected))


def test_many_at_once_get_what_they_asked_for(
    server: Any, tiny: ServedModel, watch: Any, until: Any
) -> None:
    """Whatever they were batched with; over real connections."""
    prompts = ("a red star", "a blue star", "star", "red")
    asked = [
        {"prompt": prompts[n % 4], "seed": 3 * n, "n": 1 + n % 2, "temperature": 1 - n % 3 / 4}
        for n in range(12)
    ]
    expected = [
        tiny.model.generate(
            said["prompt"], seed=said["seed"], count=said["n"], temperature=said["temperature"]
        )
        for said in asked
    ]
    seen = watch(tiny.model)
    seen.gate.clear()
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(server.generate, **said) for said in asked]
        until(lambda: server.num_waiting >= 18 - len(seen.prompts[0]) if seen.batches else False)
        seen.gate.set()
        for answer, alone in zip(answers, expected, strict=True):
            assert np.array_equal(pictures(answer.result()), pixels(alone))
    assert len(seen.batches) <= 4
    assert server.num_waiting == 0
    assert server.metric("tessella_queue_pictures") == 0


def test_a_seed_is_drawn_and_told(server: Any) -> None:
    first, second = server.generate(n=2), server.generate(n=2)
    seeds = [entry["seed"] for answer in (first, second) for entry in answer.json()["data"]]
    assert seeds[1] == seeds[0] + 1
    assert seeds[2] not in seeds[:2]
    again = server.generate(n=2, seed=seeds[0])
    assert np.array_equal(pictures(first), pictures(again))


def test_the_largest_seed(server: Any, tiny: ServedModel) -> None:
    expected = tiny.model.generate("a red star", count=2, seed=2**48 - 1, best_of=16, steps=1)
    answer = server.generate(seed=2**48 - 1, n=2, best_of=16, steps=1)
    assert np.array_equal(pictures(answer), pixels(expected))
    assert answer.json()["data"][1]["seed"] == 2**48 + 15


# Sizes and formats.


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ("auto", None),
        ("64x64", None),
        ("2048x2048", None),
        ("100x50", None),
        ("2048x16", None),
        ("auto", "2x1"),
        ("auto", "1.5x1.25"),
        ("100x50", "wide"),
        ("50x100", "wide"),
        ("16x17", "wide"),
        ("2048x16", "wide"),
    ],
)
def test_sizes(size: str, canvas: str | None, server: Any, tiny: ServedModel) -> None:
    """Sizes of another shape once painted other pictures, of several objects."""
    said = {"canvas": canvas} if canvas else {}
    answer = server.generate(size=size, seed=3, steps=1, n=2, **said)
    width, _, height = size.partition("x")
    asked = None if size == "auto" else (int(width), int(height))
    made = tiny.model.generate("a red star", seed=3, count=2, size=asked, canvas=canvas, steps=1)
    assert np.array_equal(pictures(answer), pixels(made))
    body = answer.json()
    # The first is about its words: the server has their summary, this model has not.
    assert body["warnings"][1:] == made.warnings[1:]
    assert body["size"] == "x".join(map(str, made[0].size))
    planned = tiny.model.canvases.plan_size(asked, canvas)
    assert body["painted_size"] == "x".join(map(str, planned.painted))


@pytest.mark.parametrize("canvas", ["big", "0.5x1", "5x1", "4.5x1", "2", "widest", "1x1x1"])
def test_canvases_that_are_none(canvas: str, server: Any) -> None:
    _, param, _ = fault(server.generate(canvas=canvas))
    assert param == "canvas"


@pytest.mark.parametrize(
    ("said", "laid"),
    [({}, 32), ({"size": "60x40"}, 32), ({"size": "60x40", "canvas": "wide"}, 48)],
)
def test_the_places_of_the_canvas_are_counted(said: dict[str, str], laid: int, server: Any) -> None:
    usage = server.generate(**said, n=2, steps=1).json()["usage"]
    assert usage["output_tokens"] == laid
    [event] = events(server.generate(**said, stream=True, steps=1))
    assert event["usage"]["output_tokens"] == laid // 2


def test_larger_canvases_need_codes(server: Any) -> None:
    message, _, _ = fault(server.generate(model="mean", canvas="2x1"))
    assert "generated code by code" in message
    assert server.generate(model="mean", size="64x32").status_code == 200


# What had no effect.


@pytest.mark.parametrize(
    ("said", "warning"),
    [
        (
            {"negative_prompt": "star"},
            "`negative_prompt`. It works by guidance, which is off",
        ),
        (
            {"negative_prompt": "star", "model": "mean"},
            "`negative_prompt`. Guidance is",
        ),
        ({"quality": "hd"}, "`quality`. It is accepted so that"),
        ({"complexity": "low"}, "`complexity`. It is accepted so that"),
        ({"style": "vivid"}, "`style`. It is accepted so that"),
        ({"moderation": "low"}, "`moderation`. It is accepted so that"),
        ({"partial_images": 2}, "`partial_images`. Only a stream has"),
        ({"output_compression": 50}, "`output_compression`. A png loses nothing"),
        ({"guidance_schedule": "linear"}, "`guidance_schedule`. Guidance is off"),
        ({"confidence_temperature": 2.0}, "`confidence_temperature`. It belongs to the order"),
        ({"steps": 2, "order": "halton", "model": "raster"}, "`steps`, `order`. The model's"),
        ({"canvas": "wide", "size": "64x64"}, "`canvas`. A canvas of this shape"),
    ],
)
def test_what_had_no_effect_is_told(said: dict[str, Any], warning: str, server: Any) -> None:
    known = {"prompt": "star", "model": "tiny"}
    [told] = server.generate(**(known | said)).json()["warnings"]
    assert told.startswith(f"No effect: {warning}")
    if "partial_images" not in said:
        [last] = events(server.generate(**(known | said), stream=True))
        assert last["warnings"] == [told]


def test_what_is_done_anyway_is_no_warning(server: Any) -> None:
    said = {"quality": "auto", "background": "opaque", "user": "x", "moderation": "auto"}
    assert server.generate(prompt="star", **said).json()["warnings"] == []


def test_a_stream_of_addresses_and_one_step(server: Any) -> None:
    [last] = events(server.generate(prompt="star", stream=True, response_format="url"))
    assert last["warnings"] == ["No effect: `response_format`. A stream sends pictures as base64."]
    said = {"model": "atonce", "prompt": "star", "stream": True, "partial_images": 2}
    [*_, last] = events(server.generate(**said))
    assert last["warnings"] == [
        "No effect: `partial_images`. The model paints a picture in one step."
    ]


def test_emoji_are_unknown_words(server: Any) -> None:
    body = server.generate(prompt="🔴⭐ star").json()
    assert body["unknown_words"] == ["🔴", "⭐"]
    assert body["warnings"][0].startswith("Not in the model's vocabulary: `🔴`, `⭐`.")


def test_formats_and_compression(server: Any) -> None:
    def content(**said: Any) -> tuple[bytes, str]:
        answer = server.generate(seed=3, size="64x64", **said).json()
        return base64.b64decode(answer["data"][0]["b64_json"]), answer["output_format"]

    png, kind = content()
    assert (opened(png).format, kind) == ("PNG", "png")
    assert content(output_format="png", output_compression=3)[0] == png
    for name in ("jpeg", "webp"):
        best, kind = content(output_format=name)
        assert (opened(best).format, kind) == (name.upper(), name)
        assert content(output_format=name, output_compression=100)[0] == best
        sizes = [
            len(content(output_format=name, output_compression=quality)[0])
            for quality in (0, 50, 100)
        ]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[2] / 2


# Prompts.


def test_a_prompt_that_is_too_long_is_cut_and_told(server: Any, tiny: ServedModel) -> None:
    prompt = "a red star  a blue star " + " ".join(["a green star"] * 20)
    answer = server.generate(prompt=prompt, seed=2)
    [entry] = answer.json()["data"]
    read = entry["revised_prompt"]
    assert prompt.split()[: len(read.split())] == read.split()
    assert len(read.split()) < len(prompt.split())
    assert tiny.model.text_tokenizer.count_tokens(read) <= 64
    told = "The prompt is longer than the model reads. It was cut to: `a red star"
    assert any(one.startswith(told) for one in answer.json()["warnings"])
    negative = server.generate(negative_prompt=prompt, guidance_scale=2).json()["warnings"]
    assert any(one.startswith("The negative prompt is longer than the") for one in negative)
    expected = tiny.model.generate(read, seed=2)
    assert np.array_equal(pictures(answer), pixels(expected))
    assert "revised_prompt" not in server.generate(prompt="a red star").json()["data"][0]
    streamed = server.generate(prompt=prompt, stream=True, seed=2)
    assert json.loads(streamed.text.split("data: ")[1])["revised_prompt"] == read


@pytest.mark.parametrize("prompt", ["x" * 4000, "\x00", "🌈" * 999, "\u202e\ufeff", "a\x00b"])
def test_odd_prompts_are_painted(prompt: str, server: Any) -> None:
    assert server.generate(prompt=prompt, best_of=2).status_code == 200
    assert server.generate(negative_prompt=prompt, guidance_scale=3).status_code == 200


def test_a_negative_prompt_needs_guidance(server: Any) -> None:
    plain = pictures(server.generate(seed=1))
    assert np.array_equal(pictures(server.generate(seed=1, negative_prompt="blue")), plain)
    off = server.generate(seed=1, negative_prompt="blue", guidance_scale=1)
    assert np.array_equal(pictures(off), plain)
    on = server.generate(seed=1, negative_prompt="blue", guidance_scale=4)
    assert not np.array_equal(pictures(on), plain)
    unguided = server.generate(model="mean", negative_prompt="blue", guidance_scale=4)
    assert unguided.status_code == 200


def test_what_the_model_refuses_is_said(server: Any) -> None:
    message, _, _ = fault(server.generate(model="mean", best_of=2))
    assert "has no likelihood: `latent_mse`. Give best_of 1." in message


# Addresses of pictures.


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures_by_their_address(kind: str, server: Any) -> None:
    plain = server.generate(seed=3, n=2, output_format=kind).json()["data"]
    answer = server.generate(seed=3, n=2, output_format=kind, response_format="url")
    entries = answer.json()["data"]
    assert len({entry["url"] for entry in entries}) == 2
    for entry, expected in zip(entries, plain, strict=True):
        assert set(entry) == {"url", "seed"}
        assert entry["url"].startswith(f"{server.url}/v1/pictures/")
        assert entry["url"].endswith(f".{kind}")
        found = server.client.get(entry["url"])
        assert found.content == base64.b64decode(expected["b64_json"])
        assert found.headers["content-type"] == f"image/{kind}"
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["cache-control"].startswith("private")


def test_a_public_address_is_told(serve: Callable[..., Any]) -> None:
    server = serve(public_url="https://paint.example/api/", keys=["k" * 32])
    headers = {"Authorization": f"Bearer {'k' * 32}"}
    answer = server.post(
        "/images/generations",
        json={"prompt": "a", "response_format": "url", "steps": 1},
        headers=headers,
    )
    url = answer.json()["data"][0]["url"]
    assert url.startswith("https://paint.example/api/v1/pictures/")
    # The address is the secret: whoever has it needs no key.
    name = url.rpartition("/")[2]
    assert len(name) > 30
    assert server.get(f"/v1/pictures/{name}").status_code == 200
    assert server.get("/v1/models").status_code == 401


# Streams.


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    found = []
    assert answer.text.endswith("\n\n")
    for block in answer.text[:-2].split("\n\n"):
        name, data = block.split("\n")
        said = json.loads(data.removeprefix("data: "))
        assert name == f"event: {said['type']}"
        found.append(said)
    return found


def test_a_stream_tells_of_each_picture(server: Any, tiny: ServedModel) -> None:
    answer = server.generate(stream=True, partial_images=2, n=2, seed=5, output_format="webp")
    expected = pixels(tiny.model.generate("a red star", count=2, seed=5))
    found = events(answer)
    assert len(found) == 6
    for index in range(2):
        own = [said for said in found if said["index"] == index]
        kinds = [said["type"].removeprefix("image_generation.") for said in own]
        assert kinds == ["partial_image", "partial_image", "completed"]
        assert [said.get("partial_image_index") for said in own] == [0, 1, None]
        assert {said["seed"] for said in own} == {5 + index}
        for said in own:
            assert opened(base64.b64decode(said["b64_json"])).format == "WEBP"
            assert (said["size"], said["background"], said["quality"]) == (
                "16x16", "opaque", "auto",
            )  # fmt: skip
            assert ("usage" in said) is (said is own[-1])
        assert own[-1]["usage"]["output_tokens"] == 16
    plain = events(server.generate(stream=True, n=2, seed=5))
    assert [said["type"] for said in plain] == ["image_generation.completed"] * 2
    for said in plain:
        shown = np.asarray(opened(base64.b64decode(said["b64_json"])))
        assert np.array_equal(shown, expected[said["index"]])


def test_partial_pictures_come_as_they_are_painted(server: Any) -> None:
    """Sixteen of the largest size were 26 MB a picture."""
    said = {"stream": True, "partial_images": 3, "size": "60x40", "canvas": "wide", "steps": 4}
    *partial, last = events(server.generate(**said))
    assert [said["size"] for said in partial] == ["24x16"] * 3
    for said in partial:
        assert opened(base64.b64decode(said["b64_json"])).size == (24, 16)
    assert last["size"] == "60x40"
    assert opened(base64.b64decode(last["b64_json"])).size == (60, 40)


def test_only_streams_have_partial_pictures(server: Any, tiny: ServedModel, watch: Any) -> None:
    watch(tiny.model)
    answer = server.generate(partial_images=16)
    assert len(answer.json()["data"]) == 1


def test_a_stream_sends_addresses_to_nobody(server: Any) -> None:
    [said] = events(server.generate(stream=True, response_format="url"))
    assert "url" not in said
    assert said["b64_json"]


# Edits: what is painted anew.


def edit(server: Any, image: bytes, **said: Any) -> httpx.Response:
    return send(server, "/images/edits", image, **({"prompt": "star", "seed": 4} | said))


WHITE_ON_BLACK = Image.fromarray(np.where(MARKED, 255, 0).astype(np.uint8))
BLACK = Image.new("L", (16, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_masks(kind: str, server: Any, tiny: ServedModel) -> None:
    """One reading, which is told; the same as in Python and on the command line."""
    noise = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image, content = Image.fromarray(noise), KINDS[kind].save()
    answer = edit(server, encoded(image), mask=content)
    expected = tiny.model.edit(image, "star", opened(content), seed=4)
    [painted] = pictures(answer)
    assert np.array_equal(painted, np.asarray(expected[0]))
    touched = (HOLE | ~KINDS[kind].is_certain).reshape(16, 2, 16, 2).any((1, 3))
    assert np.array_equal(painted[~touched], fit_images([image], 16)[0][~touched])
    said = answer.json()
    assert said["mask"]["read_by"] == KINDS[kind].read_by
    assert 0.1 < said["mask"]["repainted"] < 0.3
    assert said["warnings"] == []


def test_a_mask_that_is_a_photo_is_told(server: Any) -> None:
    answer = edit(server, encoded(IMAGE), mask=encoded(IMAGE), strength=0.5).json()
    idle, photo = answer["warnings"]
    assert idle == "No effect: `strength`. The mask says what is repainted."
    assert "of the mask is neither black nor white" in photo


def test_without_a_mask_the_pictures_own_transparency_is_one(
    server: Any, tiny: ServedModel
) -> None:
    image = transparent(MARKED)
    seen = Image.fromarray(np.where(MARKED[..., None], 255, NOISE).astype(np.uint8))
    expected = tiny.model.edit(seen, "star", MARKED, seed=4)
    answer = edit(server, encoded(image))
    assert np.array_equal(pictures(answer), pixels(expected))
    assert answer.json()["mask"]["read_by"] == "own_transparency"
    # A mask goes before it.
    other = np.roll(MARKED, 6, axis=0)
    expected = tiny.model.edit(seen, "star", other, seed=4)
    mask = Image.fromarray(np.where(other, 255, 0).astype(np.uint8))
    answer = edit(server, encoded(image), mask=encoded(mask))
    assert np.array_equal(pictures(answer), pixels(expected))


def test_without_any_it_is_a_variation(server: Any, tiny: ServedModel) -> None:
    for strength in (None, 0.2, 1):
        said = {} if strength is None else {"strength": strength}
        expected = tiny.model.vary(IMAGE, "star", strength=strength or 0.5, seed=4, count=2)
        answer = edit(server, encoded(IMAGE.convert("RGBA")), n=2, **said)
        assert np.array_equal(pictures(answer), pixels(expected))


def test_edits_of_any_size_and_shape(server: Any, tiny: ServedModel) -> None:
    wide = Image.fromarray(np.random.default_rng(2).integers(0, 255, (30, 50, 3), dtype=np.uint8))
    marked = np.zeros((30, 50), dtype=bool)
    marked[5:12, 20:33] = True
    expected = tiny.model.edit(wide, "star", marked, seed=4)
    for size, shape in ((None, (16, 16)), ("40x20", (20, 40))):
        said = {} if size is None else {"size": size}
        mask = encoded(Image.fromarray(marked))
        [painted] = pictures(edit(server, encoded(wide), mask=mask, **said))
        assert painted.shape[:2] == shape
        if size is None:
            assert np.array_equal(painted, np.asarray(expected[0]))


def test_a_picture_that_lies_on_its_side(server: Any, tiny: ServedModel) -> None:
    """A telephone's picture and the mask that was drawn over what it shows."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(IMAGE.transpose(Image.Transpose.ROTATE_90), exif=exif)
    mask = encoded(WHITE_ON_BLACK)
    assert np.array_equal(
        pictures(edit(server, content, mask=mask)),
        pixels(tiny.model.edit(IMAGE, "star", MARKED, seed=4)),
    )


def test_edits_are_streamed_and_given_addresses(server: Any) -> None:
    answer = edit(
        server, encoded(IMAGE), mask=encoded(WHITE_ON_BLACK), stream="true", partial_images=1
    )
    assert [said["type"] for said in events(answer)] == [
        "image_edit.partial_image",
        "image_edit.completed",
    ]
    answer = edit(server, encoded(IMAGE), response_format="url", n=2)
    for entry in answer.json()["data"]:
        assert server.client.get(entry["url"]).status_code == 200


def test_pictures_as_a_list(server: Any, tiny: ServedModel) -> None:
    """OpenAI's client names the parts of a list so."""
    files = [("image[]", ("a.png", encoded(IMAGE))), ("prompt", (None, "star"))]
    assert server.post("/images/edits", files=files).status_code == 200
    files += [("image", ("b.png", encoded(IMAGE)))] * 2
    message, _, _ = fault(server.post("/images/reconstructions", files=files[2:]))
    assert message == "There is more than one `image`. Send one."


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (encoded(BLACK), "The mask marks nothing"),
        (encoded(Image.new("L", (16, 15), 255)), "The mask must have the picture's size, 16x16"),
        (b"", "`mask`: The file is empty"),
        (b"no picture at all", "`mask`: Not a picture of a known format"),
        (encoded(WHITE_ON_BLACK)[:60], "`mask`: The picture is broken or cut off"),
    ],
)
def test_masks_that_are_none(mask: bytes, said: str, server: Any) -> None:
    message, param, _ = fault(edit(server, encoded(IMAGE), mask=mask))
    assert message.startswith(said)
    assert param == "mask"


@pytest.mark.parametrize("path", ["/images/edits", "/images/variations", "/images/reconstructions"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "`image`: The file is empty."),
        (b"\x00" * 99, "`image`: Not a picture of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "`image`: This is SVG, which is not read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "`image`: This is PostScript, which is not read"),
        (encoded(IMAGE)[:-30], "`image`: The picture is broken or cut off"),
        (encoded(IMAGE)[:20], "`image`: The picture's header is broken"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 99, "`image`: The picture's header is broken"),
    ],
)
def test_pictures_that_are_none(path: str, content: bytes, said: str, server: Any) -> None:
    fields = {"prompt": "star"} if path == "/images/edits" else {}
    message, param, code = fault(send(server, path, content, **fields))
    assert message.startswith(said)
    assert (param, code) == ("image", "invalid_image")


def test_pictures_with_too_many_pixels(serve: Callable[..., Any]) -> None:
    server = serve(max_upload_pixels=400)
    assert send(server, "/images/variations", encoded(Image.new("L", (20, 20)))).status_code == 200
    # Of a JPEG less is decoded.
    photo = encoded(Image.new("L", (80, 60)), "JPEG")
    assert send(server, "/images/variations", photo).status_code == 200
    header = struct.pack(">4sIIBBBBB", b"IHDR", 30_000, 30_000, 8, 2, 0, 0, 0)
    large = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header))
    large += b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    for path in ("/images/variations", "/images/reconstructions"):
        message, param, code = fault(send(server, path, large))
        assert message == (
            "`image`: The picture is too large: 30000x30000 = 900,000,000 pixels, at most 400 are "
            "decoded. Make it smaller, or raise serve.max_upload_pixels."
        )
        assert (param, code) == ("image", "invalid_image")
    mask = encoded(Image.new("L", (20, 21)))
    message, param, _ = fault(edit(server, encoded(Image.new("L", (20, 20))), mask=mask))
    assert param == "mask"


@pytest.mark.parametrize("kind", ["P", "L", "1", "I;16", "RGB"])
def test_one_colour_that_stands_for_transparency(kind: str, server: Any, tiny: ServedModel) -> None:
    """Palettes, grays of one to sixteen bits and colours may name it."""
    values = np.where(MARKED, 0, 200)
    image = Image.fromarray(values.astype(np.uint8))
    if kind == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    elif kind == "1":
        image = Image.fromarray(~MARKED)
    elif kind != "L":
        image = image.convert(kind)
    name = (0, 0, 0) if kind == "RGB" else image.getpixel((3, 5)) if kind == "P" else 0
    content = encoded(image, transparency=name)
    seen = opened(content)
    assert seen.mode == kind
    answer = edit(server, content)
    [painted] = pictures(answer)
    assert not np.array_equal(painted[MARKED], np.full_like(painted[MARKED], 255))
    own = read_image(content, max_pixels=1000)
    expected = tiny.model.edit(own, "star", MARKED, seed=4)
    assert np.array_equal(painted, np.asarray(expected[0]))


# Variations.


def test_variations(server: Any, tiny: ServedModel) -> None:
    expected = tiny.model.vary(IMAGE, "", count=3, seed=9, strength=0.5)
    answer = send(server, "/images/variations", encoded(IMAGE), n=3, seed=9)
    assert np.array_equal(pictures(answer), pixels(expected))
    expected = tiny.model.vary(IMAGE, "star", seed=9, strength=0.3, best_of=2, count=2)
    answer = send(
        server, "/images/variations", encoded(IMAGE), n=2, seed=9, prompt="star", strength=0.3,
        best_of=2,
    )  # fmt: skip
    assert np.array_equal(pictures(answer), pixels(expected))
    streamed = send(server, "/images/variations", encoded(IMAGE), stream="true", seed=9)
    assert [said["type"] for said in events(streamed)] == ["image_edit.completed"]


@pytest.mark.parametrize("prompt", [None, "", "  \n"])
def test_without_a_prompt_there_are_no_candidates(
    prompt: str | None, server: Any, tiny: ServedModel
) -> None:
    said = {} if prompt is None else {"prompt": prompt}
    expected = tiny.model.vary(IMAGE, "", count=2, seed=9)
    answer = send(server, "/images/variations", encoded(IMAGE), n=2, seed=9, best_of=4, **said)
    assert np.array_equal(pictures(answer), pixels(expected))
    assert [entry["seed"] for entry in answer.json()["data"]] == [9, 10]


# Reconstructions.


def test_reconstructions(server: Any, models: Models) -> None:
    wide = Image.fromarray(np.random.default_rng(2).integers(0, 255, (30, 50, 3), dtype=np.uint8))
    for name in ("tiny", "twin"):
        model = models[name].model
        answer = send(server, "/images/reconstructions", encoded(wide), model=name)
        body = answer.json()
        own = fit_images([wide], 16)
        assert np.array_equal(np.asarray(opened(base64.b64decode(body["original"]))), own[0])
        [expected] = model.reconstruct([wide])
        shown = opened(base64.b64decode(body["reconstruction"]))
        assert np.array_equal(np.asarray(shown), np.asarray(expected))
        assert body["codes"] == model.encode_images(own)[0].tolist()
        assert np.shape(body["codes"]) == (1, 4, 4)
        assert (body["model"], body["grid"], body["codebook_size"]) == (name, [4, 4], 16)
        assert body["codes_per_position"] == 1
    _, param, code = fault(
        send(server, "/images/reconstructions", encoded(wide), model="none"), 404
    )
    assert (param, code) == ("model", "model_not_found")
    _, param, code = fault(send(server, "/images/reconstructions", encoded(wide), prompt="a"))
    assert (param, code) == ("prompt", "unknown_parameter")


# Forms.

FILE = ("i.png", encoded(IMAGE))


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ([("prompt", (None, "a"))], "image", "missing"),
        ([("image", FILE)], "prompt", "missing"),
        ([("image", (None, "a")), ("prompt", (None, "a"))], "image", "invalid_value"),
        ([("image", FILE), ("prompt", FILE)], "prompt", "invalid_value"),
        (
            [("image", FILE), ("mask", (None, "a")), ("prompt", (None, "a"))],
            "mask",
            "invalid_value",
        ),
        ([("image", FILE), ("n", FILE), ("prompt", (None, "a"))], "n", "invalid_value"),
        ([("image", FILE), ("image", FILE), ("prompt", (None, "a"))], "image", None),
        ([("image", FILE), ("prompt", (None, "a")), ("prompt", (None, "a"))], "prompt", None),
        ([("image", FILE), ("prompts", (None, "a"))], "prompts", "unknown_parameter"),
        ([("image", FILE), ("prompt", (None, "a")), ("extra", FILE)], "extra", "invalid_value"),
        ([("image", FILE), ("prompt", (None, "a")), ("n", (None, "x"))], "n", "invalid_value"),
    ],
)
def test_forms_that_are_wrong(parts: list[Any], param: str, code: str | None, server: Any) -> None:
    assert fault(server.post("/images/edits", files=parts))[1:] == (param, code)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary="),
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
        (b"nothing of the kind", "multipart/form-data; boundary=b"),
        (b"--b\r\nno header\r\n\r\n\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
         "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx',
         "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xfe\r\n--b--\r\n',
         "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n',
         "multipart/form-data; boundary=b; charset=nonsense"),
        (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n',
         "multipart/form-data; boundary=b; charset=utf-16"),
        (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n',
         "multipart/form-data; boundary=b; charset=undefined"),
        (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n',
         "multipart/form-data; boundary=b; charset=idna"),
        (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx-\r\n--b--\r\n',
         "multipart/form-data; boundary=b; charset=punycode"),
        (b"--b\r\n" + b"X: " + b"y" * 99_999, "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="p"\r\n\r\n' + b"x" * 70_000
         + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (b"".join(b'--b\r\nContent-Disposition: form-data; name="%d"\r\n\r\nx\r\n' % n
                  for n in range(50)) + b"--b--\r\n", "multipart/form-data; boundary=b"),
        (b"".join(b'--b\r\nContent-Disposition: form-data; name="%d"; filename="f"\r\n\r\nx\r\n'
                  % n for n in range(5)) + b"--b--\r\n", "multipart/form-data; boundary=b"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/images/edits", "/images/variations"])
def test_bodies_that_are_no_forms(content: bytes, kind: str, path: str, server: Any) -> None:
    answer = server.post(path, content=content, headers={"Content-Type": kind})
    message, _, _ = fault(answer)
    assert message


def test_types_of_bodies(server: Any) -> None:
    form = {"files": [("image", FILE), ("prompt", (None, "a"))]}
    message, _, code = fault(server.post("/images/generations", **form), 415)
    assert message.startswith("The body must be application/json: `multipart/form-data`.")
    assert code == "wrong_content_type"
    for path in ("/images/variations", "/images/reconstructions"):
        message, _, _ = fault(server.post(path, json={"prompt": "a"}), 415)
        assert message.startswith("The body must be multipart/form-data: `application/json`.")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        answer = server.post(
            "/images/generations", content=b'{"prompt":"a"}', headers={"Content-Type": kind}
        )
        fault(answer, 415)
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/json ;x"):
        answer = server.post(
            "/images/generations",
            content=b'{"prompt":"a","steps":1}',
            headers={"Content-Type": kind},
        )
        assert answer.status_code == 200


# What waits.


@pytest.mark.parametrize("path", ["/images/edits", "/images/variations"])
def test_pictures_that_wait_are_small(
    path: str, server: Any, tiny: ServedModel, watch: Any, until: Any
) -> None:
    """A file of 20 kB with 16 million pixels waited as 64 MB: some hundreds filled the memory."""
    seen = watch(tiny.model)
    seen.gate.clear()
    large = Image.new("RGB", (2000, 3000), "red")
    large.paste("blue", (0, 1000, 1000, 2000))
    marked = Image.new("L", large.size)
    marked.paste(255, (500, 1200, 1500, 1800))
    masks = {"mask": encoded(marked)} if path == "/images/edits" else {}
    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(server.generate)
        until(lambda: seen.batches)
        asked = pool.submit(
            send, server, path, encoded(large), prompt="star", seed=4, strength=0.5, **masks
        )
        until(lambda: server.num_waiting == 1)
        [job] = server.service.worker._arrived
        plan = job.job.list_requests.keywords["plan"]
        held = inspect.getclosurevars(plan).nonlocals.values() if masks else plan.args
        sizes = [one.size for one in held if isinstance(one, Image.Image)]
        sizes += [one.marked.shape for one in held if isinstance(one, Marking)]
        assert sizes == ([(16, 16)] * 2 if masks else [(16, 16)])
        seen.gate.set()
        assert begun.result().status_code == 200
        painted = pictures(asked.result())
    if masks:
        expected = tiny.model.edit(large, "star", marked, seed=4)
    else:
        expected = tiny.model.vary(large, "star", seed=4)
    assert np.array_equal(painted, pixels(expected))


def test_few_pictures_are_decoded_at_once(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, most, lock = 0, 0, threading.Lock()

    def count(content: bytes, **limits: Any) -> Any:
        nonlocal busy, most
        with lock:
            busy, most = busy + 1, max(most, busy + 1)
        time.sleep(0.02)
        with lock:
            busy -= 1
        return read_with_transparency(content, **limits)

    monkeypatch.setattr(bodies, "read_with_transparency", count)
    with ThreadPoolExecutor(12) as pool:
        paths = ["/images/reconstructions", "/images/variations"] * 6
        answers = list(pool.map(lambda path: send(server, path, encoded(IMAGE)), paths))
    assert {answer.status_code for answer in answers} == {200}
    assert 1 < most <= 4


@pytest.mark.parametrize("charset", ["unicode_escape", "raw_unicode_escape", "utf-7", "utf-16"])
def test_texts_of_odd_charsets(charset: str, server: Any) -> None:
    """Half a letter can be said so, which no UTF-8 has."""
    content = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\\ud800 +2AA-\r\n'
    content += b'--b\r\nContent-Disposition: form-data; name="user"\r\n\r\n\\ud800\r\n'
    content += b'--b\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    content += encoded(IMAGE) + b"\r\n--b--\r\n"
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    answer = server.post("/images/variations", content=content, headers={"Content-Type": kind})
    message, _, code = fault(answer)
    assert (message, code) == ("The form's charset cannot be read. Send UTF-8.", "invalid_form")


def test_a_form_may_be_taken_apart_anywhere(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = send(server, "/images/variations", encoded(IMAGE), seed=9, prompt="ein Stern ü")
    for size in (1, 7, 64):
        monkeypatch.setattr(bodies, "_FORM_SLICE_BYTES", size)
        answer = send(server, "/images/variations", encoded(IMAGE), seed=9, prompt="ein Stern ü")
        assert answer.json()["data"] == expected.json()["data"]
