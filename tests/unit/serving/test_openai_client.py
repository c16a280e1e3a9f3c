"""The official `openai` client, as it is, against the bundled model: all that it can ask of images.

It knows nothing of tessella: what it accepts of answers, streams and errors is OpenAI's API.
"""

import base64
import io
import threading
import time
import urllib.request
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

from served import serve_app
from tessella.model.pipeline import TextToImage
from tessella.serving.app import create_app
from tessella.serving.models_served import load_models
from tessella.serving.settings import ServeSettings

PROMPT = "a large red circle on a white background"
OTHER = "a large blue circle on a white background"


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    models = load_models(["scenes", "second=scenes"], "cpu")
    with (
        serve_app(create_app(models, ServeSettings(max_queue=40))) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return load_models(["scenes"], "cpu")["scenes"].model


def to_pixels(b64_json: str | None) -> np.ndarray:
    assert b64_json is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))).convert("RGB"))


def to_png(image: Image.Image, name: str = "image.png") -> tuple[str, bytes]:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return name, stream.getvalue()


@pytest.fixture(scope="module")
def picture(model: TextToImage) -> Image.Image:
    return model.generate(PROMPT, seed=3)[0]


def test_pictures_are_those_that_the_model_paints(
    client: openai.OpenAI, model: TextToImage
) -> None:
    answer = client.images.generate(prompt=PROMPT, n=3, extra_body={"seed": 7, "steps": 8})
    assert answer.data is not None
    painted = [to_pixels(one.b64_json) for one in answer.data]
    expected = model.generate(PROMPT, count=3, seed=7, steps=8)
    assert all(np.array_equal(a, b) for a, b in zip(painted, expected, strict=True))
    assert answer.output_format == "png"
    assert answer.size == "64x64"
    assert abs(answer.created - time.time()) < 60
    assert answer.usage is not None
    assert answer.usage.output_tokens == 3 * 64
    assert [one.model_extra for one in answer.data] == [{"seed": 7}, {"seed": 8}, {"seed": 9}]


def test_without_a_seed_pictures_differ_and_can_be_had_again(client: openai.OpenAI) -> None:
    first, second = (client.images.generate(prompt="a small green ring").data for _ in range(2))
    assert first is not None
    assert second is not None
    assert first[0].b64_json != second[0].b64_json
    seed = (first[0].model_extra or {})["seed"]
    again = client.images.generate(prompt="a small green ring", extra_body={"seed": seed}).data
    assert again is not None
    assert again[0].b64_json == first[0].b64_json


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["scenes", "second"]
    assert client.models.retrieve("second").owned_by == "tessella"
    with pytest.raises(openai.NotFoundError, match=r"no such model: `gpt-image-2`.*`scenes`"):
        client.models.retrieve("gpt-image-2")


