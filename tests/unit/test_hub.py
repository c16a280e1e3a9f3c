"""What an address on the hub means, and what is said when the hub does not give or take."""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from hub_server import ANNS_TOKEN, BOBS_TOKEN, Files, Hub, Repository, use_hub
from tessella.errors import CheckpointError, ConfigError, DataError
from tessella.hub import (
    HubAddress,
    download,
    find_hub_repository,
    hide_tokens,
    is_hub_address,
    parse_address,
)

FILES = {"a.txt": b"a", "b.png": b"bb"}


def fetch(text: str) -> Path:
    return download(parse_address(text, CheckpointError), "model", list, CheckpointError)


def fail(text: str) -> str:
    with pytest.raises(CheckpointError) as failed:
        fetch(text)
    return str(failed.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf:ann/stars", HubAddress("ann/stars")),
        ("ann/stars", HubAddress("ann/stars")),
        ("hf:a-b/c.d_e@v1.0", HubAddress("a-b/c.d_e", "v1.0")),
        ("hf:ann/stars@refs/pr/1", HubAddress("ann/stars", "refs/pr/1")),
        ("hf:ann/stars@a--b", HubAddress("ann/stars", "a--b")),
    ],
)
def test_an_address_is_read_and_written(text: str, address: HubAddress) -> None:
    assert parse_address(text, ConfigError) == address
    assert str(address) == f"hf:{text.removeprefix('hf:')}"
    assert address.name == address.repository.split("/")[1]


def test_a_data_set_may_name_a_split() -> None:
    address = parse_address("hf:ann/pics@refs/convert/parquet:test", DataError, kind="dataset")
    assert address == HubAddress("ann/pics", "refs/convert/parquet", "test")
    assert str(address) == "hf:ann/pics@refs/convert/parquet:test"


@pytest.mark.parametrize("place", ["snapshots/1", "models--a--b/1", "models--a--b/snapshots/1/a"])
def test_a_folder_that_is_not_in_the_cache(tmp_path: Path, place: str) -> None:
    assert find_hub_repository(tmp_path / place) is None


@pytest.mark.parametrize("place", ["snapshots/1", "snapshots/1/text_encoder"])
def test_a_folder_in_the_cache(tmp_path: Path, place: str) -> None:
    for name in ("models--a--b", "datasets--a--b"):
        assert find_hub_repository(tmp_path / name / place) == tmp_path / name


