"""Which files of a shard belong together, by their names alone."""

import pytest

from tessella.data.samples import Grouping, Member, key_of


def group(*names: str) -> tuple[dict[str, list[str]], list[str], Grouping]:
    """The texts of each picture, and the files that are left."""
    grouping = Grouping()
    samples, rest = {}, []
    for run in grouping.runs(Member(name, 0, 0) for name in names):
        pairs = grouping.pair(run)
        samples |= {image.name: [text.name for text in texts] for image, texts in pairs.samples}
        rest += [member.name for member in (*pairs.images, *pairs.texts)]
    return samples, rest, grouping


@pytest.mark.parametrize(
    ("name", "key"),
    [("a.txt", "a"), ("a.seg.png", "a"), ("x.y/a.b.c", "x.y/a"), ("St. Mary 1.jpg", "St")],
)
def test_the_key_ends_at_the_first_dot_of_the_base_name(name: str, key: str) -> None:
    assert key_of(name) == key


@pytest.mark.parametrize(
    ("names", "samples"),
    [
        (["a.jpg", "a.txt", "b.jpg", "b.txt"], {"a.jpg": ["a.txt"], "b.jpg": ["b.txt"]}),
        (["a.json", "a.txt", "a.webp"], {"a.webp": ["a.json", "a.txt"]}),
        # One picture and one key, whatever the suffixes are called.
        (["1.image.jpg", "1.caption.txt"], {"1.image.jpg": ["1.caption.txt"]}),
        # Further columns of a sample are no pictures to learn.
        (["1.jpg", "1.seg.png", "1.txt"], {"1.jpg": ["1.txt"]}),
        (["1.seg.png", "1.txt", "1.jpg"], {"1.jpg": ["1.txt"]}),
        # Two pictures with a caption each, under one of webdataset's keys.
        (
            ["1.a.jpg", "1.a.txt", "1.b.jpg", "1.b.txt"],
            {"1.a.jpg": ["1.a.txt"], "1.b.jpg": ["1.b.txt"]},
        ),
    ],
)
def test_samples(names: list[str], samples: dict[str, list[str]]) -> None:
    found, rest, _ = group(*names)
    assert (found, rest) == (samples, [])


@pytest.mark.parametrize("suffixes", [("jpg", "txt"), ("json", "png")])
def test_names_with_dots_are_told_apart_by_the_whole_name(suffixes: tuple[str, str]) -> None:
    names = [f"St. Mary {n:02}.{suffix}" for n in range(40) for suffix in suffixes]
    found, rest, grouping = group(*names)
    assert len(found) == 40 and not rest and grouping.is_dotted
    for image, [text] in found.items():
        assert image[:11] == text[:11]


def test_a_run_of_names_with_dots_is_not_gathered_to_its_end() -> None:
    names = [f"St. Mary {n:02}.{suffix}" for n in range(40) for suffix in ("jpg", "txt")]
    runs = Grouping().runs(Member(name, 0, 0) for name in names)
    assert max(len(run) for run in runs) == 2


def test_all_pictures_before_all_texts_with_dots() -> None:
    names = [f"v1.{n}.{suffix}" for suffix in ("jpg", "txt") for n in range(5)]
    found, rest, grouping = group(*names)
    assert found == {f"v1.{n}.jpg": [f"v1.{n}.txt"] for n in range(5)}
    assert not rest and grouping.is_dotted


# A caption of a picture that was left out must not become that of its neighbour.
def test_names_with_dots_whose_parts_are_missing_are_not_paired() -> None:
    assert group("St. Mary 1.jpg", "St. Paul 2.txt")[:2] == (
        {},
        ["St. Mary 1.jpg", "St. Paul 2.txt"],
    )
    found, rest, _ = group("v1.1.jpg", "v1.1.txt", "v1.2.jpg", "v1.2.txt", "v1.3.jpg", "v1.4.txt")
    assert set(found) == {"v1.1.jpg", "v1.2.jpg"} and rest == ["v1.3.jpg", "v1.4.txt"]
