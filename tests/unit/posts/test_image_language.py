"""Labels are made to speak an image model's language."""

import random

import pytest

from tessella.posts.image_language import ImageLanguage
from tessella.text import TextTokenizer


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("bread, flat emoji", None),
        ("Bread, FLAT emoji!", None),
        ("bluebird latte, flat emoji", "the label has unknown words: bluebird, latte"),
        ("", "the label has no words"),
        ("... __", "the label has no words"),
        ("\N{BREAD} ... __", "the label has unknown words: \N{BREAD}"),
        ("bread " * 30, "the label is too long for the image model"),
    ],
)
def test_a_label_that_cannot_be_read_well_is_told(
    language: ImageLanguage, label: str, problem: str | None
) -> None:
    assert language.describe_problem(label) == problem


@pytest.mark.parametrize(
    ("label", "repaired"),
    [
        ("croissants, flat emoji", "croissant, flat emoji"),
        ("breads and coffe, 3d emoji", "bread coffee, 3d emoji"),
        ("fresh bread, 3d emoji", "bread, 3d emoji"),
        ("'zzz' (bread) <b>!", "bread"),
        ("A birthday cake: qqq, flat emoji", "birthday cake, flat emoji"),
        # Nothing is left that says what to paint: the example that shares most with the post.
        ("latte, flat emoji", "coffee, flat emoji"),
        ("", "coffee, flat emoji"),
        ("../../etc/passwd", "coffee, flat emoji"),
    ],
)
def test_a_label_is_repaired(language: ImageLanguage, label: str, repaired: str) -> None:
    assert language.repair(label, "Try our coffee") == repaired
    assert language.describe_problem(language.repair(label, "Try our coffee")) is None


def test_a_label_that_is_too_long_loses_its_last_words(language: ImageLanguage) -> None:
    repaired = language.repair("bread " * 100_000, "")
    assert set(repaired.split()) == {"bread"}
    assert 1 < len(repaired.split()) < 30


def test_words_of_a_description_are_found(language: ImageLanguage) -> None:
    text = "We bake breads, and a cake for your birthday. Coffee! And breads."
    assert language.find_words(text) == ["bread", "cake", "birthday", "coffee"]


def test_a_word_is_put_into_the_form_of_the_captions(language: ImageLanguage) -> None:
    rng = random.Random(0)
    framed = {language.frame("cake", "", rng) for _ in range(40)}
    assert framed == {"cake, flat emoji", "cake, 3d emoji"}


def test_a_word_of_many_captions_gets_the_caption_that_shares_most(
    language: ImageLanguage,
) -> None:
    rng = random.Random(0)
    assert language.frame("3d", "A heart that is red", rng) == "red heart, 3d emoji"
    assert {language.frame("3d", "", rng) for _ in range(99)} == {
        example for example in language.examples if "3d" in example
    }


def test_without_a_summary_the_vocabulary_is_the_language(text_tokenizer: TextTokenizer) -> None:
    plain = ImageLanguage(text_tokenizer, None)
    assert {"octopus", "bread", "emoji"} <= set(plain.words)
    assert plain.examples == ()
    assert plain.describe_problem("bread qqq") == "the label has unknown words: qqq"
    assert plain.repair("qqq", "our coffee") == "coffee"
    assert plain.repair("qqq", "") in plain.words
