"""The view of a training run, clicked through in a real browser while the run goes on."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from playwright.sync_api import Browser, Page, expect

from served import serve_app
from studio_page import load_once
from tessella.images import save_png
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel
from tessella.serving.settings import ServeSettings

RECIPE = {
    "tokenizer": {"network": "residual", "quantizer": {"name": "vq", "codebook_size": 512}},
    "tokenizer_training": {"images": 1000},
    "transformer_training": {"images": 500},
    "transformer": {"width": 32, "depth": 2},
}

COUNT_TIMERS = """
window.planned = 0;
const plan = window.setTimeout;
window.setTimeout = (...words) => { window.planned += 1; return plan(...words); };
"""


@dataclass
class Run:
    """A run that a test lets go on, as training would."""

    folder: Path
    images_seen: int = 0

    def learn(self, lines: int = 1) -> None:
        with (self.folder / "tokenizer" / "metrics.jsonl").open("a", encoding="utf-8") as file:
            for _ in range(lines):
                self.images_seen += 10
                loss = 100 / self.images_seen
                line = {"images_seen": self.images_seen, "kind": "train", "loss": loss}
                file.write(json.dumps({**line, "images_per_second": 5.0}) + "\n")

    def evaluate(self) -> None:
        with (self.folder / "tokenizer" / "metrics.jsonl").open("a", encoding="utf-8") as file:
            line = {"images_seen": self.images_seen, "kind": "validation", "loss": 0.5}
            file.write(json.dumps(line) + "\n")
        pixels = np.full((8, 8, 3), self.images_seen % 256, dtype=np.uint8)
        save_png(self.folder / "tokenizer" / "samples" / f"{self.images_seen:012d}.png", pixels)


@dataclass
class Seen:
    """What a page has asked for and complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)  # the status of each answer about the run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run with ten lines, one evaluation and somebody who trains in it."""
    folder = tmp_path / "stickers"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"recipe": RECIPE}), encoding="utf-8")
    made = Run(folder)
    made.learn(lines=10)
    made.evaluate()
    with FileLock(folder / ".lock"):
        yield made


@pytest.fixture(scope="module")
def models() -> Mapping[str, ServedModel]:
    return load_once("scenes")


@pytest.fixture
def address(run: Run, models: Mapping[str, ServedModel]) -> Iterator[str]:
    """The whole application with the bundled model and the run."""
    with serve_app(create_app(models, ServeSettings(), run=run.folder)) as made:
        yield made


