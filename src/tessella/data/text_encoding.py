"""Text as it is on disks: UTF-8, UTF-16 and UTF-32 with a mark, and Windows' CP1252.

UTF-8 says of itself whether it is right. What is not UTF-8 is read as CP1252 only where it can
hardly be anything else; Cyrillic, Chinese or Japanese in an older encoding is refused, because as
CP1252 it would be other words.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# Western languages have at most two or three letters with accents in a row.
_FOREIGN = re.compile(r"[^\x00-\x7f]{4}")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


class TextError(ValueError):
    """The bytes are no text that can be read; the message is the reason."""


def decode_text(content: bytes) -> tuple[str, str]:
    """Decodes text.

    Returns:
        The text, and Python's name of its encoding.

    Raises:
        TextError: neither Unicode nor CP1252.
    """
    encoding = _marked(content[:4])
    if encoding is None and b"\0" in content:
        encoding = _unmarked_utf16(content[:1000])
    try:
        return content.decode(encoding or "utf-8"), encoding or "utf-8"
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise TextError(f"not {encoding.removesuffix('-sig').upper()}") from None
        position = error.start
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = "\0"
    is_western = re.search(r"[A-Za-z]", text) and not _FOREIGN.search(text)
    if not is_western or _CONTROL.search(text):
        raise TextError(f"not UTF-8 (byte {position}), and not CP1252 either; save it as UTF-8")
    return text, "cp1252"


def _marked(start: bytes) -> str | None:
    """Returns the encoding that a byte-order mark names."""
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)


def _unmarked_utf16(sample: bytes) -> str | None:
    """Recognises UTF-16 without a mark: every other byte of Western text is zero."""
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        half = sample[first::2]
        if half.count(0) > 0.8 * len(half):
            return name
    return None


def find_encoding(path: Path) -> str:
    """Finds the encoding of a large file, in pieces.

    Raises:
        TextError: neither Unicode nor CP1252.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(1000)
    if encoding := _marked(start[:4]):
        return encoding
    if b"\0" in start:
        return decode_text(start[: len(start) // 2 * 2])[1]
    encoding = "utf-8"
    for piece in _pieces(path):
        if decode_text(piece)[1] != "utf-8":
            encoding = "cp1252"
    return encoding


def _pieces(path: Path) -> Iterator[bytes]:
    """Reads a file in pieces that end where lines do."""
    with path.open("rb") as file:
        while lines := file.readlines(1 << 20):
            yield b"".join(lines)


def describe_encoding(encoding: str) -> str | None:
    """Names an encoding for people; None for UTF-8, which needs no word."""
    if encoding.startswith("utf-8"):
        return None
    return encoding.upper().removesuffix("-LE").removesuffix("-BE")
