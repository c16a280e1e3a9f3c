"""Columns: which of a table's columns holds pictures, and which the captions.

The features that `datasets` writes into a file say it best; otherwise types and names do.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessella.data import records
from tessella.errors import DataError
from tessella.untrusted import parse_json

# The best name first; the last ones are those of img2dataset.
_IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
# How columns of texts are called that are no captions.
_NO_CAPTION = re.compile(
    r"(.*_)?(id|ids|key|url|uri|path|file|filename|name|hash|sha\d*|md5|license|licence|split|"
    r"source|status|error|error_message|exif|date|time|timestamp|author|user|lang|language|"
    r"format|mode|orientation)"
)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read."""

    image: str
    captions: tuple[str, ...]  # one, or all that are numbered: caption_0, caption_1, …
    classes: tuple[str, ...] = ()  # names, where the captions are numbers of classes

    @property
    def origin(self) -> str:
        """Where captions are read, for people."""
        return f"captions from {self.words}"

    @property
    def words(self) -> str:
        """The columns of captions."""
        many = "s" if len(self.captions) > 1 else ""
        return f"column{many} {', '.join(self.captions)}" + (" (class names)" * bool(self.classes))

    def read(self, fields: Mapping[str, Any]) -> tuple[str, ...]:
        """Reads the captions of a row.

        Raises:
            CaptionError: the columns hold something other than text.
        """
        if not self.classes:
            found = (records.captions_from_fields(fields, [name]) for name in self.captions)
            return tuple(dict.fromkeys(caption for captions in found for caption in captions))
        number = fields.get(self.captions[0])
        if number is None or number == -1:  # how `datasets` says that a class is not known
            return ()
        if not 0 <= number < len(self.classes):
            raise records.CaptionError(f"there is no class of the number {number}")
        return records.clean_captions([self.classes[number].replace("_", " ")])


def image_columns(schema: Any) -> list[str]:
    """Lists the columns of a `pyarrow.Schema` that hold pictures, or lists of them."""
    import pyarrow.types as types

    features = _features(schema)
    structs, binaries = [], []
    for column in schema:
        kind = column.type
        if types.is_list(kind) or types.is_large_list(kind):
            kind = kind.value_type
        if types.is_struct(kind):
            kinds = {child.name: child.type for child in kind}
            is_declared = features.get(column.name, {}).get("_type") == "Image"
            if _is_binary(kinds.get("bytes")) and (
                is_declared or kinds.keys() <= {"bytes", "path"}
            ):
                structs.append(column.name)
        elif _is_binary(kind):
            binaries.append(column.name)
    named = [name for name in binaries if name.lower() in _IMAGE_NAMES or _has_word(name)]
    alone = binaries if len(binaries) == 1 and "file_name" not in schema.names else []
    return structs or named or alone


def _has_word(name: str) -> bool:
    return re.search(r"(^|_)(image|img|picture|photo)s?(_|$)", name.lower()) is not None


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    return kind is not None and (
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    )


def find_columns(file: str, schema: Any, caption_column: str | None = None) -> Columns:
    """Finds the columns of pictures and captions.

    Args:
        file: its name, for messages.
        schema: a `pyarrow.Schema`.
        caption_column: the one with the captions, if it is named.

    Raises:
        DataError: there is no such column, or it cannot be told which of several it is.
    """
    images = image_columns(schema)
    by_rank = {name.lower(): name for name in images}
    image = next((by_rank[name] for name in _IMAGE_NAMES if name in by_rank), None)
    if image is None and len(images) != 1:
        raise _no_pictures(file, schema, images)
    image = image or images[0]
    if caption_column is None:
        captions = _find_captions(schema, image)
    elif caption_column in schema.names:
        captions = (caption_column,)
    else:
        raise DataError(
            f"There is no column {caption_column} (data.caption_column): `{file}`. Name one of: "
            f"{', '.join(name for name in schema.names if name != image)}."
        )
    if not captions:
        raise DataError(
            f"It cannot be told which column holds the captions: `{file}`. Expected one of "
            f"{', '.join(records.CAPTION_FIELDS[:3])}; got: {', '.join(schema.names)}. Name the "
            "right one: --set data.caption_column=COLUMN."
        )
    return Columns(image, captions, _class_names(schema, captions[0]))


def _no_pictures(file: str, schema: Any, images: Sequence[str]) -> DataError:
    if images:
        return DataError(
            f"Several columns hold pictures: `{file}`, {', '.join(images)}. Rename the right one "
            "to image."
        )
    urls = [name for name in schema.names if name.lower() in ("url", "image_url", "img_url")]
    if urls:
        return DataError(
            f"The table holds addresses of pictures, not pictures: `{file}`, column {urls[0]}. "
            "Download them with img2dataset first."
        )
    return DataError(
        f"No column holds pictures: `{file}`. Expected image, with the bytes of picture files; "
        f"got: {', '.join(schema.names) or 'none'}."
    )


def _find_captions(schema: Any, image: str) -> tuple[str, ...]:
    """Finds the columns of captions by type and name; none if that is not enough."""
    texts = [field.name for field in schema if field.name != image and _is_text(field.type)]
    by_name = {name.lower(): name for name in reversed(texts)}
    for name in records.CAPTION_FIELDS:
        if name in by_name:
            return (by_name[name],)
        numbered = [text for text in texts if re.fullmatch(rf"{name}_?\d+", text.lower())]
        if numbered:
            return tuple(numbered)
    for word in ("caption", "prompt", "text", "description"):
        if having := [text for text in texts if word in re.split(r"[\W_\d]+", text.lower())]:
            return tuple(having) if len(having) == 1 else ()
    if classes := [name for name in schema.names if _class_names(schema, name)]:
        return (classes[0],)
    others = [text for text in texts if not _NO_CAPTION.fullmatch(text.lower())]
    return (others[0],) if len(others) == 1 else ()


def _is_text(kind: Any) -> bool:
    """Says whether a column may hold captions: texts, lists of them, or of `{raw: text}`."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
        if types.is_struct(kind):
            return any(child.name == "raw" for child in kind)
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _features(schema: Any) -> dict[str, Any]:
    """Reads the features that `datasets` writes beside the columns."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    known = features.items() if isinstance(features, dict) else ()
    return {name: feature for name, feature in known if isinstance(feature, dict)}


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """Returns the names of a column's classes; none if it is no column of classes."""
    feature = _features(schema).get(column, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) else ()
