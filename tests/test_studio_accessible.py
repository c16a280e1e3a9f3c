"""Every view of the studio through axe-core: nothing is found, at any width, light and dark."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from served import serve_app
from studio_page import SIZES, fill_gallery, load_once, open_studio, paint, to_file
from tessella.images import save_png
from tessella.serving.app import create_app
from tessella.serving.settings import ServeSettings

Open = Callable[..., Page]

PICTURES = [0, 1, 10, 200]
RECIPE = {
    "tokenizer": {"network": "residual", "quantizer": {"name": "vq", "codebook_size": 512}},
    "tokenizer_training": {"images": 1000},
    "transformer_training": {"images": 500},
    "transformer": {"width": 32, "depth": 2},
}


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
    models = load_once("scenes", "second=scenes")
    with serve_app(create_app(models, ServeSettings(), run=folder)) as made:
        yield made


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    yield lambda size, view="paint": open_studio(browser, address, size, view)
    for context in browser.contexts:
        context.close()


# In the dark only colours differ.
RULES: dict[Any, dict[str, Any]] = {
    "light": {"resultTypes": ["violations"]},
    "dark": {"resultTypes": ["violations"], "runOnly": ["color-contrast"]},
}


def find_faults(page: Page) -> list[str]:
    """What axe-core finds wrong on the page as it is now, in light and in dark."""
    faults = []
    for scheme, options in RULES.items():
        page.emulate_media(color_scheme=scheme)
        for found in Axe().run(page, options=options).response["violations"]:
            for node in found["nodes"]:
                faults.append(f"{scheme}: {found['id']}: {node['html'][:150]}")
    return faults


def read_width(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pictures", PICTURES)
def test_nothing_is_found_with_any_number_of_pictures(
    open_page: Open, size: str, pictures: int
) -> None:
    page = open_page(size)
    if pictures:
        fill_gallery(page, pictures)
    page.locator("summary").click()
    assert find_faults(page) == []
    assert read_width(page) == SIZES[size][0]
    if pictures:
        page.locator(".piece").first.click()
        assert find_faults(page) == []


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_nothing_is_found_on_an_easel_with_its_dialogs(open_page: Open, size: str) -> None:
    page = open_page(size)
    paint(page, count=2)
    assert find_faults(page) == []
    for name in ("Vary", "Edit"):
        page.locator(".is-done").first.get_by_role("button", name=name).click()
        page.get_by_role("dialog").wait_for()
        assert find_faults(page) == []
        page.keyboard.press("Escape")
    paint(page, count=5, prompt="a zeppelin")
    page.locator(".cover").first.focus()
    assert find_faults(page) == []


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_found_in_the_other_views(open_page: Open, size: str) -> None:
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
    page.get_by_role("link", name="Model", exact=True).click()
    page.locator(".card").wait_for()
    assert find_faults(page) == []
    assert read_width(page) == SIZES[size][0]


def test_nothing_is_found_where_something_goes_wrong(open_page: Open) -> None:
    page = open_page("phone")
    page.route("**/v1/models/*/card", lambda route: route.abort())
    page.route("**/studio/posts.js", lambda route: route.abort())
    for view in ("Model", "Posts"):
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.get_by_role("alert")).to_be_visible()
        assert find_faults(page) == []


def test_a_fault_would_be_found(open_page: Open) -> None:
    """A picture without words in the light; and colours that only the dark makes too much alike."""
    page = open_page("phone")
    page.evaluate(
        """() => {
          const image = Object.assign(document.createElement("img"), {src: "studio/tessella.svg"});
          const dim = Object.assign(document.createElement("p"), {textContent: "dim"});
          dim.style.color = "light-dark(#1b2126, #303030)";
          document.querySelector("#main .view-paint").append(image, dim);
        }"""
    )
    found = [fault.split(":")[:2] for fault in find_faults(page)]
    assert found == [["light", " image-alt"], ["dark", " color-contrast"]]
