"""AUTOMATIC1111's API, asked as Open WebUI and `webuiapi` ask it."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tessella.serving.models_served import ServedModel

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "k" * 32
NOISE = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
IMAGE = Image.fromarray(NOISE)
# What `webuiapi` sends with every call.
WEBUIAPI = {
    "enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0,
    "hr_resize_x": 0, "hr_resize_y": 0, "denoising_strength": 0.7, "firstphase_width": 0,
    "firstphase_height": 0, "styles": [], "subseed": -1, "subseed_strength": 0.0,
    "seed_resize_from_h": 0, "seed_resize_from_w": 0, "sampler_name": None, "scheduler": None,
    "batch_size": 1, "n_iter": 1, "restore_faces": False, "tiling": False,
    "do_not_save_samples": False, "do_not_save_grid": False, "eta": 1.0, "s_churn": 0, "s_tmax": 0,
    "s_tmin": 0, "s_noise": 1, "override_settings": {}, "sampler_index": None, "script_args": [],
    "script_name": None, "override_settings_restore_afterwards": True, "send_images": True,
    "save_images": False, "alwayson_scripts": {},
}  # fmt: skip


def ask(server: Any, name: str, **said: Any) -> httpx.Response:
    return server.client.post(f"/sdapi/v1/{name}", json=said)  # type: ignore[no-any-return]


def pictures(answer: httpx.Response) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in answer.json()["images"]
    ]


def information(answer: httpx.Response) -> dict[str, Any]:
    return dict(json.loads(answer.json()["info"]))


def encoded(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def test_open_webui_paints(server: Any, tiny: ServedModel) -> None:
    """Its own order: the options, the models, then txt2img with what it is set to."""
    assert server.get("/sdapi/v1/options").json() == {"sd_model_checkpoint": "tiny"}
    models = server.get("/sdapi/v1/sd-models").json()
    assert [one["title"] for one in models] == ["tiny", "twin", "raster", "atonce", "mean"]
    assert all(one["model_name"] == one["title"] for one in models)
    answer = ask(
        server, "txt2img", prompt="a red star", batch_size=2, width=32, height=32, steps=8,
        negative_prompt="", seed=7,
    )  # fmt: skip
    painted = pictures(answer)
    expected = tiny.model.generate("a red star", count=2, seed=7, steps=8)
    for picture, own in zip(painted, expected, strict=True):
        assert picture.shape == (32, 32, 3)
        assert np.array_equal(picture[::2, ::2], np.asarray(own)) or picture.std() > 0
    info = information(answer)
    assert (info["seed"], info["all_seeds"]) == (7, [7, 8])
    assert (info["width"], info["height"], info["sd_model_name"]) == (32, 32, "tiny")
    assert info["infotexts"][1] == "a red star\nSteps: 8, Seed: 8, Size: 32x32, Model: tiny"
    assert info["prompt"] == answer.json()["parameters"]["prompt"] == "a red star"


def test_a_picture_is_that_of_the_model(server: Any, tiny: ServedModel) -> None:
    said = WEBUIAPI | {"prompt": "a star", "negative_prompt": "", "seed": 3, "n_iter": 2}
    painted = pictures(ask(server, "txt2img", **said, steps=4, guidance_scale=2.0))
    expected = tiny.model.generate("a star", count=2, seed=3, steps=4, guidance_scale=2.0)
    assert all(np.array_equal(a, b) for a, b in zip(painted, expected, strict=True))


def test_what_programs_ask_beside(server: Any) -> None:
    """Their waiting for a free server, and their menus, end where nothing is found."""
    progress = server.get("/sdapi/v1/progress?skip_current_image=true").json()
    assert (progress["progress"], progress["state"]["job_count"]) == (0.0, 0)
    assert server.get("/sdapi/v1/scripts").json() == {"txt2img": [], "img2img": []}
    assert [one["name"] for one in server.get("/sdapi/v1/schedulers").json()] == ["automatic"]


def test_seeds_are_drawn_and_told(server: Any) -> None:
    seeds = {information(ask(server, "txt2img", prompt="a", seed=-1))["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_what_had_no_effect_is_told(server: Any) -> None:
    said = WEBUIAPI | {"sampler_name": "DPM++ 2M", "enable_hr": True, "styles": ["anime"]}
    told = information(
        ask(server, "txt2img", prompt="a", steps=150, width=64, cfg_scale=9, **said)
    )["warnings"]
    assert "steps: 64 instead of 150, the most that the server allows." in told
    assert "Of width and height only one was given: the size is the model's own." in told
    assert "Without effect: cfg_scale, enable_hr, styles, sampler_name." in told
    usual = ask(server, "txt2img", prompt="a", cfg_scale=7.0, **WEBUIAPI)
    assert not [one for one in information(usual)["warnings"] if "effect" in one]


def test_models_are_chosen(serve: Callable[..., Any], server: Any, models: Any) -> None:
    said = {"prompt": "a star", "seed": 1, "override_settings": {"sd_model_checkpoint": "twin"}}
    [painted] = pictures(ask(server, "txt2img", **said))
    [expected] = models["twin"].model.generate("a star", seed=1)
    assert np.array_equal(painted, expected)
    assert ask(server, "options", sd_model_checkpoint="twin", other="x").json() == {}
    try:
        assert server.get("/sdapi/v1/options").json() == {"sd_model_checkpoint": "twin"}
        [painted] = pictures(ask(server, "txt2img", prompt="a star", seed=1))
        assert np.array_equal(painted, expected)
    finally:
        ask(server, "options", sd_model_checkpoint="tiny")
    refused = ask(server, "options", sd_model_checkpoint="v1-5-pruned.safetensors")
    assert refused.json()["error"]["code"] == "model_not_found"
    # One model answers to any name.
    assert ask(serve(), "options", sd_model_checkpoint="v1-5-pruned.safetensors").json() == {}


def test_a_picture_is_varied(server: Any, tiny: ServedModel) -> None:
    answer = ask(
        server, "img2img", init_images=["data:image/png;base64," + encoded(IMAGE)], prompt="a star",
        denoising_strength=0.5, seed=2,
    )  # fmt: skip
    [expected] = tiny.model.vary(IMAGE, "a star", strength=0.5, seed=2)
    assert np.array_equal(pictures(answer)[0], expected)
    assert "init_images" not in answer.json()["parameters"]
    # A prompt may be left out, as there.
    assert pictures(ask(server, "img2img", init_images=[encoded(IMAGE)], prompt=""))


HALF = np.zeros((16, 16), dtype=np.uint8)
HALF[:, :8] = 255


def masks() -> Mapping[str, tuple[Image.Image, bool]]:
    white = Image.fromarray(HALF)
    opaque = Image.new("RGBA", (16, 16), "black")
    opaque.putalpha(white)  # there the opaque part is repainted, for OpenAI the transparent one
    turned, opaque_soft, nearly = opaque.copy(), opaque.copy(), white.convert("RGBA")
    turned.putalpha(Image.fromarray(255 - HALF))
    opaque_soft.putalpha(white.point(lambda value: 150 if value else 100))
    nearly.putpixel((12, 12), (0, 0, 0, 254))  # once, all of such a mask was repainted
    return {
        "white": (white, False),
        "rgb": (white.convert("RGB"), False),
        "inverted": (Image.fromarray(255 - HALF), True),
        "opaque": (opaque, False),
        "opaque, inverted": (turned, True),
        "soft": (opaque_soft, False),
        "of 16 bits": (Image.fromarray(HALF.astype(np.uint16) * 257), False),
        "gray with opacity": (opaque.convert("LA"), False),
        "one pixel that is nearly opaque": (nearly, False),
    }


@pytest.mark.parametrize("kind", masks())
def test_masks_are_read_as_there(kind: str, server: Any, tiny: ServedModel) -> None:
    mask, is_inverted = masks()[kind]
    answer = ask(
        server, "img2img", init_images=[encoded(IMAGE)], mask=encoded(mask), prompt="a star",
        inpainting_mask_invert=int(is_inverted), seed=2, denoising_strength=0.75,
    )  # fmt: skip
    [painted] = pictures(answer)
    assert np.array_equal(painted[:, 8:], NOISE[:, 8:])
    assert not np.array_equal(painted[:, :8], NOISE[:, :8])
    [expected] = tiny.model.edit(IMAGE, "a star", Image.fromarray(HALF), seed=2)
    assert np.array_equal(painted, expected)


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("txt2img", {"prompt": ""}, "`prompt` is wrong"),
        ("txt2img", {"prompt": None}, "`prompt` is wrong: `None`"),
        ("txt2img", {}, "A parameter is missing: `prompt`."),
        ("txt2img", {"prompt": "a", "batch_size": 11}, "`batch_size` is wrong: `11`"),
        (
            "txt2img",
            {"prompt": "a", "batch_size": 4, "n_iter": 3},
            "`batch_size` times `n_iter` is wrong: `12`. At most 10 pictures are painted",
        ),
        ("txt2img", {"prompt": "a", "width": 8, "height": 8}, "`width` is wrong: `8`"),
        ("txt2img", {"prompt": "a", "batch_size": "2"}, "`batch_size` is wrong: `'2'`"),
        ("txt2img", {"prompt": "a", "steps": "many"}, "`steps` is wrong"),
        ("img2img", {"prompt": "a"}, "A parameter is missing: `init_images`."),
        ("img2img", {"prompt": "a", "init_images": ["!"]}, "`init_images[0]` is not base64: `!`"),
        ("img2img", {"prompt": "a", "init_images": ["YQ=="]}, "Not a picture"),
        (
            "img2img",
            {"prompt": "a", "init_images": [encoded(IMAGE)], "mask": "YQ=="},
            "`mask`: Not a picture",
        ),
        (
            "img2img",
            {"init_images": [encoded(IMAGE)], "mask": encoded(Image.new("L", (16, 16)))},
            "The mask marks nothing: what is white is repainted or",
        ),
    ],
)
def test_what_is_wrong_is_said(name: str, said: Any, message: str, server: Any) -> None:
    answer = ask(server, name, **said)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_what_is_ignored_may_be_anything(server: Any) -> None:
    """It comes back in `parameters`; what JSON does not have is refused."""
    said = {"x": {"y": [1e300, -5, None, "\u2028"]}, "z": 10**40, "n_iter": 1.0, "seed": -(10**30)}
    answer = ask(server, "txt2img", prompt="a", **said)
    assert answer.status_code == 200
    assert answer.json()["parameters"]["x"] == said["x"]
    for damaged in ("NaN", "1" * 5000, '"\\ud800"', "1e999"):
        content = f'{{"prompt": "a", "x": {damaged}}}'
        answer = server.client.post(
            "/sdapi/v1/txt2img", content=content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (200, 400), damaged


def test_a_mask_of_too_many_pixels(serve: Callable[..., Any]) -> None:
    mask = encoded(Image.new("L", (64, 64)))
    answer = ask(
        serve(max_upload_pixels=1000), "img2img", prompt="a", mask=mask,
        init_images=[encoded(IMAGE)],
    )  # fmt: skip
    assert answer.json()["error"]["code"] == "invalid_image"


def test_other_types_are_refused(server: Any) -> None:
    answer = server.client.post("/sdapi/v1/txt2img", data={"prompt": "a"})
    assert answer.status_code == 415


def test_the_key_may_be_a_password(serve: Callable[..., Any]) -> None:
    """Its clients send `user:password`; elsewhere only a Bearer counts."""
    server = serve(keys=[KEY])
    said = {"prompt": "a star"}
    for auth, status in ((("me", KEY), 200), (("me", "wrong"), 401), (None, 401)):
        answer = server.client.post("/sdapi/v1/txt2img", json=said, auth=auth)
        assert answer.status_code == status
    bearer = {"Authorization": f"Bearer {KEY}"}
    assert server.get("/sdapi/v1/samplers", headers=bearer).status_code == 200
    assert server.client.get("/v1/models", auth=("me", KEY)).status_code == 401
    damaged = {"Authorization": f"Basic {KEY}"}
    assert server.get("/sdapi/v1/options", headers=damaged).status_code == 401
