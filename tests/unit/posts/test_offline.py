"""The template writer: posts without a language model."""

from collections.abc import Callable
from typing import Any

import pytest

from tessella.posts import offline
from tessella.posts.description import LANGUAGES, find_language
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


# Languages.

GERMAN = "Wir backen Brot und Croissants. Unser Kaffee ist stark."


def test_german_is_wrapped_in_german(ask: Ask, language: ImageLanguage) -> None:
    """English phrases stood around it, and `stark` became #star and a picture of a star."""
    for tone in TONES:
        request = ask(about=GERMAN, tone=tone, business="Bäckerei Blau")
        posts = OfflineWriter(language).write_batch(request, 5, [])
        for post in posts:
            assert find_language(post.text) is LANGUAGES["de"]
            assert post.hashtags == ("BäckereiBlau", "croissant")
            assert post.alt_text == f"Ein kleines, vom Computer gemaltes Bild: {post.label}."
        assert posts[0].label.startswith("croissant")
        assert posts[0].repairs == ()
        assert "its captions are English, the description is German" in posts[1].repairs[0]


@pytest.mark.parametrize("code", ["en", "de", "fr", "es"])
def test_all_templates_are_in_their_language(code: str) -> None:
    tones = offline._TEMPLATES[code]
    assert tuple(tones) == ("alt_text", *TONES)
    assert "{label}" in tones["alt_text"]
    for tone in TONES:
        assert len(tones[tone]) == 5
        for template in tones[tone]:
            assert template.count("{sentence}") == template.count("{business}") == 1
        assert (
            find_language(" ".join(tones[tone]).format(sentence="", business=""))
            is (LANGUAGES[code])
        )


@pytest.mark.parametrize(
    ("about", "name"),
    [
        ("Facciamo il pane ogni giorno.", "Italian"),
        ("Wij bakken elke dag brood voor jou.", "Dutch"),
        ("\u30d1\u30f3\u3092\u713c\u304f\u3002", "Japanese"),
        ("\u041c\u044b \u043f\u0435\u0447\u0451\u043c \u0445\u043b\u0435\u0431.", "Cyrillic"),
    ],
)
def test_a_language_without_templates_is_told(
    about: str, name: str, ask: Ask, language: ImageLanguage
) -> None:
    [post] = OfflineWriter(language).write_batch(ask(about=about), 1, [])
    assert post.text == f"{about} Bluebird Bakery"
    assert post.repairs[0] == (
        f"no templates exist for the language of the description, {name}, but for English, German, "
        "French, Spanish: the post is a sentence of the description"
    )


def test_a_language_that_is_not_plain_is_told(ask: Ask, language: ImageLanguage) -> None:
    [post] = OfflineWriter(language).write_batch(ask(about="Tax advice."), 1, [])
    assert post.repairs[0] == (
        "the language of the description is not plain: the templates are English"
    )


def test_nothing_but_things_becomes_a_hashtag_or_a_picture(
    ask: Ask, language: ImageLanguage
) -> None:
    about = (
        "a) bread b) 3d prints. Dr. Coffee, 5 Heart Street. Mail bird@octopus.com or see "
        "https://cake.example/croissant?x=bird, www.heart.de and red.blue/bird, or call 555-CAKE."
    )
    posts = OfflineWriter(language).write_batch(ask(about=about, business="B"), 3, [])
    assert posts[0].hashtags == ("B", "bread", "coffee")
    assert [post.label.partition(",")[0] for post in posts[:2]] == ["bread", "coffee"]
    assert "no other word" in posts[2].repairs[-1]
