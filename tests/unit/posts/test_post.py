"""A post keeps to its platform's limits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.posts.platforms import PLATFORMS
from tessella.posts.post import Post, clean_hashtags, compose, cut, fit_text

SHORT = replace(PLATFORMS["bluesky"], max_characters=30)


@pytest.mark.parametrize(
    ("hashtags", "clean"),
    [
        (["#bread", "Bread", "fresh bread"], ("bread", "freshbread")),
        (["<script>alert(1)</script>", "../../etc/x"], ("scriptalert1script", "etcx")),
        (["2024", "_", "", "#"], ()),  # no platform links a number
        (["caf\u00e9", "\u30d1\u30f3", "a_b"], ("caf\u00e9", "\u30d1\u30f3", "a_b")),
        (["x" * 80], ("x" * 50,)),
    ],
)
def test_hashtags_are_letters_digits_and_underscores(
    hashtags: list[str], clean: tuple[str, ...]
) -> None:
    assert clean_hashtags(hashtags, PLATFORMS["bluesky"]) == clean


def test_there_are_no_more_hashtags_than_the_platform_takes() -> None:
    assert clean_hashtags(["a", "b", "c", "d"], PLATFORMS["x"]) == ("a", "b")


def test_what_is_published_is_text_and_hashtags() -> None:
    assert Post("Bread.", ("a", "b"), "", "").published == "Bread.\n\n#a #b"
    assert Post("Bread.", (), "", "").published == "Bread."
    assert compose("", ["a"]) == "#a"


@pytest.mark.parametrize(
    ("text", "most", "short"),
    [
        ("Bread.", 6, "Bread."),
        ("Fresh bread. And cake.", 15, "Fresh bread."),
        ("Fresh bread. And cake.", 12, "Fresh bread."),
        ("No. Fresh bread and cake", 20, "No. Fresh bread and\u2026"),  # half of it must stay
        ("one two three", 9, "one two\u2026"),
        ("costs 3.50 today", 12, "costs 3.50\u2026"),
        ("abcdefgh", 4, "abc\u2026"),
    ],
)
def test_a_text_is_cut_at_a_sentence_or_a_word(text: str, most: int, short: str) -> None:
    assert cut(text, most) == short


def test_a_text_is_cut_for_its_hashtags_too() -> None:
    assert fit_text("Fresh bread. Cake.", ["cake"], SHORT) == "Fresh bread. Cake."
    # 30 characters less the 9 of "\n\n#bakery".
    assert fit_text("Fresh bread. Cake and tea.", ["bakery"], SHORT) == "Fresh bread."


@given(st.text(min_size=1, max_size=80), st.sampled_from(["x", "mastodon", "bluesky"]))
def test_a_fitted_text_fits(text: str, name: str) -> None:
    platform = replace(PLATFORMS[name], max_characters=30)
    fitted = fit_text(text, ["tea"], platform)
    assert platform.count_characters(compose(fitted, ["tea"])) <= 30


# A megabyte of text once took seconds to cut for a platform of 280 characters.
def test_a_huge_text_is_cut_at_once() -> None:
    fitted = fit_text("bread " * 200_000, [], PLATFORMS["x"])
    assert len(fitted) > 270
    assert PLATFORMS["x"].count_characters(fitted) <= 280


def test_an_alt_text_is_one_line_of_a_length_that_all_take() -> None:
    def fit(alt_text: str) -> str:
        return Post.fit("Bread.", [], alt_text, "loaf", SHORT).alt_text

    assert fit("A loaf\nof bread.") == "A loaf of bread."
    assert len(fit("bread " * 200)) <= 500
    assert fit(" \n") == "A small generated picture: loaf."
