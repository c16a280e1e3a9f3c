"""Text that others wrote: JSON of any shape, and lines for a terminal."""

import json

import pytest
from tokenizers import Tokenizer

from tessella.untrusted import panics_as_errors, parse_json, to_printable


def test_json_is_read() -> None:
    assert parse_json('{"a": [1, "\\ud800"]}') == parse_json(b'{"a": [1, "\\ud800"]}')


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", "", b"\xff", '{"a":' * 50_000])
def test_what_cannot_be_read_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)


def test_a_terminal_is_told_nothing() -> None:
    assert to_printable("a red star 🌟\tb\nc, é, 日本") == "a red star 🌟\tb\nc, é, 日本"
    assert to_printable("\x1b[31mred\x07\x00") == "\\x1b[31mred\\x07\\x00"
    assert to_printable("a\r\nb\rc\x9b1m\u202ed\ud800") == "a\nb\\x0dc\\x9b1m\\u202ed\\ud800"


def test_a_panic_is_an_error() -> None:
    """`tokenizers` panics at this file, which `TextTokenizer.load` refuses before."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    file = json.dumps({"version": "1.0", "model": model | {"continuing_subword_prefix": "##"}})
    with pytest.raises(ValueError, match="the library broke off: slice index"), panics_as_errors():
        Tokenizer.from_str(file)
    with pytest.raises(KeyboardInterrupt), panics_as_errors():
        raise KeyboardInterrupt
