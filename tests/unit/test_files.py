"""Writing: whole or not at all, whatever happens in between."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessella import files
from tessella.errors import CheckpointError
from tessella.temporary import name_host


def disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Files.


def test_writes_and_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "note.txt"
    files.write_text(path, "first\n")
    files.write_text(path, "zweite ü\n")
    assert path.read_bytes() == "zweite ü\n".encode()
    assert names(path.parent) == {"note.txt"}


def test_json_is_readable_and_takes_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"caption": "🐙 ü", "n": [1, 2.5, None]})
    assert "🐙 ü" in path.read_text(encoding="utf-8")
    odd = {"file": os.fsdecode(b"caf\xe9.png")}
    files.write_json(path, odd)
    assert json.loads(path.read_text(encoding="utf-8")) == odd


@pytest.mark.skipif(os.name == "nt", reason="modes are a matter of POSIX")
def test_a_new_file_has_the_mode_that_any_program_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    files.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_content_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "recipe.json"
    files.write_json(path, 1)
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", disk_full)
    else:
        monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(CheckpointError) as caught:
        files.write_json(path, 2, what="the recipe")
    assert str(caught.value) == (
        f"Cannot write the recipe: `{path}` (No space left on device); what was there before is "
        "unchanged; free some space and run the same command again."
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert json.loads(path.read_text(encoding="utf-8")) == 1
    assert names(tmp_path) == {"recipe.json"}


def test_not_allowed_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "whatever")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(CheckpointError, match=r"nothing is left of it; make the folder writable"):
        files.write_bytes(tmp_path / "a", b"1")


def test_another_system_error_is_told_in_full(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"put that right"):
        files.write_text(tmp_path / "file" / "inside", "x")
    with (
        pytest.raises(CheckpointError, match=r"all else is fine; put that right"),
        files.new_folder(tmp_path / "file" / "inside", kept="all else is fine"),
    ):
        pytest.fail("there is nothing to write to")


def test_an_error_that_is_not_of_writing_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.new_file(tmp_path / "a.png") as temporary:
        temporary.write_bytes(b"half")
        assert temporary.suffix == ".png"
        raise ZeroDivisionError
    assert names(tmp_path) == set()


def test_the_hash_of_tensors_is_that_of_their_names_and_values() -> None:
    tensors = {"b": torch.arange(6).view(2, 3), "a": torch.tensor([0.5])}
    digest = files.hash_tensors(tensors)
    assert len(digest) == 64
    # In any order, however they lie in memory.
    assert files.hash_tensors({"a": tensors["a"], "b": tensors["b"].t().contiguous().t()}) == digest
    assert files.hash_tensors(tensors | {"a": torch.tensor([0.25])}) != digest
    assert files.hash_tensors({"b": tensors["b"], "c": tensors["a"]}) != digest


def test_sha256_is_that_of_the_standard(tmp_path: Path) -> None:
    # FIPS 180-2, appendix B.1.
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@given(data=st.binary(max_size=2000))
def test_any_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a"
    files.write_bytes(path, data)
    assert path.read_bytes() == data


# Tensors.


def test_tensors_that_share_memory_or_lie_crosswise_come_back(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "same": whole, "part": whole[1:], "turned": whole.t()}
    tensors["wide"] = torch.ones(1).expand(5)
    files.write_tensors(tmp_path / "a.safetensors", tensors, {"by": "test"})
    back = files.read_tensors(tmp_path / "a.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert names(tmp_path) == {"a.safetensors"}


def test_a_tensor_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not take one of its tensors.*complex128"):
        files.write_tensors(tmp_path / "a", {"a": torch.zeros(2, dtype=torch.complex128)})
    with pytest.raises(CheckpointError, match="`__metadata__`"):
        files.write_tensors(tmp_path / "a", {"__metadata__": torch.zeros(2)})
    assert names(tmp_path) == set()


@pytest.mark.parametrize("content", [None, b"", b"not a tensor file at all", b"\xff" * 100])
def test_a_damaged_tensor_file_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="Cannot read the tensors"):
        files.read_tensors(path)


# Files that are built once.


def test_a_file_is_built_once_for_the_same_things(tmp_path: Path) -> None:
    path, built = tmp_path / "new" / "codes.npy", []

    def build(temporary: Path) -> None:
        built.append(temporary)
        temporary.write_text(f"{len(built)}")

    for made_from, content in (({"a": 1}, "1"), ({"a": 1}, "1"), ({"a": 2}, "2")):
        files.cached(path, made_from, build, what="the codes")
        assert path.read_text() == content
    for spoil in (path.unlink, path.with_suffix(".json").unlink):
        spoil()
        files.cached(path, {"a": 2}, build, what="the codes")
    path.with_suffix(".json").write_text("{")
    files.cached(path, {"a": 2}, build, what="the codes")
    assert len(built) == 5
    assert names(path.parent) == {"codes.npy", "codes.json"}


def test_a_build_that_fails_leaves_nothing_to_trust(tmp_path: Path) -> None:
    path = tmp_path / "codes.npy"
    files.cached(path, {"a": 1}, lambda temporary: temporary.write_text("one"), what="the codes")
    with pytest.raises(CheckpointError, match=r"Cannot write the codes: `.*unchanged; free some"):
        files.cached(path, {"a": 2}, disk_full, what="the codes")
    assert names(tmp_path) == {"codes.npy"}
    assert path.read_text() == "one"


# Locks.


def test_a_lock_lets_in_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert files.is_locked(path) is False
    assert names(tmp_path) == set()  # asking makes no file
    with files.lock(path):
        assert files.is_locked(path) is True
        with pytest.raises(TimeoutError), files.lock(path, wait_seconds=0.01):
            pytest.fail("both are in")
    assert files.is_locked(path) is False


def test_a_lock_that_cannot_be_had_is_unknown(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    assert files.is_locked(tmp_path / ".lock") is None


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom tessella import files\n"
        "with files.lock(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert files.is_locked(path) is True
        holder.kill()
    with files.lock(path, wait_seconds=0.01):
        pass


# Folders.


def fill(path: Path, text: str) -> None:
    with files.new_folder(path, what="the model") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.txt").write_text(text)
        (temporary / "link").symlink_to("inner")
        files.write_text(temporary / "b.txt", text)


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_made_and_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr(files, "_swap", lambda *_: False)
    path = tmp_path / "runs" / "model"
    fill(path, "one")
    (path / "old").write_text("")
    fill(path, "two")
    assert names(path) == {"inner", "link", "b.txt"}
    assert (path / "inner" / "a.txt").read_text() == "two"
    assert names(path.parent) == {"model"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are swapped on Linux")
def test_a_reader_never_finds_the_folder_missing(tmp_path: Path) -> None:
    path = tmp_path / "model"
    fill(path, "0")
    missed, seen, done = [], [], threading.Event()

    def read() -> None:
        while not done.is_set():
            # One call of the system, so that it sees one moment.
            seen.append(1)
            if not path.exists():
                missed.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        fill(path, str(number))
    done.set()
    reader.join()
    assert seen
    assert not missed


def test_a_body_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    fill(path, "one")
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), files.new_folder(path) as temporary:
            (temporary / "b.txt").write_text("half")
            raise error
    assert (path / "b.txt").read_text() == "one"
    assert names(tmp_path) == {"model"}


def test_a_write_that_fails_inside_is_told_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    fill(path, "one")
    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(CheckpointError) as caught:
        fill(path, "two")
    assert str(caught.value).startswith(f"Cannot write the model: `{path}` (No space left")
    assert (path / "b.txt").read_text() == "one"
    assert names(tmp_path) == {"model"}


def test_a_failure_between_the_two_renames_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    fill(path, "one")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(files.TEMPORARY_PREFIX) and target == path:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(files, "_swap", lambda *_: False)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CheckpointError, match="what was there before is unchanged"):
        fill(path, "two")
    assert (path / "b.txt").read_text() == "one"
    assert names(tmp_path) == {"model"}


def test_a_file_in_the_way_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(CheckpointError, match="a file of that name is in the way"):
        fill(tmp_path / "model", "one")
    assert (tmp_path / "model").read_text() == "mine"


def test_leftovers_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    for name in (".tmp-tessella-1.png", ".tmp-other", "mine.tmp-tessella-", "kept"):
        (tmp_path / name).write_text("")
    (tmp_path / ".tmp-tessella-2").mkdir()
    (tmp_path / ".tmp-tessella-2" / "half").write_text("")
    (tmp_path / ".old-tessella-lost").mkdir()
    (tmp_path / ".old-tessella-kept").mkdir()
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == {".tmp-other", "mine.tmp-tessella-", "kept", "lost"}
    files.remove_leftovers(tmp_path / "nowhere")


def owned(folder: Path, host: str, number: int) -> Path:
    path = folder / f".tmp-tessella-{host}-{number}-0123456789ab"
    path.write_text("half")
    return path


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    """Of this process what it writes now; of others what began before the file; elsewhere: a week.

    A container's processes have the same numbers when it starts again.
    """
    here, elsewhere = name_host(), "0" * 8
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lives = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        kept = {owned(tmp_path, here, lives.pid), owned(tmp_path, elsewhere, 1)}
        gone = [owned(tmp_path, here, ended.pid), owned(tmp_path, here, os.getpid())]
        (tmp_path / "later").mkdir()
        reused = owned(tmp_path / "later", here, lives.pid)
        os.utime(reused, (1, 1))  # older than the process with this number
        gone += [reused, owned(tmp_path / "later", elsewhere, 2)]
        os.utime(gone[-1], (1, 1))
        with files.new_file(tmp_path / "a") as mine:
            mine.write_text("now")
            files.remove_leftovers(tmp_path)
            assert reused.exists()
            files.remove_leftovers(tmp_path, deep=True)
            assert mine.exists()
    finally:
        lives.communicate(b"\n")
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
    assert (tmp_path / "a").read_text() == "now"
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == {"a", "later", f".tmp-tessella-{elsewhere}-1-0123456789ab"}


def test_leftovers_that_cannot_be_put_right_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "whatever")

    (tmp_path / ".old-tessella-model").mkdir()
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        files.remove_leftovers(tmp_path)
    assert names(tmp_path) == {".old-tessella-model"}


# A fork that ends without a word at the n-th call to the system: a kill at every place where
# what is on the disk can change.
KILLED_EVERYWHERE = """
import os, sys
from pathlib import Path
from tessella import files

root = Path(sys.argv[1])
if sys.argv[2] == "aside":
    files._swap = lambda first, second: False
path = root / "model"

def fill(text):
    with files.new_folder(path) as temporary:
        (temporary / "a").write_text(text)
        (temporary / "b").write_text(text)

def count_down(calls):
    def event(name, arguments):
        if name in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}:
            event.left -= 1
            if event.left == 0:
                os._exit(9)
    event.left = calls
    sys.addaudithook(event)

fill("0")
kills = 0
while True:
    child = os.fork()
    if child == 0:
        count_down(kills + 1)
        fill(str(kills + 1))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    kills += 1
    files.remove_leftovers(root)
    assert os.listdir(root) == ["model"], os.listdir(root)
    both = {(path / "a").read_text(), (path / "b").read_text()}
    assert len(both) == 1, both
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("way", ["swap", "aside"])
def test_killed_at_every_call_the_folder_is_old_or_new(tmp_path: Path, way: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE, str(tmp_path), way],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 8
