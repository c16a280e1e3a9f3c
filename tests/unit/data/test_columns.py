"""Which of a table's columns holds pictures, and which the captions."""

import json

import pyarrow as arrow
import pytest

from tessella.data.columns import Columns, find_columns, image_columns
from tessella.data.records import CaptionError
from tessella.errors import DataError

STRUCT = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
TEXT, INT = arrow.string(), arrow.int64()
RAW = arrow.list_(arrow.struct({"raw": TEXT}))


def schema(columns: dict, features: dict | None = None) -> arrow.Schema:
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return arrow.schema(columns, metadata=metadata)


@pytest.mark.parametrize(
    ("columns", "image", "captions"),
    [
        ({"image": STRUCT, "text": TEXT}, "image", ["text"]),
        ({"photo": STRUCT, "caption": arrow.large_string(), "id": TEXT}, "photo", ["caption"]),
        ({"TEXT": TEXT, "img": arrow.large_binary()}, "img", ["TEXT"]),
        # img2dataset's Parquet.
        ({"jpg": arrow.binary(), "key": TEXT, "caption": TEXT, "url": TEXT}, "jpg", ["caption"]),
        ({"content": arrow.binary(), "captions": arrow.list_(TEXT)}, "content", ["captions"]),
        ({"image": STRUCT, "mask": STRUCT, "text": TEXT}, "image", ["text"]),
        # Flickr8k on the hub.
        ({"image": STRUCT, "text0": TEXT, "text1": TEXT}, "image", ["text0", "text1"]),
        ({"image": STRUCT, "blip_caption": TEXT, "author": TEXT}, "image", ["blip_caption"]),
        ({"image": STRUCT, "filename": TEXT, "what_it_shows": TEXT}, "image", ["what_it_shows"]),
        # COCO by Karpathy.
        ({"image": STRUCT, "sentences": RAW}, "image", ["sentences"]),
    ],
)  # fmt: skip
def test_columns_are_found(columns: dict, image: str, captions: list[str]) -> None:
    assert find_columns("x.parquet", schema(columns)) == Columns(image, tuple(captions))


def test_class_labels_are_captions() -> None:
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["red_fox", "hare"]},
    }
    columns = find_columns("x", schema({"image": STRUCT, "label": INT}, features))
    assert columns.origin == "captions from column label (class names)"
    assert columns.read({"label": 0}) == ("red fox",)
    assert columns.read({"label": -1}) == columns.read({"label": None}) == ()
    with pytest.raises(CaptionError, match="there is no class of the number 2"):
        columns.read({"label": 2})


def test_captions_of_numbered_columns_are_all_read() -> None:
    columns = Columns("image", ("c0", "c1", "c2"))
    assert columns.read({"c0": "one", "c1": None, "c2": "one"}) == ("one",)
    assert columns.read({"c0": "one", "c1": "two"}) == ("one", "two")
    assert columns.origin == "captions from columns c0, c1, c2"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": STRUCT, "a": TEXT, "b": TEXT},
            r"cannot be told .*`x`.* got: image, a, b\. Name",
        ),
        ({"image": STRUCT, "caption_en": TEXT, "caption_de": TEXT}, "cannot be told which column"),
        ({"image": STRUCT, "url": TEXT}, "cannot be told which column holds the captions"),
        (
            {"left": STRUCT, "right": STRUCT, "text": TEXT},
            "Several columns hold pictures: .*left, r",
        ),
        ({"URL": TEXT, "TEXT": TEXT}, "holds addresses of pictures, .* column URL.* img2dataset"),
        ({"image": TEXT, "text": TEXT}, "No column holds pictures: `x`.* got: image, text"),
    ],
)
def test_what_is_not_clear_is_refused(columns: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_columns("x", schema(columns))


def test_a_table_of_file_names_with_a_hash_has_no_pictures() -> None:
    assert image_columns(schema({"file_name": TEXT, "text": TEXT, "digest": arrow.binary()})) == []
