"""Text that others wrote: JSON that cannot stop the program, lines that cannot steer a terminal.

Model folders, tables, captions and pictures come from anywhere. What is read out of them goes
through here where it is parsed as JSON, and where it is printed.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

# Of ISO 6429: controls, by which a terminal is told to do something. Kept: tab and line feed.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
# What reorders or hides the letters around it (Boles and Anderson, "Trojan Source", 2021).
_REORDERING = "\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069"
_UNPRINTABLE = re.compile(f"\r\n|[{_CONTROLS}{_REORDERING}\ud800-\udfff]")


def parse_json(content: str | bytes) -> Any:
    """Reads JSON, whatever is in it.

    Raises:
        ValueError: it is no JSON, no UTF-8, nested too deeply, or has a number of too many digits.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_printable(text: str) -> str:
    r"""Replaces what a terminal would obey or cannot show by its escape: `\x1b`, `\u202e`.

    Tabs and line ends stay.
    """
    return _UNPRINTABLE.sub(_escape, text)


def to_line(text: str) -> str:
    """Makes one printable line of a text: white space is a blank, the rest as `to_printable`."""
    return to_printable(" ".join(text.split()))


def to_code(text: str) -> str:
    """Makes a text fit for Markdown's backticks, where it is no heading, link or HTML."""
    return to_line(text).replace("`", "'")


def _escape(found: re.Match[str]) -> str:
    if found[0] == "\r\n":
        return "\n"
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turns a panic of a library in Rust into an error: as it comes, it ends the program.

    Raises:
        ValueError: in place of the panic.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # PyO3's, which cannot be imported
            raise
        raise ValueError(f"the library broke off: {error}") from None
