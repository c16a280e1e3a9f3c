"""What DATA may be: five kinds, recognised by what is in them; everything else is refused."""

import csv
import json
import os
import sys
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from tessella.data.records import Record, SceneLocation, Skipped
from tessella.data.sources import recognise, recognise_all
from tessella.errors import DataError

FULL = {"encoding": "utf-8"}


def read(path: object, split_by: str | None = None) -> tuple[list[Record], list[Skipped]]:
    items = list(recognise(str(path)).records(split_by=split_by))
    records = [item for item in items if isinstance(item, Record)]
    return records, [item for item in items if isinstance(item, Skipped)]


def captions(path: object) -> dict[str, tuple[str, ...]]:
    records, skipped = read(path)
    assert not skipped
    return {os.path.relpath(record.name, path): record.captions for record in records}


# --- pictures with .txt --------------------------------------------------------------------


def test_captions_folder(draw) -> None:
    draw.image("data/b.PNG", 1)
    draw.file("data/b.txt", "\ufeff a red  circle \r\n\n a disc\na disc\n")
    draw.image("data/deep/er/ö 🐙.png", 2)
    draw.file("data/deep/er/ö 🐙.TXT", "Krake 🐙")
    draw.file("data/README.txt", "not a caption")
    draw.file("data/.hidden.txt", "not a caption")
    draw.image("data/__MACOSX/b.png", 3)
    source = recognise(str(draw.folder / "data"))
    assert (source.kind, source.count) == ("captions", 2)
    assert captions(draw.folder / "data") == {
        "b.PNG": ("a red circle", "a disc"),
        "deep/er/ö 🐙.png": ("Krake 🐙",),
    }


# A well-known loader paired pictures with captions by the bare stem: pictures of the same name
# in different folders were dropped or got each other's captions.
def test_the_same_stem_in_different_folders_is_not_mixed_up(draw) -> None:
    for number, folder in enumerate(("one", "two", "two/one")):
        draw.image(f"data/{folder}/a.png", number)
        draw.file(f"data/{folder}/a.txt", f"in {folder}")
    found = captions(draw.folder / "data")
    assert found == {f"{f}/a.png": (f"in {f}",) for f in ("one", "two", "two/one")}


def test_a_caption_elsewhere_is_no_caption_here(draw) -> None:
    draw.captioned(1)
    draw.image("data/one/a.png", 5)
    draw.file("data/two/a.txt", "somewhere else")
    records, skipped = read(draw.folder / "data")
    assert len(records) == 1
    assert {(Path(s.name).name, s.kind) for s in skipped} == {
        ("a.png", "captionless"),
        ("a.txt", "imageless"),
    }


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b" \n\n", "captionless", "its caption file is blank"),
        (b"", "captionless", "its caption file is blank"),
        (b"\xcf\xf0\xe8\xe2\xe5\xf2", "bad_caption", "not UTF-8 (byte 0)"),
        (b"a" * 1_000_001, "bad_caption", "1,000,001 bytes are too many for captions"),
    ],
)
def test_bad_caption_files_are_named(draw, content: bytes, kind: str, reason: str) -> None:
    folder = draw.captioned(1)
    draw.image("data/bad.png", 7)
    draw.file("data/bad.txt", content)
    records, [skipped] = read(folder)
    assert len(records) == 1
    assert (Path(skipped.name).name, skipped.kind) == ("bad.png", kind)
    assert reason in skipped.reason


def test_a_caption_file_that_is_a_folder_is_named(draw) -> None:
    folder = draw.captioned(1)
    draw.image("data/bad.png", 7)
    (folder / "bad.txt").symlink_to("nowhere")
    [skipped] = read(folder)[1]
    assert skipped.kind == "bad_caption" and "No such file" in skipped.reason


def test_linked_folders_are_followed_once(draw) -> None:
    folder = draw.captioned(2, "data/real")
    (folder / "loop").symlink_to(draw.folder / "data")
    (draw.folder / "data" / "again").symlink_to(folder)
    assert len(read(draw.folder / "data")[0]) == 2


# --- class folders -------------------------------------------------------------------------


def test_class_folders(draw) -> None:
    draw.image("data/red_car/1.png", 1)
    draw.image("data/train/snow-white/2.png", 2)
    draw.file("data/notes.txt", "nobody's caption")
    assert recognise(str(draw.folder / "data")).kind == "classes"
    assert captions(draw.folder / "data") == {
        "red_car/1.png": ("red car",),
        "train/snow-white/2.png": ("snow white",),
    }


