"""Open WebUI's requests for pictures, as its server sends them; it cannot be run without a browser.

Its shapes are those of `routers/images.py` in Open WebUI 0.6 to 0.8: aiohttp, JSON or a form whose
values are all text, `response_format` unless the model's name begins with gpt-image, the options
and the header of AUTOMATIC1111 (which is empty without a password). Of an answer it prefers `url`.
"""

import asyncio
import base64
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from checks import OTHER, PROMPT, attempt, draw_disc, draw_mask, expect, look, to_png

VERSION = "?api-version=2025-04-01-preview"


def main(base_url: str) -> None:
    """Tries every call."""
    root = base_url.removesuffix("/v1")
    for model in ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1.5", "any"):
        for query in ("", VERSION):
            name = f"openai: generate({model}){' with api-version' if query else ''}"
            attempt(name, lambda m=model, q=query: run(lambda s: generate(s, base_url, m, q)))
        attempt(f"openai: edit({model})", lambda m=model: run(lambda s: edit(s, base_url, m, 1)))
    attempt("openai: edit(several)", lambda: run(lambda s: edit(s, base_url, "gpt-image-1", 2)))
    attempt("automatic1111: models", lambda: run(lambda s: list_models(s, root)))
    attempt("automatic1111: choose a model", lambda: run(lambda s: choose_model(s, root)))
    for steps in (None, 50):
        attempt(
            f"automatic1111: txt2img(steps={steps})",
            lambda n=steps: run(lambda s: paint(s, root, n)),
        )


def run(call: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
    """Makes a call in a session of its own."""

    async def work() -> None:
        async with aiohttp.ClientSession() as session:
            await call(session)

    asyncio.run(work())


def wants_base64(model: str) -> dict[str, str]:
    """Asks for base64, except models that cannot be asked."""
    return {} if model.startswith("gpt-image") else {"response_format": "b64_json"}


def read(answer: dict[str, Any], size: tuple[int, int]) -> None:
    """Reads pictures as it does; it would refuse an address of a private network."""
    for one in answer["data"]:
        expect(not one.get("url"), "an address, which is refused in private networks")
        look(base64.b64decode(one["b64_json"]), size)


async def generate(session: aiohttp.ClientSession, base_url: str, model: str, query: str) -> None:
    """Paints."""
    body = {"model": model, "prompt": PROMPT, "n": 1, "size": "512x512", **wants_base64(model)}
    headers = {"Authorization": "Bearer ", "Content-Type": "application/json"}
    url = f"{base_url}/images/generations{query}"
    async with session.post(url, json=body, headers=headers) as answer:
        answer.raise_for_status()
        read(await answer.json(content_type=None), (512, 512))


async def edit(session: aiohttp.ClientSession, base_url: str, model: str, count: int) -> None:
    """Edits a picture, or several as `image[]`."""
    form = aiohttp.FormData()
    values = {"model": model, "prompt": OTHER, "n": 1, "size": "256x256", **wants_base64(model)}
    for name, value in values.items():
        form.add_field(name, str(value))
    for picture in (draw_disc(), draw_mask())[:count]:
        form.add_field(
            "image" if count == 1 else "image[]",
            to_png(picture),
            filename="5e0c.png",
            content_type="image/png",
        )
    headers = {"Authorization": "Bearer unused"}
    async with session.post(f"{base_url}/images/edits", headers=headers, data=form) as answer:
        answer.raise_for_status()
        read(await answer.json(content_type=None), (256, 256))


async def list_models(session: aiohttp.ClientSession, root: str) -> None:
    """Lists models for the settings' menu."""
    headers = {"authorization": ""}
    async with session.get(f"{root}/sdapi/v1/sd-models", headers=headers) as answer:
        models = await answer.json()
    names = [(one["title"], one["model_name"]) for one in models]
    expect(names == [("scenes", "scenes")], names)


async def choose_model(session: aiohttp.ClientSession, root: str) -> None:
    """Sends the options back with another model in them."""
    url, headers = f"{root}/sdapi/v1/options", {"authorization": ""}
    async with session.get(url, headers=headers) as answer:
        answer.raise_for_status()
        options = await answer.json()
    expect(options["sd_model_checkpoint"] == "scenes", options)
    async with session.post(url, json=options, headers=headers) as answer:
        answer.raise_for_status()


async def paint(session: aiohttp.ClientSession, root: str, steps: int | None) -> None:
    """Paints by AUTOMATIC1111's API."""
    body: dict[str, Any] = {"prompt": PROMPT, "batch_size": 2, "width": 512, "height": 512}
    if steps is not None:
        body |= {"steps": steps, "negative_prompt": "blurry", "cfg_scale": 7.5}
    url, headers = f"{root}/sdapi/v1/txt2img", {"authorization": ""}
    async with session.post(url, json=body, headers=headers) as answer:
        said = await answer.json(content_type=None)
    expect(len(said["images"]) == 2 and said["info"], list(said))
    for one in said["images"]:
        look(base64.b64decode(one), (512, 512))


if __name__ == "__main__":
    main(sys.argv[1])
