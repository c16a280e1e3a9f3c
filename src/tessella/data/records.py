"""Records: the pictures of a source before they are decoded.

    source ─ Record or Skipped ─▶ decode ─▶ cache

A record has the location of a picture, not its pixels.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

# The caption fields of a metadata row or a JSON sidecar; the first one present wins.
CAPTION_FIELDS = ("text", "caption", "captions")

# Larger files are not captions; reading them would only fill the memory.
MAX_CAPTION_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class ImageLocation:
    """Where a picture's bytes are: a whole file, or part of a tar."""

    path: str  # of the picture, or of the tar
    offset: int = 0  # first byte
    size: int | None = None  # bytes; None for the whole file


@dataclass(frozen=True, slots=True)
class SceneLocation:
    """A picture to be drawn: scene `index` of a seed."""

    seed: int
    index: int


Location: TypeAlias = ImageLocation | SceneLocation


@dataclass(frozen=True, slots=True)
class Record:
    """One picture with its captions, not decoded yet."""

    name: str  # unique and readable, with the path as the user wrote it
    location: Location
    captions: tuple[str, ...]  # empty for scenes, which get theirs when they are drawn
    group: str | None = None  # value of the `split_by` field


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file that is skipped."""

    name: str
    reason: str  # for people
    kind: str  # for counts: broken, empty, too_large, missing, captionless, imageless, …


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
    """Reads a caption file: UTF-8, one caption per line.

    Raises:
        CaptionError: the text is not UTF-8 or far too long.
    """
    return clean_captions(_decode(content).splitlines())


def fields_from_json(content: bytes) -> dict[str, Any]:
    """Reads a JSON sidecar or a line of `metadata.jsonl`.

    Raises:
        CaptionError: not a JSON object in UTF-8, or far too long.
    """
    try:
        fields = json.loads(_decode(content))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CaptionError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CaptionError(f"not a JSON object but a {type(fields).__name__}")
    return fields


def captions_from_fields(fields: dict[str, Any]) -> tuple[str, ...]:
    """Reads the captions out of a metadata row or a JSON sidecar.

    `text` or `caption` is usually one caption, `captions` a list (in a CSV file: a JSON list);
    each may be either.

    Raises:
        CaptionError: a caption field holds something other than text.
    """
    for field in CAPTION_FIELDS:
        value = fields.get(field)
        if value is None:
            continue
        if isinstance(value, str) and field == "captions" and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise CaptionError(f"`captions` is not a JSON list: {error}") from None
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in values):
            raise CaptionError(f"`{field}` holds something other than text")
        return clean_captions(values)
    return ()


def group_from_fields(fields: dict[str, Any], split_by: str | None) -> str | None:
    """Reads the value that keeps images on one side of the split."""
    value = fields.get(split_by) if split_by is not None else None
    return None if value is None or value == "" else str(value)


def _decode(content: bytes) -> str:
    if len(content) > MAX_CAPTION_BYTES:
        raise CaptionError(f"{len(content):,} bytes are too many for captions")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(f"not UTF-8 (byte {error.start})") from None