def test_a_class_without_a_name_is_skipped(draw) -> None:
    draw.image("data/__/1.png", 1)
    draw.image("data/cats/1.png", 1)
    [skipped] = read(draw.folder / "data")[1]
    assert (skipped.kind, skipped.reason) == (
        "captionless",
        "the folder's name says nothing about it: __",
    )


# --- tables --------------------------------------------------------------------------------

ROWS = [
    {"file_name": "a.png", "text": "first"},
    {"file_name": "sub/b.png", "text": "second ü🐙"},
]


def write_table(draw, suffix: str, rows: list[dict[str, object]]) -> Path:
    path = draw.file(f"data/metadata.{suffix}", "")
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), **FULL)
    elif suffix == "csv":
        with path.open("w", newline="", **FULL) as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_tables(draw, suffix: str) -> None:
    draw.image("data/a.png", 1)
    draw.image("data/sub/b.png", 2)
    table = write_table(draw, suffix, ROWS)
    expected = {"a.png": ("first",), "sub/b.png": ("second ü🐙",)}
    assert recognise(str(table.parent)).kind == recognise(str(table)).kind == "table"
    assert captions(table.parent) == expected
    assert {r.captions for r in read(table)[0]} == set(expected.values())


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_table_may_hold_lists_of_captions(draw, suffix: str) -> None:
    write_table(draw, suffix, [{"file_name": "a.png", "captions": ["one", " ", "two", "one"]}])
    assert captions(draw.folder / "data") == {"a.png": ("one", "two")}


def test_a_csv_may_hold_json_lists(draw) -> None:
    rows = [{"file_name": "a.png", "captions": '["one", "two"]'}]
    write_table(draw, "csv", [*rows, {"file_name": "b.png", "captions": "plain, text"}])
    found = captions(draw.folder / "data")
    assert found == {"a.png": ("one", "two"), "b.png": ("plain, text",)}


def test_rows_of_one_picture_are_joined(draw) -> None:
    rows = [{"file_name": name, "caption": text} for name, text in ("a1", "a2", "a1", "b3")]
    write_table(draw, "csv", rows)
    assert captions(draw.folder / "data") == {"a": ("1", "2"), "b": ("3",)}


def test_the_field_to_split_by(draw) -> None:
    rows = [{"file_name": "a", "text": "t", "base": 7}, {"file_name": "b", "text": "t"}]
    write_table(draw, "jsonl", rows)
    assert [r.group for r in read(draw.folder / "data", "base")[0]] == ["7", None]
    assert [r.group for r in read(draw.folder / "data")[0]] == [None, None]


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        ("{broken", "bad_row", "not JSON"),
        ("[1, 2]", "bad_row", "not a JSON object but a list"),
        ('{"text": "no name"}', "bad_row", "the row has no file_name"),
        ('{"file_name": "a.png"}', "captionless", "row 2 of metadata.jsonl has no caption"),
        (
            '{"file_name": "a.png", "text": " "}',
            "captionless",
            "row 2 of metadata.jsonl has no caption",
        ),
        ('{"file_name": "a.png", "text": 5}', "bad_caption", "`text` holds something other"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "bad_caption", "lone surrogate"),
        ('{"file_name": "a.png", "captions": "[1"}', "bad_caption", "is not a JSON list"),
        ('{"file_name": "../a.png", "text": "t"}', "outside", "leads out of the folder"),
        ('{"file_name": "/etc/a.png", "text": "t"}', "outside", "leads out of the folder"),
    ],
)
def test_bad_rows_are_named(draw, line: str, kind: str, reason: str) -> None:
    good = '{"file_name": "good.png", "text": "good"}'
    draw.file("data/metadata.jsonl", f"{good}\n{line}\n\n")
    records, [skipped] = read(draw.folder / "data")
    assert len(records) == 1 and skipped.kind == kind and reason in skipped.reason


