"""Units: what a kill or a change of the data costs, and that the cache is none the worse for it."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.data import decode, shards
from tessella.data import units as units_module
from tessella.data.cache import CaptionedImages, read_manifest
from tessella.data.prepare import PreparedData, describe_data, prepare
from tessella.data.records import Skipped
from tessella.data.settings import DataSettings
from tessella.data.units import cut
from tessella.errors import DataError

SETTINGS = DataSettings(image_size=16, validation_fraction=0.2, workers=1)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "run" / "cache"


@pytest.fixture(autouse=True)
def _small_units(monkeypatch) -> None:
    """Of 4 to 16 pictures."""
    monkeypatch.setattr(units_module, "_MOST_RECORDS", 16)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the pictures that are decoded."""
    names: list[str] = []
    decode_one = decode._decode

    def note(record, settings):
        names.append(record.name.rpartition("/")[2])
        return decode_one(record, settings)

    monkeypatch.setattr(decode, "_decode", note)
    return names


def contents(data: PreparedData) -> list[tuple[list[str], str, bytes]]:
    """All that a run sees of the data, in its order."""
    return [
        (side.captions(index), side.name(index), side.pixels([index]).tobytes())
        for side in data.sides.values()
        for index in range(len(side))
    ]


def fresh(source: Path | str, cache: Path) -> PreparedData:
    """The same data, read into a cache of its own."""
    return prepare([str(source)], SETTINGS, cache.parent / "fresh")


# --- where units end -----------------------------------------------------------------------


def named(names: list[str]) -> Iterator[Skipped]:
    return (Skipped(name, "", "") for name in names)


