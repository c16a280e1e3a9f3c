"""Which models a server has, and under which names."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_server import Hub
from tessella.checksums import SUMS_FILE
from tessella.errors import CheckpointError, ConfigError
from tessella.model.pipeline import TextToImage
from tessella.serving.models_served import ServedModel, load_models


@pytest.fixture
def folder(tmp_path: Path, tiny: ServedModel) -> Path:
    """Holds the model folders `stars` and `run/model`, of a run."""
    for name in ("stars", "run/model"):
        tiny.model.save(
            tmp_path / name, card="", metrics={}, samples=np.zeros((4, 4, 3), dtype=np.uint8)
        )
    (tmp_path / "run" / "run.json").write_text("{}")
    return tmp_path


def test_models_are_named_after_their_folders(folder: Path, tiny: ServedModel) -> None:
    found = load_models([str(folder / "stars"), str(folder / "run"), f"own={folder}/stars"], "cpu")
    assert list(found) == ["stars", "run", "own"]
    assert found["own"].created == int((folder / "stars" / "config.json").stat().st_mtime)
    for name, served in found.items():
        assert served.name == name
    [expected] = tiny.model.generate("star", seed=1)
    [painted] = found["run"].model.generate("star", seed=1)
    assert np.array_equal(np.asarray(painted), np.asarray(expected))


def test_a_runs_model_is_named_after_the_run(folder: Path) -> None:
    assert list(load_models([str(folder / "run" / "model")], "cpu")) == ["run"]


def test_a_model_of_the_hub_is_named_after_its_repository(hub: Hub, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in (folder / "stars").iterdir()}
    commit = hub.put("ann/stars", files).branches["main"]
    assert list(load_models([f"hf:ann/stars@{commit}", "mine=hf:ann/stars"])) == ["stars", "mine"]


def test_a_folder_is_loaded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = TextToImage.load

    def record(path: Path, *how: Any) -> Any:
        loaded.append(path)
        return load(path, *how)

    monkeypatch.setattr(TextToImage, "load", record)
    (folder / "link").symlink_to(folder / "stars")
    found = load_models([f"{n}={folder}/{n[:-1] or 'stars'}" for n in ("stars1", "stars2")], "cpu")
    assert len(loaded) == 1
    assert found["stars1"].model is found["stars2"].model
    assert found["stars1"] != found["stars2"]
    found = load_models([str(folder / "stars"), f"other={folder / 'link'}"], "cpu")
    assert len(loaded) == 2


def test_names_that_collide(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"Two models have one name: `stars`\. Name one of them"):
        load_models([str(folder / "stars"), f"stars={folder / 'run'}"], "cpu")


@pytest.mark.parametrize(
    "name", ["", "with blank", "../up", ".hidden", "a/b", "ü", "x" * 101, "-a"]
)
def test_names_that_are_no_part_of_an_address(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match="A model's name has letters, digits"):
        load_models([f"{name}={folder / 'stars'}"], "cpu")


def test_folders_with_odd_names(folder: Path) -> None:
    odd = (folder / "stars").rename(folder / "two = stars")
    with pytest.raises(ConfigError, match=r"`two = stars`\. Name it: NAME=MODEL"):
        load_models([str(odd)], "cpu")
    assert list(load_models([f"stars={odd}"], "cpu")) == ["stars"]


def test_models_that_are_not_there(folder: Path) -> None:
    for said in ("nothing", "a=nothing", str(folder / "none"), "a="):
        with pytest.raises((CheckpointError, ConfigError)):
            load_models([said], "cpu")
    with pytest.raises(CheckpointError, match="There is no such model"):
        load_models(["a=nothing"], "cpu")
    assert load_models([], "cpu") == {}


def test_nothing_is_loaded_before_all_names_are_right(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextToImage, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(CheckpointError):
        load_models([str(folder / "stars"), "nothing"], "cpu")


def test_what_a_folder_says_is_read_once(folder: Path) -> None:
    """Whoever changes or removes the folder later changes nothing of the server."""
    [served] = load_models([str(folder / "stars")], "cpu").values()
    assert (served.card, served.metrics, served.captions) == ("", {}, None)
    assert served.samples == (folder / "stars" / "samples.png").read_bytes()
    assert served.created == int((folder / "stars" / "config.json").stat().st_mtime)


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
@pytest.mark.parametrize("name", ["README.md", "metrics.json", "samples.png"])
def test_a_note_that_is_a_link_to_a_secret_is_not_served(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("{}")
    (folder / "stars" / name).unlink()
    (folder / "stars" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=rf"leads out of it: `.*{name}`"):
        load_models([str(folder / "stars")], "cpu")


def test_what_could_not_be_measured_is_null(folder: Path) -> None:
    """A model that diverged had a card that could not be sent: NaN is no JSON."""
    (folder / "stars" / "metrics.json").write_text('{"psnr": {"value": NaN}, "b": Infinity}')
    [served] = load_models([str(folder / "stars")], "cpu").values()
    assert served.metrics == {"psnr": {"value": None}, "b": None}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b"{"),
        ("metrics.json", None),
        ("README.md", b"\xff\xfe"),
        ("README.md", None),
        ("captions.json", b'{"captions": 1}'),
    ],
)
def test_damaged_folders_are_said_before_anything_is_served(
    name: str, content: bytes | None, folder: Path
) -> None:
    (folder / "stars" / SUMS_FILE).unlink()
    file = folder / "stars" / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged: `.*stars.*Copy the "):
        load_models([str(folder / "stars")], "cpu")
