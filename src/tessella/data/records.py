"""Records: the pictures of a source before they are decoded.

    source ─ parts ─ Record or Skipped ─▶ decode ─▶ cache

A record has the location of a picture, not its pixels.
"""

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from tessella.data.folders import is_image
from tessella.data.text_encoding import TextError, decode_text
from tessella.untrusted import parse_json

Side: TypeAlias = Literal["train", "validation"]

# The caption fields of a metadata row or a JSON sidecar; the first one with a text wins.
CAPTION_FIELDS = (
    "text", "caption", "captions", "sentence", "sentences", "description", "prompt", "title",
    "comment", "alt", "alt_text", "conversations", "tags", "tag_string", "keywords",
)  # fmt: skip
# Their lists are the words of one caption; a list elsewhere is several captions.
_WORD_LISTS = ("tags", "tag_string", "keywords")
# What lists of objects call their texts: Karpathy's captions, Danbooru's tags.
_TEXT_NAMES = ("raw", "text", "caption", "value", "name", "tag", "label")
# Other names of fields that may be captions: llava_caption, long_description.
_LIKE_CAPTION = re.compile(r"(.*[\W_\d])?(captions?|prompt|description)([\W_\d].*)?", re.IGNORECASE)
_NOT_LIKE_CAPTION = re.compile(
    r".*(negative|model|url|_id|source|type|length|score|lang|time|date|version|hash|path|file).*",
    re.IGNORECASE,
)

# Larger files are not captions; reading them would only fill the memory.
MAX_CAPTION_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class ImageLocation:
    """Where a picture's bytes are: a whole file, or part of a tar."""

    path: str  # of the picture, or of the tar
    offset: int = 0  # first byte
    size: int | None = None  # bytes; None for the whole file
    owner: object = None  # keeps a temporary file as long as it is needed


@dataclass(frozen=True, slots=True)
class SceneLocation:
    """A picture to be drawn: scene `index` of a seed."""

    seed: int
    index: int
    set_name: str  # of SCENE_SETS


class StoredImage(Protocol):
    """A picture inside of another file, read by what knows that file."""

    def read(self) -> bytes:
        """Reads the picture's file; raises an `ImageError` if it cannot be read."""


Location: TypeAlias = ImageLocation | SceneLocation | StoredImage