def test_tables_in_subfolders_name_files_beside_them(draw) -> None:
    for split in ("train", "test"):
        draw.image(f"data/{split}/a.png", 1)
        draw.file(f"data/{split}/metadata.jsonl", '{"file_name": "a.png", "text": "t"}')
    assert set(captions(draw.folder / "data")) == {"train/a.png", "test/a.png"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_without_the_columns_is_refused(draw, suffix: str) -> None:
    write_table(draw, suffix, [{"image": "a.png", "label": "x"}])
    with pytest.raises(DataError, match=r"lacks columns: .*one of text, caption.* got: image, l"):
        read(draw.folder / "data")


@pytest.mark.parametrize(
    ("name", "content"),
    [("metadata.csv", b"file_name,text\n\x81\xfe,x"), ("metadata.parquet", b"no parquet")],
)
def test_a_table_that_cannot_be_read_is_refused(draw, name: str, content: bytes) -> None:
    draw.file(f"data/{name}", content)
    with pytest.raises(DataError, match="Cannot read the table"):
        read(draw.folder / "data")


def test_parquet_without_pyarrow_says_what_to_install(draw, monkeypatch) -> None:
    write_table(draw, "parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"package `pyarrow.*pip install 'tessella\[parquet\]'"):
        read(draw.folder / "data")


# --- shards --------------------------------------------------------------------------------


def test_a_shard(draw) -> None:
    png = draw.content
    long = "long/" * 40
    shard = draw.tar(
        "x.tar",
        {
            "a.webp": png(1), "a.txt": "one\ntwo", "a.json": '{"caption": "unused", "base": "A"}',
            "b.json": '{"caption": "from json"}', "b.png": png(2),
            f"{long}c.v1.png": png(3), f"{long}c.v1.txt": "c ü🐙",
            "d.png": png(4), "d.txt": " ", "d.json": '{"captions": ["d1", "d2"]}',
            "other/a.png": png(5), "other/a.txt": "another a",
            "README.md": "hello", ".hidden.png": png(6),
        },
    )  # fmt: skip
    records, skipped = read(shard, "base")
    assert not skipped
    assert [r.captions for r in records] == [
        ("one", "two"), ("from json",), ("c ü🐙",), ("d1", "d2"), ("another a",),
    ]  # fmt: skip
    assert [r.group for r in records] == ["A", None, None, None, None]
    assert records[0].name == f"{shard}/a.webp"
    content = shard.read_bytes()
    for number, record in enumerate(records, start=1):
        place = record.location
        assert content[place.offset : place.offset + place.size] == png(number)


@pytest.mark.parametrize(
    ("members", "kind", "reason"),
    [
        ({"a.png": "x"}, "captionless", "no .txt, .caption, .cap, .json or .cls with the same key"),
        ({"a.png": "x", "a.json": '{"label": 3}'}, "captionless", "has a caption"),
        ({"a.txt": "x"}, "imageless", "no picture has the same key"),
        ({"a.png": "x", "a.jpg": "x", "a.txt": "t"}, "ambiguous", "2 pictures have the same key"),
        ({"a.png": "x", "a.txt": b"\xff\x81"}, "bad_caption", "not UTF-8"),
        ({"a.png": "x", "a.json": "{"}, "bad_caption", "not JSON"),
    ],
)
def test_bad_samples_are_named(draw, members, kind: str, reason: str) -> None:
    shard = draw.tar("x.tar", {**members, "good.png": "x", "good.txt": "t"})
    records, [skipped] = read(shard)
    assert len(records) == 1 and skipped.kind == kind and reason in skipped.reason


def test_a_folder_of_shards(draw) -> None:
    draw.shard("data/2.tar", range(2, 4))
    draw.shard("data/1.tar", range(2))
    source = recognise(str(draw.folder / "data"))
    assert source.kind == "shards"
    records, skipped = read(draw.folder / "data")
    assert [r.captions[0] for r in records] == [f"picture {n}" for n in range(4)]
    assert not skipped


def test_a_tar_that_is_cut_off_is_refused(draw) -> None:
    shard = draw.shard("x.tar", range(9))
    shard.write_bytes(shard.read_bytes()[:10_000])
    with pytest.raises(DataError, match=r"The tar is cut off: `.*x\.tar`\. It ends in or after `0"):
        read(shard)


def test_a_tar_that_is_cut_off_in_its_last_picture_is_refused(draw) -> None:
    shard = draw.tar("x.tar", {"a.txt": "t", "a.png": bytes(5000)})
    shard.write_bytes(shard.read_bytes()[:4000])
    with pytest.raises(DataError, match="cut off"):
        read(shard)


@pytest.mark.parametrize("content", [b"", b"no tar at all", os.urandom(3000)])
def test_what_is_no_tar_is_refused(draw, content: bytes) -> None:
    shard = draw.file("x.tar", content)
    with pytest.raises(DataError, match=r"Cannot read the tar: `.*x\.tar`"):
        read(shard)


# tarfile takes a damaged header, or the end of the file between two members, for the regular end
# of the tar: the pictures after it would be lost without a word.
def test_a_tar_broken_in_the_middle_is_refused(draw) -> None:
    shard = draw.shard("x.tar", range(9))
    content = bytearray(shard.read_bytes())
    place = content.index(b"0004.png")
    content[place : place + 512] = b"\x7f" * 512
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot read the tar: .* Broken in or after `0003\.json`"):
        read(shard)


def test_a_tar_that_is_cut_off_between_two_files_is_refused(draw) -> None:
    shard = draw.shard("x.tar", range(9))
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b"0004.png")])
    with pytest.raises(DataError, match=r"cut off: .* It ends in or after `0003\.json`"):
        read(shard)