@pytest.mark.parametrize(
    "text",
    ["hf:stars", "hf:ann/", "hf:ann/a/b", "hf:ann/a b", "hf:ann/..", "hf:ann/a--b", "hf:-a/b",
     "hf:ann/stars@", "hf:ann/stars@a@b", "hf:ann/stars@a/../b", "hf:ann/stars@/a",
     "hf:ann/stars:train", "hf:ann/stars\n", "hf:änn/stars"],
)  # fmt: skip
def test_a_bad_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Not the name of a repository.*: `hf:(.|\n)*Expected"):
        parse_address(text, ConfigError)


def test_what_means_the_hub() -> None:
    assert is_hub_address("hf:ann/stars")
    for other in ("./hf:ann/stars", "hf://datasets/ann/stars", "scenes", Path("models/hf:a")):
        assert not is_hub_address(other)


def test_files_come_once_and_then_from_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("ann/stars", FILES)
    folder = fetch("hf:ann/stars")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert find_hub_repository(folder) == folder.parent.parent
    assert fetch("hf:ann/stars") == folder
    assert sorted(hub.fetched) == ["a.txt", "b.png"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("hf:ann/stars") == folder
    hub.shutdown()
    hub.server_close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert fetch("hf:ann/stars") == folder


def test_a_hub_that_is_down_is_not_waited_for(hub: Hub) -> None:
    hub.put("ann/stars", FILES)
    folder = fetch("hf:ann/stars")
    hub.status = 503
    assert fetch("hf:ann/stars") == folder
    text = fail("hf:ann/moons")
    assert "with the status 503; it says: The hub is down. Try again in a few minutes." in text


def test_only_what_is_chosen_comes(hub: Hub) -> None:
    hub.put("ann/stars", FILES)

    def choose(names: Sequence[str]) -> list[str]:
        assert sorted(names) == ["a.txt", "b.png"]
        return ["a.*"]

    folder = download(HubAddress("ann/stars"), "model", choose, CheckpointError)
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    assert hub.fetched == ["a.txt"]


def test_what_is_not_in_the_cache_is_named_without_a_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "`hf:ann/stars`; HF_HUB_OFFLINE is set. Name it once with a" in fail("hf:ann/stars")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.shutdown()
    hub.server_close()
    text = fail("hf:ann/stars")
    assert f"`hf:ann/stars`; no connection to {hub.url} ([Errno 111]" in text


def test_a_revision_is_pinned(hub: Hub) -> None:
    repository = hub.put("ann/stars", {"a.txt": b"old"})
    old = repository.branches["main"]
    repository.commit({"a.txt": b"new"})
    repository.commit({"a.txt": b"other"}, branch="try")
    for revision, content in (("", b"new"), (f"@{old}", b"old"), ("@try", b"other")):
        assert (fetch(f"hf:ann/stars{revision}") / "a.txt").read_bytes() == content
    assert "has no such revision: `hf:ann/stars@v9`. Expected a branch" in fail("hf:ann/stars@v9")


def push_meanwhile(patch: pytest.MonkeyPatch, repository: Repository, *pushed: Files) -> None:
    """Pushes between the list of the files and their download, each time another version."""
    download, left = huggingface_hub.snapshot_download, list(pushed)

    def come_late(*words: Any, **options: Any) -> str:
        if left:
            repository.commit(left.pop(0))
        return download(*words, **options)

    patch.setattr(huggingface_hub, "snapshot_download", come_late)


def test_a_version_that_is_pushed_meanwhile_is_chosen_from_anew(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = {"a.txt": b"new", "c.txt": b"c"}
    push_meanwhile(monkeypatch, hub.put("ann/stars", FILES), new)
    folder = fetch("hf:ann/stars")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == new
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("hf:ann/stars") == folder


def test_what_changes_all_the_time_is_not_taken(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = hub.put("ann/stars", FILES)
    push_meanwhile(monkeypatch, repository, {"a.txt": b"1"}, {"a.txt": b"2"})
    text = fail("hf:ann/stars")
    assert "changes while it is fetched: `hf:ann/stars`. Try again" in text
    assert "a.txt" in {path.name for path in fetch(text[:-1].rpartition(" ")[2]).iterdir()}


def test_a_private_repository_needs_its_owner(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("ann/stars", FILES, private=True)
    fetch("hf:ann/stars")
    monkeypatch.setenv("HF_TOKEN", BOBS_TOKEN)
    text = fail("hf:ann/stars")
    assert "no such repository: `hf:ann/stars`; or it is private, which the token does not" in text
    monkeypatch.delenv("HF_TOKEN")
    assert "If it is yours: Log in with `hf auth login`, or set HF_TOKEN." in fail("hf:ann/stars")


def test_a_stored_login_is_used(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("ann/stars", FILES, private=True)
    use_hub(monkeypatch, hub.url, tmp_path / "hub-cache")
    (tmp_path / "hub-cache/no-token").parent.mkdir()
    (tmp_path / "hub-cache/no-token").write_text(ANNS_TOKEN)
    assert (fetch("hf:ann/stars") / "a.txt").exists()


def test_a_gated_repository_names_its_page(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("ann/stars", FILES, gated=True)
    monkeypatch.setenv("HF_TOKEN", BOBS_TOKEN)
    text = fail("hf:ann/stars")
    assert f"agree to its terms: `hf:ann/stars`. Agree at {hub.url}/ann/stars. Then run" in text
    monkeypatch.delenv("HF_TOKEN")
    assert "/ann/stars. Log in with `hf auth login`" in fail("hf:ann/stars")


def test_an_unknown_token_is_said_and_not_shown(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("ann/stars", FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_ThisTokenIsOld")
    text = fail("hf:ann/stars")
    assert "The hub does not know the token: `hf:ann/stars`; it says: Invalid cred" in text
    assert "hf_T" not in text


def test_a_token_that_breaks_a_request_is_not_shown(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("ann/stars", FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_BrökenToken")
    text = fail("hf:ann/stars")
    assert "client refuses: `hf:ann/stars`" in text
    assert "ken" not in text.replace("a token", "")
    assert hide_tokens("b'Bearer hf_x' and hf_yz") == "b'…' and …"


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "free some space, or let HF_HUB"), (errno.EACCES, "put t")]
)
def test_a_full_disk_names_the_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*words: object, **options: object) -> str:
        raise OSError(number, "it cannot", "/cache/blobs/1")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    hub.put("ann/stars", FILES)
    assert "the hub gives: `hf:ann/stars`, in `/cache/blobs/1`. " in (text := fail("hf:ann/stars"))
    assert said in text


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "`hf:ann/stars` needs the package `huggingface_hub`" in (text := fail("hf:ann/stars"))
    assert "Install it with pip install 'tessella[hub]'." in text
