"""Every way in which people keep captions beside pictures gives the right pairs, and says so."""

import csv
import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from tessella.data.records import Record, Skipped
from tessella.data.sources import recognise
from tessella.errors import DataError


def read(path: object, split_by: str | None = None) -> tuple[list[Record], list[Skipped]]:
    items = list(recognise(str(path)).records(split_by=split_by))
    records = [item for item in items if isinstance(item, Record)]
    return records, [item for item in items if isinstance(item, Skipped)]


def pairs(path: Path) -> dict[str, tuple[str, ...]]:
    """The captions of every picture; nothing may be skipped, and every origin is told before."""
    source = recognise(str(path))
    records, skipped = read(path)
    assert not skipped
    assert len({record.name for record in records}) == len(records)
    assert all(record.origin for record in records) and source.origins
    return {os.path.relpath(record.name, path): record.captions for record in records}


def origins(path: Path) -> set[str]:
    return {record.origin for record in read(path)[0]}


def numbered(draw, *names: str) -> dict[str, tuple[str, ...]]:
    """Draws pictures, and returns the right pairs: the name of each is its caption."""
    for number, name in enumerate(names):
        draw.image(f"data/{name}", number)
    return {name: (f"this is {name} indeed",) for name in names}


FOUR = ("images/1.png", "images/2.png", "images/3.png", "images/4.png")


# --- sidecars ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a red dog"),
        ("a.caption", "a red dog\n"),  # kohya
        ("a.cap", "a red dog"),
        ("a.tags", "a red dog"),
        ("a.png.txt", "a red dog"),
        ("a.png.json", '{"width": 3, "title": "a red dog"}'),
        ("a.json", '{"caption": "a red dog", "url": "http://x/y"}'),  # img2dataset
        ("a.json", '{"prompt": "a red dog", "seed": 3}'),
        ("a.json", '{"captions": ["a red dog"], "tags": ["no", "yes"]}'),
        ("A.TXT", "a red dog"),
    ],
)
def test_sidecars(draw, name: str, content: str) -> None:
    draw.image("data/10_sks dog/a.png", 1)
    draw.file(f"data/10_sks dog/{name}", content)
    assert pairs(draw.folder / "data") == {"10_sks dog/a.png": ("a red dog",)}
    assert recognise(str(draw.folder / "data")).kind == "captions"
    suffix = name.lower()[name.rindex(".") :]
    assert origins(draw.folder / "data") == {f"captions from the {suffix} beside each picture"}


def test_raw_files_beside_their_pictures_are_no_pictures_of_their_own(draw) -> None:
    """As cameras write both: the raw file is not read, and nothing is missing."""
    for number, name in enumerate(("IMG_1", "IMG_2")):
        draw.image(f"data/{name}.png", number)
        draw.file(f"data/{name}.CR2", "II*\0")
        draw.file(f"data/{name}.txt", f"picture {number}")
    assert pairs(draw.folder / "data") == {
        "IMG_1.png": ("picture 0",),
        "IMG_2.png": ("picture 1",),
    }
    told = "2 raw files and the like left out: read from the picture beside each"
    assert told in recognise(str(draw.folder / "data")).notes
    # Alone it is one that is missing.
    draw.file("data/IMG_3.CR2", "II*\0")
    draw.file("data/IMG_3.txt", "picture 3")
    assert len(read(draw.folder / "data")[0]) == 3
    assert told in recognise(str(draw.folder / "data")).notes


def test_raw_files_do_not_make_names_in_tables_ambiguous(draw) -> None:
    for number, name in enumerate(("IMG_1", "IMG_2")):
        draw.image(f"data/{name}.png", number)
        draw.file(f"data/{name}.dng", "II*\0")
    draw.file("data/captions.csv", "id,caption\nIMG_1,a red dog\nIMG_2,a blue cat\n")
    expected = {"IMG_1.png": ("a red dog",), "IMG_2.png": ("a blue cat",)}
    assert pairs(draw.folder / "data") == expected


def test_lists_of_tags_are_one_caption(draw) -> None:
    for number, name in enumerate("abc"):
        draw.image(f"data/{name}.png", number)
    draw.file("data/a.json", '{"tags": ["dog", "red"]}')
    draw.file("data/b.tags", "dog\nred\n")
    draw.file("data/c.tags", "dog, red")
    assert set(pairs(draw.folder / "data").values()) == {("dog, red",)}


