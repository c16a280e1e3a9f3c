"""The studio page in a real browser, against the real server: clicks, keys, touch, what is seen.

Chromium runs without a window. Every test also fails if the page logs an error, or asks another
host than its own server. Without a browser the tests are skipped, unless TESSELLA_REQUIRE_BROWSER
is set.
"""

import base64
import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, FilePayload, Locator, Page, Route, expect

from served import serve_app
from studio_page import load_once
from tessella.serving.app import create_app
from tessella.serving.settings import ServeSettings
from tessella.serving.studio import STUDIO_FOLDER

PROMPT = "a large red circle on a white background"
OTHER = "a large blue square on a navy background"
KEY = "the-right-key"

# Counts the different pictures that are shown while one is being laid.
WATCH_PARTIALS = """
window.partials = new Set();
new MutationObserver(() => {
  for (const image of document.querySelectorAll(".is-laying img")) window.partials.add(image.src);
}).observe(document, {subtree: true, childList: true, attributes: true});
"""

# Hands the events of a stream to the page one by one, each after the last one was drawn: on a busy
# machine several come at once.
PACE_EVENTS = """() => {
  const send = window.fetch.bind(window);
  const draw = () =>
    new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
  window.fetch = async (path, options) => {
    const answer = await send(path, options);
    if (!answer.headers.get("content-type")?.startsWith("text/event-stream")) return answer;
    const events = (await answer.text()).split(/(?<=\\n\\n)/);
    const paced = new ReadableStream({
      async pull(stream) {
        if (!events.length) return stream.close();
        stream.enqueue(new TextEncoder().encode(events.shift()));
        await draw();
      },
    });
    return new Response(paced, {status: answer.status, headers: answer.headers});
  };
}"""

# Notes the addresses of pictures whose memory is given back.
WATCH_DROPPED = """() => {
  window.dropped = [];
  const revoke = URL.revokeObjectURL.bind(URL);
  URL.revokeObjectURL = (url) => {
    window.dropped.push(url);
    revoke(url);
  };
}"""

# Notes the words of each form that is sent.
WATCH_FORMS = """() => {
  window.forms = [];
  const send = window.fetch.bind(window);
  window.fetch = (path, options) => {
    const words = [...(options.body ?? [])].filter(([, value]) => typeof value === "string");
    window.forms.push(Object.fromEntries(words));
    return send(path, options);
  };
}"""

