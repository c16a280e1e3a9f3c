"""Edits in JSON, as OpenAI's reference has them."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.serving.models_served import ServedModel

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
IMAGE = Image.fromarray(NOISE)
MASK = Image.new("RGBA", (16, 16), "black")
MASK.paste((0, 0, 0, 0), (0, 0, 8, 16))


def url(image: Image.Image) -> dict[str, str]:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    text = base64.b64encode(stream.getvalue()).decode("ascii")
    return {"image_url": f"data:image/png;base64,{text}"}


def ask(server: Any, **said: Any) -> Any:
    return server.post("/images/edits", json={"prompt": "a star", "images": [url(IMAGE)]} | said)


def painted(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    content = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_part_is_repainted(server: Any, tiny: ServedModel) -> None:
    answer = ask(server, mask=url(MASK), seed=4, model="tiny", n=1, quality="high")
    [expected] = tiny.model.edit(IMAGE, "a star", MASK.getchannel("A").point(lambda v: 255 - v),
                                 seed=4)  # fmt: skip
    assert np.array_equal(painted(answer), expected)
    assert np.array_equal(painted(answer)[:, 8:], NOISE[:, 8:])


def test_without_a_mask_it_is_varied(server: Any, tiny: ServedModel) -> None:
    [expected] = tiny.model.vary(IMAGE, "a star", strength=0.8, seed=4)
    assert np.array_equal(painted(ask(server, seed=4, strength=0.8)), expected)


def test_further_pictures_are_looked_at(album_server: Any) -> None:
    answer = ask(album_server, images=[url(IMAGE), url(IMAGE)], seed=1)
    names = [one["name"] for one in answer.json()["data"][0]["examples"]]
    assert names[0] == "reference 1"


@pytest.mark.parametrize(
    ("said", "message", "param"),
    [
        ({"images": []}, "`images` is wrong: `[]`", "images"),
        ({"images": None}, "`images` is wrong", "images"),
        ({"images": [{"image_url": "https://a.example/a.png"}]}, "fetches no addresses", "images"),
        ({"images": [{"file_id": "file-1"}]}, "keeps no files", "images"),
        ({"images": [{}]}, "Send the picture itself as `image_url`", "images"),
        ({"images": [{"image_url": "!"}]}, "`images[0].image_url` is not base64", "images"),
        ({"images": [{"image_url": "YQ=="}]}, "Not a picture", "image"),
        ({"mask": {"image_url": "http://a.example/"}}, "`mask`: This server fetches", "mask"),
        ({"mask": {"image_url": "YQ=="}}, "`mask`: Not a picture", "mask"),
        ({"n": "2"}, "`n` is wrong: `'2'`", "n"),
        ({"stepz": 2}, "Did you mean `steps`?", "stepz"),
        ({"prompt": None}, "`prompt` is wrong", "prompt"),
    ],
)
def test_what_is_wrong_is_said(said: Any, message: str, param: str, server: Any) -> None:
    answer = ask(server, **said)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["param"] == param


def test_all_but_the_pictures_is_limited(server: Any) -> None:
    assert ask(server, user=["x!" * 100] * 5000).status_code == 413


def test_the_document_tells_of_both(server: Any) -> None:
    document = server.get("/openapi.json").json()
    content = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert list(content) == ["multipart/form-data", "application/json"]
    schema = content["application/json"]["schema"]
    assert set(schema["required"]) == {"prompt", "images"}
    assert "image_url" in schema["properties"]["images"]["items"]["properties"]
    assert "image" not in schema["properties"]
