"""The doctor's report: what is there, what is wrong with it, what to do next."""

import json

import pytest
from PIL import Image

from drawn import encoded
from tessella.data import inspect
from tessella.data.inspect import Spread, inspect_data
from tessella.data.settings import DataSettings

SETTINGS = DataSettings(image_size=16, workers=1)


def test_a_healthy_data_set(draw) -> None:
    folder = draw.captioned(10)
    draw.file("data/0000.txt", "a Red disc, large\nA disc!")
    draw.image("data/wide.png", 90, size=48)
    draw.file("data/wide.txt", "a disc")
    before = sorted(folder.iterdir())
    report = inspect_data([str(folder)], SETTINGS)
    [source] = report.sources
    assert (source.kind, source.images, source.files) == ("captions", 11, 22)
    assert (report.images, report.captions, report.duplicates) == (11, 12, 0)
    assert report.captions_per_image == Spread(1, pytest.approx(12 / 11, abs=1e-4), 1, 2)
    assert report.width_px == Spread(16, pytest.approx(18.9091, abs=1e-4), 16, 48)
    assert report.aspect_ratio == Spread(1, 1, 1, 1)
    assert report.modes == {"RGB": 11} and report.formats == {"PNG": 11}
    # picture, 1 to 9, a, red, disc, large
    assert report.vocabulary_size == 14 and report.frequent_words[:3] == ("picture", "a", "disc")
    assert report.caption_words.max == 4 and report.caption_characters.max == 17
    assert report.different_captions == 12
    assert report.errors == () and report.is_usable and not report.skipped
    assert report.warnings == ("Only 11 images: the model will learn them by heart.",)
    assert report.advice == (f"Train on it: tessella fit {folder} --out RUN",)
    assert json.loads(json.dumps(report.to_dict()))["is_usable"] is True
    assert sorted(folder.iterdir()) == before


def test_the_first_duplicates_are_named(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "_MAX_DUPLICATES", 2)
    monkeypatch.setattr(inspect, "_MAX_NAMES", 2)
    for number, shade in enumerate((10, 20, 30, 10, 30, 20, 10)):
        draw.image(f"data/thing/{number}.png", shade)
    report = inspect_data([str(draw.folder / "data")], SETTINGS)
    assert report.duplicates == 4
    # Of 30, the third, no name was kept.
    names = [[name[-5] for name in pair] for pair in report.duplicate_examples]
    assert names == [["3", "0"], ["5", "1"]]


def test_scenes_that_are_too_small_are_an_error_of_the_report() -> None:
    report = inspect_data(["scenes2:5"], SETTINGS)
    assert not report.is_usable
    assert "64" in report.errors[0]


def test_what_captions_never_tell_is_said(draw) -> None:
    folder = draw.folder / "data"
    for number in range(50):
        draw.image(f"data/{number}.png", number * 5)
        draw.file(f"data/{number}.txt", f"the {'red' if number % 2 else 'blue'} disc")
    report = inspect_data([str(folder)], SETTINGS)
    assert report.untold == ("sizes", "counts")
    assert report.learnable_words == 4  # the, red, blue, disc
    assert "Hardly any caption mentions sizes or counts." in report.warnings
    assert report.advice[0].startswith("The model will not follow words for sizes and counts")


def test_each_usable_picture_is_told(draw) -> None:
    folder = draw.captioned(3)
    draw.file("data/empty.png", b"")
    draw.file("data/empty.txt", "t")
    told = []
    inspect_data([str(folder)], SETTINGS, told.append)
    assert [picture.captions for picture in told] == [(f"picture {i}",) for i in range(3)]
    assert len({picture.digest for picture in told}) == 3


def test_skipped_files_are_counted_by_kind_with_examples(draw) -> None:
    folder = draw.captioned(6)
    for number in range(5):
        draw.file(f"data/empty{number}.png", b"")
        draw.file(f"data/empty{number}.txt", "t")
    draw.file("data/alone.txt", "t")
    report = inspect_data([str(folder)], SETTINGS)
    assert {kind: entry.count for kind, entry in report.skipped.items()} == {
        "empty": 5,
        "imageless": 1,
    }
    assert [e["reason"] for e in report.skipped["empty"].examples] == ["The file is empty."] * 3
    assert report.skipped_fraction == 0.5 and report.images == 6
    assert report.errors == (
        "50.0% of the files have to be skipped, at most 5% may be (data.max_skipped_fraction).",
    )
    assert report.advice == ("Fix or remove the skipped files; the examples say what is wrong.",)


