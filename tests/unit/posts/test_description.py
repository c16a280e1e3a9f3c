"""Descriptions: their language, their sentences, and the words that a picture could show."""

import pytest

from tessella.posts.description import (
    ENGLISH,
    LANGUAGES,
    find_language,
    list_picture_words,
    split_sentences,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("We bake bread by the river.", "English"),
        ("Wir backen Brot und Kuchen.", "German"),
        ("Nous faisons du pain chaque matin.", "French"),
        ("L'atelier d'Anne: c'est du pain.", "French"),
        ("Hacemos pan con harina del molino.", "Spanish"),
        ("Fazemos p\u00e3o todos os dias.", "Portuguese"),
        ("Pieczemy chleb i ciasta dla was, jak w domu.", "Polish"),
        ("Her g\u00fcn ekmek ve kek i\u00e7in buraday\u0131z.", "Turkish"),
        ("\u6211\u4eec\u70e4\u9762\u5305\u3002", "Chinese or Japanese"),
        ("\ube75\uc744 \uad7d\uc2b5\ub2c8\ub2e4", "Korean"),
        ("Pizza", None),
        ("https://the.and.of/we 24/7", None),
        ("", None),
    ],
)
def test_languages(text: str, name: str | None) -> None:
    found = find_language(text)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("we bake. come in!", ["We bake.", "Come in!"]),
        ("Ask Dr. Smith. He knows.", ["Ask Dr. Smith.", "He knows."]),
        ("Am 3. Mai, z. B. mit Brot. Kommt!", ["Am 3. Mai, z. B. mit Brot.", "Kommt!"]),
        ("Costs 3.50 a loaf", ["Costs 3.50 a loaf."]),
        ("- bread\n- cakes\n* tea", ["Bread.", "Cakes.", "Tea."]),
        ("1. bread\n2) cakes", ["Bread.", "Cakes."]),
        ("a) bread\nb) cakes", ["Bread.", "Cakes."]),
        ("A. Smith bakes.", ["A. Smith bakes."]),
        ("bakes since 1990.\nOpen at 8.", ["Bakes since 1990.", "Open at 8."]),
        ("...", ["..."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        ("en", "We bake bread, and open early.", ["bread", "early"]),
        ("en", "Book your table. You can order cakes.", ["table", "cakes"]),
        ("en", "Our book club reads.", ["book", "club", "reads"]),
        ("en", "Mail cat@dog.com, @bird, #fish, http://heart.example/star.", ["Mail"]),
        ("en", "Find us at 12 Old Mill Lane, e.g. today, U.S. only.", ["today", "only"]),
        ("en", "Tel. 555-1234, 24h, 3d", []),
        ("de", "Wir backen Brot. Unser Kaffee ist stark.", ["Brot", "Kaffee"]),
        ("de", "Hauptstra\u00dfe 5, z. B. Torten bei Dr. M\u00fcller.", ["Torten", "M\u00fcller"]),
        ("fr", "Nous vendons du pain au 12 rue du Chat.", ["pain"]),
        ("es", "Nosotros hacemos pan, calle Mayor 3.", ["pan"]),
    ],
)
def test_words_of_a_picture(code: str, text: str, words: list[str]) -> None:
    assert list_picture_words(text, LANGUAGES[code]) == words


def test_stems_are_those_of_the_language() -> None:
    assert ENGLISH.find_stem("croissants") == ENGLISH.find_stem("croissant")
    assert LANGUAGES["de"].find_stem("kuchens") == LANGUAGES["de"].find_stem("kuchen")
    assert LANGUAGES["de"].find_stem("stark") != LANGUAGES["de"].find_stem("star")
    assert LANGUAGES["it"].find_stem("pani") == "pani"


def test_long_texts_take_no_time() -> None:
    for text in ("x" * 2000, "1" * 2000, "a." * 1000, "a@" * 1000, "- " * 1000, "rue " * 500):
        find_language(text)
        list_picture_words(text, ENGLISH)
