"""Tiny untrained models, and servers of them that speak real HTTP."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from served import serve_app
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.serving.app import create_app
from tessella.serving.models_served import ServedModel
from tessella.serving.service import PaintingService
from tessella.serving.settings import ServeSettings
from tessella.text.vocabulary import CaptionSummary
from untrained import CAPTIONS, create_memory, create_untrained, save_untrained

CARD = "---\nlicense: mit\ntags: [a]\n---\n\n# A card\n\n---\nIt paints stars.\n"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Several threads wait for each other longer than these small networks take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ServedModel]:
    """Models by name: `tiny` is the default; `twin` is another of its kind."""
    objectives = {
        "tiny": "any_order",
        "twin": "any_order",
        "raster": "autoregressive",
        "atonce": "parallel",
        "mean": "latent_mse",
    }
    found = {}
    for seed, (name, objective) in enumerate(objectives.items()):
        model, folder = create_untrained(objective, seed), tmp_path_factory.mktemp("models") / name
        known = CaptionSummary(3, {"star": 3}, CAPTIONS) if name == "tiny" else None
        save_untrained(model, folder, CARD, known)
        found[name] = ServedModel.load(name, folder, model)
    return found


@pytest.fixture(scope="session")
def tiny(models: Mapping[str, ServedModel]) -> ServedModel:
    return models["tiny"]


PAIRS = {
    "patch": 2,
    "widths": (16, 16),
    "quantizer": {
        "codebook_size": 16,
        "code_width": 4,
        "codes_per_position": 2,
        "composition": "residual",
    },
}
ALBUM = ("a red star", "a green star", "a blue star", "a red moon", "")


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model that looks at two examples, and has the five of `ALBUM`."""
    model = create_untrained(neighbors=2)
    model = model.with_parts(memory=create_memory(model, ALBUM))
    folder = save_untrained(model, tmp_path_factory.mktemp("models") / "album")
    return ServedModel.load("album", folder, model)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model with two codes at each position, one upon the other, and the examples of `ALBUM`."""
    model = create_untrained(neighbors=2, tokenizer=PAIRS)
    model = model.with_parts(memory=create_memory(model, ALBUM))
    folder = save_untrained(model, tmp_path_factory.mktemp("models") / "pairs")
    return ServedModel.load("pairs", folder, model)


@pytest.fixture(scope="session")
def album_server(album: ServedModel, tiny: ServedModel) -> Iterator["Server"]:
    """Serves `album`, and `tiny`, which has no examples."""
    with running(create_app({"album": album, "tiny": tiny}, ServeSettings())) as found:
        yield found


@dataclass
class Server:
    """A server that runs."""

    url: str
    app: FastAPI
    client: httpx.Client

    @property
    def service(self) -> PaintingService:
        return self.app.state.service  # type: ignore[no-any-return]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def num_waiting(self) -> int:
        return self.service.worker._num_waiting

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def post(self, path: str, **said: Any) -> httpx.Response:
        return self.client.post(f"/v1{path}", **said)

    def get(self, path: str, **said: Any) -> httpx.Response:
        return self.client.get(path, **said)

    def generate(self, **said: Any) -> httpx.Response:
        return self.post("/images/generations", json={"prompt": "a red star"} | said)

    def connect(self, content: bytes) -> socket.socket:
        """Sends bytes; who calls hangs up."""
        connected = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connected.sendall(content)
        return connected


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[Server]:
    with (
        serve_app(app) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False, verify=False) as client,
    ):
        yield Server(url, app, client)


@pytest.fixture(scope="session")
def server(models: Mapping[str, ServedModel]) -> Iterator[Server]:
    """All models, without keys, with the settings as they are."""
    with running(create_app(models, ServeSettings())) as found:
        yield found


@pytest.fixture
def serve(tiny: ServedModel) -> Iterator[Callable[..., Server]]:
    """Runs servers of the model `tiny` with settings of their own."""
    with contextlib.ExitStack() as stack:

        def start(*, keys: Sequence[str] = (), run: Path | None = None, **limits: Any) -> Server:
            app = create_app({"tiny": tiny}, ServeSettings(**limits), keys=keys, run=run)
            return stack.enter_context(running(app))

        yield start


@dataclass
class Watched:
    """The batches that a model paints; it waits while the gate is shut."""

    batches: list[list[ImageRequest]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    broken: str | None = None  # a prompt at which painting fails

    @property
    def prompts(self) -> list[list[str]]:
        return [[request.prompt for request in batch] for batch in self.batches]

    @property
    def seeds(self) -> list[list[int]]:
        return [[request.seed for request in batch] for batch in self.batches]


@pytest.fixture
def watch(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server]
) -> Iterator[Callable[[TextToImage], Watched]]:
    """Records what models paint; its gates open before the servers end."""
    gates: list[threading.Event] = []

    def begin(model: TextToImage) -> Watched:
        seen, generate = Watched(), model.generate_images
        seen.gate.set()
        gates.append(seen.gate)

        def record(requests: Sequence[ImageRequest], *arguments: Any, **options: Any) -> Any:
            seen.batches.append(list(requests))
            if not seen.gate.wait(60):
                raise TimeoutError("nobody opened the gate")
            if seen.broken in seen.prompts[-1]:
                raise RuntimeError("secret: /root/weights.bin is damaged")
            return generate(requests, *arguments, **options)

        monkeypatch.setattr(model, "generate_images", record)
        return seen

    yield begin
    for gate in gates:
        gate.set()


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], Any]], None]:
    """Waits until something is so."""

    def wait(is_so: Callable[[], Any], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.003)

    return wait


@pytest.fixture(scope="session")
def run_app() -> Callable[[FastAPI], contextlib.AbstractContextManager[Server]]:
    """Serves an application as long as a block takes."""
    return running
