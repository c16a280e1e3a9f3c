"""Shared by all tests: two threads, one small prepared data set, a browser."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before torch starts its threads: beside other processes, busy waiting takes most of their time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from tessella.data.cache import CaptionedImages
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.model import from_hub
from tessella.tokenizer import weights
from tessella.tokenizer.efficientnet import EFFICIENTNET
from tessella.training import precision

if TYPE_CHECKING:
    from hub_server import Hub

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    """The smallest machine has two; results may depend on the number."""
    torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="session")
def _fp32() -> Iterator[None]:
    """Tests train alike on a processor that is faster in bf16, and measure nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "measure_bf16_speedup", lambda: 0.5)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_weights() -> Iterator[None]:
    """Tests bring the weights of networks that they need, whatever is installed here."""
    find = weights.find_packaged

    def find_others(published: weights.PublishedWeights) -> Path | None:
        return None if published.module == EFFICIENTNET.module else find(published)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "find_packaged", find_others)
        for variable in ("SQUEEZENET", "EFFICIENTNET", "RESNET18"):
            patch.delenv(f"TESSELLA_{variable}", raising=False)
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, CaptionedImages]:
    """Forty drawn scenes of 16×16 pixels, split into both sides."""
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    return prepare(["scenes:40"], settings, tmp_path_factory.mktemp("scenes") / "data").sides


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """A Hugging Face hub on this machine, asked by its own client; Ann is logged in."""
    from hub_server import ANNS_TOKEN, start_hub, use_hub

    with start_hub() as server:
        use_hub(monkeypatch, server.url, tmp_path / "hub-cache", ANNS_TOKEN)
        from_hub.forget()
        yield server


_browsers: list[Any] = []
_open = contextlib.ExitStack()


@pytest.fixture(scope="module")
def browser() -> Any:
    """Headless Chromium; if there is none, tests skip, or fail where it is required.

    One for all files that follow each other: starting it takes longer than most tests.
    """
    from playwright.sync_api import expect, sync_playwright

    if not _browsers:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        if found is None:
            missing = f"There is no browser here; looked for: {', '.join(BROWSERS)}."
            if os.environ.get("TESSELLA_REQUIRE_BROWSER"):
                pytest.fail(missing)
            pytest.skip(missing)
        expect.set_options(timeout=60_000)
        playwright = _open.enter_context(sync_playwright())
        # In a container there is no sandbox within the sandbox.
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        _open.callback(launched.close)
        _browsers.append(launched)
    return _browsers[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """Closes the browser before a test that needs none, which its event loop may disturb."""
    try:
        return (yield)
    finally:
        if "browser" not in getattr(nextitem, "fixturenames", ()):
            _browsers.clear()
            _open.close()
