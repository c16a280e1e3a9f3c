"""The studio when its server goes away: words of its own, in view, and what was begun stays."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from served import serve_app
from studio_page import load_once
from tessella.serving.app import create_app
from tessella.serving.settings import ServeSettings

PHONE = {"width": 390, "height": 844}
PROMPT = "a large red circle on a white background"


@dataclass
class Wire:
    """Carries bytes between browser and server until it is cut; the server notices nothing."""

    upstream: tuple[str, int]
    listening: socket.socket
    ends: list[socket.socket] = field(default_factory=list)
    is_cut: bool = False
    hold_from: bytes = b""  # what is never carried, nor what follows it

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}/"

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listening.accept()
                far = socket.create_connection(self.upstream)
                self.ends += [near, far]
                if self.is_cut:
                    near.close()
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.ends.clear()

    def mend(self) -> None:
        self.is_cut = False
        self.hold_from = b""

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if self.hold_from and self.hold_from in content:
                    target.sendall(content.partition(self.hold_from)[0])
                    return  # both ends stay open until they are cut
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with serve_app(create_app(load_once("scenes"), ServeSettings())) as address:
        yield address


@pytest.fixture
def wire(upstream: str) -> Iterator[Wire]:
    parts = urlsplit(upstream)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Wire((parts.hostname or "", parts.port or 0), listening)
        threading.Thread(target=made.run, daemon=True).start()
        yield made
        made.cut()


@pytest.fixture
def page(browser: Browser, wire: Wire) -> Iterator[Page]:
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    made = context.new_page()
    made.set_default_timeout(60_000)
    made.goto(wire.address)
    expect(made.locator("html[data-ready=true]")).to_have_count(1)
    yield made
    context.close()


def read_seeds(page: Page) -> list[int]:
    words = page.locator(".slot .seed").all_inner_texts()
    return [int(text.removeprefix("seed ").split(" ")[0]) for text in words]


def test_what_was_begun_stays_and_goes_on_later(page: Page, wire: Wire) -> None:
    wire.hold_from = b".completed"  # so that no machine is fast enough to finish
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Pictures", exact=True).fill("2")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_role("button", name="Paint", exact=True).tap()
    expect(page.locator(".is-laying")).to_have_count(2)
    wire.cut()
    alert = page.get_by_label("Results").get_by_role("alert")
    expect(alert).to_contain_text("The connection to the server was lost.")
    expect(alert).to_be_in_viewport(ratio=1)
    # The browser's own words, "network error", say nothing to a person.
    assert "error" not in alert.inner_text().lower()
    begun = page.locator(".is-laying")
    expect(begun).to_have_count(2)
    expect(begun.first).to_contain_text("seed 7 · not finished")
    expect(begun.first.get_by_role("img")).to_be_visible()

    alert.get_by_role("button", name="Try again").tap()
    expect(alert).to_contain_text("The server does not answer.")
    wire.mend()
    alert.get_by_role("button", name="Try again").tap()
    expect(page.locator(".is-done")).to_have_count(2)
    expect(alert).to_have_count(0)
    assert read_seeds(page) == [7, 8]


def test_only_the_missing_pictures_are_painted_again(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Pictures", exact=True).fill("1")
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_role("button", name="Paint", exact=True).tap()
    expect(page.locator(".is-done")).to_have_count(1)
    # As if two had been asked for, and the answer had ended after the first.
    page.evaluate(
        """() => {
          const send = window.fetch.bind(window);
          window.fetch = (path, options) => {
            window.fetch = send;
            const body = JSON.parse(options.body);
            return send(path, {...options, body: JSON.stringify({...body, n: 1})});
          };
        }"""
    )
    page.get_by_label("Pictures", exact=True).fill("2")
    page.get_by_role("button", name="Paint", exact=True).tap()
    alert = page.get_by_label("Results").get_by_role("alert")
    expect(alert).to_contain_text("The connection ended before all pictures were done.")
    assert read_seeds(page) == [3]
    with page.expect_request("**/generations") as sent:
        alert.get_by_role("button", name="Try again").tap()
    body = sent.value.post_data_json
    assert (body["n"], body["seed"]) == (1, 4)
    expect(page.locator(".is-done")).to_have_count(2)
    assert read_seeds(page) == [3, 4]


@pytest.mark.parametrize(
    ("view", "shown"), [("Tiles", ".tile"), ("Posts", "form"), ("Model", ".card")]
)
def test_every_view_says_it_and_comes_later(page: Page, wire: Wire, view: str, shown: str) -> None:
    """A view that had not been fetched said: Failed to fetch dynamically imported module."""
    wire.cut()
    page.get_by_role("link", name=view).tap()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{view} cannot be shown")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The server does not answer. Is it still running")
    expect(alert).to_be_in_viewport(ratio=1)
    wire.mend()
    alert.get_by_role("button", name="Try again").tap()
    expect(page.locator(f".view-{view.lower()} {shown}").first).to_be_visible()
    expect(alert).to_have_count(0)


def test_a_view_that_is_open_says_it_where_it_asks(page: Page, wire: Wire) -> None:
    page.get_by_role("link", name="Posts").tap()
    page.get_by_label("Business").fill("Corner Bakery")
    page.get_by_label("About it").fill("Sourdough, baked at night.")
    wire.cut()
    page.get_by_role("button", name="Write posts").tap()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
    expect(page.get_by_label("Business")).to_have_value("Corner Bakery")


def test_a_page_that_found_no_server_asks_again(page: Page, wire: Wire) -> None:
    def lose(route: Any) -> None:
        route.abort()

    page.route("**/v1/studio", lose)
    page.reload()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The server does not answer.")
    page.unroute_all()
    alert.get_by_role("button", name="Try again").tap()
    expect(page.get_by_role("heading", name="Paint a picture")).to_be_visible()
    expect(alert).to_have_count(0)
