"""The words of captions: which are often enough, and what is never told."""

import pytest

from tessella.data.caption_words import OFTEN, CaptionWords


def count(*pictures: tuple[str, ...]) -> CaptionWords:
    words = CaptionWords()
    for captions in pictures:
        words.add(captions)
    return words


def test_a_word_counts_once_a_picture() -> None:
    words = count(("A red disc, red!", "a (red) disc"), ("a disc",))
    assert words.pictures == {"a": 2, "disc": 2, "red": 1}
    assert words.num_pictures == 2
    assert words.add(("one two", "", "¿qué?")) == [2, 0, 1]


def test_often_is_in_ten_pictures() -> None:
    words = count(*[("a fox",)] * (OFTEN - 1), ("a hen",))
    assert words.count_often() == 1
    words.add(("a fox fox",))
    assert words.count_often() == 2


@pytest.mark.parametrize(
    ("captions", "untold"),
    [
        (["a big red fox", "two foxes"], []),
        (["a red fox", "a fox on the grass"], ["sizes", "counts"]),
        (["the fox", "a fox"], ["colours", "sizes", "counts"]),
        (["fox, 3d emoji", "hen, flat emoji"], []),  # labels, not sentences: who knows
        (["a photo of a fox", "a photo of a hen"], ["colours", "sizes", "counts"]),
        (["a red-haired girl and a big_dog", "two men"], []),
        (["ein roter Fuchs", "zwei Hasen an der Wand, in der Nacht"], []),  # not English
        (["un renard à table, il est au lit", "un chien de la maison et 1 chat"], []),
        (["een vos of een haas", "is dat in het bos"], []),
        (["un zorro a la mesa", "una gallina en casa"], []),
        ([], []),
    ],
)
def test_what_no_caption_tells(captions: list[str], untold: list[str]) -> None:
    pictures = [(caption,) for caption in captions] * 25
    assert count(*pictures).list_untold() == untold
    assert count(*pictures[:49]).list_untold() == []


@pytest.mark.parametrize(("red", "untold"), [(1, True), (2, True), (3, False)])
def test_one_picture_in_two_hundred_is_as_good_as_none(red: int, untold: bool) -> None:
    pictures = [("a red fox",)] * red + [("two big foxes on the moon",)] * (400 - red)
    assert count(*pictures).list_untold() == (["colours"] if untold else [])
