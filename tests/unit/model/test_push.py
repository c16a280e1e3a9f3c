"""A model goes to the hub and comes back the same."""

import dataclasses
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from hub_server import BOBS_TOKEN, Hub
from tessella.errors import CheckpointError, ConfigError
from tessella.hub import HubAddress
from tessella.model import from_hub
from tessella.model.find import find_model
from tessella.model.pipeline import TextToImage
from tessella.model.push import Pushed, prepare_push, push
from tessella.text.vocabulary import summarize_captions
from untrained import CAPTIONS, create_with_examples, save_untrained

# The client of the hub uploads in a way that its HTTP library would like otherwise.
UPLOADING = "ignore:Use 'content=:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(UPLOADING)

CARD = '---\nlicense: mit\n---\n\n# Stars\n\nmodel = tessella.load("x")\n'
STARS = HubAddress("ann/stars")
CHANGED = {"README.md", "SHA256SUMS"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    captions = [f"a {colour} star {n}" for n in range(6) for colour in ("red", "green", "blue")]
    model = create_with_examples(CAPTIONS)
    summary = summarize_captions(captions, model.text_tokenizer)
    return save_untrained(model, tmp_path / "model", card=CARD, captions=summary)


def push_folder(
    folder: Path, address: HubAddress = STARS, *, private: bool = False, **options: Any
) -> Pushed:
    from_hub.forget()
    with prepare_push(folder, address, device="cpu", **options) as prepared:
        return push(prepared, private=private)


def read_remote(hub: Hub, name: str = "ann/stars", branch: str = "main") -> dict[str, bytes]:
    repository = hub.repositories["model", name]
    return repository.commits[repository.branches[branch]]


def test_what_is_pushed_comes_back_the_same(hub: Hub, folder: Path) -> None:
    pushed = push_folder(folder)
    assert pushed.is_new
    assert pushed.page == f"{hub.url}/ann/stars"
    found = find_model(f"hf:ann/stars@{pushed.commit}")
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    back = {path.name: path.read_bytes() for path in found.iterdir()}
    assert back.keys() == own.keys()
    assert [name for name in own if back[name] != own[name]] == sorted(CHANGED)
    remote = read_remote(hub)
    assert all(remote[name] == content for name, content in back.items())
    header, text = back["README.md"].decode().split("\n---\n", 1)
    assert text == CARD.split("\n---\n", 1)[1].replace('"x"', '"hf:ann/stars"')
    assert len(yaml.safe_load(header.removeprefix("---\n"))["widget"]) == 8
    lines = [line.split("  ") for line in back["SHA256SUMS"].decode().splitlines()]
    assert {name for _, name in lines} == back.keys() - {"SHA256SUMS"}
    assert all(hashlib.sha256(back[name]).hexdigest() == digest for digest, name in lines)


def test_its_pictures_are_what_it_paints(hub: Hub, folder: Path) -> None:
    push_folder(folder)
    remote, model = read_remote(hub), TextToImage.load(folder, "cpu")
    header = yaml.safe_load(remote["README.md"].decode().split("---\n")[1])
    captions = [one["text"] for one in header["widget"]]
    assert len(set(captions)) == 8
    for one, painted in zip(header["widget"], model.generate(captions, seed=0), strict=True):
        with Image.open(io.BytesIO(remote[one["output"]["url"]])) as shown:
            assert np.array_equal(np.asarray(shown), np.asarray(painted))


def test_a_second_push_is_one_commit_and_the_same_one_is_none(hub: Hub, folder: Path) -> None:
    first = push_folder(folder)
    assert push_folder(folder).commit == first.commit
    second = push_folder(folder, licence="apache-2.0")
    assert not second.is_new
    assert list(hub.repositories["model", "ann/stars"].commits)[-2:] == [
        first.commit,
        second.commit,
    ]


def test_without_examples_none_is_left_on_the_hub(hub: Hub, folder: Path) -> None:
    push_folder(folder)
    hub.repositories["model", "ann/stars"].commit(
        read_remote(hub) | {"LICENSE": b"mine", "widget/9.png": b"old"}
    )
    push_folder(folder, without_examples=True)
    remote = read_remote(hub)
    assert "LICENSE" in remote
    assert not {"examples.safetensors", "examples.jsonl", "widget/9.png"} & remote.keys()
    assert TextToImage.load(find_model("hf:ann/stars")).memory is None


def test_a_branch_leaves_the_main_one_alone(hub: Hub, folder: Path) -> None:
    main = push_folder(folder)
    branch = push_folder(folder, HubAddress("ann/stars", "try"), licence="apache-2.0")
    assert branch.page == f"{hub.url}/ann/stars/tree/try"
    assert hub.repositories["model", "ann/stars"].branches == {
        "main": main.commit,
        "try": branch.commit,
    }
    assert find_model("hf:ann/stars@try").name == branch.commit
    with pytest.raises(ConfigError, match="A commit cannot be pushed to"):
        push_folder(folder, HubAddress("ann/stars", main.commit))


def test_private_means_private(hub: Hub, folder: Path) -> None:
    push_folder(folder, private=True)
    assert hub.repositories["model", "ann/stars"].private
    push_folder(folder, private=True)
    hub.put("ann/open", {".gitattributes": b""})
    with pytest.raises(CheckpointError, match=r"everybody may see it: `hf:ann/open`. Make it priv"):
        push_folder(folder, HubAddress("ann/open"), private=True)
    assert read_remote(hub, "ann/open") == {".gitattributes": b""}


def test_other_peoples_files_are_not_overwritten(hub: Hub, folder: Path) -> None:
    files = {"README.md": b"# Bert", "config.json": b"{}", "model.safetensors": b"w"}
    hub.put("ann/bert", files)
    with pytest.raises(CheckpointError, match=r"other than a tessella model: `hf:ann/bert` \(conf"):
        push_folder(folder, HubAddress("ann/bert"))
    assert read_remote(hub, "ann/bert") == files
    with pytest.raises(CheckpointError, match=r"other than a tessella model: `hf:ann/bert@try`"):
        push_folder(folder, HubAddress("ann/bert", "try"))
    assert hub.repositories["model", "ann/bert"].branches.keys() == {"main"}


def test_what_is_no_part_of_a_model_stays_here(hub: Hub, folder: Path) -> None:
    (folder / "optimizer.bin").write_bytes(b"pickle")
    (folder / "secret").mkdir()
    (folder / "secret/key.txt").write_text("1")
    with prepare_push(folder, STARS, device="cpu") as prepared:
        assert prepared.left_out == ["optimizer.bin", "secret/key.txt"]
        assert not {"optimizer.bin", "secret/key.txt"} & prepared.sizes.keys()
        push(prepared)
    assert b"optimizer" not in read_remote(hub)["SHA256SUMS"]


def test_a_damaged_model_is_not_pushed(hub: Hub, folder: Path) -> None:
    weights = folder / "transformer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\1"[-1:])
    with pytest.raises(CheckpointError, match="damaged"):
        push_folder(folder)
    assert hub.repositories == {}