@pytest.mark.parametrize(("kind", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats_and_sizes(client: openai.OpenAI, kind: str, name: str) -> None:
    answer = client.images.generate(
        prompt=PROMPT,
        size="1536x1024",
        output_format=kind,  # type: ignore[arg-type]
        output_compression=None if kind == "png" else 80,
        quality="high",
        moderation="low",
        background="opaque",
        user="someone",
    )
    assert answer.data is not None
    content = base64.b64decode(answer.data[0].b64_json or "")
    opened = Image.open(io.BytesIO(content))
    assert (opened.format, opened.size, answer.size) == (name, (1536, 1024), "1536x1024")


def count_runs(occupied: np.ndarray) -> int:
    """How many runs of True there are."""
    return int((np.diff(np.concatenate([[False], occupied]).astype(int)) == 1).sum())


@pytest.mark.parametrize(
    "size", ["256x256", "512x512", "1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792"]
)
def test_every_size_shows_the_one_star_that_was_asked_for(client: openai.OpenAI, size: str) -> None:
    """Of another shape there were two, the second torn, in 12 of 12 seeds."""
    answer = client.images.generate(
        prompt="a large red star on a navy background",
        size=size,  # type: ignore[arg-type]
        n=3,
        extra_body={"seed": 0},
    )
    assert answer.size == size
    for one in answer.data or ():
        pixels = to_pixels(one.b64_json)
        assert "x".join(map(str, pixels.shape[1::-1])) == size
        is_red = (pixels[..., 0] > 150) & (pixels[..., 2] < 100)
        assert (count_runs(is_red.any(0)), count_runs(is_red.any(1))) == (1, 1)
    width, height = map(int, size.split("x"))
    told = (answer.model_extra or {})["warnings"]
    assert ["padded to" in one for one in told] == ([] if width == height else [True])
    assert (answer.model_extra or {})["painted_size"] == "64x64"


def test_a_wide_canvas_is_asked_for_by_name(client: openai.OpenAI, model: TextToImage) -> None:
    answer = client.images.generate(
        prompt=PROMPT, size="1536x1024", extra_body={"seed": 2, "canvas": "wide"}
    )
    assert answer.data is not None
    [expected] = model.generate(PROMPT, seed=2, size=(1536, 1024), canvas="wide")
    assert np.array_equal(to_pixels(answer.data[0].b64_json), expected)
    assert (answer.model_extra or {})["painted_size"] == "96x64"
    assert (answer.model_extra or {})["warnings"] == []


def test_what_had_no_effect_is_told(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt="🔴⭐", quality="hd", style="vivid", extra_body={"negative_prompt": "a blue star"}
    )
    words, negative, quality, style = (answer.model_extra or {})["warnings"]
    assert words.startswith("Not in the model's vocabulary: `🔴`, `⭐`.")
    assert negative.startswith("No effect: `negative_prompt`. It works by guidance, which is off")
    assert quality.startswith("No effect: `quality`.")
    assert style.startswith("No effect: `style`.")


def test_urls_can_be_fetched(client: openai.OpenAI, model: TextToImage) -> None:
    answer = client.images.generate(
        prompt=PROMPT, response_format="url", n=2, extra_body={"seed": 1}
    )
    assert answer.data is not None
    for one, expected in zip(answer.data, model.generate(PROMPT, count=2, seed=1), strict=True):
        assert one.b64_json is None
        assert one.url is not None
        with urllib.request.urlopen(one.url) as answered:
            assert np.array_equal(np.asarray(Image.open(answered)), expected)


@pytest.fixture(scope="module")
def only() -> Iterator[openai.OpenAI]:
    """A server of one model, which answers to every name."""
    models = load_models(["scenes"], "cpu")
    with (
        serve_app(create_app(models)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as made,
    ):
        yield made


def test_langchain_reads_urls_and_never_says_so(only: openai.OpenAI) -> None:
    """`DallEAPIWrapper` asks like this and joins the URLs: a TypeError for pictures in base64."""
    asked = {"prompt": PROMPT, "n": 2, "size": "1024x1024", "quality": "standard"}
    for name in ("dall-e-2", "dall-e-3"):
        answer = only.images.generate(model=name, **asked)  # type: ignore[call-overload]
        urls = "\n".join([one.url for one in answer.data])
        for url in urls.split("\n"):
            with urllib.request.urlopen(url) as answered:
                assert Image.open(answered).size == (1024, 1024)
        assert all(one.b64_json is None for one in answer.data)
        assert answer.model_extra["model"] == "scenes"


@pytest.mark.parametrize("name", ["gpt-image-1", "gpt-image-2", "dall-e-3", "made-up"])
def test_open_webui_reads_base64(name: str, only: openai.OpenAI) -> None:
    """It asks for it by name, but of names that begin with gpt-image it expects it anyway."""
    said = {"model": name, "prompt": PROMPT, "n": 1, "size": "512x512"}
    if not name.startswith("gpt-image"):
        said["response_format"] = "b64_json"
    url = f"{only.base_url}images/generations?api-version=2025-04-01-preview"
    headers = {"Authorization": "Bearer unused"}
    [one] = httpx.post(url, json=said, headers=headers, timeout=60).json()["data"]
    assert "url" not in one
    assert to_pixels(one["b64_json"]).shape == (512, 512, 3)


def test_the_servers_own_choice_of_format(model: TextToImage) -> None:
    models = load_models(["scenes"], "cpu")
    for chosen, named, expected in (
        ("url", "gpt-image-1", "url"),
        ("b64_json", "dall-e-3", "b64_json"),
    ):
        app = create_app(models, ServeSettings(response_format=chosen))
        with (
            serve_app(app) as address,
            openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client,
        ):
            [one] = client.images.generate(prompt=PROMPT, model=named).data or []
            assert (one.url is None, one.b64_json is None) == (
                expected != "url", expected == "url",
            )  # fmt: skip
            asked = "b64_json" if expected == "url" else "url"
            [one] = client.images.generate(prompt=PROMPT, response_format=asked).data or []
            assert (one.url is None) is (asked != "url")


def test_forms_as_python_and_pages_write_them(
    only: openai.OpenAI, picture: Image.Image, model: TextToImage
) -> None:
    """`str(True)`, fields that were left blank, -1 for a seed to be drawn."""
    url = f"{only.base_url}images/edits"
    files = {"image": to_png(picture), "mask": ("", b"")}
    blank = {"prompt": PROMPT, "size": "", "negative_prompt": "", "n": "1", "stream": "False"}
    answers = [
        httpx.post(url, data=blank | {"seed": seed}, files=files, timeout=60).json()
        for seed in ("", "-1", "-1", "5")
    ]
    seeds = [answer["data"][0]["seed"] for answer in answers]
    assert len(set(seeds)) == 4
    assert seeds[3] == 5
    [expected] = model.vary(picture, PROMPT, seed=5)
    assert np.array_equal(to_pixels(answers[3]["data"][0]["b64_json"]), expected)
    streamed = httpx.post(url, data=blank | {"stream": "True"}, files=files, timeout=60)
    assert streamed.headers["content-type"].startswith("text/event-stream")


def test_a_picture_is_streamed_as_it_is_laid(client: openai.OpenAI, model: TextToImage) -> None:
    stream = client.images.generate(
        prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 7}
    )
    *partial, last = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    numbers = [e.partial_image_index for e in partial if "partial" in e.type]
    assert numbers == [0, 1, 2]
    assert last.type == "image_generation.completed"
    [expected] = model.generate(PROMPT, seed=7)
    distances = [np.abs(to_pixels(e.b64_json) - np.asarray(expected, int)).mean() for e in partial]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] > 0
    assert np.array_equal(to_pixels(last.b64_json), expected)
    assert last.usage.output_tokens == 64


def test_several_pictures_are_streamed(client: openai.OpenAI, model: TextToImage) -> None:
    stream = client.images.generate(prompt=PROMPT, stream=True, n=3, extra_body={"seed": 5})
    events = {(e.model_extra or {})["index"]: to_pixels(e.b64_json) for e in stream}
    expected = model.generate(PROMPT, count=3, seed=5)
    assert all(np.array_equal(events[i], picture) for i, picture in enumerate(expected))


def test_a_part_is_painted_anew(
    client: openai.OpenAI, model: TextToImage, picture: Image.Image
) -> None:
    """OpenAI's mask is transparent where the picture changes."""
    mask = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=(0, 0, 0, 0))
    drawn = Image.new("L", picture.size, 0)
    ImageDraw.Draw(drawn).rectangle((0, 0, 31, 63), fill=255)
    expected = np.asarray(model.edit(picture, OTHER, drawn, seed=4)[0])
    kept = np.asarray(picture)[:, 32:]
    assert np.array_equal(expected[:, 32:], kept)
    for sent in (mask, drawn):
        answer = client.images.edit(
            image=to_png(picture), mask=to_png(sent), prompt=OTHER, extra_body={"seed": 4}
        )
        assert answer.data is not None
        assert np.array_equal(to_pixels(answer.data[0].b64_json), expected)
        read_by = "transparency" if sent is mask else "brightness"
        told = (answer.model_extra or {})["mask"]
        assert told == {"read_by": read_by, "repainted": 0.5}
    *partial, last = list(
        client.images.edit(
            image=to_png(picture),
            mask=to_png(mask),
            prompt=OTHER,
            stream=True,
            partial_images=1,
            extra_body={"seed": 4},
        )
    )
    assert [event.type for event in partial] == ["image_edit.partial_image"]
    assert np.array_equal(to_pixels(partial[0].b64_json)[:, 32:], kept)
    assert last.type == "image_edit.completed"
    assert np.array_equal(to_pixels(last.b64_json), expected)


