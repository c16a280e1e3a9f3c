"""Which files hold many pictures, which splits they are, and what is not read."""

from pathlib import Path

import pytest

from tessella.data.containers import _sides, kind_of_file
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.data.sources import recognise
from tessella.errors import DataError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/x.tar", "shards"),
        ("x.TGZ", "shards"),
        ("x.tar.zst", "shards"),
        ("https://x.org/a.parquet?download=true", "parquet"),
        ("x.arrow", "arrow"),
        ("x.feather", "arrow"),
        ("x.zip", "zip"),
        ("x.gz", None),
        ("pipe:cat x.zip", None),
    ],
)
def test_kinds(name: str, kind: str | None) -> None:
    assert kind_of_file(name) == kind


@pytest.mark.parametrize(
    ("names", "sides"),
    [
        (["d/train-00000-of-00002.parquet", "d/test-00000-of-00001.parquet"], "tv"),
        (["x/train/0.tar", "x/train/1.tar", "x/val/0.tar"], "ttv"),
        (["s3://b/train/0.tar", "s3://b/validation/0.tar", "s3://b/more/0.tar"], "tv-"),
        # A folder above all of them says nothing.
        (["test/a/0.tar", "test/train/0.tar"], "-t"),
        (["test/x.tar"], "-"),
    ],
)
def test_names_say_the_split(names: list[str], sides: str) -> None:
    words = {"t": "train", "v": "validation", "-": None}
    assert _sides(names) == [words[side] for side in sides]


def test_what_is_held_out_is_never_trained_on(draw, tmp_path) -> None:
    draw.shard("data/train/0.tar", range(20))
    draw.shard("data/test/0.tar", range(20, 24))
    data = prepare([str(draw.folder / "data")], DataSettings(image_size=16), tmp_path / "cache")
    assert set(data.validation.all_captions()) == {f"picture {n}" for n in range(20, 24)}
    assert len(data.train) == 20


def test_the_plan_says_where_captions_are_read(draw) -> None:
    draw.shard("x.tar", range(2))
    source = recognise(str(draw.folder / "x.tar"))
    assert source.origins == ("captions from the texts in the tars",)


def test_shards_keep_their_split(draw, reading) -> None:
    draw.shard("data/train/0.tar", range(2))
    draw.shard("data/test/0.tar", range(2, 4))
    sides = {record.captions[0]: record.side for record in reading(draw.folder / "data").records}
    assert sides == {f"picture {n}": "train" if n < 2 else "validation" for n in range(4)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.lance/data/1.lance", r"a Lance data set\. .*lance\.dataset\('.*x\.lance'\)"),
        ("x/shard.00000.mds.zstd", r"MosaicML's MDS\. .*StreamingDataset\(local='.*/x'"),
        ("x/1.tfrecord", "a TFRecord"),
        ("x/data.mdb", "an LMDB"),
        ("x.rar", "a RAR archive. Unpack it"),
    ],
)
def test_what_others_write_is_named_with_the_way_out(draw, name: str, message: str) -> None:
    draw.file(f"data/{name}", b"x")
    for given in (draw.folder / "data", draw.folder / "data" / Path(name).parts[0]):
        with pytest.raises(DataError, match=message):
            recognise(str(given))


def test_several_kinds_in_a_folder_are_refused(draw) -> None:
    draw.shard("data/x.tar", range(2))
    draw.file("data/x.zip", b"")
    with pytest.raises(DataError, match=r"Cannot tell .*data` holds x\.tar, x\.zip\. Name those"):
        recognise(str(draw.folder / "data"))