def test_a_model_without_notes_is_pushed(hub: Hub, folder: Path) -> None:
    for name in ("README.md", "metrics.json", "samples.png", "captions.json", "SHA256SUMS"):
        (folder / name).unlink()
    push_folder(folder, licence="unknown")
    remote = read_remote(hub)
    assert remote["README.md"].decode().endswith("\n---\n# stars\n")
    assert "widget/1.png" not in remote


def test_who_may_not_write_is_told(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("ann/stars", {".gitattributes": b""})
    with prepare_push(folder, STARS, device="cpu") as prepared:

        def fail(token: str | None, name: str = "ann/stars") -> str:
            monkeypatch.setenv("HF_TOKEN", token or "")
            with pytest.raises(CheckpointError) as failed:
                push(dataclasses.replace(prepared, address=HubAddress(name)))
            return str(failed.value)

        text = fail(BOBS_TOKEN)
        assert "token may not write there: `hf:ann/stars`; it says: You don't have the" in text
        assert "Log in with `hf auth login`, or set HF_TOKEN to a token with the right to" in text
        assert "may not write there: `hf:bob/stars`" in fail(BOBS_TOKEN, "bob/stars")
        assert "The hub does not know the token: `hf:ann/stars`" in (text := fail("hf_old"))
        assert "hf_old" not in text
        assert "The hub asks who you are: `hf:ann/stars`. Log in with `hf auth" in fail(None)
    assert read_remote(hub) == {".gitattributes": b""}


def test_no_network_is_said(hub: Hub, folder: Path) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(
        CheckpointError, match=r"Cannot reach the hub: `hf:ann/stars`; no conn.*Try"
    ):
        push_folder(folder)


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_folder(folder)
    repository = hub.repositories["model", "ann/stars"]
    commit = huggingface_hub.HfApi.create_commit

    def come_late(*words: Any, **options: Any) -> Any:
        repository.commit(read_remote(hub) | {"LICENSE": b"mine"})
        return commit(*words, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", come_late)
    with pytest.raises(CheckpointError, match="status 412; it says: A commit has happened since"):
        push_folder(folder, licence="apache-2.0")
    assert b"license: mit" in read_remote(hub)["README.md"]


def test_a_full_disk_is_said_before_anything_is_sent(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def fill(path: Path, **words: str) -> Iterator[Path]:
        raise CheckpointError(f"Cannot write the model: `{path}` (No space left on device)")
        yield path

    monkeypatch.setattr("tessella.model.memory.new_folder", fill)
    with pytest.raises(CheckpointError, match="No space left on device"):
        push_folder(folder)
    assert hub.repositories == {}


def test_a_header_that_the_hub_refuses_is_said(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server.LICENCES", {"gpl"})
    with pytest.raises(CheckpointError, match=r'client refuses: .*"license" must be one of: gpl'):
        push_folder(folder)
    assert read_remote(hub) == {".gitattributes": b""}
    assert issubclass(HfHubHTTPError, OSError)  # as `reaching` relies on
