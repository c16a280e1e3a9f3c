"""Tables that hold the pictures: as `datasets`, pyarrow and pandas write them."""

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from pyarrow import feather, ipc

from tessella.data.embedded import find_saved_files
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.errors import DataError
from tessella.images import read_image

SETTINGS = DataSettings(image_size=16, workers=2, validation_fraction=0.2)


@pytest.fixture(scope="module")
def datasets():
    """Hugging Face's package."""
    package = pytest.importorskip("datasets")
    package.disable_progress_bars()
    return package


def dataset(datasets, draw, numbers: range):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["even", "odd"]),
        }
    )
    columns = {
        "image": [draw.pixels(number) for number in numbers],
        "text": [f"picture {number}" for number in numbers],
        "label": [number % 2 for number in numbers],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def check_pictures(draw, read, numbers: range) -> None:
    assert not read.skipped
    assert list(read.pictures) == [(f"picture {number}",) for number in numbers]
    for number in numbers:
        image = read_image(read.pictures[f"picture {number}",], max_pixels=1000)
        assert np.array_equal(np.asarray(image), draw.pixels(number))


def table(draw, numbers: range, **more: list) -> arrow.Table:
    images = [{"bytes": draw.content(number), "path": None} for number in numbers]
    return arrow.table({"image": images, "text": [f"picture {n}" for n in numbers]} | more)


def write(draw, name: str, content: arrow.Table, **options: int) -> Path:
    path = draw.file(name, b"")
    parquet.write_table(content, path, **options)
    return path


# --- as `datasets` writes ------------------------------------------------------------------


def test_parquet_of_datasets(draw, reading, datasets) -> None:
    path = draw.folder / "x.parquet"
    dataset(datasets, draw, range(9)).to_parquet(str(path))
    read = reading(path, "label")
    assert read.source.kind == "parquet"
    check_pictures(draw, read, range(9))
    assert [record.group for record in read.records] == [str(n % 2) for n in range(9)]
    assert (
        read.records[3].name == f"{path}:3"
        and read.records[3].origin == "captions from column text"
    )


def test_shards_of_the_hub_keep_their_splits(draw, reading, datasets) -> None:
    folder = draw.folder / "set"
    (folder / "data").mkdir(parents=True)
    draw.file("set/README.md", "card")
    whole = dataset(datasets, draw, range(20))
    for split, rows in (
        ("train", range(12)),
        ("validation", range(12, 16)),
        ("test", range(16, 20)),
    ):
        part = whole.select(rows)
        for shard in range(2):
            name = f"{split}-{shard:05}-of-00002.parquet"
            part.shard(2, shard, contiguous=True).to_parquet(str(folder / "data" / name))
    read = reading(folder)
    assert read.source.origins == ("captions from column text",)
    sides = {record.captions[0]: record.side for record in read.records}
    assert sides == {f"picture {n}": "train" if n < 12 else "validation" for n in range(20)}


def test_a_folder_of_save_to_disk(draw, reading, datasets) -> None:
    folder = draw.folder / "saved"
    dataset(datasets, draw, range(9)).save_to_disk(str(folder), num_shards=2)
    read = reading(folder)
    assert read.source.kind == "arrow"
    check_pictures(draw, read, range(9))


def test_splits_of_save_to_disk(draw, reading, datasets) -> None:
    folder = draw.folder / "saved"
    splits = {"train": range(6), "test": range(6, 9)}
    parts = {name: dataset(datasets, draw, numbers) for name, numbers in splits.items()}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    read = reading(folder)
    check_pictures(draw, read, range(9))
    assert [record.side for record in read.records] == ["train"] * 6 + ["validation"] * 3


# `map` leaves its results beside the data: read too, every picture would be there twice.
def test_what_map_left_in_a_saved_folder_is_not_read(draw, reading, datasets) -> None:
    folder = draw.folder / "saved"
    dataset(datasets, draw, range(4)).save_to_disk(str(folder))
    datasets.load_from_disk(str(folder)).map(lambda row: {"label": 1})
    assert len(list(folder.glob("*.arrow"))) == 2
    check_pictures(draw, reading(folder), range(4))


def test_a_saved_folder_that_lacks_a_file_is_refused(draw, datasets) -> None:
    folder = draw.folder / "saved"
    dataset(datasets, draw, range(4)).save_to_disk(str(folder))
    next(folder.glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"lacks a file: `.*\.arrow`"):
        find_saved_files(folder)


@pytest.mark.parametrize("state", ["{", "{}", "[]"])
def test_a_damaged_saved_folder_is_refused(draw, state: str) -> None:
    draw.file("saved/dataset_info.json", "{}")
    with pytest.raises(DataError, match=r"saved by `datasets` is damaged: `.*saved`"):
        find_saved_files(draw.file("saved/state.json", state).parent)


# --- as others write -----------------------------------------------------------------------


def test_bytes_alone(draw, reading) -> None:
    content = arrow.table(
        {"jpg": [draw.content(1), None], "caption": ["one", "two"], "key": ["1", "2"]}
    )
    read = reading(write(draw, "x.parquet", content))
    assert read.pictures == {("one",): draw.content(1)}
    [skipped] = read.skipped
    assert (skipped.kind, skipped.reason) == ("missing", "the row has no picture")
    assert skipped.name.endswith("x.parquet:1")


def test_metadata_parquet_with_pictures(draw, reading) -> None:
    path = write(draw, "data/metadata.parquet", table(draw, range(5)))
    for given in (path, path.parent):
        read = reading(given)
        assert read.source.kind == "parquet"
        check_pictures(draw, read, range(5))


@pytest.mark.parametrize("how", ["stream", "file", "feather"])
def test_arrow_files(draw, reading, how: str) -> None:
    path, content = (
        draw.folder / ("x.feather" if how == "feather" else "x.arrow"),
        table(draw, range(70)),
    )
    if how == "feather":
        feather.write_feather(content, str(path), compression="zstd")
    else:
        new = ipc.new_stream if how == "stream" else ipc.new_file
        with new(str(path), content.schema) as writer:
            writer.write_table(content, max_chunksize=30)
    check_pictures(draw, reading(path), range(70))


def test_slices_and_nulls_keep_their_rows(draw, reading) -> None:
    content = table(draw, range(8)).slice(3)
    images = arrow.chunked_array(
        [content["image"].combine_chunks().take(arrow.array([0, None, 2, 3, 4]))]
    )
    read = reading(write(draw, "x.parquet", content.set_column(0, "image", images)))
    assert read.pictures == {(f"picture {n}",): draw.content(n) for n in (3, 5, 6, 7)}
    assert [skipped.name[-2:] for skipped in read.skipped] == [":1"]


def test_rows_without_captions_are_named(draw, reading) -> None:
    content = table(draw, range(3)).set_column(1, "text", arrow.array([["a", "b"], [], None]))
    read = reading(write(draw, "x.parquet", content))
    assert read.captions == [("a", "b")]
    assert [(s.kind, s.reason) for s in read.skipped] == [
        ("captionless", "its column text is blank")
    ] * 2


def test_pictures_that_a_row_only_names(draw, reading) -> None:
    draw.image("data/sub/a.png", 1)
    paths = ["sub/a.png", "/etc/b.png", "../c.png"]
    content = arrow.table(
        {"image": [{"bytes": None, "path": path} for path in paths], "text": list("abc")},
        schema=arrow.schema(
            {
                "image": arrow.struct({"bytes": arrow.binary(), "path": arrow.string()}),
                "text": arrow.string(),
            }
        ),
    )
    read = reading(write(draw, "data/x.parquet", content).rename(draw.folder / "data/y.parquet"))
    assert read.pictures == {("a",): draw.content(1)}
    assert all("does not hold it" in skipped.reason for skipped in read.skipped)
    assert len(read.skipped) == 2


def test_a_table_trains_like_the_folder(draw, tmp_path) -> None:
    folder = draw.captioned(30)
    path = write(draw, "x.parquet", table(draw, range(30)), row_group_size=7)
    ways = [prepare([str(way)], SETTINGS, tmp_path / f"cache-{way.stem}") for way in (folder, path)]
    assert ways[0].manifest["fingerprints"] == ways[1].manifest["fingerprints"]


def test_memory_stays_flat_whatever_the_size_of_a_row_group(draw) -> None:
    """The pictures of one row group of 64 MB pass through a few MB."""
    from tessella.data.addresses import open_locally
    from tessella.data.embedded import embedded_records

    noise = np.random.default_rng(0).bytes(64 << 20)
    images = [{"bytes": noise[i << 16 : (i + 1) << 16]} for i in range(1024)]
    content = arrow.table({"image": images, "text": ["t"] * 1024})
    path = write(draw, "x.parquet", content, write_batch_size=32)
    del images, content
    before, most, count = arrow.total_allocated_bytes(), 0, 0
    for record in embedded_records(open_locally(str(path)), None, Counter()):
        most = max(most, arrow.total_allocated_bytes() - before)
        count += len(record.location.read()) == 1 << 16
    assert count == 1024 and most < 16 << 20


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"PAR1 and nothing else",
            r"Cannot read the table: `.*x\.parquet`.* again, or leave it out",
        ),
        (b"no parquet", "Cannot read the table"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "Only a pointer .* git lfs pull",
        ),
    ],
)
def test_what_is_no_table_is_refused(draw, reading, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        reading(draw.file("x.parquet", content))


def test_a_table_that_is_cut_off_is_refused(draw, reading) -> None:
    path = write(draw, "x.parquet", table(draw, range(50)))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match="Cannot read the table"):
        reading(path)
    stream = io.BytesIO()
    with ipc.new_stream(stream, table(draw, range(50)).schema) as writer:
        writer.write_table(table(draw, range(50)), max_chunksize=10)
    with pytest.raises(DataError, match="Cannot read the table"):
        reading(draw.file("x.arrow", stream.getvalue()[:-900]))


def test_parquet_without_pyarrow_says_what_to_install(draw, reading, monkeypatch) -> None:
    path = write(draw, "x.parquet", table(draw, range(2)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"package `pyarrow.*pip install 'tessella\[parquet\]'"):
        reading(path)


# An offset that pointed out of an Arrow file ended the process (SIGSEGV); a name or a caption that
# was no UTF-8 was a raw UnicodeDecodeError.
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_damaged_arrow_file_is_refused(draw, reading, kind: str) -> None:
    rows = table(draw, range(3))
    path = draw.folder / "x.arrow"
    with (ipc.new_file if kind == "file" else ipc.new_stream)(path, rows.schema) as writer:
        writer.write_table(rows)
    good = path.read_bytes()
    text = good.index(b"picture 0picture 1")
    ends = np.array([0, 9, 18, 27], np.int32).tobytes()
    where = good.rindex(ends, 0, text)
    far = good[:where] + np.array([0, 9, 18, 2**30], np.int32).tobytes() + good[where + 16 :]
    for damaged in (
        far,
        good.replace(b"picture 0", b"\xff" * 9),
        good.replace(b"text", b"\xfeext"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="Cannot read the table"):
            reading(path)
