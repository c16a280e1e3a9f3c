"""A model as a web page: headless Chromium paints what PyTorch paints, and talks to nobody else."""

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tessella.errors import ConfigError
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.model.web_export import RUNTIME, export_web, list_stems
from tessella.text.vocabulary import CaptionSummary
from untrained import create_untrained, create_with_examples, describe_tokenizer, save_untrained

REPOSITORY = Path(__file__).resolve().parent.parent
CAPTIONS = ["a red star", "two green stars with a tail", "a blue moon"]
# A prompt, a seed: words that are looked up, in other forms, of none, of other scripts.
ASKED = [("a red star", 0), ("Moons & STARS", 2**32 + 7), ("", 5), ("ein Ünïcode's 12 ⭐ star", 9)]
PAINT = """async ([prompt, seed]) => {
  document.getElementById("prompt").value = prompt;
  document.getElementById("seed").value = seed;
  const painted = new Promise((resolve) => addEventListener("painted", resolve, {once: true}));
  document.querySelector("form").requestSubmit();
  const {codes, examples} = (await painted).detail;
  return {codes, examples};
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def create(kind: str) -> TextToImage:
    if kind == "plain":
        return create_untrained(captions=CAPTIONS)
    generation = {"steps": 4, "temperature": 1.0, "guidance_scale": 3.0}
    return create_with_examples(CAPTIONS, tokenizer=describe_tokenizer(2), generation=generation)


@pytest.mark.skipif(
    not (REPOSITORY / RUNTIME).is_dir(), reason="npm install onnxruntime-web was not run here"
)
@pytest.mark.parametrize("kind", ["plain", "examples"])
def test_the_page_paints_the_same_codes(
    browser: Any, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(REPOSITORY)
    model = create(kind)
    captions = CaptionSummary(len(CAPTIONS), {}, CAPTIONS)
    export_web(save_untrained(model, tmp_path / "mine", captions=captions), tmp_path / "page")
    address, page, asked = serve(tmp_path / "page"), browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_text("Painted in").wait_for()
    assert page.title() == "mine"
    for prompt, seed in ASKED:
        examples = model.examples.find(prompt)
        expected = model.generate_images(
            model.examples.complete([ImageRequest(prompt, seed)], None)
        )
        assert expected.codes is not None
        assert page.evaluate(PAINT, [prompt, str(seed)]) == {
            "codes": expected.codes.flatten().tolist(),
            "examples": [one.name for one in examples],
        }
        assert page.locator("#examples li").count() == len(examples)
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    page.close()


def test_stems_of_captions_and_their_plurals() -> None:
    stems = list_stems(["two red stars", "a box of ponies"])
    assert {stems[word] for word in ("star", "stars")} == {"star"}
    assert stems["boxes"] == stems["box"]
    assert "starred" not in stems


def test_without_the_runtime_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_untrained(create("plain"), tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"needs onnxruntime-web.*npm install onnxruntime-web@"):
        export_web(folder, tmp_path / "page")
    assert not (tmp_path / "page").exists()