# The contrast of each visible text to what is behind it, as WCAG 2 defines it.
LOW_CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3)
      .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/rgba\\(.*, 0\\)$|transparent/.test(colour)) return colour;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
    const counts = words.length && element.checkVisibility();
    if (!counts || element.matches(":disabled, option")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([words[0].data.trim(), ratio]);
  }
  return low;
}"""

PIXELS = """async (image) => {
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/png");
}"""


@pytest.fixture(scope="module")
def serving() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """Serves models by their names; gives the address."""

    @contextlib.contextmanager
    def serve(*names: str, **options: Any) -> Iterator[str]:
        with serve_app(create_app(load_once(*names), ServeSettings(), **options)) as made:
            yield f"{made}/"

    return serve


@pytest.fixture(scope="module")
def address(browser: Browser, serving: Any) -> Iterator[str]:
    with serving("scenes", "second=scenes") as made:
        yield made


@dataclass
class Opened:
    """Opens pages, and notes what they must not do."""

    browser: Browser
    address: str
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def __call__(self, view: str = "paint", *, address: str = "", **options: Any) -> Page:
        size = {"width": 1280, "height": 900}
        context = self.browser.new_context(
            **{"viewport": size, "reduced_motion": "reduce", **options}
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._note(request.url))
        page.add_init_script(WATCH_PARTIALS)
        page.goto(f"{address or self.address}#{view}")
        return page

    def _hear(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    def _note(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.foreign.append(url)


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Opened]:
    opened = Opened(browser, address)
    yield opened
    for context in browser.contexts:
        context.close()
    assert opened.complaints == []
    assert opened.foreign == []


def paint(page: Page, prompt: str = PROMPT, count: int = 1, seed: str = "7") -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Pictures", exact=True).fill(str(count))
    page.get_by_label("Seed", exact=True).fill(seed)
    page.get_by_role("button", name="Paint", exact=True).click()
    expect(page.locator(".is-done")).to_have_count(count)


def act(page: Page, name: str) -> Locator:
    """A button under the first picture."""
    return page.locator(".is-done").first.get_by_role("button", name=name)


def to_pixels(image: Locator) -> np.ndarray:
    """The pixels of a picture on the page, (H, W, 3)."""
    _, _, content = image.evaluate(PIXELS).partition(",")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def to_mean(content: bytes) -> np.ndarray:
    """The mean colour of a picture's middle."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = image.size
    middle = image.crop((width // 4, height // 4, width - width // 4, height - height // 4))
    mean: np.ndarray = np.asarray(middle).mean((0, 1))
    return mean


def draw_circle() -> bytes:
    image = Image.new("RGB", (90, 60), "white")
    ImageDraw.Draw(image).ellipse((30, 15, 60, 45), fill=(220, 40, 40))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def to_file(content: bytes) -> FilePayload:
    return {"name": "file.png", "mimeType": "image/png", "buffer": content}


def drop_circle(page: Page) -> None:
    """Drops a file onto the page, as a person does from a folder."""
    content = base64.b64encode(draw_circle()).decode()
    transfer = page.evaluate_handle(
        """(content) => {
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "circle.png", {type: "image/png"}));
          return transfer;
        }""",
        content,
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": transfer})
    expect(page.locator(".pair .cell")).to_have_count(64)


def nameless(page: Page) -> list[str]:
    """Controls and pictures that assistive technology cannot name."""
    session = page.context.new_cdp_session(page)
    tree = session.send("Accessibility.getFullAXTree")["nodes"]
    wanted = {
        "button", "link", "textbox", "spinbutton", "combobox", "slider", "switch", "radio",
        "gridcell", "grid", "image", "dialog", "progressbar", "checkbox",
    }  # fmt: skip
    return [
        node["role"]["value"]
        for node in tree
        if not node["ignored"]
        and node["role"]["value"] in wanted
        and not node.get("name", {}).get("value", "").strip()
    ]


# --- paint ----------------------------------------------------------------------------------


def test_pictures_appear_while_laid_and_are_remembered(open_page: Opened) -> None:
    page = open_page()
    page.evaluate(PACE_EVENTS)
    paint(page, count=2, seed="")
    assert page.evaluate("window.partials.size") >= 4
    [first, second] = page.locator(".is-done .seed").all_inner_texts()
    seed = int(first.removeprefix("seed "))
    assert second == f"seed {seed + 1}"  # the drawn one is told
    pixels = to_pixels(page.locator(".is-done img").first)

    page.reload()
    pieces = page.locator(".piece")
    expect(pieces).to_have_count(2)
    page.get_by_role("button", name=f"{PROMPT}, seed {seed}", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Again with this seed").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    expect(page.get_by_label("Seed", exact=True)).to_have_value(str(seed))
    page.keyboard.press("Enter")
    expect(page.locator(".is-done")).to_have_count(1)
    # The same pixels, though two were painted together before.
    assert np.array_equal(to_pixels(page.locator(".is-done img")), pixels)

    expect(pieces).to_have_count(3)
    page.evaluate(WATCH_DROPPED)
    source = pieces.first.locator("img").get_attribute("src")
    pieces.first.click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(pieces).to_have_count(2)
    expect(pieces.first).to_be_focused()
    # A picture that was removed kept its memory; and the easel shows it still.
    assert page.evaluate("window.dropped") == [source]
    assert page.locator(".is-done a").get_attribute("href") != source
    assert np.array_equal(to_pixels(page.locator(".is-done img")), pixels)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear the gallery").click()
    expect(pieces).to_have_count(0)
    assert page.evaluate("window.dropped.length") == 3
    page.reload()
    expect(page.get_by_text("What you paint is remembered here")).to_be_visible()
    expect(pieces).to_have_count(0)


def test_every_setting_reaches_the_server(open_page: Opened) -> None:
    page = open_page()
    captions = page.get_by_role("group", name="Captions that the model learned from")
    first = captions.get_by_role("button").first
    words = first.inner_text()
    first.click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(words)
    captions.get_by_role("button", name="Other captions").click()
    assert captions.get_by_role("button").first.inner_text() != words

    page.locator("summary").click()
    page.get_by_label("Model", exact=True).select_option("second")
    for name, value in {"Steps": "4", "Best of": "2", "Guidance": "2.5"}.items():
        page.get_by_label(name, exact=True).fill(value)
    page.get_by_label("Negative prompt").fill("a small ring")
    page.get_by_label("Size", exact=True).select_option("512x512")
    page.get_by_label("Paint a canvas of this shape").check()
    with page.expect_request("**/v1/images/generations") as sent:
        paint(page, count=2, seed="40")
    assert json.loads(sent.value.post_data or "") == {
        "model": "second",
        "prompt": PROMPT,
        "negative_prompt": "a small ring",
        "steps": 4,
        "guidance_scale": 2.5,
        "best_of": 2,
        "size": "512x512",
        "canvas": "wide",
        "n": 2,
        "seed": 40,
        "stream": True,
        "partial_images": 8,
    }
    # Picture i has the seed of its first candidate.
    assert page.locator(".is-done .seed").all_inner_texts() == [
        f"seed {seed} · steps 4 · guidance 2.5 · best of 2 · size 512x512 · canvas wide · "
        "without a small ring"
        for seed in (40, 42)
    ]
    told = page.get_by_text("No effect: canvas. A canvas of this shape is the model's own picture.")
    expect(told).to_have_count(1)


def test_what_goes_wrong_is_said_where_it_happens(open_page: Opened) -> None:
    page = open_page()
    painting = "**/v1/images/generations"
    start = page.get_by_role("button", name="Paint", exact=True)
    alert = page.get_by_label("Results").get_by_role("alert")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)

    page.route(painting, lambda route: None)  # an answer that does not come
    start.click()
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status").filter(has_text="Cancelled.")).to_have_count(1)
    expect(alert).to_have_count(0)

    problem = {"error": {"message": "The queue is full.", "type": "rate_limit_error"}}
    later = {"Retry-After": "9"}
    page.route(painting, lambda route: route.fulfill(status=429, headers=later, json=problem))
    start.click()
    expect(alert).to_contain_text("The queue is full. Try again in 9 s.")
    expect(alert.get_by_role("button", name="Try again")).to_be_visible()
    # The browser itself writes every failed request into its log.
    assert "429" in open_page.complaints.pop()

    page.route(painting, lambda route: route.abort())
    start.click()
    expect(alert).to_contain_text("The server does not answer.")
    assert "ERR_FAILED" in open_page.complaints.pop()

    events = 'data: {"error": {"message": "The server is shutting down."}}\n\n'
    page.route(painting, lambda route: route.fulfill(content_type="text/event-stream", body=events))
    start.click()
    expect(alert).to_contain_text("The server is shutting down.")

    # What is wrong with the request itself is not sent again.
    wrong = "`guidance_scale` is wrong: `'101'`. Input should be less than or equal to 100."
    problem = {"error": {"message": wrong, "param": "guidance_scale", "code": "invalid_value"}}
    page.route(painting, lambda route: route.fulfill(status=400, json=problem))
    start.click()
    expect(alert).to_have_text("Guidance: “101” does not fit. At most 100.")
    assert "400" in open_page.complaints.pop()

    page.unroute_all()
    paint(page, prompt=f"{PROMPT} and {'so on ' * 200}")
    expect(alert).to_have_count(0)
    told = page.get_by_text("The prompt is longer than the model reads. It was cut to:")
    expect(told).to_contain_text(PROMPT)


# --- change ---------------------------------------------------------------------------------


def test_a_picture_is_read_and_varied_and_goes_on_from_its_source(open_page: Opened) -> None:
    page = open_page()
    paint(page)
    source = to_pixels(page.locator(".is-done img"))
    act(page, "Tiles").click()
    expect(page.locator(".pair .cell")).to_have_count(64)
    assert np.array_equal(to_pixels(page.locator(".pair img").first), source)
    page.get_by_role("button", name="Vary the picture").click()
    dialog = page.get_by_role("dialog", name="Vary the picture")
    dialog.get_by_role("slider").fill("25")
    expect(dialog.locator("output")).to_have_text("25 %")
    dialog.get_by_label("Pictures").fill("2")
    dialog.get_by_label("Seed").fill("3")
    dialog.get_by_role("button", name="Paint variations").click()
    expect(page.locator(".is-done .seed")).to_have_text(
        ["seed 3 · strength 0.25", "seed 4 · strength 0.25"]
    )
    varied = to_pixels(page.locator(".is-done img").first)
    assert not np.array_equal(varied, source)
    act(page, "Again with this seed").click()
    expect(dialog.get_by_label("Prompt")).to_have_value(PROMPT)
    expect(dialog.get_by_label("Seed")).to_have_value("3")
    dialog.get_by_role("button", name="Paint variations").click()
    expect(page.locator(".is-done")).to_have_count(1)
    # Each picture once kept its source, the source's source, and so on.
    kept = page.evaluate(
        """async () => {
          const { listPictures } = await import("/studio/gallery_store.js");
          return (await listPictures()).map(({ source }) => Object.keys(source ?? {}).sort());
        }"""
    )
    assert kept == [["blob", "model", "prompt"]] * 3 + [[]]
    assert np.array_equal(to_pixels(page.locator(".is-done img")), varied)


def test_marked_tiles_are_painted_anew_and_no_others(open_page: Opened) -> None:
    page = open_page()
    paint(page, prompt=OTHER)
    source = to_pixels(page.locator(".is-done img")).astype(int)
    act(page, "Edit").click()
    dialog = page.get_by_role("dialog", name="Paint a part anew")
    dialog.get_by_label("Prompt").fill("a large yellow circle on a white background")
    dialog.get_by_label("Pictures").fill("1")
    dialog.get_by_role("button", name="Paint anew").click()
    expect(dialog.get_by_role("alert")).to_have_text("Mark the tiles to paint anew first.")

    box = dialog.locator(".mask").bounding_box()
    assert box is not None
    tile = box["width"] / 8
    at = [(box["x"] + (x + 0.5) * tile, box["y"] + (y + 0.5) * tile) for x, y in [(0, 1), (7, 1)]]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=20)
    page.mouse.up()
    marked = dialog.get_by_role("status")
    expect(marked).to_have_text("8 tiles marked")
    dialog.get_by_role("button", name="Undo").click()
    expect(marked).to_have_text("0 tiles marked")
    # The widest brush at an edge is cut there: three rows of the first two columns.
    dialog.get_by_role("radio", name="3").check()
    page.mouse.click(*at[0])
    expect(marked).to_have_text("6 tiles marked")
    assert dialog.locator("[aria-selected=true]").count() == 6
    dialog.get_by_role("button", name="Paint anew").click()

    expect(page.locator(".is-done .seed")).to_have_count(1)
    expect(page.get_by_label("Results").get_by_role("img")).to_have_attribute(
        "alt", "a large yellow circle on a white background"
    )
    edited = to_pixels(page.locator(".is-done img")).astype(int)
    inside = np.zeros((64, 64), bool)
    inside[:24, :16] = True
    assert np.array_equal(edited[~inside], source[~inside])
    # Navy becomes another background.
    assert np.abs(edited - source)[inside].mean() > 10
    act(page, "Again with this seed").click()
    expect(marked).to_have_text("6 tiles marked")


def test_an_edit_goes_to_another_model_without_mask_and_settings(open_page: Opened) -> None:
    """They were of the first model: its cells lie elsewhere, and its steps do not fit."""
    page = open_page()
    page.locator("summary").click()
    page.get_by_label("Steps", exact=True).fill("4")
    paint(page)
    act(page, "Edit").click()
    dialog = page.get_by_role("dialog", name="Paint a part anew")

    page.evaluate(WATCH_FORMS)

    def send(cell: int) -> dict[str, str]:
        dialog.locator(".cell").nth(cell).click()
        dialog.get_by_label("Pictures").fill("1")
        with page.expect_request("**/v1/images/edits"):
            dialog.get_by_role("button", name="Paint anew").click()
        expect(page.locator(".is-done .seed")).to_have_count(1)
        return dict(page.evaluate("window.forms.pop()"))

    assert send(0)["steps"] == "4"
    page.get_by_label("Model", exact=True).select_option("second")
    act(page, "Again with this seed").click()
    expect(dialog.get_by_role("status")).to_have_text("0 tiles marked")
    sent = send(1)
    assert sent["model"] == "second"
    assert "steps" not in sent


# --- tiles ----------------------------------------------------------------------------------


def test_a_dropped_picture_shows_its_codes(open_page: Opened) -> None:
    page = open_page("tiles")
    drop_circle(page)
    cells = page.locator(".pair .cell")
    codes = [int(cell.get_attribute("data-cell") or "") for cell in cells.all()]
    common = max(codes, key=codes.count)
    places = codes.count(common)
    cells.nth(codes.index(common)).hover()
    lens = page.locator(".lens")
    words = "1 place" if places == 1 else f"{places} places"
    expect(lens).to_contain_text(f"Tile {common}")
    expect(lens).to_contain_text(f"at {words} of this picture")
    # The same code's other places light up, and its tile in the box.
    expect(page.locator(".pair .cell.is-pointed")).to_have_count(places)
    expect(page.locator(".tile.is-pointed")).to_have_count(1)
    # Beside the tile alone, what the decoder made of it at this place.
    [_, placed] = lens.locator("canvas").all()
    row, column = divmod(codes.index(common), 8)
    reconstruction = to_pixels(page.locator(".pair img").last)
    content = placed.evaluate("(canvas) => canvas.toDataURL()").partition(",")[2]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
    part = reconstruction[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    assert np.array_equal(shown, part)
    unused = next(code for code in range(512) if code not in codes)
    page.locator(f'.tile[data-cell="{unused}"]').hover()
    expect(lens).to_contain_text(f"Tile {unused}")
    expect(lens).to_contain_text("not in this picture")
    expect(lens.get_by_text("here")).to_be_hidden()
    [original, painted] = [to_pixels(image) for image in page.locator(".pair img").all()]
    assert original.shape == painted.shape == (64, 64, 3)
    assert 0 < np.abs(original.astype(int) - painted).mean() < 20
    # The middle square of what was dropped: red in the middle, white in the corner.
    assert original[32, 32].tolist() == [220, 40, 40]
    page.get_by_role("button", name="Edit the picture").click()
    expect(page.get_by_role("dialog").get_by_label("Prompt")).to_have_value("")


def test_the_box_holds_every_tile_and_arrows_go_through_it(open_page: Opened) -> None:
    page = open_page("tiles")
    tiles = page.locator(".tile")
    expect(tiles).to_have_count(512)
    page.get_by_role("radio", name="number").check()
    expect(tiles.first).to_have_attribute("aria-label", "Tile 0")
    tiles.first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(":focus")).to_have_attribute("aria-label", "Tile 1")
    columns = page.evaluate(
        "[...document.querySelectorAll('.tile')].findIndex((t, _, [first]) => "
        "t.offsetTop > first.offsetTop)"
    )
    page.keyboard.press("ArrowDown")
    expect(page.locator(":focus")).to_have_attribute("aria-label", f"Tile {columns + 1}")
    expect(page.locator(".lens")).to_contain_text(f"Tile {columns + 1}")
    page.keyboard.press("End")
    expect(page.locator(":focus")).to_have_attribute("aria-label", "Tile 511")
    # Each button shows its own tile, as the lens does.
    for code in (5, 300, 511):
        page.locator(f'.tile[data-cell="{code}"]').focus()
        lens = page.locator(".lens canvas").first
        content = lens.evaluate("(canvas) => canvas.toDataURL()").partition(",")[2]
        alone = to_mean(base64.b64decode(content))
        shown = to_mean(page.locator(f'.tile[data-cell="{code}"]').screenshot())
        assert np.abs(alone - shown).max() < 25
    # One tab stop for all of them.
    assert page.locator('.tile[tabindex="0"]').count() == 1

    page.locator("#picture-file").set_input_files([to_file(b"not a picture")])
    expect(page.get_by_role("alert")).not_to_be_empty()
    assert "400" in open_page.complaints.pop()


def test_late_answers_are_not_shown(open_page: Opened) -> None:
    """A slow answer for an earlier picture or another model once took the place of the later."""
    page = open_page("tiles")
    expect(page.locator(".tile")).to_have_count(512)
    waiting = page.get_by_role("status").filter(has_text="Reading the picture…")
    reading: list[Route] = []

    def hold_first(route: Route) -> None:
        reading.append(route)
        if len(reading) > 1:
            route.continue_()

    page.route("**/v1/images/reconstructions", hold_first)
    page.locator("#picture-file").set_input_files([to_file(draw_circle())])
    expect(waiting).to_have_count(1)
    with page.expect_event("requestfailed"):
        drop_circle(page)
    expect(waiting).to_have_count(0)

    held: list[Route] = []
    page.route("**/v1/models/second/c*", lambda route: held.append(route))

    def choose_and_return(waiting: str) -> None:
        page.get_by_label("Model", exact=True).select_option("second")
        expect(page.get_by_text(waiting)).to_be_visible()
        page.get_by_label("Model", exact=True).select_option("scenes")
        with page.expect_event("requestfinished"):
            held.pop().fulfill(body="too late")  # no JSON

    choose_and_return("Fetching the tiles…")
    expect(page.locator(".pair")).to_have_count(0)
    expect(page.locator(".tile")).to_have_count(512)
    page.wait_for_timeout(100)
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_role("link", name="Model", exact=True).click()
    page.locator(".card").wait_for()
    choose_and_return("Fetching the card…")
    page.wait_for_timeout(100)
    page.locator(".card").wait_for()


# --- the model, posts, the key --------------------------------------------------------------


def test_the_card_and_its_numbers(open_page: Opened) -> None:
    page = open_page("model")
    expect(page.get_by_role("heading", level=1)).to_have_text("Model scenes")
    expect(page.get_by_role("heading", name="What it cannot do")).to_be_visible()
    models = STUDIO_FOLDER.parents[1] / "models"
    metrics = json.loads((models / "scenes" / "metrics.json").read_text())
    rows = page.get_by_role("rowheader")
    expect(rows).to_have_count(len(metrics))
    for row, metric in zip(rows.all(), metrics.values(), strict=True):
        expect(row).to_contain_text(metric["protocol"])
        assert "_" not in row.inner_text()
    values = page.get_by_role("cell").and_(page.locator(".number"))
    expect(values).to_have_text(
        ["35.0 dB", "0.9606", "512 of 512", "169.6", "99.8 %", "99.2 %", "98.6 %"]
    )
    # Long lines of code are broken rather than cut.
    assert page.evaluate(
        "[...document.querySelectorAll('pre')].every((p) => p.scrollWidth <= p.clientWidth)"
    )
    expect(page.get_by_role("img", name="Samples of the model")).to_be_visible()

    # A card may say anything: it is shown, and never obeyed.
    text = (
        "# <img src=x onerror=alert(1)>\n\n- one `<b>`\n* two **bold**\n\n"
        "| a | b |\n|---|---|\n| <script>alert(1)</script> | [text](javascript:alert) |\n\n"
        "```html\n<i>kept</i>\n```\nlast ![alt](x.png) [site](https://example.org)\n#no heading"
    )
    page.evaluate(
        """async (text) => {
          const { toTemplates } = await import("/studio/markdown.js");
          const { render } = await import("/studio/vendor/lit-html.js");
          const place = Object.assign(document.createElement("div"), {id: "hostile"});
          document.body.append(place);
          render(toTemplates(text), place);
        }""",
        text,
    )
    place = page.locator("#hostile")
    assert place.locator("img, script, a, b, i").count() == 0
    assert place.locator("h2").inner_text() == "<img src=x onerror=alert(1)>"
    assert place.locator("li").all_inner_texts() == ["one <b>", "two bold"]
    assert place.locator("td").all_inner_texts() == ["<script>alert(1)</script>", "text"]
    assert place.locator("pre").inner_text() == "<i>kept</i>"
    assert place.locator("p").inner_text() == "last alt site (https://example.org) #no heading"


def test_posts_are_written_and_can_be_copied(open_page: Opened) -> None:
    page = open_page("posts", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("form").wait_for()
    studio = page.request.get(f"{open_page.address}v1/studio").json()
    for label, names in {"Platform": "post_platforms", "Tone": "post_tones"}.items():
        options = page.get_by_label(label).locator("option")
        assert [option.get_attribute("value") for option in options.all()] == studio[names]
    assert "LinkedIn" in page.get_by_label("Platform").inner_text()
    expect(page.get_by_role("checkbox")).to_have_count(0)
    page.get_by_label("Business").fill("<b>Corner</b> Bakery")
    page.get_by_label("About it").fill("Sourdough, baked at night on a red stone.")
    page.get_by_role("spinbutton", name="Posts").fill("2")
    page.get_by_role("button", name="Write posts").click()
    posts = page.locator("article.post")
    expect(posts).to_have_count(2)
    words = posts.first.locator(".post-text p").first.inner_text()
    picture = posts.first.get_by_role("img")
    assert to_pixels(picture).shape == (64, 64, 3)
    assert posts.first.locator("dd").first.inner_text() == picture.get_attribute("alt")
    # Each redraw once made the pictures again, and kept the old ones.
    address = picture.get_attribute("src")
    page.get_by_label("Model", exact=True).select_option("second")
    assert picture.get_attribute("src") == address

    page.clock.install()
    copied = posts.first.get_by_role("button", name="Copied")
    for name, text in {
        "Copy the text": words,
        "Copy the alternative text": picture.get_attribute("alt") or "",
    }.items():
        posts.first.get_by_role("button", name=name).click()
        expect(copied).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()").startswith(text)
        page.clock.run_for(3000)
        expect(copied).to_have_count(0)
        expect(posts.first.get_by_role("button", name=name)).to_be_visible()


def test_a_language_model_need_not_be_asked(open_page: Opened) -> None:
    page = open_page("model")
    studio = page.request.get(f"{open_page.address}v1/studio").json()
    page.route("**/v1/studio", lambda route: route.fulfill(json={**studio, "posts": "llm"}))
    page.reload()
    page.get_by_role("link", name="Posts").click()
    page.get_by_label("Business").fill("Corner Bakery")
    page.get_by_label("About it").fill("Sourdough, baked at night.")
    page.get_by_label("Tone").fill("as a pirate")  # a language model takes any

    def send() -> dict[str, Any]:
        with page.expect_request("**/v1/posts") as sent:
            page.get_by_role("button", name="Write posts").click()
        expect(page.locator("article.post")).to_have_count(3)
        return dict(json.loads(sent.value.post_data or ""))

    asked = send()
    assert (asked["tone"], asked["offline"]) == ("as a pirate", False)
    page.get_by_label("Offline").check()
    asked = send()
    assert (asked["tone"], asked["offline"]) == (studio["post_tones"][0], True)


def test_a_view_that_was_not_fetched_can_be_shown_later(open_page: Opened) -> None:
    """It once stayed blank, and nothing said why."""
    page = open_page("posts")
    title = page.get_by_role("heading", level=1)
    expect(title).to_have_text("Posts with pictures")
    page.route("**/studio/card.js", lambda route: route.abort())
    page.get_by_role("link", name="Model").click()
    expect(title).to_have_text("Model cannot be shown")
    expect(page.get_by_role("alert")).not_to_be_empty()
    # The browser's own line, and the page's.
    assert all("card.js" in text or "ERR_FAILED" in text for text in open_page.complaints)
    page.get_by_role("link", name="Posts").click()
    expect(title).to_have_text("Posts with pictures")
    page.go_back()
    expect(title).to_have_text("Model cannot be shown")
    open_page.complaints.clear()
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(title).to_have_text("Model scenes")


def test_decoration_waits_until_the_page_is_ready(open_page: Opened) -> None:
    """The box of tiles is most of what is fetched, and was fetched before the page was there."""
    page = open_page("model")
    expect(page.locator("#frieze.is-laid")).to_have_count(1)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    held: list[Route] = []
    page.route("**/studio/paint.js", lambda route: held.append(route))
    with page.expect_response("**/v1/models"), page.expect_request("**/studio/paint.js"):
        page.reload(wait_until="commit")
    page.wait_for_timeout(500)  # time enough for a page that would not wait
    assert "/v1/models/scenes/codebook" not in asked
    for route in held:
        route.continue_()
    expect(page.locator("#frieze.is-laid")).to_have_count(1)
    assert asked.count("/v1/models/scenes/codebook") == 1


def test_a_key_is_asked_for_and_kept_for_the_tab(open_page: Opened, serving: Any) -> None:
    with serving("scenes", keys=[KEY]) as address:
        page = open_page(address=address)
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        # A sign that no header can hold was once kept, and then no request could be sent.
        dialog.get_by_label("API key").fill("ключ")
        page.keyboard.press("Enter")
        expect(dialog.locator("input:invalid")).to_have_count(1)
        dialog.get_by_label("API key").fill("a-wrong-one")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).not_to_be_empty()
        # The browser itself writes every failed request into its log.
        assert "401" in open_page.complaints.pop()
        assert page.evaluate("sessionStorage.length") == 0
        dialog.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        paint(page)
        page.reload()
        expect(page.locator(".piece")).to_have_count(1)
        expect(dialog).to_have_count(0)
        assert page.evaluate("JSON.stringify(localStorage)").find(KEY) == -1
        page.context.close()


def test_a_run_without_a_model_is_shown_alone(
    open_page: Opened, serving: Any, tmp_path: Path
) -> None:
    with serving(run=tmp_path) as address:
        page = open_page("", address=address)
        expect(page.locator("html[data-ready=true]")).to_have_count(1)
        expect(page.get_by_role("navigation", name="Views").get_by_role("link")).to_have_text(
            ["Training"]
        )
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.context.close()


# --- for everyone ---------------------------------------------------------------------------


def test_all_by_keyboard(open_page: Opened) -> None:
    page = open_page()
    expect(page.locator("html[data-ready=true]")).to_have_count(1)
    focus = page.locator(":focus")

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            label = focus.get_attribute("aria-label") or focus.inner_text()
            if name in (label, focus.get_attribute("name"), focus.get_attribute("id")):
                return
        pytest.fail(f"The tab key does not come to: {name}")

    page.keyboard.press("Tab")
    expect(focus).to_have_text("Skip to the page")
    expect(focus).to_be_in_viewport()
    tab_to("prompt")
    page.keyboard.type(PROMPT)
    tab_to("count")
    page.keyboard.press("Control+A")
    page.keyboard.type("1")
    tab_to("seed")
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    expect(page.locator(".is-done")).to_have_count(1)

    tab_to(f"Edit: {PROMPT}, seed 5")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Paint a part anew")
    dialog.locator(".cell").first.focus()
    for key in ("ArrowDown", "ArrowRight", "Space", "ArrowRight", "Space", "ArrowLeft", "Space"):
        page.keyboard.press(key)
    expect(focus).to_have_attribute("aria-label", "Row 2, column 2")
    expect(dialog.get_by_role("status")).to_have_text("1 tile marked")
    expect(dialog.locator("[aria-selected=true]")).to_have_attribute(
        "aria-label", "Row 2, column 3"
    )
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)

    tab_to(f"{PROMPT}, seed 5")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name=PROMPT)).to_be_visible()
    page.keyboard.press("Escape")
    expect(focus).to_have_attribute("aria-label", f"{PROMPT}, seed 5")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_contrast(open_page: Opened, scheme: str) -> None:
    page = open_page(color_scheme=scheme)

    def check() -> None:
        assert page.evaluate(LOW_CONTRAST) == []
        if scheme == "light":  # names are the same in the dark
            assert nameless(page) == []

    paint(page)
    page.locator("summary").click()
    check()
    for name in ("Vary", "Edit"):
        act(page, name).click()
        check()
        page.keyboard.press("Escape")
    for view, shown in {"tiles": ".tile", "model": ".card", "posts": "form"}.items():
        page.goto(f"{open_page.address}#{view}")
        page.locator(f".view-{view} {shown}").first.wait_for()
        check()


