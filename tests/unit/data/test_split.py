"""The split: by content, deterministic, families never torn apart."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.data.split import assign_sides, settle_named_sides, split_key

keys = st.lists(st.integers(0, 2**64 - 1), min_size=0, max_size=60)
fractions = st.floats(0.0, 0.99)


def sides(pixels: list[int], groups: list[int] | None, fraction: float) -> list[bool]:
    pixel_keys, group_keys = (
        np.array(keys, dtype=np.uint64) for keys in (pixels, pixels if groups is None else groups)
    )
    return assign_sides(pixel_keys, group_keys, fraction).tolist()


@given(keys, fractions, st.randoms())
@settings(deadline=None)
def test_the_side_depends_on_the_content_and_not_on_the_order(pixels, fraction, random) -> None:
    expected = dict(zip(pixels, sides(pixels, None, fraction), strict=True))
    random.shuffle(pixels)
    twice = pixels + pixels
    assert sides(twice, None, fraction) == [expected[key] for key in twice]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.floats(0.001, 0.99))
@settings(deadline=None)
def test_both_sides_have_an_image_if_two_differ(pixels, fraction) -> None:
    found = sides(pixels, None, fraction)
    assert len(set(found)) == min(2, len(set(pixels)))
    if len(set(pixels)) == 1:
        assert not any(found)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40),
    st.floats(0.05, 0.95),
)
@settings(deadline=None)
def test_neither_pixels_nor_groups_are_torn_apart(pairs, fraction) -> None:
    pixels = [split_key(f"pixels {p}") for p, _ in pairs]
    groups = [split_key(f"group {g}") for _, g in pairs]
    found = sides(pixels, groups, fraction)
    for together in (pixels, groups):
        for key in set(together):
            assert len({side for k, side in zip(together, found, strict=True) if k == key}) == 1
    backwards = sides(pixels[::-1], groups[::-1], fraction)
    assert backwards == found[::-1]


def test_a_chain_of_pixels_and_groups_is_one_family() -> None:
    pixels, groups = [], []
    for number in range(200):
        pixels += [number, number + 1]
        groups += [1000 + number, 1000 + number]
    assert sides(pixels, groups, 0.5) == [False] * 400


def test_the_share_is_as_wished() -> None:
    pixels = [split_key(str(number)) for number in range(20_000)]
    for fraction in (0.05, 0.5, 0.9):
        # The standard deviation is at most 0.0035.
        assert abs(np.mean(sides(pixels, None, fraction)) - fraction) < 0.015
    # Families of several members: the lowest of several keys is not uniform, the split must be.
    groups = [split_key(str(number // 4)) for number in range(20_000)]
    assert abs(np.mean(sides(pixels, groups, 0.1)) - 0.1) < 0.02


def test_nothing_is_kept_out_with_a_fraction_of_zero() -> None:
    assert sides([1, 2, 3], None, 0.0) == [False] * 3


def test_adding_images_moves_none() -> None:
    pixels = [split_key(str(number)) for number in range(2000)]
    assert sides(pixels, None, 0.05)[:1000] == sides(pixels[:1000], None, 0.05)


def named_sides(named: list[int], sources: list[int]) -> list[int]:
    return settle_named_sides(np.array(named, np.int8), np.array(sources, np.int32)).tolist()


def test_only_a_source_that_names_both_sides_is_split_by_names() -> None:
    assert named_sides([0, 1, -1], [0, 0, 0]) == [0, 1, 0]
    assert named_sides([0, 0, -1], [0, 0, 0]) == [-1, -1, -1]
    assert named_sides([1, 1], [0, 0]) == [-1, -1]
    assert named_sides([1, 0, 1, -1], [0, 0, 1, 2]) == [1, 0, -1, -1]
    assert named_sides([], []) == []


def test_what_the_data_holds_out_is_held_out_with_its_family() -> None:
    pixels = [split_key(str(number)) for number in (1, 2, 3, 1, 4, 5)]
    groups = [*pixels[:4], pixels[1], pixels[5]]
    named = np.array([0, 0, 0, 1, 1, 0], np.int8)
    sides = assign_sides(np.array(pixels), np.array(groups), 0.5, named)
    # The fourth has the first one's pixels, the fifth is of the second one's group.
    assert sides.tolist() == [True, True, False, True, True, False]


def test_images_without_a_named_side_are_split_as_ever() -> None:
    keys = np.array([split_key(str(number)) for number in range(3000)])
    named = np.full(3000, -1, np.int8)
    named[:1000] = 0
    named[1000:1500] = 1
    sides = assign_sides(keys, keys, 0.2, named)
    assert not sides[:1000].any() and sides[1000:1500].all()
    assert sides[1500:].tolist() == assign_sides(keys[1500:], keys[1500:], 0.2).tolist()
    assert not assign_sides(keys, keys, 0.0, named)[1500:].any()
