"""What the numbers in .cls files mean."""

import pytest

from tessella.data.class_names import ClassNames, read_class_names
from tessella.data.records import CaptionError


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("cat\ndog\n\n", ("cat", "dog")),
        ("0 cat\n1: dog\n", ("cat", "dog")),
        ("7 dwarfs\n3 pigs\n", ("7 dwarfs", "3 pigs")),
        ("n01440764 tench, Tinca\nn01443537 goldfish", ("tench, Tinca", "goldfish")),
    ],
)
def test_one_name_a_line(content: str, names: tuple[str, ...]) -> None:
    assert read_class_names("classes.txt", content.encode()).names == names


def test_a_class_becomes_a_caption() -> None:
    names = ClassNames("classes.txt", ("great_white  shark",))
    assert names.caption(0) == "great white shark"
    with pytest.raises(CaptionError, match=r"classes\.txt has 1 classes, and this is number 1"):
        names.caption(1)
