"""Places: without a cache of pixels, the data itself gives the same pictures, or says that not."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from tessella.data import places
from tessella.data.cache import CaptionedImages, read_manifest
from tessella.data.prepare import PreparedData, prepare
from tessella.data.settings import DataSettings
from tessella.errors import DataError

SETTINGS = DataSettings(image_size=16, validation_fraction=0.2, workers=2)
CODES = SETTINGS.replace(cache="codes")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "run" / "cache"


def sources(draw, kind: str) -> list[str]:
    if kind == "folder":
        return [str(draw.captioned(30))]
    if kind == "scenes":
        return ["scenes:30"]
    shard = draw.shard("x.tar", range(30))
    if kind == "pipe":
        return [f"pipe:cat {shard}"]
    if kind == "compressed":
        packed = draw.file("x.tar.gz", gzip.compress(shard.read_bytes()))
        return [str(packed)]
    return [str(shard)] if kind == "shard" else [str(shard), *sources(draw, "folder"), "scenes:9"]


def same(one: PreparedData, other: PreparedData) -> bool:
    for a, b in zip(one.sides.values(), other.sides.values(), strict=True):
        indices = np.random.default_rng(0).permutation(len(a))
        if a.fingerprint != b.fingerprint or len(a) != len(b):
            return False
        if not np.array_equal(a.pixels(indices), b.pixels(indices)):
            return False
        if list(a.all_captions()) != list(b.all_captions()):
            return False
    return True


@pytest.mark.parametrize("kind", ["folder", "scenes", "shard", "compressed", "pipe", "several"])
def test_the_pictures_are_those_of_a_cache_with_pixels(draw, cache, kind) -> None:
    arguments = sources(draw, kind)
    kept = prepare(arguments, SETTINGS, cache.with_name("kept"))
    read = prepare(arguments, CODES, cache)
    assert same(kept, read)
    assert read.train.is_streamed and not kept.train.is_streamed
    assert not list(cache.rglob("*.pixels"))
    assert read.train.unit_ends[-1] == len(read.train)
    rebuild, values = read.train.__reduce__()
    assert np.array_equal(rebuild(*values).pixels([0]), kept.train.pixels([0]))
    assert read.train.pixels([]).shape == (0, 16, 16, 3)


def test_scenes_of_two_sets_are_drawn_again_each_as_its_own(cache) -> None:
    arguments = ["scenes:8", "scenes2:8"]
    large = SETTINGS.replace(image_size=64)
    kept = prepare(arguments, large, cache.with_name("kept"))
    assert same(kept, prepare(arguments, large.replace(cache="codes"), cache))
    captions = list(kept.train.all_captions())
    assert any(" in a row " in text or "which is" in text for text in captions)
    assert any(" in a row " not in text and "which is" not in text for text in captions)


def test_a_cache_of_the_other_kind_is_not_taken_for_it(draw, cache) -> None:
    folder = [str(draw.captioned(12))]
    prepare(folder, SETTINGS, cache)
    assert prepare(folder, CODES, cache).train.is_streamed
    assert not prepare(folder, SETTINGS, cache).train.is_streamed


@pytest.mark.parametrize("change", ["other", "gone", "broken"])
def test_a_picture_that_is_not_what_it_was_is_an_error(draw, cache, change) -> None:
    folder = draw.captioned(30)
    train = prepare([str(folder)], CODES, cache).train
    number = int(train.captions(3)[0].split()[1])
    path = folder / f"{number:04}.png"
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(draw.content(200) if change == "other" else b"no picture")
    assert train.pixels([0, 1, 2]).shape == (3, 16, 16, 3)
    message = rf"A picture is not what it was when the data was read: `{path}`; .* put it back"
    with pytest.raises(DataError, match=message):
        train.pixels([2, 3])


def test_a_shard_that_is_gone_is_an_error(draw, cache) -> None:
    shard = draw.shard("x.tar", range(10))
    train = prepare([str(shard)], CODES, cache).train
    shard.unlink()
    with pytest.raises(DataError, match=r"Cannot read the file: `.*x\.tar`"):
        train.pixels([0])


def test_names_are_where_they_were_when_the_working_folder_changes(draw, cache, monkeypatch):
    folder, shard = draw.captioned(5), draw.shard("x.tar", range(10, 15))
    monkeypatch.chdir(draw.folder)
    prepare([folder.name, shard.name], CODES, cache)
    monkeypatch.chdir(cache.parent)
    manifest = read_manifest(cache)
    assert manifest is not None
    train = CaptionedImages(cache, "train", manifest)
    for index in range(len(train)):
        number = int(train.captions(index)[0].split()[1])
        assert np.array_equal(train.pixels([index])[0], draw.pixels(number))


def test_a_name_that_is_not_utf8_is_found_again(draw, cache) -> None:
    folder = draw.captioned(3)
    name = os.fsencode(folder) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(name)).write_bytes(draw.content(9))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    Path(os.fsdecode(name[:-4] + b".txt")).write_text("picture 9")
    settings = CODES.replace(validation_fraction=0.0)
    train = prepare([str(folder)], settings, cache).train
    found = [train.captions(index)[0] for index in range(4)]
    assert np.array_equal(train.pixels([found.index("picture 9")])[0], draw.pixels(9))


def test_a_zip_is_refused_before_it_is_read(draw, cache) -> None:
    path = draw.file("x.zip", b"PK\3\4 no zip")
    with pytest.raises(DataError, match=r"cannot be read again one by one: `.*x\.zip`.*ShardWri"):
        prepare([str(path)], CODES, cache)
    assert not cache.parent.exists()


def test_only_so_many_shards_are_open(draw, cache, monkeypatch) -> None:
    monkeypatch.setattr(places, "_OPEN_FILES", 2)
    for number in range(6):
        draw.shard(f"data/{number}.tar", range(5 * number, 5 * number + 5))
    opened: list[str] = []
    open_one = places.open_locally

    def note(name: str):
        opened.append(name)
        return open_one(name)

    monkeypatch.setattr(places, "open_locally", note)
    settings = CODES.replace(validation_fraction=0.0)
    train = prepare([str(draw.folder / "data")], settings, cache).train
    train.pixels(np.arange(30))
    assert len(opened) == 6
    train.pixels(np.arange(30))
    assert len(opened) == 12
