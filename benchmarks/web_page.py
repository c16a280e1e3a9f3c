"""How soon a model's web page has painted, how large it is, and whether it paints PyTorch's codes.

Why: `tessella export --web` promises a page that paints in the browser, on a plain file server, as
tessella paints. Who opens it waits for the download, for WebAssembly to be compiled, for the
graphs to be loaded, and for a first picture on one thread.

Theory: the bytes are those of the graphs and of onnxruntime's program, compressed. From a server
on this machine they cost nothing; over a line of 50 Mbit/s 12 MB add two seconds. One thread of
WebAssembly has 128-bit vectors, a half or a quarter of what PyTorch has on the same processor.

Output contract: the last line of stdout is the record, one JSON object. For each model `bytes` of
the page; `first_picture_seconds` from opening it in a new browser context, and as
`first_picture_cpu_seconds` what all the browser's threads computed meanwhile, which a busy machine
changes little; `picture_seconds` in the page and `pytorch_seconds`, of one picture on one thread;
and `same_codes` of `pictures`.

    python benchmarks/web_page.py
"""

import argparse
import contextlib
import functools
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import torch

from harness import (
    RESULTS,
    Spread,
    environment,
    find_missing_package,
    print_record,
    print_skipped,
    write_result,
)
from onnx_painting import list_prompts
from tessella.errors import ConfigError
from tessella.model.find import find_model
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.model.web_export import export_web, find_runtime

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAINT = """async ([prompt, seed]) => {
  document.getElementById("prompt").value = prompt;
  document.getElementById("seed").value = seed;
  const painted = new Promise((resolve) => addEventListener("painted", resolve, {once: true}));
  document.querySelector("form").requestSubmit();
  const {error, ...result} = (await painted).detail;
  if (error) throw new Error(error);
  return result;
}"""
"""Paints on the page; returns the codes, the names of the examples and the seconds."""
PATIENCE = 300_000
"""Milliseconds, for a machine that is busy."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Quiet(SimpleHTTPRequestHandler):
    """A file server that says nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["scenes", "stickers"])
    parser.add_argument("--opened", type=int, default=5, help="times")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if missing := find_missing():
        return print_skipped("web-page", missing, is_quick=options.quick)
    from playwright.sync_api import sync_playwright

    if options.quick:
        options.opened, options.pictures = 1, 2
    torch.set_num_threads(1)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        results = {name: measure_page(name, browser, options) for name in options.models}
        results["browser"] = {"version": browser.version}
        browser.close()
    config = {name: getattr(options, name) for name in ("opened", "pictures")}
    where, folder = environment("cpu"), None if options.quick else RESULTS
    print_record(write_result("web-page", results, config=config, where=where, folder=folder))


def find_missing() -> str | None:
    """Says which of a page's and the browser's parts are not here."""
    if missing := find_missing_package("onnx", extra="onnx"):
        return missing
    if missing := find_missing_package("playwright", extra="test"):
        return missing
    try:
        find_runtime()
    except ConfigError as error:
        return str(error).rstrip(".")
    return None if find_browser() else f"No browser is here; looked for: {', '.join(BROWSERS)}"


def find_browser() -> str | None:
    """Finds a Chromium."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serves a folder's files on this machine, and says nothing; yields the address."""
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def measure_page(name: str, browser: "Browser", options: argparse.Namespace) -> dict[str, object]:
    """Opens a model's page, paints on it, and compares the codes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        export_web(find_model(name), folder)
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
        with serve(folder) as address:
            first = [time_first_picture(browser, address) for _ in range(options.opened)]
        page = first[-1].page
    model = TextToImage.load(find_model(name), "cpu")
    in_page, in_pytorch, same = [], [], 0
    for seed, prompt in enumerate(list_prompts(model, options.pictures)):
        painted = page.evaluate(PAINT, [prompt, str(seed)])
        start = time.perf_counter()
        codes = model.generate_images([ImageRequest(prompt, seed)]).codes
        in_pytorch.append(time.perf_counter() - start)
        in_page.append(painted["seconds"])
        assert codes is not None
        same += painted["codes"] == codes.flatten().tolist()
    page.context.close()
    print(f"{name}: {same} of {options.pictures} pictures have the same codes")
    return {
        "bytes": num_bytes,
        "first_picture_seconds": Spread.of([one.seconds for one in first]),
        "first_picture_cpu_seconds": Spread.of([one.cpu_seconds for one in first]),
        "picture_seconds": Spread.of(in_page),
        "pytorch_seconds": Spread.of(in_pytorch),
        "pictures": options.pictures,
        "same_codes": same,
    }


class Opened(NamedTuple):
    """A page that has painted its first picture."""

    page: "Page"
    seconds: float  # since it was asked for
    cpu_seconds: float  # of all the browser's processes and threads meanwhile


def time_first_picture(browser: "Browser", address: str) -> Opened:
    """Opens a page without any cache, and waits until it has painted."""
    page = browser.new_context().new_page()
    start, cpu_start = time.perf_counter(), sum_cpu_seconds()
    page.goto(address)
    page.get_by_text("Painted in").wait_for(timeout=PATIENCE)
    return Opened(page, time.perf_counter() - start, sum_cpu_seconds() - cpu_start)


def sum_cpu_seconds() -> float:
    """Adds up what this process's children, the browser among them, have computed."""
    times = [one.cpu_times() for one in psutil.Process().children(recursive=True)]
    return float(sum(one.user + one.system for one in times))


if __name__ == "__main__":
    main()
