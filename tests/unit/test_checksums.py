"""The checksums of a model folder: damage of any file is named, and changes leave it readable."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tessella import checksums
from tessella.checksums import (
    SUMS_FILE,
    expect_change,
    is_there,
    map_file,
    prove,
    read_file,
    read_sums,
    settle_interrupted,
    settle_sums,
    write_sums,
)
from tessella.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.json").write_bytes(b"one")
    (folder / "inner" / "b c.txt").write_bytes(b"two")
    (folder / ".lock").write_bytes(b"")
    write_sums(folder)
    return folder


def test_sha256sum_checks_them(folder: Path) -> None:
    assert list(read_sums(folder) or ()) == ["a.json", "inner/b c.txt"]
    if shutil.which("sha256sum"):
        words = ["sha256sum", "--strict", "-c", SUMS_FILE]
        assert subprocess.run(words, cwd=folder, check=False).returncode == 0
        (folder / "a.json").write_bytes(b"other")
        assert subprocess.run(words, cwd=folder, check=False).returncode == 1


def test_a_file_that_is_another_is_named(folder: Path) -> None:
    path = folder / "a.json"
    assert read_file(path) == map_file(path).tobytes() == b"one"
    path.write_bytes(b"onE")
    for read in (read_file, map_file, lambda path: prove(path.parent, path.name)):
        with pytest.raises(
            CheckpointError, match=r"a\.json` has the SHA-256 `89db7a.* says `7692c3"
        ):
            read(path)
    (folder / "new.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"new\.json` has .* says nothing of it"):
        read_file(folder / "new.json")
    prove(folder, "new.json")  # somebody's own file, which no model reads


def test_a_folder_without_sums_is_read_as_before(folder: Path) -> None:
    (folder / SUMS_FILE).unlink()
    (folder / "a.json").write_bytes(b"onE")
    assert read_file(folder / "a.json") == b"onE"
    assert not is_there(folder / "c")
    expect_change(folder, {"a.json": None})
    settle_sums(folder, ["a.json"])
    assert read_sums(folder) is None


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "a.json").unlink()
    with pytest.raises(CheckpointError, match=r"file of the model is missing: `.*a\.json`, which"):
        is_there(folder / "a.json")
    with pytest.raises(FileNotFoundError):
        read_file(folder / "a.json")


@pytest.mark.parametrize("content", [b"no sum\n", b"\xff", b"0" * 1_000_001])
def test_damaged_sums_are_named(folder: Path, content: bytes) -> None:
    (folder / SUMS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checksums are damaged: `.*SHA256SUMS`\. Lines of"):
        read_file(folder / "a.json")


def test_a_file_is_replaced_and_right_at_every_moment(folder: Path, tmp_path: Path) -> None:
    path, new = folder / "a.json", tmp_path / "new"
    new.write_bytes(b"three")
    expect_change(folder, {"a.json": new})
    assert read_file(path) == b"one"
    new.replace(path)
    assert read_file(path) == b"three"
    settle_sums(folder, ["a.json"])
    assert read_file(path) == b"three"
    assert len((read_sums(folder) or {})["a.json"]) == 1
    expect_change(folder, {"a.json": None})
    assert is_there(path)
    path.unlink()
    assert not is_there(path)
    settle_sums(folder, ["a.json"])
    assert list(read_sums(folder) or ()) == ["inner/b c.txt"]


def test_a_change_that_was_broken_off_is_ended(folder: Path, tmp_path: Path) -> None:
    """What a file is stays; what is neither the old nor the new one is not made right."""
    new = tmp_path / "new"
    new.write_bytes(b"three")
    expect_change(folder, {"a.json": new})
    settle_interrupted(folder)
    assert {name: len(one) for name, one in (read_sums(folder) or {}).items()} == {
        "a.json": 1,
        "inner/b c.txt": 1,
    }
    assert read_file(folder / "a.json") == b"one"
    expect_change(folder, {"a.json": new})
    (folder / "a.json").write_bytes(b"damaged")
    settle_interrupted(folder)
    with pytest.raises(CheckpointError, match="damaged"):
        read_file(folder / "a.json")


def test_a_reader_that_meets_a_change_reads_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file was read, and then the new sums."""
    path = folder / "a.json"
    read, calls = checksums.read_sums, 0

    def change_first(folder: Path) -> checksums.Sums | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.write_bytes(b"three")
            write_sums(folder)
        return read(folder)

    monkeypatch.setattr(checksums, "map_bytes", lambda path: np.frombuffer(path.read_bytes(), "u1"))
    monkeypatch.setattr(checksums, "read_sums", change_first)
    assert read_file(path) == b"three"
    calls = 0
    path.write_bytes(b"four")
    assert map_file(path).tobytes() == b"three"


def make_pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path, outside: Path) -> None:
    path.mkdir()


def make_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
@pytest.mark.parametrize(
    ("make", "said"),
    [(make_pipe, "no plain file"), (make_folder, "no plain file"), (make_link, "leads out of it")],
)
def test_only_plain_files_of_the_folder_are_read(
    folder: Path, tmp_path: Path, make: Callable[[Path, Path], None], said: str
) -> None:
    """A pipe would be read for ever; a link may publish a secret by an export or a model card."""
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / SUMS_FILE).unlink()
    (folder / "a.json").unlink()
    make(folder / "a.json", tmp_path / "secret")
    for read in (read_file, map_file):
        with pytest.raises(CheckpointError, match=said):
            read(folder / "a.json")


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
def test_links_of_the_hub_s_cache_and_inner_ones_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/1234"
    for made in (blobs, snapshot):
        made.mkdir(parents=True)
    (blobs / "abcd").write_bytes(b"one")
    (snapshot / "a.json").symlink_to("../../blobs/abcd")
    (snapshot / "b.json").symlink_to("a.json")
    assert read_file(snapshot / "a.json") == read_file(snapshot / "b.json") == b"one"
    (snapshot / "text_encoder").mkdir()
    (snapshot / "text_encoder/c.json").symlink_to("../../../blobs/abcd")
    assert read_file(snapshot / "text_encoder/c.json") == b"one"
    whole = tmp_path / "whole"
    whole.symlink_to(snapshot)
    assert read_file(whole / "a.json") == b"one"


def test_a_file_that_is_too_large_is_refused_unread(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"too large: `.*a\.json` has 3 bytes; at most 2"):
        read_file(folder / "a.json", most_bytes=2)