def test_suspicious_things_are_said(draw) -> None:
    for number in range(20):
        draw.image(f"data/same_thing/{number}.png", number // 2, size=8)
    report = inspect_data([str(draw.folder / "data")], SETTINGS)
    assert report.duplicates == 10 and report.is_usable
    same = str(draw.folder / "data/same_thing")
    assert len(report.duplicate_examples) == 10
    assert report.duplicate_examples[0] == (f"{same}/1.png", f"{same}/0.png")
    assert report.warnings == (
        "All captions are the same: the model would have nothing to read.",
        "10 of 20 images are duplicates of another one.",
        "20 of 20 images are smaller than 16x16 pixels.",
        "Only 20 images: the model will learn them by heart.",
    )
    assert report.advice[:3] == (
        "Write captions that tell the pictures apart.",
        "Remove the duplicates; they are never on both sides of the split, but are learned more "
        "often.",
        "Use a smaller data.image_size, or larger pictures.",
    )


def test_long_pictures_are_said(draw) -> None:
    from PIL import Image

    folder = draw.captioned(3)
    Image.new("L", (200, 50), 99).save(folder / "long.png")
    draw.file("data/long.txt", "long")
    report = inspect_data([str(folder)], SETTINGS)
    assert "1 of 4 images are more than twice as long as wide" in report.warnings[0]
    assert report.modes == {"RGB": 3, "L": 1}


def test_how_each_source_was_read_is_said(draw) -> None:
    for number, side in enumerate(("train", "train", "test")):
        draw.image(f"data/{side}/{number}.png", number)
    rows = ["file,caption", *(f"{number}.png,a dog, number {number}" for number in range(3))]
    draw.file("data/all.csv", "\n".join(rows))
    told, scenes = inspect_data([str(draw.folder / "data"), "scenes:2"], SETTINGS).sources
    assert told.readings == {"captions from all.csv, column caption": 3}
    assert told.split == {"train": 2, "validation": 1}
    assert told.notes == ["3 rows of all.csv with unquoted text joined"]
    assert (scenes.readings, scenes.split, scenes.notes) == ({}, {}, [])
    [together] = inspect_data(
        [str(draw.folder / "data")], SETTINGS.replace(named_splits=False)
    ).sources
    assert together.split == {}


def test_a_source_that_cannot_be_read_does_not_hide_the_others(draw) -> None:
    shard = draw.shard("x.tar", range(9))
    shard.write_bytes(shard.read_bytes()[:12_000])
    given = [str(shard), str(draw.folder / "nothing"), "scenes:10"]
    report = inspect_data(given, SETTINGS)
    cut, missing, scenes = report.sources
    assert cut.kind == "shards" and cut.error is not None and "cut off" in cut.error
    assert missing.kind is None and "There is no such data" in (missing.error or "")
    assert (scenes.kind, scenes.images, scenes.error) == ("scenes", 10, None)
    assert report.formats["drawn"] == 10
    assert report.errors == (cut.error, missing.error) and not report.is_usable
    assert report.advice[0] == "Fix or leave out the data that cannot be read."


def test_the_field_to_split_by_is_checked(draw) -> None:
    shard = str(draw.shard("x.tar", range(4)))
    other = str(draw.captioned(4, start=20))
    wrong = inspect_data([shard], SETTINGS.replace(split_by="bass"))
    assert wrong.errors == ("No image has the field to split by: `bass`.",)
    partly = inspect_data([shard, other], SETTINGS.replace(split_by="base"))
    assert partly.warnings[-1] == "4 images lack the field to split by: `base`."


def test_nothing_to_report_on(draw) -> None:
    assert inspect_data([], SETTINGS).errors == ("No data was named.",)
    empty = inspect_data(str(draw.tar("x.tar", {"notes.md": "x"})), SETTINGS)
    assert empty.errors == ("No image can be used.",) and empty.images == 0
    assert empty.width_px == Spread(0, 0, 0, 0)
    twice = inspect_data(["scenes:2", "scenes:2"], SETTINGS)
    assert twice.errors == ("The same data is named twice: `scenes:2`.",)


def test_broken_colour_profiles_are_counted(draw) -> None:
    folder = draw.captioned(2)
    for number in range(3):
        image = Image.new("RGB", (16, 16), (number, 0, 0))
        draw.file(f"data/x{number}.png", encoded(image, icc_profile=b"none"))
        draw.file(f"data/x{number}.txt", f"x {number}")
    [warning] = [w for w in inspect_data([str(folder)], SETTINGS).warnings if "profile" in w]
    assert warning.startswith("3 images have a broken colour profile: it is ignored")
