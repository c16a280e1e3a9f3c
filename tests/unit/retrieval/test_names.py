"""What examples are called: their source first, and no folder above it."""

from pathlib import Path

import pytest

from tessella.retrieval.names import shorten_names


def shorten(name: str, *sources: str) -> str:
    [short] = shorten_names([name], sources)
    return short


@pytest.mark.parametrize(
    ("name", "sources", "expected"),
    [
        ("/home/anna/pics/cats/a.png", ["/home/anna/pics"], "pics/cats/a.png"),
        ("/home/anna/pics/a.png", ["/home/anna/pics/"], "pics/a.png"),
        ("/home/anna/pics/cats/a.png", ["/home/anna", "/home/anna/pics"], "pics/cats/a.png"),
        ("/home/anna/dogs/b.png", ["/home/anna/pics", "/home/anna/dogs"], "dogs/b.png"),
        ("/home/anna/pictures/a.png", ["/home/anna/pic"], "pictures/a.png"),
        ("/data/train.tar/7.jpg", ["/data/train.tar"], "train.tar/7.jpg"),
        ("/data/shards/0.tar/7.jpg", ["/data/shards"], "shards/0.tar/7.jpg"),
        ("scenes:40/3", ["scenes:40"], "scenes:40/3"),
        ("pics/cats/a.png", ["pics"], "pics/cats/a.png"),
        ("../pics/a.png", ["../pics"], "pics/a.png"),
        ("a.png", ["/elsewhere"], None),
        ("/home/anna/secret/x/a.png", ["/elsewhere"], "x/a.png"),
        ("/a.png", ["/"], "a.png"),
        ("/p/caf\udce9.png", ["/p"], "p/caf\\udce9.png"),
    ],
)
def test_names(name: str, sources: list[str], expected: str | None) -> None:
    assert shorten(name, *sources) == (expected or f"{Path.cwd().name}/a.png")


def test_the_folder_that_one_is_in_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pics").mkdir()
    monkeypatch.chdir(tmp_path / "pics")
    assert shorten("cats/a.png", ".") == "pics/cats/a.png"
    assert shorten("./cats/a.png", "./") == "pics/cats/a.png"


def test_a_table_stands_for_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pics"
    folder.mkdir()
    (folder / "metadata.csv").touch()
    assert shorten(f"{folder}/sub/a.png", f"{folder}/metadata.csv") == "pics/sub/a.png"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shorten(f"{folder}/a.png", "~/pics") == "pics/a.png"