def test_a_blank_sidecar_leaves_it_to_the_next(draw) -> None:
    draw.image("data/a.png", 1)
    draw.file("data/a.txt", " \n")
    draw.file("data/a.caption", "a red dog")
    draw.image("data/b.png", 2)
    draw.file("data/b.txt", "the text")
    draw.file("data/b.json", '{"caption": "of less worth"}')
    assert pairs(draw.folder / "data") == {"a.png": ("a red dog",), "b.png": ("the text",)}


def test_a_json_without_a_caption_is_none(draw) -> None:
    numbered(draw, "a.png", "b.png")
    draw.file("data/a.json", '{"shapes": [], "imagePath": "a.png"}')
    draw.file("data/b.txt", "b")
    records, [skipped] = read(draw.folder / "data")
    assert len(records) == 1
    assert (skipped.kind, skipped.reason) == ("captionless", "its .json has no caption")


def test_boxes_of_objects_are_no_captions(draw) -> None:
    numbered(draw, "a.png", "b.png")
    draw.file("data/a.txt", "0 0.5 0.5 0.1 0.25\n17 0.1 0.2 0.3 0.4\n")
    draw.file("data/b.txt", "7")
    records, [skipped] = read(draw.folder / "data")
    assert [record.captions for record in records] == [("7",)]
    assert (skipped.kind, Path(skipped.name).name) == ("bad_caption", "a.png")
    assert "boxes" in skipped.reason


def test_boxes_beside_pictures_hide_no_captions_elsewhere(draw) -> None:
    expected = numbered(draw, *FOUR)
    for name in FOUR:
        draw.file(f"data/{name.replace('.png', '.txt')}", "0 0.5 0.5 0.1 0.25")
    rows = [f"{name},{text}" for name, [text] in expected.items()]
    draw.file("data/captions.csv", "\n".join(["image,caption", *rows]))
    assert pairs(draw.folder / "data") == expected


def test_names_that_differ_in_case_or_composition_pair(draw) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    numbered(draw, "IMG_1.JPG", f"{decomposed}.png", "a.png", "A.png")
    draw.file("data/img_1.Txt", "one")
    draw.file(f"data/{composed}.txt", "coffee")
    draw.file("data/a.txt", "small")
    draw.file("data/A.txt", "large")
    assert pairs(draw.folder / "data") == {
        "IMG_1.JPG": ("one",),
        f"{decomposed}.png": ("coffee",),
        "a.png": ("small",),
        "A.png": ("large",),
    }


def test_a_name_that_is_right_is_not_lent_to_another(draw) -> None:
    numbered(draw, "a.png", "A.png")
    draw.file("data/a.txt", "small")
    records, [skipped] = read(draw.folder / "data")
    assert [Path(record.name).name for record in records] == ["a.png"]
    assert Path(skipped.name).name == "A.png"


# --- texts in a sibling folder -------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("images/{}.png", "captions/{}.txt"),
        ("images/{}.png", "{}.txt"),
        ("{}.png", "captions/{}.txt"),
        ("images/train/{}.png", "labels/train/{}.txt"),
        ("train/images/{}.png", "train/captions/{}.caption"),
        ("train_images/{}.png", "train_captions/{}.txt"),
        ("img/{}.png", "json/{}.json"),
        ("Photos/{}.png", "Texts/{}.png.txt"),
        ("images/001.Crow/{}.png", "text_c10/001.Crow/{}.txt"),
    ],
)
def test_texts_in_a_sibling_folder(draw, image: str, text: str) -> None:
    expected = numbered(draw, *(image.format(number) for number in range(4)))
    for number in range(4):
        caption = f"this is {image.format(number)} indeed"
        content = json.dumps({"caption": caption}) if text.endswith("json") else caption
        draw.file(f"data/{text.format(number)}", content)
    assert pairs(draw.folder / "data") == expected
    [origin] = origins(draw.folder / "data")
    assert "of the same name in " in origin


