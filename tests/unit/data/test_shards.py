"""WebDataset shards as they are in the wild: right pairs, or named."""

import json
import tarfile

import pytest

from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.errors import DataError


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_webdataset_s_own_writer(draw, reading, name: str) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(draw.folder / name)) as writer:
        for number in range(5):
            writer.write(
                {
                    "__key__": f"sub/{number:04}",
                    "png": draw.pixels(number),
                    "txt": f"picture {number}",
                    "json": {"base": number},
                    "npy": draw.pixels(number),
                }
            )
    read = reading(draw.folder / name, "base")
    assert read.source.kind == "shards" and not read.skipped
    assert read.captions == [(f"picture {number}",) for number in range(5)]
    assert [record.group for record in read.records] == list("01234")
    assert read.records[0].name == f"{draw.folder / name}/sub/0000.png"


def test_img2dataset_s_layout(draw, reading) -> None:
    for shard in range(2):
        members = {}
        for number in range(3 * shard, 3 * shard + 3):
            key = f"{shard:05}{number:04}"
            facts = {"caption": f"picture {number}", "url": "https://x", "status": "success"}
            members |= {f"{key}.jpg": draw.content(number), f"{key}.txt": facts["caption"]}
            members |= {f"{key}.json": json.dumps(facts)}
        draw.tar(f"data/{shard:05}.tar", members)
        draw.file(f"data/{shard:05}_stats.json", "{}")
        draw.file(f"data/{shard:05}.parquet", b"not read")
    read = reading(draw.folder / "data")
    assert read.captions == [(f"picture {number}",) for number in range(6)] and not read.skipped
    assert {record.origin for record in read.records} == {
        "captions from the .txt files in the tars"
    }


def test_members_of_a_packed_folder_begin_with_a_dot(draw, reading) -> None:
    folder = draw.captioned(3)
    with tarfile.open(draw.folder / "x.tar", "w") as tar:
        tar.add(folder, arcname=".")  # as `tar -cf x.tar -C data .` does
    read = reading(draw.folder / "x.tar")
    assert sorted(read.captions) == [(f"picture {number}",) for number in range(3)]
    assert read.records[0].name.startswith(f"{draw.folder}/x.tar/000") and not read.skipped


def test_unsorted_members(draw, reading) -> None:
    members = {f"{number}.png": draw.content(number) for number in range(4)}
    members |= {f"{number}.json": json.dumps({"base": number}) for number in (3, 1, 0, 2)}
    members |= {f"{number}.txt": f"picture {number}" for number in (2, 0, 3, 9)}
    read = reading(draw.tar("x.tar", members), "base")
    assert read.pictures == {(f"picture {n}",): draw.content(n) for n in (0, 2, 3)}
    assert sorted(record.group for record in read.records) == ["0", "2", "3"]
    assert {(s.name.rpartition("/")[2], s.kind) for s in read.skipped} == {
        ("1.png", "captionless"),
        ("9.txt", "imageless"),
    }


@pytest.mark.parametrize("is_sorted", [True, False])
def test_dots_in_names(draw, reading, is_sorted: bool) -> None:
    members = {f"St. Mary {n:04}.jpg": draw.content(n) for n in range(40)}
    members |= {f"St. Mary {n:04}.txt": f"picture {n}" for n in range(40)}
    shard = draw.tar("x.tar", dict(sorted(members.items())) if is_sorted else members)
    read = reading(shard)
    assert read.pictures == {(f"picture {n}",): draw.content(n) for n in range(40)}
    assert not read.skipped
    [(note, count)] = read.notes.items()
    assert "by their whole names" in note and count >= 39


@pytest.mark.parametrize("suffix", ["txt", "cap", "caption", "TXT"])
def test_suffixes_of_captions(draw, reading, suffix: str) -> None:
    read = reading(draw.tar("x.tar", {"a.png": draw.content(1), f"a.{suffix}": "one\ntwo"}))
    assert read.captions == [("one", "two")]


@pytest.mark.parametrize("place", ["beside", "first", "last"])
def test_classes_with_names(draw, reading, place: str) -> None:
    names = {"classes.txt": "red_fox\nhare\n"}
    members = {}
    for number in range(4):
        members |= {f"{number}.cls": f"{number % 2}\n", f"{number}.png": draw.content(number)}
    if place == "beside":
        draw.file("classes.txt", names["classes.txt"])
    members = (names if place == "first" else {}) | members | (names if place == "last" else {})
    read = reading(draw.tar("x.tar", members))
    assert [read.captions.count((name,)) for name in ("red fox", "hare")] == [2, 2]
    assert not read.skipped and "classes.txt" in read.records[0].origin


def test_changed_names_of_classes_are_seen(draw, reading) -> None:
    shard = draw.tar("x.tar", {"a.png": draw.content(1), "a.cls": "0"})
    draw.file("classes.txt", "cat")
    before = reading(shard).source.fingerprint
    draw.file("classes.txt", "goat")
    after = reading(shard)
    assert after.source.fingerprint != before and after.captions == [("goat",)]


