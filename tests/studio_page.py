"""The studio's page for tests: opened at a size, painted on, its gallery filled."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, expect

from tessella.images import encode_picture
from tessella.serving.models_served import ServedModel, load_models

PROMPT = "a large red circle on a white background"
SIZES = {"phone": (390, 844), "tablet": (768, 1024), "desktop": (1440, 900)}

# Remembers pictures as the page does: words of every kind, two models, other days.
FILL = """async (count) => {
  const { keepPicture } = await import("/studio/gallery_store.js");
  const words = ["a large red circle", "two small blue squares on a white background", "",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"];
  const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 64});
  const context = canvas.getContext("2d");
  for (let index = 0; index < count; index++) {
    context.fillStyle = `hsl(${(index * 37) % 360} 60% 50%)`;
    context.fillRect(0, 0, 64, 64);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    await keepPicture({how: "painted", model: index % 3 ? "scenes" : "second", blob,
      prompt: words[index % 4], seed: index, created: Date.UTC(2026, 0, 1 + index % 28, 12),
      negativePrompt: "", steps: null, guidanceScale: null, bestOf: null});
  }
}"""


def load_once(*names: str) -> Mapping[str, ServedModel]:
    """Loads bundled models as `tessella serve` does, for all files once.

    Drawing the box of tiles takes longer than loading; a loaded model keeps it.
    """
    return {key: served for name in names for key, served in _load(name).items()}


@functools.cache
def _load(name: str) -> Mapping[str, ServedModel]:
    return load_models([name], "cpu")


def open_studio(browser: Browser, address: str, size: str, view: str = "paint") -> Page:
    """Opens a view, on a device of a size, and waits until it can be used."""
    width, height = SIZES[size]
    is_touched = size != "desktop"
    context = browser.new_context(
        viewport={"width": width, "height": height},
        has_touch=is_touched,
        is_mobile=is_touched,
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{address}/#{view}")
    expect(page.locator("html[data-ready=true]")).to_have_count(1)
    return page


def fill_gallery(page: Page, pictures: int) -> None:
    """Lets the page remember pictures, and shows them."""
    page.evaluate(FILL, pictures)
    page.reload()
    expect(page.locator(".piece")).to_have_count(pictures)


def paint(page: Page, count: int, prompt: str = PROMPT) -> None:
    """Paints pictures and waits for them."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Pictures", exact=True).fill(str(count))
    page.get_by_role("button", name="Paint", exact=True).click()
    expect(page.locator(".is-done")).to_have_count(count)
    expect(page.locator("progress")).to_have_count(0)


def to_file(pixels: np.ndarray, name: str = "mine.png") -> Any:
    """A picture's file as a browser is given it."""
    return {"name": name, "mimeType": "image/png", "buffer": encode_picture(pixels)}
