"""Files elsewhere, made plain local files: patterns, fsspec's file systems, commands."""

import functools
import http.server
import os
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from tessella.data.addresses import expand, expand_braces, fingerprint_addresses, open_locally
from tessella.errors import DataError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory():
    """An empty file system of fsspec."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


@pytest.fixture
def server(tmp_path):
    """A web server of the folder `web`."""
    (tmp_path / "web").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


# --- patterns ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{000..002}.tar", ["x-000.tar", "x-001.tar", "x-002.tar"]),
        ("x-{8..10}.tar", ["x-8.tar", "x-9.tar", "x-10.tar"]),
        ("x-{08..10}.tar", ["x-08.tar", "x-09.tar", "x-10.tar"]),
        ("{2..1}", ["2", "1"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{train}.tar", ["{train}.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


def test_braces_like_webdataset_s() -> None:
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    for pattern in ("s-{000..011}.tar", "{9..11}-{a,b,c}", "https://x/{0..3}{000..001}.tar"):
        assert expand_braces(pattern) == list(braceexpand(pattern))


def test_far_too_many_names_are_refused() -> None:
    with pytest.raises(DataError, match=r"too many names: `x\{0\.\.9999999\}`\. At most 1,000,000"):
        expand_braces("x{0..9999999}")


# The names of several braces are as many as their product; a number may have any length.
@pytest.mark.parametrize(
    "pattern",
    ["{0..9999}-{0..9999}", "{a,b}" * 40, "{0.." + "9" * 5_000 + "}", "x" * 999 + "{0..999999}"],
)
def test_braces_that_multiply_are_refused(pattern: str) -> None:
    with pytest.raises(DataError, match=r"too many names: `[^`]{1,201}`\. At most"):
        expand_braces(pattern)


def test_braces_name_shards_here(draw, reading) -> None:
    for shard in range(3):
        draw.shard(f"data/s-{shard:03}.tar", range(2 * shard, 2 * shard + 2))
    read = reading(draw.folder / "data/s-{000..001}.tar")
    assert read.source.kind == "shards"
    assert read.captions == [(f"picture {number}",) for number in range(4)]
    read = reading(draw.folder / "data/s-*.tar")
    assert len(read.records) == 6


def test_a_shard_that_is_missing_among_the_braces_is_refused(draw, reading) -> None:
    draw.shard("s-000.tar", range(2))
    with pytest.raises(
        DataError, match=r"no such data: `.*s-001\.tar`, of `.*\{000\.\.001\}\.tar`"
    ):
        reading(draw.folder / "s-{000..001}.tar")


def test_a_pattern_that_matches_nothing_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"No file matches: `.*x-\*\.tar`"):
        expand(str(tmp_path / "x-*.tar"))


def test_kinds_that_are_mixed_are_refused(draw, reading) -> None:
    draw.file("x.tar", b"")
    draw.file("x.zip", b"")
    with pytest.raises(DataError, match=r"Cannot tell what .* names shards, zip"):
        reading(draw.folder / "x.*")


# --- file systems --------------------------------------------------------------------------


def test_shards_on_a_file_system_of_fsspec(draw, reading, memory) -> None:
    for shard in range(3):
        path = draw.shard(f"{shard}.tar", range(2 * shard, 2 * shard + 2))
        memory.pipe(f"/bucket/s-{shard}.tar", path.read_bytes())
    memory.pipe("/bucket/README.md", b"read me")
    for address in ("memory://bucket/s-{0..2}.tar", "memory://bucket", "memory://bucket/*.tar"):
        read = reading(address)
        assert read.pictures == {(f"picture {n}",): draw.content(n) for n in range(6)}
        assert read.records[0].name == "memory://bucket/s-0.tar/0000.png".replace(
            "memory://", "memory:///" if address != "memory://bucket/s-{0..2}.tar" else "memory://"
        )


def test_a_changed_file_elsewhere_is_seen(draw, reading, memory) -> None:
    content = draw.shard("x.tar", range(2)).read_bytes()
    memory.pipe("/x.tar", content)
    before = reading("memory://x.tar").source.fingerprint
    assert reading("memory://x.tar").source.fingerprint == before
    memory.pipe("/x.tar", content)
    assert reading("memory://x.tar").source.fingerprint != before


def test_classes_elsewhere(draw, reading, memory) -> None:
    path = draw.tar("x.tar", {"a.png": draw.content(1), "a.cls": "1"})
    memory.pipe("/x/x.tar", path.read_bytes())
    memory.pipe("/x/classes.txt", b"cat\ndog")
    assert reading("memory://x/x.tar").captions == [("dog",)]


def test_a_web_server(draw, reading, server) -> None:
    for shard in range(2):
        draw.shard(f"web/s-{shard:03}.tar", range(2 * shard, 2 * shard + 2))
    # A server tells whole seconds, and tars are padded to one size.
    os.utime(draw.folder / "web/s-001.tar", (1_000_000_000, 1_000_000_000))
    read = reading(f"{server}/s-{{000..001}}.tar")
    assert read.pictures == {(f"picture {n}",): draw.content(n) for n in range(4)}
    before = read.source.fingerprint
    draw.shard("web/s-001.tar", range(2, 5))
    assert reading(f"{server}/s-{{000..001}}.tar").source.fingerprint != before


def test_what_a_web_server_lacks_is_refused(reading, server) -> None:
    with pytest.raises(DataError, match=r"Cannot read: `http.*/x\.tar`\. It is not there\. Check"):
        reading(f"{server}/x.tar")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nowhere/x.tar", r"Cannot read: `memory://nowhere/x\.tar`\. It is not there"),
        ("memory://nowhere/*.tar", r"Nothing is at the address: `memory://nowhere/\*\.tar`"),
        (
            "nonsense://x.tar",
            r"Not an address that can be read: `nonsense://x\.tar`\. Protocol not",
        ),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(reading, memory, address, message) -> None:
    with pytest.raises(DataError, match=message):
        reading(address)


def test_a_file_system_that_needs_a_package_says_which(reading, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"needs another package: `s3://x/y\.tar`\. Install s3fs"):
        reading("s3://x/y.tar")


def test_addresses_without_fsspec_say_what_to_install(reading, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DataError, match=r"package `fsspec.*pip install 'tessella\[shards\]'"):
        reading("https://example.org/x.tar")


def test_a_file_that_comes_only_in_part_is_refused(memory, monkeypatch) -> None:
    memory.pipe("/x.tar", b"whole")

    def get_half(self: object, remote: str, path: str) -> None:
        Path(path).write_bytes(b"who")

    monkeypatch.setattr(type(memory), "get_file", get_half)
    with pytest.raises(DataError, match=r"only in part: `memory://x\.tar`, 3 of 5 bytes"):
        open_locally("memory://x.tar")


# --- commands ------------------------------------------------------------------------------


def test_what_a_command_writes(draw, reading) -> None:
    for shard in range(2):
        draw.shard(f"{shard}.tar", range(2 * shard, 2 * shard + 2))
    read = reading(f"pipe:cat {draw.folder}/{{0..1}}.tar")
    assert read.pictures == {(f"picture {n}",): draw.content(n) for n in range(4)}
    assert read.source.kind == "shards"


def test_what_a_command_writes_may_be_any_kind(draw, reading) -> None:
    with zipfile.ZipFile(draw.folder / "x.zip", "w") as archive:
        archive.writestr("a.png", draw.content(1))
        archive.writestr("a.txt", "one")
    assert reading(f"pipe:cat {draw.folder}/x.zip").captions == [("one",)]


def test_a_changed_file_that_a_command_names_is_seen(draw) -> None:
    draw.shard("x.tar", range(2))
    command = f"pipe:cat {draw.folder}/x.tar"
    before = fingerprint_addresses([command])
    draw.shard("x.tar", range(3))
    assert fingerprint_addresses([command]) != before


def test_a_command_that_fails_is_refused(reading) -> None:
    with pytest.raises(
        DataError, match=r"failed with status 3: `pipe:echo no >&2; exit 3`\. no\. T"
    ):
        reading("pipe:echo no >&2; exit 3")


def test_a_disk_that_is_full_is_an_error(draw, monkeypatch) -> None:
    import gzip
    import shutil

    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = draw.file("x.tar.gz", gzip.compress(b"x"))
    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(DataError, match=r"Cannot unpack: `.*x\.tar\.gz` .* No space .* TMPDIR"):
        open_locally(str(path))