def test_light_and_dark_and_pixels_are_chosen_and_kept(open_page: Opened) -> None:
    page = open_page(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    expect(page.get_by_label("Light or dark")).to_be_visible()
    assert page.evaluate(ground) == "rgb(21, 24, 27)"
    page.get_by_label("Light or dark").select_option("light")
    assert page.evaluate(ground) == "rgb(241, 240, 236)"
    page.get_by_role("switch", name="Sharp pixels").click()
    paint(page)
    page.reload()
    assert page.evaluate(ground) == "rgb(241, 240, 236)"
    expect(page.get_by_role("switch", name="Sharp pixels")).to_be_checked()
    piece = page.locator(".piece img").first
    assert piece.evaluate("(image) => getComputedStyle(image).imageRendering") == "pixelated"


def test_a_phone_shows_all_without_scrolling_sideways(open_page: Opened) -> None:
    size = {"width": 360, "height": 740}
    page = open_page(viewport=size, has_touch=True, is_mobile=True, device_scale_factor=2)

    def width() -> int:
        return int(page.evaluate("document.documentElement.scrollWidth"))

    paint(page, count=3)
    assert width() == 360
    act(page, "Edit").tap()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Paint anew")).to_be_in_viewport(ratio=1)
    dialog.locator(".cell").nth(9).tap()
    expect(dialog.get_by_role("status")).to_have_text("1 tile marked")
    assert dialog.evaluate("(dialog) => dialog.scrollWidth <= dialog.clientWidth")
    page.keyboard.press("Escape")
    act(page, "Tiles").tap()
    expect(page.locator(".pair .cell")).to_have_count(64)
    expect(page.locator(".tile")).to_have_count(512)
    tile = page.locator(".tile").nth(40)
    tile.tap()
    lens = page.locator(".lens")
    expect(lens).to_be_in_viewport(ratio=1)
    assert width() == 360
    box = tile.bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) >= 32
    # A finger that slides along the row points at what lies under it.
    numbers = [page.locator(".tile").nth(place).get_attribute("data-cell") for place in (40, 42)]
    expect(lens).to_contain_text(f"Tile {numbers[0]}")
    session = page.context.new_cdp_session(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, moved in [("Start", 0.0), ("Move", 1.0), ("Move", 2.0)]:
        point = {"x": x + moved * (box["width"] + 2), "y": y}
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [point]})
    expect(lens).to_contain_text(f"Tile {numbers[1]}")
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    for view in ("model", "posts"):
        page.goto(f"{open_page.address}#{view}")
        expect(page.locator(f".view-{view} :is(.card, form)").first).to_be_visible()
        assert width() == 360
