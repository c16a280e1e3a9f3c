"""The easel: in view when Paint is pressed, holding its place, with many pictures, opened ones."""

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from served import serve_app
from studio_page import SIZES, load_once, open_studio, paint, to_file
from tessella.serving.app import create_app
from tessella.serving.settings import ServeSettings

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve_app(create_app(load_once("scenes"), ServeSettings())) as made:
        yield made


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    yield lambda size, view="paint": open_studio(browser, address, size, view)
    for context in browser.contexts:
        context.close()


def test_pressing_paint_shows_the_pictures_on_a_phone(open_page: Open) -> None:
    """The first picture once lay below the window, and nothing seemed to happen."""
    page = open_page("phone")
    start = page.get_by_role("button", name="Paint", exact=True)
    expect(start).to_be_in_viewport(ratio=1)
    page.route("**/v1/images/generations", lambda route: None)  # an answer that takes its time
    page.get_by_label("Prompt", exact=True).fill("a large red circle")
    page.get_by_label("Pictures", exact=True).fill("10")
    start.tap()
    expect(page.locator(".slot")).to_have_count(10)
    expect(page.locator(".slot .bed").first).to_be_in_viewport(ratio=1)
    # The keyboard of a phone would cover them.
    assert page.evaluate("document.activeElement === document.body")
    page.locator(".slot").last.scroll_into_view_if_needed()
    for seen in (page.get_by_role("progressbar"), page.get_by_role("button", name="Cancel")):
        expect(seen).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Cancel").tap()
    expect(page.locator(".slot")).to_have_count(0)


def test_what_is_in_view_stays_where_it_is(open_page: Open) -> None:
    page = open_page("desktop")
    paint(page, count=1)
    assert page.evaluate("window.scrollY") == 0


@pytest.mark.parametrize("size", SIZES)
def test_the_easel_holds_its_place_while_the_page_loads(open_page: Open, size: str) -> None:
    page = open_page(size)
    expect(page.locator(".view-paint .is-empty .is-laid")).to_have_count(1)
    top, right = "(box) => box.getBoundingClientRect().top", "(box) => box.clientWidth"
    easel = page.locator(".view-paint .is-empty")
    there = [easel.evaluate(read) for read in (top, right)]
    held: list[Route] = []
    page.route("**/v1/studio", lambda route: held.append(route))
    page.reload(wait_until="domcontentloaded")
    bed = page.locator(".skeleton .bed")
    expect(bed).to_be_visible()
    expect(bed.locator(".grout")).to_be_visible()
    waiting = [bed.evaluate(read) for read in (top, right)]
    assert waiting[1] == there[1]
    # How long a model's captions are is not known yet, and on a small screen they lie above.
    assert abs(waiting[0] - there[0]) <= (2 if size == "desktop" else 60)
    page.wait_for_timeout(100)
    held.pop().continue_()
    expect(easel).to_be_visible()
    expect(bed).to_be_hidden()
    # Until its tiles are there the place is shown all the same.
    expect(easel.locator(".grout")).to_be_attached()


def test_another_view_shows_no_easel_while_it_loads(open_page: Open) -> None:
    page = open_page("desktop", "model")
    page.route("**/v1/studio", lambda route: None)
    page.reload(wait_until="domcontentloaded")
    expect(page.locator("html[data-loading=model]")).to_have_count(1)
    expect(page.locator(".skeleton")).to_be_hidden()


def test_few_pictures_show_their_buttons_many_do_when_pointed_at(open_page: Open) -> None:
    page = open_page("desktop")
    paint(page, count=2)
    acts = page.locator(".acts")
    for row in acts.all():
        expect(row).to_be_visible()
    paint(page, count=5)
    for row in acts.all():
        expect(row).to_be_hidden()
    page.locator(".slot").nth(2).hover()
    expect(acts.nth(2)).to_be_visible()
    expect(acts.nth(1)).to_be_hidden()
    page.mouse.move(0, 0)
    # By keyboard: the picture has the focus, then its buttons.
    page.locator(".cover").nth(3).focus()
    expect(acts.nth(3)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Download")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Again with this seed")).to_be_visible()
    expect(dialog.get_by_role("button", name="Remove")).to_be_visible()


def test_many_pictures_on_a_phone_have_their_buttons_when_pressed(open_page: Open) -> None:
    page = open_page("phone")
    paint(page, count=5)
    page.locator(".cover").nth(4).tap()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Close").tap()  # it once lay below the picture
    expect(dialog).to_have_count(0)
    page.locator(".cover").nth(4).tap()
    dialog.get_by_role("button", name="Vary").tap()
    expect(page.get_by_role("dialog", name="Vary the picture")).to_be_visible()


def test_a_picture_of_one_s_own_is_opened_and_changed(open_page: Open) -> None:
    page = open_page("desktop")
    chooser = page.get_by_label("Open a picture")
    broken = {"name": "words.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    chooser.set_input_files([broken])  # type: ignore[list-item]
    alert = page.get_by_role("form", name="What to paint").get_by_role("alert")
    expect(alert).not_to_be_empty()
    assert not re.search(r"`|_", alert.inner_text())

    pixels = np.full((60, 90, 3), 255, dtype=np.uint8)
    pixels[15:45, 30:60] = (220, 40, 40)
    chooser.set_input_files([to_file(pixels)])
    dialog = page.get_by_role("dialog", name="mine.png")
    expect(dialog).to_contain_text("The middle square of what you opened, 64×64 pixels")
    expect(alert).to_have_count(0)
    # No seed made it: there is nothing to be painted again, and nothing to be removed.
    expect(dialog.locator(".act")).to_have_text(["Download", "Vary", "Edit", "Tiles"])
    dialog.get_by_role("button", name="Edit").click()
    edit = page.get_by_role("dialog", name="Paint a part anew")
    expect(edit).to_contain_text("a seam can show where new ones meet old ones")
    edit.locator(".cell").first.click()
    edit.get_by_label("Prompt").fill("a large red square on a white background")
    edit.get_by_label("Pictures").fill("1")
    edit.get_by_role("button", name="Paint anew").click()
    expect(page.locator(".is-done")).to_have_count(1)


def test_a_picture_can_be_dropped_on_the_easel(open_page: Open) -> None:
    page = open_page("desktop")
    transfer = page.evaluate_handle(
        """async () => {
          const canvas = Object.assign(document.createElement("canvas"), {width: 9, height: 9});
          const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
          const transfer = new DataTransfer();
          transfer.items.add(new File([blob], "dropped.png", {type: "image/png"}));
          return transfer;
        }"""
    )
    page.dispatch_event("#results", "dragover", {"dataTransfer": transfer})
    expect(page.locator("#results.is-over")).to_have_count(1)
    page.dispatch_event("#results", "drop", {"dataTransfer": transfer})
    expect(page.get_by_role("dialog", name="dropped.png")).to_be_visible()
    expect(page.locator("#results.is-over")).to_have_count(0)


def test_names_of_platforms_are_whole_at_every_size(open_page: Open) -> None:
    for size in SIZES:
        page = open_page(size, "posts")
        select = page.get_by_label("Platform")
        # As wide as its longest name needs it: what it would be by itself.
        needed = select.evaluate(
            """(select) => {
              const font = getComputedStyle(select);
              const context = document.createElement("canvas").getContext("2d");
              context.font = font.font;
              const words = [...select.options].map((option) => option.text);
              return Math.max(...words.map((word) => context.measureText(word).width))
                + parseFloat(font.paddingLeft) + 24;
            }"""
        )
        assert select.evaluate("(select) => select.clientWidth") >= needed
        page.context.close()
