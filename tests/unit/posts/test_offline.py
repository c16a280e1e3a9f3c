"""The template writer: posts without a language model."""

from collections.abc import Callable
from typing import Any

import pytest

from tessella.posts.image_language import ImageLanguage
from tessella.posts.offline import TONES, OfflineWriter
from tessella.posts.platforms import PLATFORMS
from tessella.text import TextTokenizer

Ask = Callable[..., Any]


def test_labels_are_of_the_description_and_suit_their_posts(
    ask: Ask, language: ImageLanguage
) -> None:
    posts = OfflineWriter(language).write_batch(ask(), 4, [])
    assert [post.label.partition(",")[0] for post in posts[:3]] == ["bread", "coffee", "croissant"]
    assert [("croissants" in post.text, "coffee" in post.text) for post in posts] == [
        (True, False),
        (False, True),
        (True, False),
        (False, True),
    ]
    assert all("Bluebird Bakery" in post.text for post in posts)
    assert len({post.text for post in posts}) == 4
    assert posts[3].label in language.examples  # nothing more is shared
    for post in posts:
        assert language.describe_problem(post.label) is None
        assert post.hashtags == ("BluebirdBakery", "bread", "croissant", "coffee")
        assert post.alt_text == f"A small generated picture: {post.label}."
    assert [len(post.repairs) for post in posts] == [0, 0, 0, 1]
    assert "the picture shows one of its sample captions" in posts[3].repairs[0]


def test_what_is_not_shared_is_plain(ask: Ask, language: ImageLanguage) -> None:
    """No letter of a name, and of the samples the shortest first."""
    [post] = OfflineWriter(language).write_batch(ask(business="B", about="We serve."), 1, [])
    assert len(post.label.split()) == min(len(label.split()) for label in language.examples)


def test_the_seed_decides_and_posts_do_not_depend_on_how_many(
    ask: Ask, language: ImageLanguage
) -> None:
    writer = OfflineWriter(language)
    whole = writer.write_batch(ask(seed=3), 12, [])
    assert whole == writer.write_batch(ask(seed=3), 12, [])
    assert whole != writer.write_batch(ask(seed=4), 12, [])
    assert whole[7:9] == writer.write_batch(ask(seed=3), 2, whole[:7])
    assert [post for part in writer.write(ask(seed=3), 12) for post in part] == whole


@pytest.mark.parametrize("tone", TONES)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_tone_fits_every_platform(
    ask: Ask, language: ImageLanguage, tone: str, platform: str
) -> None:
    request = ask(
        tone=tone, platform=platform, business="B" * 199 + "!", about="bread \N{BREAD} " * 200
    )
    for post in OfflineWriter(language).write_batch(request, 6, []):
        assert request.platform.count_characters(post.published) <= request.platform.max_characters
        assert post.text
        assert len(post.hashtags) <= request.platform.max_hashtags


def test_a_tone_without_templates_is_told(ask: Ask, language: ImageLanguage) -> None:
    writer = OfflineWriter(language)
    [post], [warm] = (writer.write_batch(ask(tone=tone), 1, []) for tone in ("dry wit", "warm"))
    assert post.text == warm.text
    assert post.repairs == ("no templates exist for the tone `dry wit`: the post is warm",)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ("we bake", "We bake."),
        ("we bake! come in", "We bake!"),
        ("costs 3.50 {a} %s {0}", "Costs 3.50 {a} %s {0} "),
        ("...", "..."),
        ("\u30d1\u30f3\u3092\u713c\u304f\u3002", "\u30d1\u30f3\u3092\u713c\u304f\u3002"),
    ],
)
def test_sentences_are_said_whole(ask: Ask, language: ImageLanguage, about: str, said: str) -> None:
    [post] = OfflineWriter(language).write_batch(ask(about=about, tone="professional"), 1, [])
    assert said in post.text


def test_nothing_shared_takes_examples(ask: Ask, language: ImageLanguage) -> None:
    request = ask(about="Tax advice.", business="Smith")
    posts = OfflineWriter(language).write_batch(request, 14, [])
    assert {post.label for post in posts} == set(language.examples)


def test_a_model_that_does_not_say_its_captions(ask: Ask, text_tokenizer: TextTokenizer) -> None:
    plain = OfflineWriter(ImageLanguage(text_tokenizer, None))
    labels = [post.label for post in plain.write_batch(ask(), 2, [])]
    assert labels == ["bread", "coffee"]
