"""What names say: a side of the split, a class, repeats, or nothing."""

import pytest

from tessella.data.names import (
    class_caption,
    has_repeats,
    side_of_file,
    side_of_name,
    side_of_value,
    split_repeats,
)


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "Train",
        "training",
        "train2017",
        "train_images",
        "trainset",
        "TRAIN set",
        "trainval",
    ],
)
def test_names_of_training(name: str) -> None:
    assert side_of_name(name) == side_of_value(name) == "train"


@pytest.mark.parametrize(
    "name",
    ["val", "valid", "validation", "test", "Testing", "val2014", "dev", "test-images", "eval"],
)
def test_names_of_what_is_held_out(name: str) -> None:
    assert side_of_name(name) == side_of_value(name) == "validation"


@pytest.mark.parametrize(
    "name", ["images", "trains", "contest", "valley", "device", "set", "", "2017"]
)
def test_other_names(name: str) -> None:
    assert side_of_name(name) is None


def test_other_values() -> None:
    assert side_of_value(3) is None
    assert side_of_value(None) is None


@pytest.mark.parametrize(
    ("stem", "side"),
    [
        ("train", "train"),
        ("captions_val2017", "validation"),
        ("test-00000-of-00012", "validation"),
        ("train_0003", "train"),
        ("Flickr_8k.trainImages", "train"),
        ("train_and_test", None),
        ("metadata", None),
        ("captions", None),
        ("0001", None),
    ],
)
def test_files(stem: str, side: str | None) -> None:
    assert side_of_file(stem) == side


@pytest.mark.parametrize(
    ("folders", "caption"),
    [
        (("red_car",), "red car"),
        (("train", "snow-white"), "snow white"),
        (("cats", "images"), "cats"),
        (("10_sks dog",), "sks dog"),
        (("001.Black_footed_Albatross",), "Black footed Albatross"),
        (("01-cats",), "cats"),
        (("7",), "7"),
        (("7 eleven",), "7 eleven"),
        (("3-d prints",), "3 d prints"),
        (("00012",), ""),
        (("n01440764",), ""),
        (("train", "images"), ""),
        (("10_images",), ""),
        (("train_data",), ""),
        (("__",), ""),
        ((), ""),
    ],
)
def test_captions_of_folders(folders: tuple[str, ...], caption: str) -> None:
    assert class_caption(folders) == caption


def test_repeats() -> None:
    assert split_repeats("10_sks dog") == (10, "sks dog")
    assert split_repeats("dog_10") is None
    assert split_repeats("10_") is None
    assert has_repeats(["10_sks dog", "1_dog"])
    assert has_repeats(["5_a", "10_b", "20_c", "plain"])
    assert not has_repeats(["1_a", "2_b", "3_c"])
    assert not has_repeats(["0_a", "10_b"])
    assert not has_repeats(["001_a"])
    assert not has_repeats(["cats", "2024"])
