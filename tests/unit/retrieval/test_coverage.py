"""For how many captions a useful neighbour exists, on captions that can be read by eye."""

import json
import math

import pytest

from tessella.retrieval.coverage import CoverageMeter, CoverageReport
from tessella.retrieval.index import CaptionIndex


def measure(*captions: str, **limits: int) -> CoverageReport:
    meter = CoverageMeter(**limits)
    for number, caption in enumerate(captions):
        meter.add([caption], str(number))
    report = meter.measure()
    assert report is not None
    return report


def test_a_caption_is_covered_by_hand() -> None:
    """Of four captions two have `red`, one has each other word.

    A red cat is covered by a red dog as far as `red` goes: ln 2 of ln 2 + ln 3.33.
    """
    report = measure("red cat", "red dog", "blue", "green")
    assert (report.tried, report.useful, report.indexed, report.captions) == (4, 0, 4, 4)
    assert report.without == ("red cat", "red dog")
    share = math.log(2) / (math.log(2) + math.log(1 + 3.5 / 1.5))
    assert share < 0.5
    # With a third red one, each is covered by less; with another cat, that cat covers half.
    report = measure("red cat", "red dog", "blue cat", "green")
    assert report.useful == 1
    [shown] = report.examples
    assert shown.caption == "red cat"
    assert shown.covered == pytest.approx(0.5)
    assert report.describe() == (
        "useful for 25% of 4 captions: another picture's caption has at least 50% of what they "
        f"say; `{shown.neighbor}` for `red cat`; none for `red dog`"
    )


def test_its_own_picture_and_its_family_are_no_neighbours() -> None:
    meter = CoverageMeter()
    meter.add(["red cat", "red cat!"], "one")
    meter.add(["green dog"], "two")
    alone = meter.measure()
    assert alone is not None
    assert alone.useful == 0
    meter.add(["red cat"], "one")
    same = meter.measure()
    assert same is not None
    assert same.useful == 0
    meter.add(["red cats"], "three")
    other = meter.measure()
    assert other is not None
    assert other.useful == 4  # all but the dog
    assert other.without == ("green dog",)


def test_stems_count_and_examples_that_repeat_come_last() -> None:
    report = measure("walking dogs", "a dog walks", "big cats", "big cats", "sea")
    assert report.useful == 4
    assert "big cats" not in [one.caption for one in report.examples[:1]]
    assert report.without == ("sea",)


def test_captions_without_words_have_no_neighbour() -> None:
    report = measure("!!!", "a cat", "…")
    assert report.useful == 0
    assert report.tried == 3
    assert "!!!" in report.without
    assert CoverageMeter().measure() is None


def test_of_many_captions_some_are_kept_and_some_are_tried() -> None:
    captions = [f"thing number {number}" for number in range(500)]
    report = measure(*captions, max_indexed=100, max_tried=20)
    assert (report.tried, report.indexed, report.captions) == (20, 100, 500)
    assert " 20 captions among 100 of the data's: " in report.describe()
    assert report == measure(*captions, max_indexed=100, max_tried=20)
    kept = {*report.without, *(one.caption for one in report.examples)}
    assert any(int(caption.split()[-1]) >= 100 for caption in kept)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["useful"] == report.useful


def test_captions_of_a_word_are_counted() -> None:
    index = CaptionIndex.build(["red cat", "red red dog", "cats"])
    assert [index.count_captions(word) for word in ("red", "cat", "dog", "fish")] == [2, 2, 1, 0]
