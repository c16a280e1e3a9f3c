"""What people's tools really write: right pairs, or an error that names the way out."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image, PngImagePlugin

from tessella.data.descriptions import read_description
from tessella.data.inspect import inspect_data
from tessella.data.names import class_caption, read_file_name
from tessella.data.prepare import prepare
from tessella.data.records import Record, Skipped
from tessella.data.settings import DataSettings
from tessella.data.sources import recognise
from tessella.errors import DataError

WORDS = ("red fox", "green dog", "blue cat", "white bird")
CAPTIONS = tuple(f"a {words} in the snow" for words in WORDS)


def read(path: object, column: str | None = None) -> tuple[dict[str, tuple[str, ...]], int]:
    """The captions by the names of files, and how many files are skipped."""
    items = list(recognise(str(path), column).records())
    found = {Path(one.name).name: one.captions for one in items if isinstance(one, Record)}
    return found, sum(isinstance(one, Skipped) for one in items)


def pictures(draw, folder: str = "data", name: str = "{}.png") -> dict[str, tuple[str, ...]]:
    """Draws four pictures, and returns the right pairs."""
    for number in range(4):
        draw.image(f"{folder}/{name.format(number)}", number)
    return {name.format(number): (CAPTIONS[number],) for number in range(4)}


def lines(row: Callable[[int], Any]) -> str:
    return "\n".join(json.dumps(row(number)) for number in range(4))


# --- tables --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        lambda i: {"messages": [{"role": "user", "content": "Describe it at great length, please"},
                                {"role": "assistant", "content": CAPTIONS[i]}],
                   "images": [f"images/{i}.png"]},
        lambda i: {"messages": [{"role": "user", "content": [{"type": "image",
                                                              "image": f"images/{i}.png"}]},
                                {"role": "assistant", "content": [{"text": CAPTIONS[i]}]}]},
        lambda i: {"query": "Describe it at great length, please: <image>",
                   "response": CAPTIONS[i], "images": [f"images/{i}.png"]},
        lambda i: {"image": f"{i}.png", "prefix": "caption the picture in English, at length",
                   "suffix": CAPTIONS[i]},
        lambda i: {"image": {"path": f"images/{i}.png", "bytes": None}, "text": CAPTIONS[i]},
        lambda i: {"id": i, "description": CAPTIONS[i]},
        lambda i: {"url": f"https://example.org/a%20b/images/{i}.png?w=200", "alt": CAPTIONS[i]},
        lambda i: {"file": f"{i}.png", "p": CAPTIONS[i], "sa": "k_euler_of_a_long_name" * 2},
        lambda i: {"data": {"image": f"/data/upload/1/0000000{i}-{i}.png"},
                   "annotations": [{"result": [{"value": {"text": [CAPTIONS[i]]}}]}]},
    ],
)  # fmt: skip
def test_rows_as_tools_write_them(draw, row: Callable[[int], Any]) -> None:
    right = pictures(draw, "data/images")
    draw.file("data/train.jsonlines", lines(row))
    assert read(draw.folder / "data") == (right, 0)


def test_names_of_classes_have_spaces(draw) -> None:
    pictures(draw)
    draw.file("data/labels.csv", "id,breed\n" + "".join(f"{i},boston_bull_{i}\n" for i in range(4)))
    found, _ = read(draw.folder / "data")
    assert found["2.png"] == ("boston bull 2",)


def test_columns_of_zeros_and_ones_are_keywords(draw) -> None:
    pictures(draw)
    draw.file(
        "data/_classes.csv", "filename, cat, old_dog\n0.png, 0, 1\n1.png, 1, 1\n2.png, 1, 0\n"
    )
    found, skipped = read(draw.folder / "data")
    assert (found, skipped) == (
        {"0.png": ("old dog",), "1.png": ("cat, old dog",), "2.png": ("cat",)},
        1,
    )


def test_columns_that_number_classes_are_no_keywords(draw) -> None:
    pictures(draw)
    draw.file("data/x.csv", "filename,label,is_train,note\n0.png,0,1,\n1.png,1,1,\n2.png,1,0,\n")
    with pytest.raises(DataError, match="the others are: label, is_train, note"):
        recognise(str(draw.folder / "data"))


# The folders say what is in them: a table of their sizes takes nothing away.
def test_a_table_without_captions_leaves_it_to_the_folders(draw) -> None:
    for number, name in enumerate(("cat", "dog")):
        draw.image(f"data/{name}/images/{number}.png", number)
    draw.file("data/x.csv", "filename,width\n0.png,16\n1.png,16\n")
    assert read(draw.folder / "data") == ({"0.png": ("cat",), "1.png": ("dog",)}, 0)
    [note] = recognise(str(draw.folder / "data")).notes
    assert note.startswith("not used: The table has no captions")


def test_a_table_without_captions_is_told_with_its_columns(draw) -> None:
    pictures(draw)
    draw.file("data/metadata.jsonl", lines(lambda i: {"file_name": f"{i}.png", "label": i % 2}))
    with pytest.raises(
        DataError, match=r"no captions: .* the others are: label\. .*caption_column"
    ):
        recognise(str(draw.folder / "data"))


def test_parquet_with_lists_of_pictures(draw) -> None:
    images = [[{"bytes": draw.content(i), "path": None}] for i in range(3)]
    images.append([{"bytes": draw.content(i), "path": None} for i in range(2)])
    (draw.folder / "data").mkdir()
    table = arrow.table({"images": images, "text": list(CAPTIONS)})
    parquet.write_table(table, draw.folder / "data" / "x.parquet")
    items = list(recognise(str(draw.folder / "data")).records())
    assert [one.captions for one in items[:3] if isinstance(one, Record)] == [
        (caption,) for caption in CAPTIONS[:3]
    ]
    assert isinstance(items[0], Record) and items[0].location.read() == draw.content(0)
    assert isinstance(items[3], Skipped) and "2 pictures" in items[3].reason


# --- texts ---------------------------------------------------------------------------------

PARAMETERS = "\nNegative prompt: ugly\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:description><rdf:Alt><rdf:li xml:lang="x-default">'
    "{}</rdf:li></rdf:Alt></dc:description></x:xmpmeta>"
)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".txt", "{}" + PARAMETERS),
        (".xmp", XMP),
        (".caption.txt", "{}"),
        (".png.supplemental-metadata.json", '{{"title": "0.png", "description": "{}"}}'),
        (".png.suppl.json", '{{"title": "0.png", "description": "{}"}}'),
        (".json", '{{"URL": "https://example.org", "TEXT": "{}"}}'),
        (".json", '{{"llava_caption": "{}", "caption_model": "llava-1.6-mistral-7b"}}'),
    ],
)
def test_texts_beside_pictures(draw, suffix: str, content: str) -> None:
    right = pictures(draw)
    for number, caption in enumerate(CAPTIONS):
        draw.file(f"data/{number}{suffix}", content.replace("{}", caption).replace("{{", "{")
                  .replace("}}", "}"))  # fmt: skip
    assert read(draw.folder / "data") == (right, 0)


def test_a_title_that_is_the_files_name_is_no_caption(draw) -> None:
    pictures(draw)
    for number in range(4):
        draw.file(f"data/{number}.png.json", json.dumps({"title": f"{number}.png"}))
    with pytest.raises(DataError, match="have no captions"):
        recognise(str(draw.folder / "data"))


def test_several_fields_that_may_be_the_caption_are_not_guessed(draw) -> None:
    pictures(draw)
    for number, caption in enumerate(CAPTIONS):
        fields = {"caption_blip": "a thing", "caption_llava": caption}
        draw.file(f"data/{number}.json", json.dumps(fields))
    [reason, *_] = [one.reason for one in recognise(str(draw.folder / "data")).records()]
    assert "caption_blip, caption_llava; name one (data.caption_column)" in reason
    found, skipped = read(draw.folder / "data", "caption_llava")
    assert (found["1.png"], skipped) == ((CAPTIONS[1],), 0)


def test_tags_of_danbooru(draw) -> None:
    pictures(draw)
    for number in range(4):
        draw.file(f"data/{number}.png.json", json.dumps({"tag_string": f"long_hair {number}girls"}))
    assert read(draw.folder / "data")[0]["3.png"] == ("long hair, 3girls",)


# --- descriptions in the pictures' own files -------------------------------------------------


def with_texts(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return saved("PNG", pnginfo=info)


def saved(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, kind, **options)
    return stream.getvalue()


def with_exif(text: str) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = text
    return saved("JPEG", exif=exif)


def with_iptc(text: str) -> bytes:
    caption = b"\x1c\x02\x78" + struct.pack(">H", len(text)) + text.encode()
    caption += bytes(len(caption) % 2)
    block = b"Photoshop 3.0\08BIM\x04\x04\0\0" + struct.pack(">I", len(caption)) + caption
    content = saved("JPEG")
    return content[:2] + b"\xff\xed" + struct.pack(">H", len(block) + 2) + block + content[2:]


def comfy(text: str) -> str:
    return json.dumps({
        "3": {"inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
        "6": {"inputs": {"text": text}},
        "7": {"inputs": {"text": "ugly"}},
    })  # fmt: skip


@pytest.mark.parametrize(
    "write",
    [
        lambda text: with_texts(parameters=text + PARAMETERS),
        lambda text: with_texts(prompt=comfy(text)),
        lambda text: with_texts(invokeai_metadata=json.dumps({"positive_prompt": text})),
        lambda text: saved("JPEG", xmp=XMP.format(text).encode()),
        with_exif,
        with_iptc,
    ],
)
def test_descriptions_in_pictures(draw, write: Callable[[str], bytes]) -> None:
    for number, caption in enumerate(CAPTIONS):
        draw.file(f"data/2023-05-01/{number}.png", write(caption))
    right = {f"{number}.png": (caption,) for number, caption in enumerate(CAPTIONS)}
    assert read(draw.folder / "data") == (right, 0)
    [origin] = recognise(str(draw.folder / "data")).origins
    assert origin == "captions from the descriptions in the pictures' own files"


@pytest.mark.parametrize(
    "text",
    [
        *("OLYMPUS DIGITAL CAMERA", "SONY DSC", "IMG_1.JPG", "123", "oplus_1048864", "dav"),
        *("filter: 0; jpegRotation: 0; hdrForward: 0", '{"hdr": "auto", "mode": "night"}'),
    ],
)
def test_what_cameras_write_is_no_caption(draw, text: str) -> None:
    assert read_description(str(draw.file("a.jpg", with_exif(text)))) == ()


def test_one_text_in_all_pictures_is_no_caption(draw) -> None:
    for number in range(4):
        draw.file(f"data/{number}.jpg", with_exif("(c) 2023 somebody"))
    with pytest.raises(DataError, match="have no captions"):
        recognise(str(draw.folder / "data"))


# --- folders -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "caption"),
    [
        ("2023-05-01", ""),
        ("May 1, 2023", ""),
        ("100APPLE", ""),
        ("JPEGImages", ""),
        ("Photos from 2023", ""),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("3", "3"),
        ("decor 1", "decor 1"),
    ],
)
def test_what_folders_say(folder: str, caption: str) -> None:
    assert class_caption([folder]) == caption


def test_what_systems_leave_is_not_seen(draw) -> None:
    right = pictures(draw)
    for number, caption in enumerate(CAPTIONS):
        draw.file(f"data/{number}.txt", caption)
        draw.image(f"data/@eaDir/{number}.png/SYNOPHOTO_THUMB_M.png", 9)
    draw.image("data/$RECYCLE.BIN/x.png", 9)
    assert read(draw.folder / "data") == (right, 0)


def test_masks_of_onetrainer_are_left_out_and_told(draw) -> None:
    right = pictures(draw)
    for number, caption in enumerate(CAPTIONS):
        draw.file(f"data/{number}.txt", caption)
        draw.image(f"data/{number}-masklabel.png", 9)
    assert read(draw.folder / "data") == (right, 0)
    assert recognise(str(draw.folder / "data")).notes == (
        "4 masks left out, of the pictures that they are named after",
    )


# Their captions were taken for those of this one, whose pictures have the same names.
def test_captions_of_a_set_beside_are_its_own(draw) -> None:
    pictures(draw)
    pictures(draw, "captions of another")
    rows = "".join(f"{i}.png,wrong {i}\n" for i in range(4))
    draw.file("captions of another/metadata.csv", f"file_name,text\n{rows}")
    with pytest.raises(DataError, match="captions of another beside it holds pictures"):
        recognise(str(draw.folder / "data"))


# --- refused, with the way out -------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("captions.yaml", "a: b", "captions.yaml is not read: save it as a CSV"),
        ("captions.sqlite", "x", "captions.sqlite is not read: save it as a CSV"),
        ("captions.csv.gz", "x", "captions.csv.gz is not read: unpack it"),
        ("annotations.xml", "<a/>", "annotations.xml is not read: save it as a CSV"),
        ("n01440764/1.png", "x", r"WordNet's numbers \(n01440764\): call them what they show"),
    ],
)
def test_what_may_hold_captions_is_named(draw, file: str, content: str, told: str) -> None:
    pictures(draw, "data/images")
    draw.file(f"data/{file}", content)
    with pytest.raises(DataError, match=told):
        recognise(str(draw.folder / "data"))


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("x.tsv", "https://example.org/1.jpg\ta dog\n", "addresses of pictures .* img2dataset"),
        ("x.jsonl", '{"image": "/9j/4AAQSkZJRg", "text": "a dog"}', "base64.* into a file"),
        ("x.csv", "label," + ",".join(f"p{i}" for i in range(20)) + "\n" + "0," * 20 + "0\n",
         "holds numbers, 21 a row: .* PNG"),
        ("x.csv", "image,text\na.jpg,a dog\n", "No picture that x.csv names is there"),
        ("train-images-idx3-ubyte.gz", "x", "an array .*PNG"),
        ("cifar/data_batch_1", "x", "a pickle .*PNG"),
        ("x.dcm", "x", "DICOM.*PNG"),
        ("x.zip.001", "x", "Unpack the archive"),
    ],
)  # fmt: skip
def test_what_holds_no_pictures_is_named(draw, file: str, content: str, told: str) -> None:
    path = draw.file(f"data/{file}", content)
    for given in (draw.folder / "data", path):
        with pytest.raises(DataError, match=told):
            recognise(str(given))


def test_a_zip_whose_captions_lie_elsewhere(draw) -> None:
    with zipfile.ZipFile(draw.file("data.zip", b""), "w") as packed:
        packed.writestr("images/1.png", draw.content(1))
        packed.writestr("captions.zip", b"PK")
    with pytest.raises(DataError, match="unpack them all into one folder"):
        list(recognise(str(draw.folder / "data.zip")).records())


# --- data.caption_column -------------------------------------------------------------------


def two_columns(draw) -> Path:
    pictures(draw, "data/images")
    rows = "".join(f"{i}.png,wrong {i},{CAPTIONS[i]}\n" for i in range(4))
    draw.file("data/x.csv", f"image,caption,Long One\n{rows}")
    for number in range(4):
        draw.file(f"data/images/{number}.txt", "wrong too")
    return draw.folder / "data"


def test_the_column_that_is_named_is_read_and_nothing_else(draw) -> None:
    folder = two_columns(draw)
    for column in ("Long One", "long_one"):
        found, skipped = read(folder, column)
        assert (found["3.png"], skipped) == ((CAPTIONS[3],), 0)
    [source] = inspect_data([str(folder)], DataSettings(caption_column="long_one")).sources
    assert source.readings == {"captions from x.csv, column Long One": 4}


def test_a_column_that_is_not_there_is_refused_with_those_that_are(draw) -> None:
    folder = two_columns(draw)
    told = r"there is no column nothing \(data\.caption_column\); the others are: caption, Long One"
    with pytest.raises(DataError, match=told):
        recognise(str(folder), "nothing")
    (folder / "x.csv").unlink()
    with pytest.raises(DataError, match="There is no column or field nothing"):
        recognise(str(folder), "nothing")


def test_another_column_is_another_cache(draw) -> None:
    folder, cache = two_columns(draw), draw.folder / "run" / "data"
    settings = DataSettings(image_size=16, caption_column="caption")
    assert prepare([str(folder)], settings, cache).train.captions(0)[0].startswith("wrong")
    settings = settings.replace(caption_column="Long One")
    assert prepare([str(folder)], settings, cache).train.captions(0)[0] in CAPTIONS


def test_columns_of_parquet_and_fields_of_shards(draw) -> None:
    table = {"image": [draw.content(1)], "text": ["wrong"], "other": ["right"]}
    path = draw.folder / "x.parquet"
    parquet.write_table(arrow.table(table), path)
    assert [one.captions for one in recognise(str(path), "other").records()] == [("right",)]
    with pytest.raises(DataError, match=r"no column nothing .* Name one of: text, other"):
        recognise(str(path), "nothing")
    members = {"1.png": draw.content(1), "1.txt": "wrong", "1.json": '{"other": "right"}'}
    shard = draw.tar("x.tar", members)
    assert [one.captions for one in recognise(str(shard), "other").records()] == [("right",)]
    [skipped] = recognise(str(shard), "nothing").records()
    assert "no .json with the same key has nothing (data.caption_column)" in skipped.reason


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("a red fox in the snow", "a red fox in the snow"),
        ("a_red-haired_fox_0012", "a red haired fox"),
        ("user_a_red_fox_0123abcd-1111-4222-8333-444455556666_2", "a red fox"),
        ("IMG_0001", "IMG"),
        ("0001", ""),
    ],
)
def test_what_files_names_say(stem: str, caption: str) -> None:
    assert read_file_name(stem) == caption


def test_names_of_files_are_captions_only_if_it_is_said(draw) -> None:
    for number, caption in enumerate(CAPTIONS):
        draw.image(f"data/{caption}.png", number)
    with pytest.raises(DataError, match=r'"a .* in the snow"\): --set data.caption_column=file_na'):
        recognise(str(draw.folder / "data"))
    right = {f"{caption}.png": (caption,) for caption in CAPTIONS}
    assert read(draw.folder / "data", "file_name") == (right, 0)
    assert recognise(str(draw.folder / "data"), "file_name").origins == (
        "captions from the files' names",
    )