@dataclass(frozen=True, slots=True)
class Record:
    """One picture with its captions, not decoded yet."""

    name: str  # unique and readable, with the path as the user wrote it
    location: Location
    captions: tuple[str, ...]  # empty for scenes, which get theirs when they are drawn
    group: str | None = None  # value of the `split_by` field
    side: Side | None = None  # of the split, where the data itself names it
    repeats: int = 1  # how often it is seen in a pass, for one that is seen once
    origin: str = ""  # where its captions were read: "train.csv, column caption"


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file that is skipped."""

    name: str
    reason: str  # for people
    kind: str  # for counts: broken, empty, too_large, missing, captionless, imageless, …


@dataclass(frozen=True, slots=True)
class Part:
    """Records of a source that are read one after another: those of a shard, or of a folder."""

    name: str  # of the shard, or as the user named the source
    read: Callable[[Counter[str]], Generator[Record | Skipped]]
    """Reads the records; counts what is done to them."""
    stamp: str | None = None  # what changes with the file's contents; None if it is not known
    is_whole: bool = False  # all that its records depend on is in the stamp


class CaptionError(ValueError):
    """The captions of one picture cannot be used; the message is the reason."""


def clean_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """Puts each caption on one line; drops blank and repeated ones.

    Raises:
        CaptionError: a caption cannot be written as UTF-8.
    """
    lines = (" ".join(caption.split()) for caption in captions)
    cleaned = tuple(dict.fromkeys(line for line in lines if line))
    try:
        "".join(cleaned).encode()
    except UnicodeEncodeError:
        raise CaptionError("a caption holds half a character (a lone surrogate)") from None
    return cleaned


def captions_from_text(content: bytes) -> tuple[str, ...]:
    """Reads a caption file: one caption per line.

    Raises:
        CaptionError: the text cannot be decoded or is far too long.
    """
    return clean_captions(decode_caption(content).splitlines())


def fields_from_json(content: bytes) -> dict[str, Any]:
    """Reads a JSON sidecar or a line of `metadata.jsonl`.

    Raises:
        CaptionError: not a JSON object, or far too long.
    """
    try:
        fields = parse_json(decode_caption(content))
    except CaptionError:
        raise
    except ValueError as error:
        raise CaptionError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CaptionError(f"not a JSON object but a {type(fields).__name__}")
    return fields


def captions_from_fields(
    fields: Mapping[str, Any], names: Iterable[str] = CAPTION_FIELDS
) -> tuple[str, ...]:
    """Reads the captions out of a metadata row or a JSON sidecar.

    Most fields are usually one caption, `captions` and `sentences` a list (in a CSV file: a JSON
    list); each may be either. A list of tags or keywords is one caption.

    Args:
        fields: by name, whose letters' case does not matter.
        names: of the fields that may hold captions, the best first.

    Raises:
        CaptionError: a caption field holds something other than text, or several fields may be the
            captions.
    """
    names = tuple(names)
    for name in names:
        if captions := _captions_from_value(name, fields.get(name)):
            return captions
    lowered = {key.lower(): key for key in fields if key.lower() != key}
    for name in names:
        if name in lowered and (captions := _captions_from_value(name, fields[lowered[name]])):
            return captions
    if names != CAPTION_FIELDS:
        return ()
    like = [
        key
        for key, value in fields.items()
        if isinstance(value, str)
        and value.strip()
        and _LIKE_CAPTION.fullmatch(key)
        and not _NOT_LIKE_CAPTION.fullmatch(key)
    ]
    if len(like) > 1:
        raise CaptionError(
            f"several fields may be its caption: {', '.join(like)}; name one (data.caption_column)"
        )
    return _captions_from_value(like[0], fields[like[0]]) if like else ()


def _captions_from_value(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    field = name.strip().lower()
    if isinstance(value, str) and field in ("captions", "sentences") and value.lstrip()[:1] == "[":
        try:
            value = parse_json(value)
        except ValueError as error:
            raise CaptionError(f"`{name}` is not a JSON list: {error}") from None
    values = value if isinstance(value, list) else [value]
    if field == "conversations":  # LLaVA's: what is asked says nothing of the picture
        answers = [one for one in values if isinstance(one, dict) and one.get("from") == "gpt"]
        values = [one.get("value") for one in answers]
    # Karpathy's lists of captions: {"raw": "A dog runs.", "tokens": […]}.
    values = [_text_of_object(one) if isinstance(one, dict) else one for one in values]
    if not all(isinstance(text, str) for text in values):
        raise CaptionError(f"`{name}` holds something other than text")
    if field == "tag_string":  # Danbooru's: long_hair snow
        values = [word.replace("_", " ") for text in values for word in text.split()]
    if field in _WORD_LISTS:
        return clean_captions([", ".join(values)])
    # A picture's title is often the name that its file had.
    return clean_captions(text for text in values if field != "title" or not is_image(text))


def _text_of_object(one: Mapping[str, Any]) -> Any:
    return next((one[name] for name in _TEXT_NAMES if isinstance(one.get(name), str)), None)


def group_from_fields(fields: Mapping[str, Any], split_by: str | None) -> str | None:
    """Reads the value that keeps images on one side of the split."""
    value = fields.get(split_by) if split_by is not None else None
    return None if value is None or value == "" else str(value)


def decode_caption(content: bytes) -> str:
    """Decodes a caption file.

    Raises:
        CaptionError: the text cannot be decoded or is far too long.
    """
    if len(content) > MAX_CAPTION_BYTES:
        raise CaptionError(f"{len(content):,} bytes are too many for captions")
    try:
        return decode_text(content)[0]
    except TextError as error:
        raise CaptionError(str(error)) from None