def test_classes_that_are_words_are_captions(draw, reading) -> None:
    read = reading(draw.tar("x.tar", {"a.png": draw.content(1), "a.cls": "red_fox"}))
    assert read.captions == [("red fox",)]


def test_numbers_of_classes_without_names_are_no_captions(draw, reading) -> None:
    read = reading(draw.tar("x.tar", {"a.png": draw.content(1), "a.cls": "3"}))
    [skipped] = read.skipped
    assert skipped.kind == "captionless"
    assert skipped.reason == "its .cls holds a number, and there is no classes.txt beside the shard"


def test_a_class_that_has_no_name_is_named(draw, reading) -> None:
    draw.file("classes.txt", "cat")
    [skipped] = reading(draw.tar("x.tar", {"a.png": "x", "a.cls": "3"})).skipped
    assert "classes.txt has 1 classes, and this is number 3" in skipped.reason


def test_names_of_classes_that_are_no_text_are_refused(draw, reading) -> None:
    draw.file("classes.txt", b"\x81" * 9)
    with pytest.raises(DataError, match=r"names of the classes cannot be read: `.*classes\.txt`"):
        reading(draw.tar("x.tar", {"a.png": "x", "a.cls": "3"}))


def test_links_are_named(draw, reading) -> None:
    shard = draw.shard("x.tar", range(2))
    with tarfile.open(shard, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0000.png"
        tar.addfile(link)
    [skipped] = reading(shard).skipped
    assert (skipped.kind, skipped.name) == ("link", f"{shard}/link.png")


# --- tars that are folders -----------------------------------------------------------------


def test_a_tar_of_class_folders(draw, reading) -> None:
    shard = draw.tar("x.tar", {"red_fox/1.png": draw.content(1), "hare/2.png": draw.content(2)})
    read = reading(shard)
    assert read.pictures == {("red fox",): draw.content(1), ("hare",): draw.content(2)}
    assert read.records[0].name.startswith(f"{shard}/")


def test_a_tar_with_a_table(draw, reading) -> None:
    table = "file_name,text\na.png,one\nb.png,two\nc.png,three\n"
    members = {"a.png": draw.content(1), "metadata.csv": table, "b.png": draw.content(2)}
    read = reading(draw.tar("x.tar", members))
    assert read.pictures == {("one",): draw.content(1), ("two",): draw.content(2)}
    [missing] = read.skipped
    assert (missing.name, missing.kind) == (f"{draw.folder}/x.tar/c.png", "missing")


# --- compressed ----------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
def test_compressed_tars_train_like_plain_ones(draw, tmp_path, compression: str) -> None:
    shard = draw.shard("plain/x.tar", range(12))
    (tmp_path / "packed").mkdir()
    packed = tmp_path / "packed" / f"x.tar.{compression}"
    if compression == "zst":
        zstandard = pytest.importorskip("zstandard")
        content, half = shard.read_bytes(), shard.stat().st_size // 2
        # Two frames, as parallel compressors write.
        frames = (zstandard.compress(content[:half]), zstandard.compress(content[half:]))
        packed.write_bytes(b"".join(frames))
    else:
        with tarfile.open(packed, f"w:{compression}") as tar, tarfile.open(shard) as plain:
            for member in plain:
                tar.addfile(member, plain.extractfile(member))
    settings = DataSettings(image_size=16, workers=2)
    ways = [
        prepare([str(path)], settings, tmp_path / f"cache-{name}").manifest["fingerprints"]
        for name, path in (("plain", shard), ("packed", packed), ("folder", packed.parent))
    ]
    assert ways[0] == ways[1] == ways[2]


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_compressed_tar_that_is_cut_off_is_refused(draw, reading, compression: str) -> None:
    shard = draw.tar("x.tar", {f"{n}.png": bytes(range(256)) * n for n in range(99)})
    if compression == "gz":
        import gzip

        content = gzip.compress(shard.read_bytes())
    else:
        content = pytest.importorskip("zstandard").compress(shard.read_bytes())
    path = draw.file(f"y.tar.{compression}", content[: len(content) // 2])
    with pytest.raises(DataError, match="is cut off"):
        reading(path)


def test_temporary_copies_are_deleted(draw, reading, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    shard = draw.shard("x.tar", range(3))
    with tarfile.open(draw.folder / "y.tar.gz", "w:gz") as tar, tarfile.open(shard) as plain:
        for member in plain:
            tar.addfile(member, plain.extractfile(member))
    records = reading(draw.folder / "y.tar.gz").records
    assert len(list((tmp_path / "temporary").iterdir())) == 1  # as long as a record needs it
    records.clear()
    assert not list((tmp_path / "temporary").iterdir())
