"""Several codes at a position, in the studio: the page says so, and shows one of them at a time."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from served import serve_app
from tessella.images import encode_picture
from tessella.model.canvas import fit_images
from tessella.model.pipeline import TextToImage
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel
from tessella.serving.settings import ServeSettings
from untrained import create_untrained, save_untrained

PICTURE = np.random.default_rng(8).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@dataclass
class Opened:
    """The view of tiles, of a model with several codes at a position, and another with one."""

    page: Page
    model: TextToImage
    complaints: list[str] = field(default_factory=list)

    def hear(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    @property
    def books(self) -> Locator:
        return self.page.get_by_label("Which code of each position")

    def read_cells(self) -> list[int]:
        cells = self.page.locator(".pair .cell").all()
        return [int(cell.get_attribute("data-cell") or "") for cell in cells]

    def read_picture(self) -> np.ndarray:
        """Opens a picture; returns its codes (M, h, w)."""
        content = encode_picture(PICTURE)
        file = {"name": "i.png", "mimeType": "image/png", "buffer": content}
        self.page.get_by_label("Drop a picture, or choose one").set_input_files([file])  # type: ignore[list-item]
        expect(self.page.locator(".pair .cell")).to_have_count(16)
        codes = self.model.encode_images(fit_images([Image.fromarray(PICTURE)], 16))
        return codes[0].numpy()


@pytest.fixture
def opened(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    quantizer = {"codebook_size": 16, "code_width": 4, "codes_per_position": 3}
    settings = {"patch": 2, "widths": (16, 16), "quantizer": quantizer}
    models = {"three": create_untrained(tokenizer=settings), "plain": create_untrained()}
    folder, served = tmp_path_factory.mktemp("models"), {}
    for name, model in models.items():
        save_untrained(model, folder / name)
        served[name] = ServedModel.load(name, folder / name, model)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    with serve_app(create_app(served, ServeSettings())) as address:
        page = context.new_page()
        page.set_default_timeout(60_000)
        found = Opened(page, models["three"])
        page.on("console", found.hear)
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.goto(f"{address}/#tiles")
        yield found
        context.close()
    assert found.complaints == []


def test_each_code_of_a_position_can_be_shown(opened: Opened) -> None:
    page = opened.page
    codes = opened.read_picture()
    expect(page.locator("main")).to_contain_text("3 codes at each of 16 positions; shown:")
    expect(page.locator(".lead:visible")).to_contain_text(
        "3 codes at each of 4×4 positions, each out of 16"
    )
    different = sum(len(np.unique(grid)) for grid in codes)
    caption = page.locator("#painted figcaption")
    expect(caption).to_have_text(f"From its 48 codes, {different} different")
    expect(opened.books.locator("option")).to_have_text(["the first", "the second", "the third"])
    expect(page.get_by_role("heading", name="The box of 16 tiles, the first of 3")).to_be_visible()
    assert opened.read_cells() == codes[0].flatten().tolist()
    opened.books.select_option("the third")
    expect(page.get_by_role("heading", name="The box of 16 tiles, the third of 3")).to_be_visible()
    assert opened.read_cells() == codes[2].flatten().tolist()


def test_a_tile_is_its_own_codebook_s(opened: Opened) -> None:
    """The tile of the third codebook's code 5 is number 2 · 16 + 5 of the sheet."""
    page, own = opened.page, opened.model.tokenizer
    opened.read_picture()
    opened.books.select_option("the third")
    page.locator('.tile[data-cell="5"]').hover()
    lens = page.locator(".lens")
    expect(lens).to_contain_text("Tile 5")
    [alone, _] = lens.locator("canvas").all()
    content = alone.evaluate("(canvas) => canvas.toDataURL()").partition(",")[2]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
    means = own.codebook.mean(1)
    latent = means[0] + means[1] + own.codebook[2, 5]
    with torch.inference_mode():
        mosaic = own.decode_latent(latent.view(1, -1, 1, 1).expand(1, -1, 4, 4))
    expected = ((mosaic[0, :, 8:12, 8:12].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(shown - expected).max() <= 1


def test_of_one_code_the_page_says_nothing(opened: Opened) -> None:
    page = opened.page
    opened.books.select_option("the second")
    page.get_by_label("Model", exact=True).select_option("plain")
    expect(opened.books).to_have_count(0)
    expect(page.locator(".lead:visible")).to_contain_text("A picture is 4×4 codes out of 16.")
    expect(page.get_by_role("heading", name="The box of 16 tiles", exact=True)).to_be_visible()
    # Back again it begins with the first.
    page.get_by_label("Model", exact=True).select_option("three")
    expect(opened.books).to_have_value("0")
    expect(page.get_by_role("heading", name="The box of 16 tiles, the first of 3")).to_be_visible()


def test_the_model_and_the_empty_page_say_it_too(opened: Opened) -> None:
    page = opened.page
    page.get_by_role("link", name="Model").click()
    expect(page.locator(".lead:visible")).to_contain_text(
        "16×16 pixels: 3 codes at each of 4×4 positions, each out of 16, filled in any order"
    )
    page.get_by_role("link", name="Paint").click()
    words = "The tiles of three, those of the first of its 3 codebooks."
    expect(page.get_by_text(words)).to_be_visible()