def test_sibling_folders_of_two_splits_are_not_mixed_up(draw) -> None:
    expected = numbered(draw, "images/train/1.png", "images/val/1.png")
    for side in ("train", "val"):
        draw.file(f"data/labels/{side}/1.txt", f"this is images/{side}/1.png indeed")
    assert pairs(draw.folder / "data") == expected


def test_a_text_that_two_pictures_may_mean_is_neithers(draw) -> None:
    numbered(draw, "images/1.png", "photos/1.png", "images/2.png")
    draw.file("data/captions/1.txt", "which?")
    draw.file("data/captions/2.txt", "two")
    records, skipped = read(draw.folder / "data")
    assert [record.captions for record in records] == [("two",)]
    assert Counter(one.kind for one in skipped) == {"captionless": 2, "imageless": 1}
    assert (
        "1 texts of another folder may be of several pictures"
        in recognise(str(draw.folder / "data")).notes[0]
    )


def test_texts_of_boxes_in_a_sibling_folder_are_told(draw) -> None:
    numbered(draw, "cats/images/1.png", "dogs/images/1.png")
    draw.file("data/cats/labels/1.txt", "0 0.5 0.5 0.1 0.25")
    draw.file("data/dogs/labels/1.txt", "1 0.5 0.5 0.1 0.25")
    assert set(pairs(draw.folder / "data").values()) == {("cats",), ("dogs",)}
    assert recognise(str(draw.folder / "data")).notes == (
        "the texts of the same name in labels are no captions",
    )


def test_a_spreadsheet_is_to_be_saved_as_a_csv(draw) -> None:
    numbered(draw, "1.png")
    draw.file("data/captions.xlsx", b"PK")
    with pytest.raises(DataError, match=r"captions\.xlsx is not read: save it as a CSV; 1 lie dir"):
        recognise(str(draw.folder / "data"))


def test_the_folder_of_captions_goes_before_that_of_labels(draw) -> None:
    expected = numbered(draw, "images/1.png")
    draw.file("data/labels/1.txt", "3")
    draw.file("data/captions/1.txt", "this is images/1.png indeed")
    assert pairs(draw.folder / "data") == expected


# --- tables --------------------------------------------------------------------------------


def write(draw, name: str, rows: list[dict[str, object]]) -> Path:
    """Writes a table as the suffix says."""
    path = draw.file(f"data/{name}", "")
    if name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith("json"):
        path.write_text(json.dumps(rows, indent=1))
    elif name.endswith("parquet"):
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if "tsv" in name else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("file", "caption"), [("image", "caption"), ("Filename", "TEXT"), ("bild", "beschreibung")]
)
def test_any_table_of_the_pictures(draw, suffix: str, file: str, caption: str) -> None:
    expected = numbered(draw, *FOUR)
    rows: list[dict[str, object]] = [
        {"width": "16", file: Path(name).name, caption: text, "licence": "CC0"}
        for name, [text] in expected.items()
    ]
    table = write(draw, f"all.{suffix}", rows)
    assert recognise(str(draw.folder / "data")).kind == "table"
    assert pairs(draw.folder / "data") == expected
    told = recognise(str(draw.folder / "data")).origins
    assert told == (f"captions from all.{suffix}, column {caption}",) == (*origins(table.parent),)
    # The table may be named itself, and may lie beside the folder that is named.
    assert {r.captions for r in read(table)[0]} == set(expected.values())
    beside = pairs(draw.folder / "data" / "images")
    assert beside == {Path(name).name: caption for name, caption in expected.items()}


def test_flickr8k(draw) -> None:
    expected = numbered(draw, "Images/1000_a.jpg", "Images/1001_b.jpg")
    lines = ["image,caption"]
    for number in range(3):
        for name in ("1000_a.jpg", "1001_b.jpg"):
            lines.append(f'{name},"{name}, caption {number} ."')
    draw.file("data/captions.txt", "\n".join(lines))
    found = pairs(draw.folder / "data")
    assert found.keys() == expected.keys()
    assert found["Images/1001_b.jpg"] == tuple(f"1001_b.jpg, caption {n} ." for n in range(3))
    assert origins(draw.folder / "data") == {"captions from captions.txt, column caption"}
    assert len(pairs(draw.folder / "data" / "Images")) == 2