def test_without_a_mask_a_picture_is_varied_by_the_prompt(
    client: openai.OpenAI, model: TextToImage, picture: Image.Image
) -> None:
    answer = client.images.edit(
        image=[to_png(picture)], prompt=OTHER, extra_body={"seed": 2, "strength": 0.8}
    )
    [expected] = model.vary(picture, OTHER, strength=0.8, seed=2)
    assert answer.data is not None
    assert np.array_equal(to_pixels(answer.data[0].b64_json), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # OpenAI has retired its own
def test_variations(client: openai.OpenAI, model: TextToImage, picture: Image.Image) -> None:
    answer = client.images.create_variation(
        image=to_png(picture), n=2, response_format="b64_json", extra_body={"seed": 6}
    )
    assert answer.data is not None
    for one, expected in zip(answer.data, model.vary(picture, count=2, seed=6), strict=True):
        assert np.array_equal(to_pixels(one.b64_json), expected)


def test_best_of(client: openai.OpenAI, model: TextToImage) -> None:
    answer = client.images.generate(prompt=PROMPT, n=2, extra_body={"seed": 0, "best_of": 4})
    assert answer.data is not None
    expected = model.generate(PROMPT, count=2, seed=0, best_of=4)
    for one, picture in zip(answer.data, expected, strict=True):
        assert np.array_equal(to_pixels(one.b64_json), picture)


def test_what_is_wrong_is_said_as_openai_says_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt=PROMPT, extra_body={"step": 8})
    assert refused.value.code == "unknown_parameter"
    assert refused.value.param == "step"
    assert "Did you mean `steps`?" in refused.value.message
    with pytest.raises(openai.BadRequestError, match="`image`: Not a picture"):
        client.images.edit(image=("a.png", b"no picture"), prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="transparent"):
        client.images.generate(prompt=PROMPT, background="transparent")
    with pytest.raises(openai.BadRequestError, match=r"Here it is `steps`\."):
        client.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 8})
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt=PROMPT, model="dall-e-2")
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id


def test_too_much_at_once_is_refused_to_be_asked_again(client: openai.OpenAI) -> None:
    """The queue holds 40 pictures."""

    def ask() -> int:
        try:
            client.images.generate(prompt=PROMPT, n=10, extra_body={"steps": 64})
        except openai.RateLimitError as error:
            assert int(error.response.headers["retry-after"]) >= 1
            return error.status_code
        return 200

    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(ask())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(statuses) == 8
    assert statuses.count(200) >= 4
    assert statuses.count(429) >= 1
    assert set(statuses) == {200, 429}


async def ask_often(address: str, count: int) -> list[np.ndarray]:
    import asyncio

    async with openai.AsyncOpenAI(base_url=address, api_key="unused") as client:

        async def ask(seed: int) -> np.ndarray:
            answer = await client.images.generate(prompt=PROMPT, extra_body={"seed": seed})
            assert answer.data is not None
            return to_pixels(answer.data[0].b64_json)

        return await asyncio.gather(*map(ask, range(count)))


def test_many_at_once_get_their_own(client: openai.OpenAI, model: TextToImage) -> None:
    import asyncio

    painted = asyncio.run(ask_often(str(client.base_url), 24))
    expected = model.generate(PROMPT, count=24, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(painted, expected, strict=True))
