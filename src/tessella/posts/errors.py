"""The errors of language models, and how their words are quoted."""

from tessella.errors import TessellaError

_MAX_READ_CHARACTERS = 1_000


class LanguageModelError(TessellaError):
    """A language model cannot be reached, or gives no usable answer."""


class RefusedFormatError(Exception):
    """A server rejects a request; it may not support the response format."""


def quote(text: str, max_characters: int = 200) -> str:
    """Makes the words of a server or a language model one short, printable line.

    Without control characters they cannot steer a terminal or forge a line of a log.
    """
    printable = (sign if sign.isprintable() else " " for sign in text[:_MAX_READ_CHARACTERS])
    return " ".join("".join(printable).split())[:max_characters]