def test_flickr8k_as_it_was_first_given_away(draw) -> None:
    names = ("1000_a.jpg", "1001_b.jpg")
    numbered(draw, *(f"Flicker8k_Dataset/{name}" for name in names))
    text = "data/Flickr8k_text/"
    rows = [f"{name}#{n}\tA dog , {name} {n} ." for name in names for n in range(2)]
    draw.file(f"{text}Flickr8k.token.txt", "\n".join(rows))
    draw.file(f"{text}Flickr8k.lemma.token.txt", "\n".join(rows).replace("A dog", "a dog lemma"))
    draw.file(f"{text}Flickr_8k.trainImages.txt", "1000_a.jpg\n")
    draw.file(f"{text}ExpertAnnotations.txt", "1000_a.jpg\t1001_b.jpg#2\t1\t1\t2\n" * 2)
    draw.file(f"{text}readme.txt", "hello")
    records, skipped = read(draw.folder / "data")
    assert not skipped
    assert {Path(r.name).name: r.captions for r in records} == {
        name: (f"A dog , {name} 0 .", f"A dog , {name} 1 .") for name in names
    }


def test_flickr30k(draw) -> None:
    numbered(draw, "flickr30k_images/1.jpg", "flickr30k_images/2.jpg")
    rows = [f"{n}.jpg| {k}| Dogs {n} , {k} ." for n in (1, 2) for k in (0, 1)]
    header = "image_name| comment_number| comment"
    draw.file("data/results.csv", "\n".join([header, *rows]))
    assert pairs(draw.folder / "data") == {
        f"flickr30k_images/{n}.jpg": (f"Dogs {n} , 0 .", f"Dogs {n} , 1 .") for n in (1, 2)
    }


@pytest.mark.parametrize("line", ["{} a red dog, {}", "{}: a red dog, {}", "{}\ta red dog, {}"])
def test_lists_without_a_header(draw, line: str) -> None:
    numbered(draw, *FOUR)
    names = [Path(name).name for name in FOUR]
    draw.file("data/list.txt", "\n".join(line.format(name, name[0]) for name in names))
    assert pairs(draw.folder / "data") == {
        f"images/{name}": (f"a red dog, {name[0]}",) for name in names
    }


def test_captions_in_the_order_of_the_pictures_are_not_guessed(draw) -> None:
    numbered(draw, "images/1.png", "images/2.png")
    for text in ("caption 1\ncaption 2", "a dog, 1\na dog, 2", "a dog\na cat"):
        draw.file("data/captions.txt", text)
        with pytest.raises(DataError, match="have no captions"):
            recognise(str(draw.folder / "data"))


def test_llavas_conversations(draw) -> None:
    expected = numbered(draw, *FOUR)
    rows = [
        {
            "image": n,
            "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": t}],
        }
        for n, [t] in expected.items()
    ]
    draw.file("data/llava.json", json.dumps(rows))
    assert pairs(draw.folder / "data") == expected


def test_several_columns_of_captions(draw) -> None:
    numbered(draw, *FOUR)
    names = [Path(name).name for name in FOUR]
    write(draw, "t.csv", [{"img": n, "caption_1": f"{n} x", "caption_2": f"{n} y"} for n in names])
    found = pairs(draw.folder / "data")
    assert found["images/2.png"] == ("2.png x", "2.png y")


def test_names_without_a_suffix(draw) -> None:
    expected = numbered(draw, "images/St. Mary 1.png", "images/b.png")
    rows = [{"id": Path(name).stem, "text": text} for name, [text] in expected.items()]
    write(draw, "t.csv", rows)
    assert pairs(draw.folder / "data") == expected


@pytest.mark.parametrize(
    "name",
    [
        "images\\{}.png",
        ".\\images\\{}.PNG",
        "IMAGES/{}.png",
        "/home/her/project/images/{}.png",
        "C:\\Users\\her\\project\\images\\{}.png",
        "C:/project/photos/{}.png",
        "file:///srv/images/{}.png",
        "data/images/{}.png",
        "images/../images/{}.png",
    ],
)
def test_names_as_other_computers_write_them(draw, name: str) -> None:
    expected = numbered(draw, *FOUR)
    rows = [
        {"file_name": name.format(n), "text": f"this is images/{n}.png indeed"} for n in range(1, 5)
    ]
    for table in ("metadata.csv", "captions/all.jsonl"):
        path = write(draw, table, rows)  # type: ignore[arg-type]
        assert pairs(draw.folder / "data") == expected
        path.unlink()


