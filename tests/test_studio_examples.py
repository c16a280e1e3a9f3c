"""What pictures look at, in the studio: shown, left out, pinned; and references of one's own."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from served import serve_app
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel
from tessella.serving.settings import ServeSettings
from untrained import create_memory, create_untrained, save_untrained

# Notes what a form leaves out.
WATCH_EXCLUDED = """() => {
  const send = window.fetch.bind(window);
  window.fetch = (path, options) => {
    if (options.body instanceof FormData) window.excluded = options.body.get("excluded");
    return send(path, options);
  };
}"""
KEY = "the-key-of-this-test"
CAPTIONS = ["a red star", "a green star", "a blue star", "a red moon"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that looks at two examples, and one that looks at none; behind a key."""
    folder, served = tmp_path_factory.mktemp("models"), {}
    for name, most in (("album", 2), ("plain", 0)):
        model = create_untrained(neighbors=most)
        memory = create_memory(model, CAPTIONS) if most else None
        save_untrained(model.with_parts(memory=memory), folder / name)
        served[name] = ServedModel.load(name, folder / name, model)
    with serve_app(create_app(served, ServeSettings(), keys=[KEY])) as made:
        yield made


@dataclass
class Opened:
    """A page, what it complains about and what it sends."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def hear(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    def note(self, request: Any) -> None:
        if request.url.endswith("/generations"):
            self.bodies.append(json.loads(request.post_data or ""))

    @property
    def looked_at(self) -> Locator:
        return self.page.get_by_role("group", name="Looked at").locator("summary")

    def paint(self, count: int = 1) -> None:
        with self.page.expect_response("**/generations"):
            self.page.get_by_role("button", name="Paint", exact=True).click()
        self.wait(count)

    def wait(self, count: int = 1) -> None:
        expect(self.page.locator(".is-done")).to_have_count(count)
        expect(self.page.locator("progress")).to_have_count(0)

    def names(self) -> list[str]:
        return [one.get_attribute("title") or "" for one in self.looked_at.all()]


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(60_000)
    found = Opened(page)
    page.on("console", found.hear)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", found.note)
    page.goto(f"{address}/#paint")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Continue").click()
    page.get_by_label("Prompt", exact=True).fill("a red star")
    page.get_by_label("Pictures", exact=True).fill("1")
    page.get_by_label("Seed", exact=True).fill("7")
    yield found
    context.close()
    assert found.complaints == []


def to_file(image: Image.Image, name: str) -> Any:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": stream.getvalue()}


def draw(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (24, 16, 3), dtype=np.uint8))


def test_what_a_picture_looked_at_is_shown_left_out_and_pinned(opened: Opened) -> None:
    page = opened.page
    opened.paint()
    assert opened.names() == ["a red star", "a red moon"]
    expect(opened.looked_at.first.locator("img")).to_have_js_property("naturalWidth", 16)

    opened.looked_at.first.press("Enter")
    page.get_by_role("button", name="Paint again without: a red star").press("Enter")
    expect(opened.looked_at.nth(1)).to_have_attribute("title", "a green star")
    opened.wait()
    assert opened.names() == ["a red moon", "a green star"]

    opened.looked_at.nth(1).click()
    page.get_by_role("button", name="Paint again with: a green star").click()
    expect(page.get_by_alt_text("a green star, pinned")).to_be_visible()
    opened.wait()
    assert opened.names() == ["a green star", "a red moon"]

    page.get_by_role("button", name="Undo removals").click()
    expect(opened.looked_at.nth(1)).to_have_attribute("title", "a red star")
    opened.wait()
    sent = [(body.get("pinned"), body.get("excluded")) for body in opened.bodies]
    assert sent == [(None, None), (None, [0]), ([1], [0]), ([1], None)]
    assert {(body["seed"], body["n"], body["model"]) for body in opened.bodies} == {(7, 1, "album")}

    # By keyboard: Escape closes, and the focus stays.
    opened.looked_at.first.press("Enter")
    expect(page.get_by_role("button", name="Paint again without pinning")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Paint again without pinning")).to_be_hidden()
    expect(opened.looked_at.first).to_be_focused()


def test_references(opened: Opened) -> None:
    page = opened.page
    zone = page.get_by_label("References: pictures to look at, at most 2")
    broken = {"name": "words.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    zone.set_input_files([to_file(draw(0), "a.png"), broken])
    expect(page.get_by_role("alert")).to_have_text("Not a picture: words.txt")
    zone.set_input_files([to_file(draw(1), "b.png"), to_file(draw(2), "c.png")])
    expect(page.get_by_role("alert")).to_have_text("The model looks at 2 at most.")
    page.get_by_role("button", name="Remove reference 2").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    opened.paint()
    assert opened.names() == ["reference 1", "a red star"]
    [reference] = opened.bodies[0]["references"]
    assert reference.startswith("data:image/png;base64,")
    expect(page.get_by_alt_text("reference 1")).to_have_attribute("src", reference)

    opened.looked_at.first.click()
    page.get_by_role("button", name="Paint again without: reference 1").click()
    expect(opened.looked_at.first).to_have_attribute("title", "a red star")
    opened.wait()
    assert "references" not in opened.bodies[1]

    page.get_by_label("Model", exact=True).select_option("plain")
    expect(page.locator(".references")).to_have_count(0)
    opened.paint()
    assert opened.bodies[2]["model"] == "plain"
    assert "references" not in opened.bodies[2]
    expect(opened.looked_at).to_have_count(0)


def test_a_varied_picture_is_varied_again_from_its_dialog(opened: Opened) -> None:
    page = opened.page
    opened.paint()
    page.locator(".is-done").get_by_role("button", name="Vary").click()
    page.get_by_role("dialog").get_by_label("Pictures", exact=True).fill("1")
    page.get_by_role("button", name="Paint variations").click()
    expect(page.get_by_text("strength")).to_be_visible()
    opened.wait()
    opened.looked_at.first.click()
    page.get_by_role("button", name="Paint again without: a red star").click()
    page.evaluate(WATCH_EXCLUDED)
    page.get_by_role("button", name="Paint variations").click()
    page.wait_for_function("window.excluded")
    assert page.evaluate("window.excluded") == "[0]"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_how_it_looks(scheme: Any, opened: Opened, tmp_path: Path) -> None:
    """Nothing lies over anything else, also where there is little room."""
    page = opened.page
    page.emulate_media(color_scheme=scheme)
    page.get_by_label("Pictures", exact=True).fill("2")
    opened.paint(2)
    opened.looked_at.last.click()
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
