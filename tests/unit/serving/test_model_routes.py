"""What is told of models: their list, cards, samples and codebooks."""

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.generation import GenerationSettings
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel
from tessella.text.vocabulary import CaptionSummary

pytestmark = pytest.mark.usefixtures("one_thread")

Models = Mapping[str, ServedModel]


def test_the_list_of_models(server: Any, models: Models) -> None:
    body = server.get("/v1/models").json()
    assert body["object"] == "list"
    assert [entry["id"] for entry in body["data"]] == list(models)
    for entry in body["data"]:
        assert server.get(f"/v1/models/{entry['id']}").json() == entry


def test_a_model(server: Any, tiny: ServedModel) -> None:
    entry = server.get("/v1/models/tiny").json()
    assert entry == {
        "id": "tiny",
        "object": "model",
        "created": tiny.created,
        "owned_by": "tessella",
        "image_size": 16,
        "grid": [4, 4],
        "codebook_size": 16,
        "codes_per_position": 1,
        "objective": "any_order",
        "precision": "fp32",
        "max_prompt_tokens": 64,
        "generation": GenerationSettings(steps=3, temperature=1.0).model_dump(),
        "can": {"guidance": True, "best_of": True, "partial_images": True, "edit": True},
        "limits": {
            "n": 10, "steps": 64, "best_of": 16, "prompt_characters": 4000, "side_px": 2048,
        },
        "memory": None,
        "examples": ["a red star", "a green star", "a blue star"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "partial", "best_of"),
    [("raster", True, True), ("atonce", False, True), ("mean", False, False)],
)
def test_what_a_model_can_is_what_it_does(
    name: str, partial: bool, best_of: bool, server: Any
) -> None:
    entry = server.get(f"/v1/models/{name}").json()
    assert entry["can"]["partial_images"] is partial
    assert entry["can"]["best_of"] is best_of
    assert entry["examples"] == []
    streamed = server.generate(model=name, stream=True, partial_images=1)
    assert (".partial_image" in streamed.text) is partial
    assert (server.generate(model=name, best_of=2).status_code == 200) is best_of


def test_a_servers_limits_are_told(serve: Callable[..., Any]) -> None:
    server = serve(max_pictures=3, max_steps=5, max_best_of=2, max_prompt_characters=40)
    limits = server.get("/v1/models/tiny").json()["limits"]
    most = {"n": 3, "steps": 5, "best_of": 2, "prompt_characters": 40, "side_px": 2048}
    assert limits == most
    for name in ("n", "steps", "best_of"):
        assert server.generate(**{name: most[name]}).status_code == 200
        assert server.generate(**{name: most[name] + 1}).status_code == 400


def test_at_most_24_examples(
    tiny: ServedModel, tmp_path: Path, run_app: Callable[..., Any]
) -> None:
    captions = [f"caption {n}" for n in range(50)]
    tiny.model.save(
        tmp_path / "many",
        card="",
        metrics={},
        samples=np.zeros((4, 4, 3), np.uint8),
        captions=CaptionSummary(50, {"caption": 50}, captions),
    )
    served = ServedModel.load("many", tmp_path / "many", tiny.model)
    with run_app(create_app({"many": served})) as server:
        assert server.get("/v1/models/many").json()["examples"] == captions[:24]


def test_a_card_without_its_front_matter(server: Any) -> None:
    assert server.get("/v1/models/twin/card").json() == {
        "id": "twin",
        "markdown": "# A card\n\n---\nIt paints stars.",
        "metrics": {"psnr": {"value": 1.5, "protocol": "by hand"}},
        "samples": "/v1/models/twin/samples.png",
    }


def test_a_card_that_has_none_stays_whole(
    tiny: ServedModel, tmp_path: Path, run_app: Callable[..., Any]
) -> None:
    text = "A line.\n---\nno front matter\n---\nmore\n"
    tiny.model.save(tmp_path / "m", card=text, metrics={}, samples=np.zeros((4, 4, 3), np.uint8))
    served = {"m": ServedModel.load("m", tmp_path / "m", tiny.model)}
    (tmp_path / "m" / "README.md").write_bytes(b"---\r\na: b\r\n---\r\n# Told on Windows\r\n")
    (tmp_path / "m" / "samples.png").unlink()
    served["w"] = ServedModel.load("w", tmp_path / "m", tiny.model)
    with run_app(create_app(served)) as server:
        assert server.get("/v1/models/m/card").json()["markdown"] == text.strip()
        assert server.get("/v1/models/w/card").json()["markdown"] == "# Told on Windows"
        answer = server.get("/v1/models/w/samples.png")
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == "The model has no samples: `w`."


def test_samples(server: Any, tiny: ServedModel) -> None:
    answer = server.get("/v1/models/tiny/samples.png")
    assert answer.headers["content-type"] == "image/png"
    [own] = tiny.model.decode_codes(torch.zeros(1, 1, 16, dtype=torch.int64))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), own)


def test_the_codebook_is_a_box_of_tiles(server: Any, models: Models) -> None:
    """Tile k is what the middle of a mosaic of code k alone looks like."""
    for name in ("tiny", "twin"):
        body = server.get(f"/v1/models/{name}/codebook").json()
        assert (body["codebook_size"], body["columns"], body["tile_px"]) == (16, 32, 4)
        assert body["codes_per_position"] == 1
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["b64_png"]))))
        assert sheet.shape == (4, 128, 3)
        for code in range(16):
            mosaic = models[name].model.decode_codes(torch.full((1, 1, 4, 4), code))[0]
            assert np.array_equal(sheet[:, 4 * code : 4 * code + 4], mosaic[8:12, 8:12])
        assert (sheet[:, 64:] == 255).all()
        assert server.get(f"/v1/models/{name}/codebook").json() == body