def test_names_of_which_the_folder_contradicts_are_missing(draw) -> None:
    numbered(draw, "train/1.png", "test/2.png", "1.png")
    rows = [{"file_name": n, "text": "t"} for n in ("train/1.png", "train/2.png", "test/1.png")]
    write(draw, "metadata.jsonl", rows)
    records, skipped = read(draw.folder / "data")
    # The two others are records of files that are not there.
    found = {os.path.relpath(r.name, draw.folder / "data") for r in records}
    assert found == {"train/1.png", "train/2.png", "test/1.png"}
    assert {Path(one.name).name for one in skipped} == {"1.png", "2.png"}
    assert {one.reason for one in skipped} == {"no row of metadata.jsonl names it"}


def test_a_name_that_several_pictures_have_is_none_of_them(draw) -> None:
    numbered(draw, "one/1.png", "two/1.png", "one/2.png", "one/3.png")
    write(draw, "t.csv", [{"file": f"{n}.png", "text": f"t{n}"} for n in (1, 2, 3)])
    records, skipped = read(draw.folder / "data")
    there = [record for record in records if Path(record.name).exists()]
    assert {r.captions for r in there} == {("t2",), ("t3",)}
    assert {os.path.relpath(s.name, draw.folder / "data") for s in skipped} == {
        "one/1.png",
        "two/1.png",
    }


def test_two_names_that_may_mean_one_picture_are_refused(draw) -> None:
    numbered(draw, "1.png", "2.png")
    rows = [{"file_name": n, "text": n} for n in ("/a/x/1.png", "/a/y/1.png", "2.png")]
    write(draw, "metadata.jsonl", rows)
    [record], [skipped] = read(draw.folder / "data")
    assert record.captions == ("2.png",)
    assert skipped.kind == "ambiguous" and "/a/y/1.png" in skipped.reason


def test_pictures_that_no_row_names_are_counted(draw) -> None:
    names = [f"{number}.png" for number in range(6)]
    numbered(draw, *names)
    for table in ("metadata.csv", "train.csv"):
        path = write(draw, table, [{"file_name": name, "text": name} for name in names[:3]])
        records, skipped = read(draw.folder / "data")
        assert [record.captions for record in records] == [(name,) for name in names[:3]]
        assert [Path(s.name).name for s in skipped] == names[3:]
        assert {(s.kind, s.reason) for s in skipped} == {
            ("captionless", f"no row of {table} names it")
        }
        # Whoever names the table means what it lists.
        assert len(read(path)[0]) == 3 and not read(path)[1]
        path.unlink()


def test_rows_of_one_picture_may_be_far_apart(draw) -> None:
    numbered(draw, "a.png", "b.png")
    rows = [
        {"file_name": n, "text": t} for n, t in (("a.png", "1"), ("b.png", "2"), ("a.png", "3"))
    ]
    write(draw, "metadata.jsonl", rows)  # type: ignore[arg-type]
    assert pairs(draw.folder / "data") == {"a.png": ("1", "3"), "b.png": ("2",)}


def test_a_table_beside_the_folder_must_fit_most_of_it(draw) -> None:
    numbered(draw, *FOUR)
    rows = [{"file_name": f"{n}.png", "text": "of another set"} for n in range(4, 40)]
    for name in ("metadata.csv", "metadata.jsonl", "other.csv"):
        path = write(draw, name, rows)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="have no captions"):
            recognise(str(draw.folder / "data" / "images"))
        path.unlink()


def test_the_first_table_that_lists_a_picture_counts(draw) -> None:
    expected = numbered(draw, *FOUR)
    rows = [{"file": Path(n).name, "text": t} for n, [t] in expected.items()]
    write(draw, "captions.csv", rows)  # type: ignore[arg-type]
    write(draw, "a.csv", [{**row, "text": "worse"} for row in rows])
    notes: Counter[str] = Counter()
    list(recognise(str(draw.folder / "data")).records(notes=notes))
    assert pairs(draw.folder / "data") == expected
    assert list(notes) == ["a.csv not used: earlier tables list its pictures"]


