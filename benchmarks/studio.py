"""How soon the studio page can be used, and what it makes the browser load.

Why: a page that is slow, or loads a megabyte of framework, is not opened a second time; and one
that asks another host does not work on a plane, and gives its user away.

Theory: everything comes from this machine, so the time is the browser's: starting a
renderer, parsing, running the scripts, and the round trips that depend on each other (page,
scripts, models). Bytes are what the network carried, headers included.

Output contract: a line a load; the last line of stdout is the record, one JSON object.
`usable_seconds`: from the start of the navigation, by the page's own clock, until it says that it
is ready (the prompt can be typed, the models are listed); each load is in a browser of its own,
with an empty profile. `transferred_bytes`: everything that came until the network was idle, in the
load with most. `requests`: how many. `foreign_requests`: to another address than the server's, of
all loads. `console_errors` likewise. `gallery_seconds`: the same as `usable_seconds`, of a browser
that remembers 200 pictures, until the page is ready and has drawn all of them; they stay between
these loads. Exit status 1 unless `foreign_requests` and `console_errors` are 0.

    python benchmarks/studio.py --repeats 15
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Playwright, sync_playwright

from harness import RESULTS, Spread, environment, print_record, print_skipped, write_result
from http_clients import HOST, serving

BARS = {"usable_seconds": 1.5, "transferred_bytes": 1_500_000, "gallery_seconds": 0.5}
PICTURES = 200
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# Runs before the page's own scripts and notes when the page calls itself ready, and when it also
# shows COUNT pictures of the gallery. Not evaluated later on: the page's Content-Security-Policy
# does not allow that, and it stays in force.
WATCH = """
new MutationObserver(() => {
  const said = document.documentElement?.dataset;
  if (said?.ready !== "true") return;
  said.readyAt ??= performance.now();
  if (document.querySelectorAll(".piece").length >= COUNT) said.filledAt ??= performance.now();
}).observe(document, {subtree: true, childList: true, attributeFilter: ["data-ready"]});
"""
# Remembers pictures of the size of a model's, each of other pixels, as the page does.
FILL = """async (count) => {
  const { keepPicture } = await import("/studio/gallery_store.js");
  const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 64});
  const context = canvas.getContext("2d");
  for (let index = 0; index < count; index++) {
    const pixels = context.createImageData(64, 64);
    for (let at = 0; at < pixels.data.length; at++) pixels.data[at] = at % 4 < 3 ? at * index : 255;
    context.putImageData(pixels, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    await keepPicture({how: "painted", model: "scenes", prompt: `picture ${index} of a large star`,
      seed: index, blob, created: Date.now() - index * 1e6, negativePrompt: "", steps: null});
  }
}"""


@dataclass
class Load:
    """What one load of the page took."""

    usable_seconds: float = 0.0
    transferred_bytes: int = 0
    requests: list[str] = field(default_factory=list)  # URLs, without data: and blob:
    console_errors: list[str] = field(default_factory=list)


def main() -> None:
    """Loads the page some times; stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder or bundled name")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 2
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        missing = f"none of {', '.join(BROWSERS)} is here"
        return print_skipped("studio", missing, is_quick=options.quick)
    loads = []
    with serving(options.model) as server, sync_playwright() as playwright:
        for _ in range(options.repeats + 1):
            loads.append(load_page(playwright, browser, server.port))
            print(
                f"usable after {loads[-1].usable_seconds:.3f} s, "
                f"{loads[-1].transferred_bytes} bytes, {len(loads[-1].requests)} requests"
            )
        gallery = load_gallery(playwright, browser, server.port, options.repeats)
    results = summarise(loads, server.port)
    results["gallery_seconds"] = Spread.of(gallery[1:], warmup=1)
    record = write_result(
        "studio",
        {**results, "bars": BARS},
        config={"model": options.model, "browser": browser},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)
    if results["foreign_requests"] or results["console_errors"]:
        raise SystemExit(1)


def load_page(playwright: Playwright, executable: str, port: int) -> Load:
    """Opens the page in a new browser and waits until nothing more is loaded."""
    browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
    page = browser.new_page()
    load = watch(page)
    page.add_init_script(WATCH.replace("COUNT", "0"))
    page.goto(f"http://{HOST}:{port}/")
    page.wait_for_selector("html[data-ready-at]", state="attached", timeout=30_000)
    load.usable_seconds = float(page.get_attribute("html", "data-ready-at") or "nan") / 1000
    page.wait_for_load_state("networkidle")
    browser.close()
    return load


def load_gallery(playwright: Playwright, executable: str, port: int, repeats: int) -> list[float]:
    """Seconds until a page shows all of the pictures that its browser remembers."""
    browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    address, seconds = f"http://{HOST}:{port}/", []
    page = context.new_page()
    page.goto(address)
    page.evaluate(FILL, PICTURES)
    page.close()
    for _ in range(repeats + 1):
        page = context.new_page()
        page.add_init_script(WATCH.replace("COUNT", str(PICTURES)))
        page.goto(address)
        page.wait_for_selector("html[data-filled-at]", state="attached", timeout=30_000)
        seconds.append(float(page.get_attribute("html", "data-filled-at") or "nan") / 1000)
        print(f"with {PICTURES} pictures usable after {seconds[-1]:.3f} s")
        page.close()
    browser.close()
    return seconds


def watch(page: Page) -> Load:
    """Counts what a page transfers, asks for and complains about."""
    load = Load()

    def count_bytes(event: dict[str, Any]) -> None:
        load.transferred_bytes += int(event["encodedDataLength"])

    def note_request(event: dict[str, Any]) -> None:
        if urlsplit(event["request"]["url"]).scheme not in ("data", "blob"):
            load.requests.append(event["request"]["url"])

    def note_error(said: ConsoleMessage) -> None:
        if said.type == "error":
            load.console_errors.append(said.text)

    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", count_bytes)
    session.on("Network.requestWillBeSent", note_request)
    page.on("console", note_error)
    page.on("pageerror", lambda error: load.console_errors.append(str(error)))
    return load


def summarise(loads: Sequence[Load], port: int) -> dict[str, Any]:
    """Puts the loads together; the first one warmed the server."""
    own = f"{HOST}:{port}"
    foreign = [url for load in loads for url in load.requests if urlsplit(url).netloc != own]
    errors = [text for load in loads for text in load.console_errors]
    for line in sorted({*foreign, *errors}):
        print(line)
    return {
        "usable_seconds": Spread.of([load.usable_seconds for load in loads[1:]], warmup=1),
        "first_usable_seconds": loads[0].usable_seconds,
        "transferred_bytes": max(load.transferred_bytes for load in loads),
        "requests": max(len(load.requests) for load in loads),
        "foreign_requests": len(foreign),
        "console_errors": len(errors),
    }


if __name__ == "__main__":
    main()
