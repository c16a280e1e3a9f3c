"""A model with several codes at a position: what the server says of it, and what it answers."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.images import encode_picture
from tessella.model.canvas import fit_images
from tessella.model.codec import decode_latent
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel


@pytest.fixture(scope="module")
def server(pairs: ServedModel, run_app: Any, one_thread: None) -> Iterator[Any]:
    with run_app(create_app({"pairs": pairs})) as found:
        yield found


def opened(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def test_the_model_says_how_many(server: Any) -> None:
    entry = server.get("/v1/models/pairs").json()
    assert (entry["grid"], entry["codebook_size"]) == ([4, 4], 16)
    assert entry["codes_per_position"] == 2
    assert entry["memory"] == {"examples": 5, "neighbors": 2}


def test_each_code_is_a_token_of_the_usage(server: Any, pairs: ServedModel) -> None:
    """Two pictures of sixteen positions with two codes each."""
    body = server.generate(n=2, seed=3).json()
    expected = pairs.model.generate("a red star", count=2, seed=3)
    for entry, picture in zip(body["data"], expected, strict=True):
        assert np.array_equal(opened(entry["b64_json"]), np.asarray(picture))
    text = pairs.model.text_tokenizer.count_tokens("a red star")
    assert body["usage"]["output_tokens"] == 64
    assert body["usage"]["total_tokens"] == text + 64
    larger = server.generate(canvas="1.5x1", steps=1).json()
    assert larger["usage"]["output_tokens"] == 2 * 24


def test_partial_pictures_come_too(server: Any) -> None:
    said = server.generate(stream=True, partial_images=2).text
    assert said.count("event: image_generation.partial_image") == 2
    assert said.count("event: image_generation.completed") == 1
    assert '"output_tokens": 32' in said


def test_a_reconstruction_has_a_grid_of_each_code(server: Any, pairs: ServedModel) -> None:
    picture = np.random.default_rng(2).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    files = [("image", ("i.png", encode_picture(picture)))]
    body = server.post("/images/reconstructions", files=files).json()
    codes = pairs.model.encode_images(fit_images([Image.fromarray(picture)], 16))
    assert codes.shape == (1, 2, 4, 4)
    assert not torch.equal(codes[:, 0], codes[:, 1])
    assert body["codes"] == codes[0].tolist()
    assert (body["grid"], body["codebook_size"], body["codes_per_position"]) == ([4, 4], 16, 2)
    assert np.array_equal(opened(body["reconstruction"]), pairs.model.decode_codes(codes)[0])


def test_the_codebooks_follow_each_other_on_the_sheet(server: Any, pairs: ServedModel) -> None:
    """A tile is the middle of a mosaic of one code, the other one at the mean of its codebook."""
    body = server.get("/v1/models/pairs/codebook").json()
    assert (body["codebook_size"], body["codes_per_position"], body["columns"]) == (16, 2, 32)
    sheet = opened(body["b64_png"])
    assert sheet.shape == (4, 128, 3)
    tokenizer = pairs.model.tokenizer
    first, second = (part.codebook for part in tokenizer.quantizer.parts)
    assert not torch.equal(first, second)
    for number in range(32):
        code = number % 16
        alone = first.mean(0) + second[code] if number >= 16 else first[code] + second.mean(0)
        [mosaic] = decode_latent(tokenizer, alone.view(1, -1, 1, 1).expand(-1, -1, 4, 4), (4, 4))
        tile = sheet[:, 4 * number : 4 * number + 4]
        assert np.abs(tile.astype(int) - mosaic[8:12, 8:12]).max() <= 1, number
    assert len(np.unique(sheet.reshape(4, 32, 4, 3).swapaxes(0, 1).reshape(32, -1), axis=0)) > 16


def test_an_example_as_a_picture(server: Any, pairs: ServedModel) -> None:
    memory = pairs.examples.memory
    assert memory is not None
    assert memory.codes.shape == (5, 2, 4, 4)
    answer = server.get("/v1/models/pairs/examples/3.png")
    codes = torch.from_numpy(memory.codes[3].astype(np.int64))[None]
    [expected] = pairs.model.decode_codes(codes)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected)


def test_a_part_is_repainted_and_the_rest_keeps_all_its_codes(
    server: Any, pairs: ServedModel
) -> None:
    picture = np.random.default_rng(5).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(picture)
    hidden = np.zeros((16, 16), np.uint8)
    hidden[:8] = 255
    holes = Image.merge("RGBA", [*image.split(), Image.fromarray(255 - hidden)])
    files = [
        ("image", ("i.png", encode_picture(picture))),
        ("mask", ("m.png", _write(holes))),
        ("prompt", (None, "a red star")),
        ("seed", (None, "4")),
    ]
    answer = server.post("/images/edits", files=files)
    assert answer.status_code == 200, answer.text
    [expected] = pairs.model.edit(image, "a red star", Image.fromarray(hidden), seed=4)
    assert np.array_equal(opened(answer.json()["data"][0]["b64_json"]), np.asarray(expected))


def _write(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