@given(st.lists(st.text(max_size=5), max_size=60, unique=True), st.integers(1, 20))
def test_units_are_all_records_in_their_order(names: list[str], most: int) -> None:
    chunks = list(cut(named(names), most))
    assert [record.name for chunk in chunks for record in chunk] == names
    assert all(1 <= len(chunk) <= most for chunk in chunks)
    assert all(len(chunk) >= most // 4 for chunk in chunks[:-1])


def test_a_record_more_changes_the_cuts_around_it_alone() -> None:
    names = [f"{number:04}.jpg" for number in range(1000)]
    before = {tuple(record.name for record in chunk) for chunk in cut(named(names), 40)}
    for place in (0, 500, 1000):
        more = [*names[:place], "new.jpg", *names[place:]]
        after = {tuple(record.name for record in chunk) for chunk in cut(named(more), 40)}
        assert 1 <= len(after - before) <= 4 < len(after)


# --- kills ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "shard", "scenes"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_attempt_that_dies_loses_one_unit(draw, cache, monkeypatch, decoded, kind, error):
    """Each attempt dies at its 25th picture; what it has finished is never decoded again."""
    source = {
        "folder": lambda: str(draw.captioned(100)),
        "shard": lambda: str(draw.shard("x.tar", range(100))),
        "scenes": lambda: "scenes:100",
    }[kind]()
    expected = contents(fresh(source, cache))
    decoded.clear()
    hash_one, attempts = decode._hash, 0

    def die(pixels: bytes) -> bytes:
        if len(decoded) - before >= 25:
            raise error
        return hash_one(pixels)

    monkeypatch.setattr(decode, "_hash", die)
    while True:
        before, attempts = len(decoded), attempts + 1
        try:
            data = prepare([source], SETTINGS, cache)
            break
        except error:
            assert read_manifest(cache) is None
    assert contents(data) == expected
    assert 4 <= attempts <= 25
    # What is lost of a unit is decoded once more, and then it is done.
    assert max(Counter(decoded).values()) == 2
    assert {path.name for path in cache.parent.iterdir()} >= {"cache", ".cache.lock", "fresh"}
    assert not (cache.parent / ".cache.units").exists()


def test_what_a_kill_left_half_written_is_removed(draw, cache, monkeypatch) -> None:
    folder = draw.captioned(40)
    with monkeypatch.context() as patch:
        patch.setattr(units_module, "write_bytes", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([str(folder)], SETTINGS, cache)
    work = cache.parent / ".cache.units"
    (work / ".tmp-tessella-0123456789ab.pixels").write_bytes(b"half")
    (cache.parent / ".tmp-tessella-0123456789ab").mkdir()
    prepare([str(folder)], SETTINGS, cache)
    assert {path.name for path in cache.parent.iterdir()} == {"cache", ".cache.lock"}
    assert not [path for path in cache.rglob(".*")]


# --- changes -------------------------------------------------------------------------------


def test_a_picture_more_decodes_its_own_unit(draw, cache, decoded) -> None:
    folder = draw.captioned(100)
    prepare([str(folder)], SETTINGS, cache)
    decoded.clear()
    draw.image("data/0050b.png", 300)
    draw.file("data/0050b.txt", "one more")
    data = prepare([str(folder)], SETTINGS, cache)
    # Where units end depends on the folder's name; at least all that end before it stay.
    assert "0050b.png" in decoded and len(decoded) <= 101 - (50 - 16)
    assert contents(data) == contents(fresh(folder, cache))
    manifest = read_manifest(cache)
    assert manifest is not None
    wanted = {unit[0] for unit in manifest["units"]}
    assert {path.name.partition(".")[0] for path in (cache / "units").iterdir()} == wanted


def test_a_picture_or_caption_that_changed_decodes_its_own_unit(draw, cache, decoded) -> None:
    folder = draw.captioned(100)
    prepare([str(folder)], SETTINGS, cache)
    image = draw.image("data/0020.png", 300)
    later = image.stat().st_mtime_ns + 10**9
    os.utime(image, ns=(later, later))
    draw.file("data/0080.txt", "another caption")
    decoded.clear()
    data = prepare([str(folder)], SETTINGS, cache)
    assert {"0020.png", "0080.png"} <= set(decoded) and len(decoded) <= 32
    assert contents(data) == contents(fresh(folder, cache))


def test_a_shard_that_changed_is_the_only_one_that_is_opened(draw, cache, decoded, monkeypatch):
    for number in range(5):
        draw.shard(f"data/{number}.tar", range(20 * number, 20 * number + 20))
    data = prepare([str(draw.folder / "data")], SETTINGS, cache)
    opened: list[str] = []
    members = shards._members

    def note(shard):
        opened.append(shard.local.name.rpartition("/")[2])
        return members(shard)

    monkeypatch.setattr(shards, "_members", note)
    decoded.clear()
    draw.shard("data/1.tar", range(400, 418))
    draw.shard("data/5.tar", range(500, 510))
    data = prepare([str(draw.folder / "data")], SETTINGS, cache)
    assert opened == ["1.tar", "5.tar"] and len(decoded) == 28
    assert contents(data) == contents(fresh(draw.folder / "data", cache))
    assert data.readings == fresh(draw.folder / "data", cache).readings


def test_names_of_classes_beside_shards_count_too(draw, cache) -> None:
    members = {f"{n}.png": draw.content(n) for n in range(6)} | {f"{n}.cls": "1" for n in range(6)}
    draw.tar("data/x.tar", dict(sorted(members.items())))
    draw.file("data/classes.txt", "cat\ndog\n")
    source = [str(draw.folder / "data")]
    assert set(prepare(source, SETTINGS, cache).train.all_captions()) == {"dog"}
    draw.file("data/classes.txt", "cat\nbear\n")
    assert set(prepare(source, SETTINGS, cache).train.all_captions()) == {"bear"}


def test_what_a_command_writes_is_read_again(draw, cache) -> None:
    """Nothing outside tells that it has changed; what it writes does."""
    shard = draw.shard("x.tar", range(5))
    keys = [f"pipe:cat {shard} && true {word}" for word in ("a", "b")]
    before = contents(prepare([keys[0]], SETTINGS, cache))
    draw.shard("x.tar", range(10, 15))
    after = contents(prepare([keys[1]], SETTINGS, cache))
    assert {c[0][0] for c in before}.isdisjoint(c[0][0] for c in after)


def test_refused_data_leaves_the_cache_and_nothing_else(draw, cache) -> None:
    folder = draw.captioned(40)
    facts = describe_data(prepare([str(folder)], SETTINGS, cache).manifest)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    draw.captioned(5, start=50)
    with pytest.raises(DataError, match="The data is not what the run began with"):
        prepare([str(folder)], SETTINGS, cache, expected=facts)
    assert before == {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert {path.name for path in cache.parent.iterdir()} == {"cache", ".cache.lock"}


# --- damage, and other file systems --------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pixels", ".json.gz", ".part.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_unit_of_a_shard_is_built_again(draw, cache, suffix, damage) -> None:
    shard = draw.shard("x.tar", range(40))
    expected = contents(prepare([str(shard)], SETTINGS, cache))
    path = sorted(cache.glob(f"units/*{suffix}"))[0]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:9])
    assert contents(prepare([str(shard)], SETTINGS, cache)) == expected
    assert read_manifest(cache) is not None


def test_a_file_system_without_second_names_gets_copies(draw, cache, monkeypatch, decoded) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder = draw.captioned(40)
    prepare([str(folder)], SETTINGS, cache)
    draw.captioned(1, start=60)
    decoded.clear()
    data = prepare([str(folder)], SETTINGS, cache)
    assert len(data.train) + len(data.validation) == 41 and len(decoded) <= 20


# Runs of earlier versions have all pixels in one file, and go on with it.
def test_a_cache_with_all_pixels_in_one_file_is_used_as_it_is(draw, cache, decoded) -> None:
    folder = draw.captioned(40)
    data = prepare([str(folder)], SETTINGS, cache)
    expected, manifest = contents(data), dict(data.manifest)
    files = [cache / "units" / f"{unit[0]}.pixels" for unit in manifest.pop("units")]
    (cache / "pixels.bin").write_bytes(b"".join(file.read_bytes() for file in files))
    shutil.rmtree(cache / "units")
    (cache / "digests.bin").unlink()
    sizes = {p.name: p.stat().st_size for p in cache.iterdir() if p.name != "manifest.json"}
    manifest |= {"format": "tessella-cache/2", "file_bytes": sizes}
    (cache / "manifest.json").write_text(json.dumps(manifest))
    decoded.clear()
    again = prepare([str(folder)], SETTINGS, cache)
    assert contents(again) == expected and not decoded
    assert again.train.unit_ends.tolist() == [len(again.train)]
    assert again.train.hash_pixels(0, 5) != again.train.hash_pixels(5, 10)
    draw.captioned(1, start=60)
    assert len(contents(prepare([str(folder)], SETTINGS, cache))) == 41


def test_pixels_are_read_across_units(draw, cache) -> None:
    data = prepare([str(draw.captioned(100))], SETTINGS, cache)
    train = data.train
    assert isinstance(train, CaptionedImages) and len(train.unit_ends) > 4
    assert train.unit_ends[-1] == len(train)
    order = np.random.default_rng(0).permutation(len(train))
    for index, pixels in zip(order, train.pixels(order), strict=True):
        number = int(train.captions(int(index))[0].split()[1])
        assert np.array_equal(pixels, draw.pixels(number))
    with pytest.raises(IndexError):
        train.pixels([len(train)])
