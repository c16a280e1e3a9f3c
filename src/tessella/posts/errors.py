"""What a language model can do wrong, and how its words are told."""

from tessella.errors import TessellaError

_MAX_READ_CHARACTERS = 1_000


class LanguageModelError(TessellaError):
    """A language model that cannot be reached, or gives no usable answer."""


def quote(said: str, most: int = 200) -> str:
    """Makes what a server or a language model says one line, printable and short.

    Whatever stands in it, a terminal obeys none of it, and a log has no line that is forged.
    """
    read = said[:_MAX_READ_CHARACTERS]
    return " ".join("".join(sign if sign.isprintable() else " " for sign in read).split())[:most]
