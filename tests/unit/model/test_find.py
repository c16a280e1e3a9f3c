"""Which model a name means."""

from pathlib import Path

import pytest

from tessella.errors import CheckpointError
from tessella.model import find
from tessella.model.find import find_model, list_bundled, name_model


@pytest.fixture(autouse=True)
def _two_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scenes", "emoji"):
        make(tmp_path / "bundled" / name / "config.json")
    (tmp_path / "bundled" / "no-model").mkdir()
    monkeypatch.setattr(find, "_BUNDLED", tmp_path / "bundled")
    monkeypatch.chdir(tmp_path)


def make(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")


def test_the_bundled_models_are_listed() -> None:
    assert list_bundled() == ["emoji", "scenes"]


def test_a_name_is_the_bundled_model_even_beside_a_folder_of_that_name(tmp_path: Path) -> None:
    make(tmp_path / "scenes" / "config.json")
    assert find_model("scenes") == tmp_path / "bundled" / "scenes"
    assert find_model("./scenes").resolve() == tmp_path / "scenes"
    assert find_model(Path("scenes")).resolve() == tmp_path / "scenes"


def test_a_model_folder_is_itself_and_a_run_is_its_model(tmp_path: Path) -> None:
    make(tmp_path / "run" / "run.json")
    make(tmp_path / "run" / "model" / "config.json")
    assert find_model("run/model") == Path("run/model")
    assert find_model("run") == Path("run/model")


def test_a_model_is_named_after_its_folder_its_run_or_its_repository(tmp_path: Path) -> None:
    make(tmp_path / "run" / "run.json")
    commit = "hub/models--ann--stars/snapshots/" + "0" * 40
    for folder in ("run/model", "mine/model", "snapshots/kept", commit):
        make(tmp_path / folder / "config.json")
    assert name_model(Path("run/model")) == "run"
    assert name_model(Path("mine/model")) == "model"
    assert name_model(Path("snapshots/kept")) == "kept"
    assert name_model(Path(commit)) == "stars"


def test_a_run_without_a_model_says_how_to_get_one(tmp_path: Path) -> None:
    make(tmp_path / "run" / "run.json")
    with pytest.raises(CheckpointError, match=r"no finished model yet: `run`.*to resume"):
        find_model("run")


@pytest.mark.parametrize("name", ["nowhere", "scenes/nowhere"])
def test_an_unknown_model_lists_the_bundled_ones(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such model: `.*`.*emoji, scenes"):
        find_model(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    make(tmp_path / "x" / "model.safetensors")
    with pytest.raises(CheckpointError, match="That is a file"):
        find_model("x/model.safetensors")
