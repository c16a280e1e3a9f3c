"""Every view of the studio through axe-core: nothing is found, at any width, light and dark."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from served import serve_app
from tessella.images import encode_picture, save_png
from tessella.serving.app import create_app
from tessella.serving.models_served import load_models
from tessella.serving.settings import ServeSettings

SIZES = {"phone": (390, 844), "tablet": (768, 1024), "desktop": (1440, 900)}
PICTURES = [0, 1, 10, 200]
RECIPE = {
    "tokenizer": {"network": "residual", "quantizer": {"name": "vq", "codebook_size": 512}},
    "tokenizer_training": {"images": 1000},
    "transformer_training": {"images": 500},
    "transformer": {"width": 32, "depth": 2},
}
# Fills the gallery with pictures as the page keeps them: words of every kind, two models, days.
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
      prompt: words[index % 4], seed: index, created: Date.UTC(2026, 0, 1 + index % 28),
      negativePrompt: "", steps: null, guidanceScale: null, bestOf: null});
  }
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two models, posts, and a run with curves and a sample."""
    folder = tmp_path_factory.mktemp("runs") / "stickers"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"recipe": RECIPE}), encoding="utf-8")
    lines = [{"images_seen": 10 * i, "kind": "train", "loss": 5 / i} for i in range(1, 40)]
    lines += [{"images_seen": 200, "kind": "validation", "loss": 0.5}]
    log = "".join(json.dumps({**line, "images_per_second": 5.0}) + "\n" for line in lines)
    (folder / "tokenizer" / "metrics.jsonl").write_text(log, encoding="utf-8")
    sample = np.zeros((8, 8, 3), dtype=np.uint8)
    save_png(folder / "tokenizer" / "samples" / f"{200:012d}.png", sample)
    models = load_models(["scenes", "second=scenes"], "cpu")
    with serve_app(create_app(models, ServeSettings(), run=folder)) as made:
        yield made


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    def open_(size: str, view: str = "paint", pictures: int = 0) -> Page:
        width, height = SIZES[size]
        is_touched = size != "desktop"
        context = browser.new_context(
            viewport={"width": width, "height": height},
            has_touch=is_touched,
            is_mobile=is_touched,
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{address}/#{view}")
        expect(page.locator("html[data-ready=true]")).to_have_count(1)
        if pictures:
            page.evaluate(FILL, pictures)
            page.reload()
            expect(page.locator(".piece")).to_have_count(pictures)
        return page

    yield open_
    for context in browser.contexts:
        context.close()


def find_faults(page: Page) -> list[str]:
    """What axe-core finds wrong on the page as it is now, in light and in dark."""
    faults = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for found in Axe().run(page).response["violations"]:
            for node in found["nodes"]:
                faults.append(f"{scheme}: {found['id']}: {node['html'][:150]}")
    return faults


def paint(page: Page, count: int) -> None:
    page.get_by_label("Prompt", exact=True).fill("a large red circle on a white background")
    page.get_by_label("Pictures", exact=True).fill(str(count))
    page.get_by_role("button", name="Paint", exact=True).click()
    expect(page.locator(".is-done")).to_have_count(count)
    expect(page.locator("progress")).to_have_count(0)


def to_file(pixels: np.ndarray, name: str = "mine.png") -> Any:
    return {"name": name, "mimeType": "image/png", "buffer": encode_picture(pixels)}


def read_width(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pictures", PICTURES)
def test_nothing_is_found_with_any_number_of_pictures(
    open_page: Callable[..., Page], size: str, pictures: int
) -> None:
    page = open_page(size, pictures=pictures)
    page.locator("summary").click()
    assert find_faults(page) == []
    assert read_width(page) == SIZES[size][0]
    if pictures:
        page.locator(".piece").first.click()
        assert find_faults(page) == []


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_nothing_is_found_on_an_easel_with_its_dialogs(
    open_page: Callable[..., Page], size: str
) -> None:
    page = open_page(size)
    paint(page, count=2)
    assert find_faults(page) == []
    for name in ("Vary", "Edit"):
        page.locator(".is-done").first.get_by_role("button", name=name).click()
        page.get_by_role("dialog").wait_for()
        assert find_faults(page) == []
        page.keyboard.press("Escape")
    page.get_by_label("Prompt", exact=True).fill("a zeppelin")
    paint(page, count=5)
    page.locator(".cover").first.focus()
    assert find_faults(page) == []


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_found_in_the_other_views(open_page: Callable[..., Page], size: str) -> None:
    page = open_page(size, "tiles")
    page.locator(".tile").first.wait_for()
    assert find_faults(page) == []
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    page.locator("#picture-file").set_input_files([to_file(noise)])
    page.locator(".pair .cell").nth(3).focus()
    assert find_faults(page) == []
    page.get_by_role("link", name="Posts").click()
    page.get_by_label("Business").fill("Corner Bakery")
    page.get_by_label("About it").fill("Sourdough, baked at night.")
    page.get_by_role("spinbutton", name="Posts").fill("1")
    page.get_by_role("button", name="Write posts").click()
    page.locator("article.post").wait_for()
    assert find_faults(page) == []
    page.get_by_role("link", name="Training").click()
    page.locator(".curve svg").first.wait_for()
    assert find_faults(page) == []
    page.get_by_role("link", name="Model").click()
    page.locator(".card").wait_for()
    assert find_faults(page) == []
    assert read_width(page) == SIZES[size][0]


def test_nothing_is_found_where_something_goes_wrong(open_page: Callable[..., Page]) -> None:
    page = open_page("phone")
    page.route("**/v1/models/*/card", lambda route: route.abort())
    page.route("**/studio/posts.js", lambda route: route.abort())
    for view in ("Model", "Posts"):
        page.get_by_role("link", name=view).click()
        expect(page.get_by_role("alert")).to_be_visible()
        assert find_faults(page) == []


def test_a_fault_would_be_found(open_page: Callable[..., Page]) -> None:
    page = open_page("phone")
    page.evaluate(
        """() => {
          const image = Object.assign(document.createElement("img"), {src: "studio/tessella.svg"});
          document.querySelector("#main").append(image);
        }"""
    )
    assert any("image-alt" in fault for fault in find_faults(page))