def test_a_table_that_cannot_be_read_is_told(draw) -> None:
    expected = numbered(draw, *FOUR)
    write(draw, "captions.csv", [{"file": Path(n).name, "text": t} for n, [t] in expected.items()])
    draw.file("data/broken.parquet", "no parquet")
    assert pairs(draw.folder / "data") == expected
    assert "Cannot read the table" in recognise(str(draw.folder / "data")).notes[0]


# --- CSV as people write it ----------------------------------------------------------------


def test_unquoted_commas_in_the_last_column_are_joined(draw) -> None:
    numbered(draw, "1.png", "2.png")
    draw.file("data/captions.csv", "file,caption\n1.png,a dog, red, large\n2.png,a cat\n")
    notes: Counter[str] = Counter()
    list(recognise(str(draw.folder / "data")).records(notes=notes))
    assert pairs(draw.folder / "data") == {"1.png": ("a dog, red, large",), "2.png": ("a cat",)}
    assert notes == {"rows of captions.csv with unquoted text joined": 1}


@pytest.mark.parametrize("header", ["file,caption,author", "caption,file"])
def test_unquoted_commas_elsewhere_are_a_bad_row(draw, header: str) -> None:
    numbered(draw, "1.png", "2.png")
    rows = ["1.png,a dog, red,me", "2.png,a cat,you"]
    if header == "caption,file":
        rows = ["a dog, red,1.png", "a cat,2.png"]
    draw.file("data/captions.csv", "\n".join([header, *rows]))
    [record], skipped = read(draw.folder / "data")
    assert record.captions == ("a cat",)
    assert [s.kind for s in skipped] == ["bad_row", "captionless"]
    assert "cells for" in skipped[0].reason and skipped[0].name.endswith("captions.csv:1")


def test_a_quote_that_is_not_closed_is_a_bad_row(draw) -> None:
    numbered(draw, "1.png", "2.png", "3.png")
    draw.file("data/captions.csv", 'file,caption\n1.png,"a dog\n2.png,a cat\n3.png,"a cow"\n')
    records, skipped = read(draw.folder / "data")
    assert all("a cat" not in caption for r in records for caption in r.captions)
    assert "a quote is not closed" in skipped[0].reason or "a quote" in skipped[-1].reason


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("first", ["", "sep"])
def test_what_excel_saves(draw, delimiter: str, encoding: str, first: str) -> None:
    expected = numbered(draw, *FOUR)
    lines = [f"sep={delimiter}"] if first else []
    lines += [delimiter.join(("Datei", "Text", "", ""))]
    lines += [
        delimiter.join((Path(name).name, f"{text}, schön, größer", "", ""))
        for name, [text] in expected.items()
    ]
    draw.file("data/Mappe1.csv", "\r\n".join(lines).encode(encoding))
    assert pairs(draw.folder / "data") == {
        name: (f"{text}, schön, größer",) for name, [text] in expected.items()
    }
    [origin] = origins(draw.folder / "data")
    assert "column Text" in origin and ("CP1252" in origin) == (encoding == "cp1252")


@pytest.mark.parametrize("name", ["metadata.jsonl", "all.jsonl", "all.json"])
def test_a_json_list_under_any_name(draw, name: str) -> None:
    expected = numbered(draw, *FOUR)
    rows = [{"file_name": n, "text": t} for n, [t] in expected.items()]
    for text in (json.dumps(rows), json.dumps(rows, indent=2), "\n".join(map(json.dumps, rows))):
        draw.file(f"data/{name}", text)
        assert pairs(draw.folder / "data") == expected


# --- annotations ---------------------------------------------------------------------------


