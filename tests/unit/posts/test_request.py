"""What is asked: cleaned, and refused where it cannot be met."""

from collections.abc import Callable
from typing import Any

import pytest

from tessella.errors import GenerationError
from tessella.posts.request import clean_line, clean_text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"business": " \x00\n "},
            "The name of the business must have 1 to 200 characters; it is blank.",
        ),
        ({"business": "b" * 201}, "must have 1 to 200 characters; it has 201."),
        ({"about": "\u202e"}, "What the business is about must have 1 to 2,000 characters"),
        ({"about": "a" * 2001}, "characters; it has 2,001."),
        ({"tone": ""}, "The tone must have 1 to 60 characters; it is blank."),
        (
            {"platform": "myspace"},
            "Unknown platform: `myspace`. Expected one of: instagram, facebook, x, linkedin, "
            "threads, bluesky, mastodon, pinterest, tiktok.",
        ),
    ],
)
def test_what_cannot_be_met_is_refused(
    ask: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GenerationError) as error:
        ask(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a \t b\r\nc\rd \n\n\n\n e ", "a b\nc\nd\n\ne"),
        ("a\x00b\x1b[31mc\x7f", "a b [31mc"),
        ("gnp\u202e.exe\u2066x\ufeff", "gnp.exex"),
        ("\ud800", "?"),
        ("man\u200d\N{BREAD}", "man\u200d\N{BREAD}"),  # joins signs of one emoji
        ("e\u0301", "\u00e9"),
    ],
)
def test_texts_are_cleaned(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_a_line_is_one_line() -> None:
    assert clean_line(" a\nb \n\n c ") == "a b c"