def test_a_tar_that_vanishes_is_an_error(draw) -> None:
    source = recognise(str(draw.shard("x.tar", range(2))))
    (draw.folder / "x.tar").unlink()
    with pytest.raises(DataError, match=r"Cannot read the file: .*No such file"):
        list(source.records())


# --- scenes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scenes", "scenes2"])
def test_scenes(name: str) -> None:
    source = recognise(f"{name}:12")
    assert (source.kind, source.count) == ("scenes", 12)
    records = list(source.records(seed=3))
    assert len(records) == 12
    assert records[5].name == f"{name}:12/5"
    assert records[5].location == SceneLocation(3, 5, name)


@pytest.mark.parametrize(
    "given", ["scenes:", "scenes:0", "scenes:-1", "scenes:many", "scenes2:", "scenes2:0"]
)
def test_scenes_need_a_number(given: str) -> None:
    example = f"For example {given.partition(':')[0]}:50000"
    with pytest.raises(DataError, match=f"Expected a number of scenes: `{given}`. {example}"):
        recognise(given)


# --- what is refused -----------------------------------------------------------------------


def test_nothing_named_is_refused() -> None:
    with pytest.raises(DataError, match="No data was named"):
        recognise_all([])


def test_the_same_data_twice_is_refused(draw) -> None:
    folder = draw.captioned(1)
    with pytest.raises(DataError, match="The same data is named twice"):
        recognise_all([str(folder), f"{folder}/../data"])


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no such data: `.*nothing`\. DATA may be: "):
        recognise(str(tmp_path / "nothing"))


def test_a_file_of_another_kind_is_refused(draw) -> None:
    with pytest.raises(DataError, match=r"Not data that can be read: `.*notes\.md`"):
        recognise(str(draw.file("notes.md", "hello")))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No pictures found: .*scenes:N"):
        recognise(str(tmp_path))


def test_pictures_without_captions_are_refused(draw) -> None:
    draw.image("data/a.png", 1)
    draw.image("data/sub/b.png", 2)
    message = r"no captions: `.*` holds 2 pictures, 0 of them with a \.txt .* 1 lie directly"
    with pytest.raises(DataError, match=message):
        recognise(str(draw.folder / "data"))


def test_shards_beside_pictures_are_refused(draw) -> None:
    folder = draw.captioned(2)
    draw.shard("data/x.tar", range(2))
    with pytest.raises(DataError, match=r"Cannot tell .* 2 pictures, .* and 1 \.tar shards"):
        recognise(str(folder))


def test_a_table_beside_shards_is_refused(draw) -> None:
    draw.shard("data/x.tar", range(2))
    draw.file("data/metadata.csv", "file_name,text")
    with pytest.raises(DataError, match=r"holds metadata\.csv and 1 \.tar shards"):
        recognise(str(draw.folder / "data"))


def test_two_tables_in_one_folder_are_refused(draw) -> None:
    draw.file("data/metadata.csv", "file_name,text")
    draw.file("data/metadata.jsonl", "")
    with pytest.raises(DataError, match=r"several tables in one folder: metadata\.csv, metadata"):
        recognise(str(draw.folder / "data"))


def test_a_folder_that_cannot_be_listed_is_refused(draw, monkeypatch) -> None:
    folder = draw.captioned(1)

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"Cannot list the folder: .*Permission denied"):
        recognise(str(folder))