def coco(draw, side: str, *, captions: bool = True, instances: bool = True) -> None:
    names = [f"00000000000{number}.jpg" for number in (3, 1, 2)]
    for number, name in enumerate(names):
        draw.image(f"data/{side}2017/{name}", number + 10 * (side == "val"))
    images = [{"id": 7 * n, "file_name": name, "height": 16} for n, name in enumerate(names)]
    document = {"info": {}, "licenses": [{"id": 1, "name": "CC"}], "images": images}
    told = [
        {"id": 10 * k + n, "image_id": 7 * n, "caption": f"{side} {names[n]} {k}"}
        for k in range(2)
        for n in (2, 0, 1)
    ]
    shown = ((0, 1), (1, 2), (0, 2), (0, 1), (2, 1))
    boxes = [{"image_id": 7 * n, "category_id": c, "bbox": [0, 0, 1, 1]} for n, c in shown]
    kinds = {"categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "frisbee"}]}
    folder = "data/annotations/"
    if captions:
        draw.file(
            f"{folder}captions_{side}2017.json", json.dumps({**document, "annotations": told})
        )
    if instances:
        content = {**document, "annotations": boxes, **kinds}
        draw.file(f"{folder}instances_{side}2017.json", json.dumps(content))


def test_coco_captions(draw) -> None:
    coco(draw, "train")
    coco(draw, "val")
    records, skipped = read(draw.folder / "data")
    assert not skipped and len(records) == 6
    for record in records:
        path = Path(record.name)
        side = path.parent.name.removesuffix("2017")
        assert record.captions == (f"{side} {path.name} 0", f"{side} {path.name} 1")
        assert record.side == ("train" if side == "train" else "validation")
    assert origins(draw.folder / "data") == {
        f"captions from annotations/captions_{side}2017.json (COCO's captions)"
        for side in ("train", "val")
    }
    # The pictures' folder alone may be named too.
    assert len(pairs(draw.folder / "data" / "val2017")) == 3


def test_coco_instances_are_keywords(draw) -> None:
    coco(draw, "train", captions=False)
    assert pairs(draw.folder / "data") == {
        "train2017/000000000003.jpg": ("dog, frisbee",),
        "train2017/000000000001.jpg": ("frisbee",),
        "train2017/000000000002.jpg": ("dog",),
    }
    [origin] = origins(draw.folder / "data")
    assert origin.endswith("(COCO's instances, their names as keywords)")


def test_karpathys_splits(draw) -> None:
    numbered(draw, "Flicker8k_Dataset/1.jpg", "Flicker8k_Dataset/2.jpg", "Flicker8k_Dataset/3.jpg")
    images = [
        {"filename": f"{n}.jpg", "split": side, "sentences": [{"raw": f"A dog {n}.", "imgid": n}]}
        for n, side in ((2, "test"), (1, "train"), (3, "val"))
    ]
    draw.file("data/dataset.json", json.dumps({"images": images, "dataset": "flickr8k"}))
    records, skipped = read(draw.folder / "data")
    assert not skipped
    assert {(Path(r.name).name, r.captions, r.side) for r in records} == {
        ("1.jpg", ("A dog 1.",), "train"),
        ("2.jpg", ("A dog 2.",), "validation"),
        ("3.jpg", ("A dog 3.",), "validation"),
    }


@pytest.mark.parametrize(
    "document",
    [
        {name: f"this is {name} indeed" for name in FOUR},
        {Path(name).name: [f"this is {name} indeed"] for name in FOUR},
        {
            f"/kaggle/{name}": {"caption": f"this is {name} indeed", "tags": "x"} for name in FOUR
        },  # kohya
        {"file_name": list(FOUR), "text": [f"this is {name} indeed" for name in FOUR]},
        {
            "image": {str(n): name for n, name in enumerate(FOUR)},
            "text": {str(n): f"this is {name} indeed" for n, name in enumerate(FOUR)},
        },
        {
            "info": {},
            "data": [{"image": name, "caption": f"this is {name} indeed"} for name in FOUR],
        },
    ],
)
def test_documents_by_name_and_by_column(draw, document: object) -> None:
    expected = numbered(draw, *FOUR)
    draw.file("data/meta_cap.json", json.dumps(document))
    assert pairs(draw.folder / "data") == expected


# --- folders' names ------------------------------------------------------------------------


def test_kohyas_repeats_are_no_words(draw) -> None:
    numbered(draw, "img/10_sks dog/1.png", "img/10_sks dog/2.png", "reg/1_dog/1.png")
    draw.file("data/img/10_sks dog/2.caption", "a photo of sks dog, sleeping")
    records, skipped = read(draw.folder / "data")
    assert not skipped
    told = {os.path.relpath(r.name, draw.folder / "data"): (r.captions, r.repeats) for r in records}
    assert told == {
        "img/10_sks dog/1.png": (("sks dog",), 10),
        "img/10_sks dog/2.png": (("a photo of sks dog, sleeping",), 10),
        "reg/1_dog/1.png": (("dog",), 1),
    }
    [note] = recognise(str(draw.folder / "data")).notes
    assert "10_sks dog" in note and "repeats" in note


def test_numbers_that_count_the_folders_are_no_repeats(draw) -> None:
    numbered(draw, "1_apple/1.png", "2_pear/1.png", "3_plum/1.png")
    records, _ = read(draw.folder / "data")
    assert {(r.captions[0], r.repeats) for r in records} == {("apple", 1), ("pear", 1), ("plum", 1)}
    [note] = recognise(str(draw.folder / "data")).notes
    assert "no repeats" in note


@pytest.mark.parametrize(
    "folders",
    [["images"], ["train", "val"], ["img", "data"], ["data/train", "data/test"], ["00000", "00001"],
     ["images/train2017", "images/val2017"], ["10_images"], ["splits"]],
)  # fmt: skip
def test_a_folder_whose_name_says_nothing_is_no_caption(draw, folders: list[str]) -> None:
    numbered(draw, *(f"{folder}/{n}.png" for n, folder in enumerate(folders)))
    with pytest.raises(DataError, match=r"have no captions: .* say nothing of what they show"):
        recognise(str(draw.folder / "data"))


def test_the_folder_that_says_something_is_the_caption(draw) -> None:
    numbered(draw, "train/cats/1.png", "cats/images/2.png", "data/cats/img/3.png")
    assert set(pairs(draw.folder / "data").values()) == {("cats",)}
    numbered(draw, "images/4.png")
    records, [skipped] = read(draw.folder / "data")
    assert len(records) == 3
    assert skipped.kind == "captionless" and "says nothing about it: images" in skipped.reason


# --- splits that the data names ------------------------------------------------------------


def test_split_folders_name_the_side(draw) -> None:
    for side in ("train", "validation", "test"):
        draw.image(f"data/{side}/a.png", 1)
        draw.file(f"data/{side}/metadata.jsonl", '{"file_name": "a.png", "text": "t"}')
    records, skipped = read(draw.folder / "data")
    assert not skipped
    assert [(Path(r.name).parent.name, r.side) for r in records] == [
        ("test", "validation"),
        ("train", "train"),
        ("validation", "validation"),
    ]


def test_tables_and_columns_name_the_side(draw) -> None:
    numbered(draw, *FOUR)
    names = [Path(name).name for name in FOUR]
    write(draw, "train.csv", [{"file": name, "text": name} for name in names[:2]])
    write(draw, "test.csv", [{"file": name, "text": name} for name in names[2:]])
    assert [r.side for r in read(draw.folder / "data")[0]] == ["train"] * 2 + ["validation"] * 2
    for name in ("train.csv", "test.csv"):
        (draw.folder / "data" / name).unlink()
    sides = ["test", "train", "val", "train"]
    rows = [{"file": n, "text": n, "split": side} for n, side in zip(names, sides, strict=True)]
    write(draw, "all.csv", rows)  # type: ignore[arg-type]
    found = [r.side for r in read(draw.folder / "data")[0]]
    assert found == ["validation", "train", "validation", "train"]


def test_shards_name_the_side(draw) -> None:
    draw.shard("data/train-00000-of-00002.tar", range(2))
    draw.shard("data/test-00000-of-00001.tar", range(2, 4))
    draw.shard("data/val/0.tar", range(4, 5))
    sides = {r.captions[0]: r.side for r in read(draw.folder / "data")[0]}
    assert sides == {f"picture {n}": "train" if n < 2 else "validation" for n in range(5)}


def test_of_two_pictures_of_a_name_the_one_of_the_tables_side_is_meant(draw) -> None:
    expected = numbered(draw, "train/1.png", "test/1.png")
    for side in ("train", "test"):
        write(draw, f"{side}.csv", [{"file": "1.png", "text": f"this is {side}/1.png indeed"}])
    assert pairs(draw.folder / "data") == expected