@contextlib.contextmanager
def opened(browser: Browser, address: str, width: int = 1200) -> Iterator[Seen]:
    """Opens the view in a page whose clock a test can turn; every complaint of it is a fault."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.set_default_timeout(60_000)
    seen = Seen(page)

    def note(text: str) -> None:
        seen.complaints.append(text)

    page.on("console", lambda m: note(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: note(str(error)))
    page.on("request", lambda request: seen.asked.append(request.url))
    page.on(
        "response",
        lambda answer: seen.looks.append(answer.status) if answer.url.endswith("/page") else None,
    )
    page.clock.install()
    page.add_init_script(COUNT_TIMERS)
    page.goto(f"{address}/#run")
    expect(page.locator(".curve svg").first).to_be_visible()
    yield seen
    context.close()
    assert seen.complaints == []
    assert all(url.startswith((f"{address}/", "blob:", "data:")) for url in seen.asked)


def go_on(page: Page, seconds: float = 2.0) -> None:
    """Lets the page's clock go on until it looks at the run again, and plans its next look.

    A clock that is moved before the page has planned leaves it to wait for real seconds.
    """
    planned = page.evaluate("window.planned")
    with page.expect_response("**/v1/run/page"):
        page.clock.fast_forward(round(seconds * 1000))
    page.wait_for_function("(planned) => window.planned > planned", arg=planned)


def test_a_growing_run_is_followed_without_a_reload(browser: Browser, address: str, run: Run):
    with opened(browser, address) as seen:
        page = seen.page
        expect(page.get_by_role("heading", level=1)).to_have_text("stickers")
        expect(page.get_by_role("status").filter(has_text="Training")).to_have_text(
            re.compile(r"Training\s+The image tokenizer is training\.")
        )
        expect(page.get_by_text("100 of 1,000 images (10%) so far.")).to_contain_text(
            "About 3 min left at 5 images/s."  # 900 images at 5 a second
        )
        curve = page.locator(".curve", has_text="Loss").locator("polyline.train")
        before = curve.get_attribute("points") or ""
        assert len(before.split()) == 10
        page.evaluate("window.kept = true")
        run.learn(lines=5)
        run.evaluate()
        go_on(page)
        expect(page.get_by_text("150 of 1,000 images (15%) so far.")).to_be_visible()
        assert len((curve.get_attribute("points") or "").split()) == 15
        expect(page.locator("progress")).to_have_attribute("value", "150")
        assert page.evaluate("window.kept")


def test_values_are_read_with_pointer_and_keys(browser: Browser, address: str):
    with opened(browser, address) as seen:
        plot = seen.page.get_by_role("slider", name="Loss.")
        expect(plot).to_have_accessible_name(
            "Loss. training: from 10 at 10 images to 1 at 100; lowest 1, highest 10; recently "
            "falling. validation: 0.5 at 100 images."
        )
        reading = seen.page.locator(".curve", has_text="Loss").locator("p.reading")
        plot.focus()
        seen.page.keyboard.press("End")
        expect(plot).to_have_attribute("aria-valuetext", "100 images: training 1, validation 0.5")
        seen.page.keyboard.press("ArrowLeft")
        expect(reading).to_have_text("90 images: training 1.111")
        seen.page.keyboard.press("Home")
        seen.page.keyboard.press("ArrowLeft")
        expect(reading).to_have_text("10 images: training 10")
        seen.page.keyboard.press("Escape")
        expect(reading).to_have_text("\u00a0")
        box = plot.bounding_box()
        assert box is not None
        # The axis goes from 50 to 348 of 360: its middle is at 199.
        seen.page.mouse.move(box["x"] + box["width"] * 199 / 360, box["y"] + 20)
        expect(reading).to_have_text("50 images: training 2")
        seen.page.mouse.move(0, 0)
        expect(reading).to_have_text("\u00a0")


def test_the_newest_moment_is_shown_until_one_is_chosen(browser: Browser, address: str, run: Run):
    run.learn()
    run.evaluate()
    with opened(browser, address) as seen:
        film = seen.page.get_by_role("radiogroup", name="Reconstructions: images seen")
        shown = film.get_by_role("img")
        words = "Originals above their reconstructions after 110 images"
        expect(shown).to_have_attribute("alt", words)
        # No other picture has been fetched.
        assert len([url for url in seen.asked if "/v1/pictures/run/" in url]) == 1

        def let_it_learn() -> None:
            run.learn()
            run.evaluate()
            go_on(seen.page)
            words = f"{run.images_seen} of 1,000 images ("
            expect(seen.page.locator("main").get_by_text(words)).to_be_visible()

        let_it_learn()
        expect(film.get_by_role("radio", name="120 images")).to_be_checked()
        film.get_by_role("radio", name="120 images").focus()
        seen.page.keyboard.press("ArrowLeft")
        seen.page.keyboard.press("ArrowLeft")
        expect(film.get_by_role("radio", name="100")).to_be_checked()
        expect(shown).to_have_attribute("alt", re.compile("after 100 images"))
        expect(film.get_by_role("radio", name="100")).to_be_focused()
        assert shown.evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 8
        let_it_learn()
        expect(film.get_by_role("radio", name="100")).to_be_checked()
        expect(film.get_by_role("radio", name="100")).to_be_focused()
        film.get_by_text("130 images").click()
        let_it_learn()
        expect(film.get_by_role("radio", name="140 images")).to_be_checked()


def test_news_leave_the_reader_s_place_alone(browser: Browser, address: str, run: Run):
    with opened(browser, address) as seen:
        page = seen.page
        page.get_by_text("settings of the run").click()
        loss = page.locator(".curve", has_text="Loss")
        loss.scroll_into_view_if_needed()
        loss.locator(".plot").hover()
        reading = loss.locator("p.reading").inner_text()
        assert "images: training" in reading
        title = page.get_by_role("heading", name="What was trained")
        title.evaluate("(title) => getSelection().selectAllChildren(title)")
        place = page.evaluate("scrollY")
        assert place > 0
        run.learn()
        line = {"images_seen": run.images_seen, "kind": "note", "note": "Something new above."}
        with (run.folder / "tokenizer" / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        top = loss.bounding_box()
        go_on(page)
        expect(page.get_by_text("Something new above.")).to_have_count(1)
        # What comes in above moves nothing of what is seen.
        assert loss.bounding_box() == pytest.approx(top, abs=1)
        assert page.evaluate("scrollY") > place
        assert page.locator("details[open]").count() == 1
        assert page.evaluate("getSelection().toString()") == "What was trained"
        assert "images: training" in loss.locator("p.reading").inner_text()
        assert loss.locator("circle.reading:not([hidden])").count() >= 1


def test_a_key_opens_the_run_and_its_pictures(
    browser: Browser, run: Run, models: Mapping[str, ServedModel]
):
    """A browser sends no key with `<img>`: pictures have addresses that cannot be guessed."""
    key = "a-key-of-some-length"
    with serve_app(create_app(models, ServeSettings(), run=run.folder, keys=[key])) as address:
        page = browser.new_page()
        page.goto(f"{address}/#run")
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        image = page.locator(".film img").last
        image.scroll_into_view_if_needed()
        expect(image).to_be_visible()
        page.wait_for_function("(image) => image.naturalWidth", arg=image.element_handle())
        assert page.request.get(f"{address}/v1/run/page").status == 401
        page.close()


def test_nobody_looks_no_request_is_made(browser: Browser, address: str, run: Run):
    """After news, in 2 s; without news after 3, 4.5, 6.75, 10.125 s, then 15; hidden, never."""
    with opened(browser, address) as seen:
        page = seen.page
        run.learn()
        go_on(page, 15)
        for seconds in (2, 3, 4.5, 6.75, 10.125, 15, 15):
            go_on(page, seconds)
        asked = len(seen.looks)
        page.clock.fast_forward(14_000)
        page.wait_for_timeout(100)
        assert len(seen.looks) == asked
        run.learn()
        go_on(page, 1)
        go_on(page, 2)
        page.evaluate("document.querySelector('.view-run').hidden = true")
        asked = len(seen.looks)
        page.clock.fast_forward(60_000)
        page.wait_for_timeout(100)
        assert len(seen.looks) == asked
        with page.expect_response("**/v1/run/page"):
            page.evaluate("document.querySelector('.view-run').hidden = false")


def test_a_server_that_ends_and_a_run_that_stops_are_said(browser: Browser, address: str, run: Run):
    with opened(browser, address) as seen:
        page = seen.page
        page.route("**/v1/run/page", lambda route: route.abort())
        page.clock.fast_forward(2000)
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
        expect(page.locator(".curve svg").first).to_be_visible()
        page.unroute("**/v1/run/page")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("alert")).to_have_count(0)
        with (run.folder / "run.json").open("w", encoding="utf-8") as file:
            file.write("{")
        go_on(page)
        expect(page.get_by_text("The run’s files are damaged;")).to_be_visible()
        expect(page.locator(".curve")).to_have_count(0)
        seen.complaints = [text for text in seen.complaints if "ERR_FAILED" not in text]


def test_it_fits_a_phone(browser: Browser, address: str):
    with opened(browser, address, width=360) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") == 360
        box = seen.page.locator(".curve").first.bounding_box()
        assert box is not None
        assert box["width"] > 300


def test_text_of_a_run_stays_text(browser: Browser, address: str, run: Run):
    hostile = '<img src=x onerror="window.hurt = true">'
    line = {"images_seen": 100, "kind": "note", "note": hostile}
    with (run.folder / "tokenizer" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.write(json.dumps({"images_seen": 100, "kind": "train", hostile: 1.0}) + "\n")
    with opened(browser, address) as seen:
        expect(seen.page.locator(".notes")).to_contain_text(hostile)
        seen.page.get_by_text("More curves").click()
        expect(seen.page.locator(".curve", has_text="onerror")).to_be_visible()
        assert seen.page.evaluate("window.hurt") is None
