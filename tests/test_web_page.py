"""A model as a web page: headless Chromium paints what PyTorch paints, and talks to nobody else."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessella.errors import ConfigError
from tessella.model import web_export
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.model.web_export import (
    RUNTIME,
    RUNTIME_VERSION,
    export_web,
    find_runtime,
    list_stems,
)
from tessella.text.vocabulary import CaptionSummary
from untrained import create_untrained, create_with_examples, describe_tokenizer, save_untrained

REPOSITORY = Path(__file__).resolve().parent.parent
CAPTIONS = ["a red star", "two green stars with a tail", "a blue moon", "die Straße"]
# A prompt, a seed: words that are looked up, in other forms, of none, of other scripts.
SCRIPT = "ort.wasm.bundle.min.mjs"
ASKED = [
    ("a red star", 0),
    ("Moons & STARS", 2**32 + 7),
    ("", 5),
    ("ein Ünïcode's 12 ⭐ star", 9),
    ("straße", 3),
]


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The benchmark, which serves pages and paints on them too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        yield importlib.import_module("web_page")


WATCH_LOADING = """addEventListener("DOMContentLoaded", () => {
  window.shown = [];
  const note = () => {
    const line = document.getElementById("loading");
    if (!line.hidden) shown.push(line.textContent.trim());
  };
  const changes = {attributes: true, childList: true, characterData: true, subtree: true};
  new MutationObserver(note).observe(document.getElementById("loading"), changes);
});"""


def check_loading(page: Any, folder: Path, asked: set[str]) -> None:
    """The bytes that were said are those of the files that were asked for, from none to all."""
    by_page = {"index.html", "page.js", "painter.js", "examples.js", "page.json", SCRIPT, ""}
    total = sum((folder / name).stat().st_size for name in asked - by_page)
    megabytes = f"{total / 1e6:.1f} MB"
    shown = page.evaluate("window.shown")
    assert (shown[0], shown[-1]) == (f"0.0 of {megabytes}", f"{total / 1e6:.1f} of {megabytes}")
    assert page.evaluate("[bar.value, bar.max]") == [total, total]
    assert page.locator("#loading").is_hidden()


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
    browser: Any, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(REPOSITORY)
    model = create(kind)
    captions = CaptionSummary(len(CAPTIONS), {}, CAPTIONS)
    folder = save_untrained(model, tmp_path / "mine" / "model", captions=captions)
    (tmp_path / "mine" / "run.json").touch()
    export_web(folder, tmp_path / "page")
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    with script.serve(tmp_path / "page") as address:
        page.add_init_script(WATCH_LOADING)
        page.goto(address)
        page.get_by_text("Painted in").wait_for(timeout=script.PATIENCE)
        files = {url.removeprefix(f"{address}/") for url in asked if url.startswith(address)}
        check_loading(page, tmp_path / "page", files)
        assert page.get_by_label("Prompt").input_value() == CAPTIONS[0]
        page.get_by_role("link", name="About this model").click()
        page.get_by_text("# A card").wait_for()
        page.go_back()
        page.get_by_text("Painted in").wait_for(timeout=script.PATIENCE)
    assert page.title() == "mine"
    for prompt, seed in ASKED:
        examples = model.examples.find(prompt)
        expected = model.generate_images(
            model.examples.complete([ImageRequest(prompt, seed)], None)
        )
        assert expected.codes is not None
        painted = page.evaluate(script.PAINT, [prompt, str(seed)])
        assert painted.pop("seconds") > 0
        assert painted == {
            "codes": expected.codes.flatten().tolist(),
            "examples": [one.name for one in examples],
        }
        assert page.locator("#examples li").count() == len(examples)
    with pytest.raises(Exception, match=r"The prompt has \d+ tokens"):
        page.evaluate(script.PAINT, ["star " * 100, "0"])
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


def test_another_version_of_the_runtime_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (RUNTIME / "dist").mkdir(parents=True)
    for name in (SCRIPT, "ort-wasm-simd-threaded.wasm"):
        (RUNTIME / "dist" / name).touch()
    for version in (RUNTIME_VERSION, "1.29.9"):
        (RUNTIME / "package.json").write_text(json.dumps({"version": version}))
        if version == RUNTIME_VERSION:
            assert all(path.is_file() for path in find_runtime())
    match = rf"`1\.29\.9`\. Expected {RUNTIME_VERSION}\. .*npm install onnxruntime-web@"
    with pytest.raises(ConfigError, match=match):
        find_runtime()


def test_everything_names_the_same_version() -> None:
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / ".ci/run"]
    named = {
        (page.name, version)
        for page in pages
        for version in re.findall(r"onnxruntime-web@([\w.]+)", page.read_text(encoding="utf-8"))
    }
    versions = {name: RUNTIME_VERSION for name in ("run", "onnx.md", "CONTRIBUTING.md")}
    assert named == set(versions.items())


def test_the_first_prompt_is_one_of_the_captions() -> None:
    """Of those that the card shows; of examples, where a model came without them."""
    captions = CaptionSummary(4, {}, ["two green stars with a tail", "a red star"])
    memory = create("examples").memory
    assert memory is not None
    assert web_export._choose_prompt(captions, memory) == "two green stars with a tail"
    assert web_export._choose_prompt(None, memory) == "a red star"
    assert web_export._choose_prompt(CaptionSummary(0, {}, []), None) == ""


def test_without_the_runtime_a_quick_run_is_skipped(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["script", "--quick"])
    script.main()
    assert capsys.readouterr().out.startswith("Skipped: The page needs onnxruntime-web")
    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(SystemExit, match="The page needs onnxruntime-web"):
        script.main()


def test_a_folder_that_is_taken_names_the_option(tmp_path: Path) -> None:
    folder = save_untrained(create("plain"), tmp_path / "mine")
    with pytest.raises(ConfigError, match="Name another --web, or"):
        export_web(folder, REPOSITORY / "docs")
    with pytest.raises(ConfigError, match=r"lie in each other.* Name another --web"):
        export_web(folder, tmp_path)
