"""scenes2: what is drawn is what the specification says, and every caption tells the truth."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_captions import canonize
from tessella.data.scenes.groups import (
    CORNERS,
    HALVES,
    HELD_OUT_COUNTS,
    HELD_OUT_TEXTURES,
    JITTER,
    LAYOUTS,
    MIDDLE,
    SIZES,
    Group,
    GroupScene,
    describe_groups,
    draw_groups,
    paraphrase_groups,
    parse_groups,
    sample_groups,
)
from tessella.data.scenes.shapes import (
    BACKGROUNDS,
    COLORS,
    MARKS,
    SHAPES,
    TEXTURES,
    cover,
    cover_marks,
)
from tessella.errors import DataError, ShapeError

seeds = st.integers(0, 2**32 - 1)
STILL = (0.0, 0.0)


def sample(seed: int, held_out: bool = False) -> GroupScene:
    return sample_groups(np.random.default_rng(seed), held_out)


def row(
    count: int,
    shape: str = "circle",
    color: str = "red",
    texture: str = "solid",
    size: str = "small",
    background: str = "white",
) -> GroupScene:
    group = Group(size, texture, color, shape, MIDDLE, (STILL,) * count)
    return GroupScene(background, (group,))


def describe(scene: GroupScene) -> tuple[str, frozenset[tuple[object, ...]]]:
    """Everything that a caption can tell of a scene, whatever the order of its groups."""
    return scene.background, frozenset(
        (
            group.place,
            group.count,
            group.size,
            group.texture,
            group.shape,
            None if group.not_color else group.color,
            group.not_color,
        )
        for group in scene.groups
    )


@pytest.fixture(scope="module")
def scenes() -> list[GroupScene]:
    rng = np.random.default_rng(0)
    return [sample_groups(rng) for _ in range(4000)]


# Choosing a scene


@pytest.mark.parametrize("held_out", [False, True])
def test_held_out_combinations_occur_exactly_when_asked_for(held_out: bool) -> None:
    for seed in range(500):
        scene = sample(seed, held_out)
        counts = {(group.count, group.shape) for group in scene.groups}
        textures = {(group.texture, group.color) for group in scene.groups}
        assert bool(counts & HELD_OUT_COUNTS or textures & HELD_OUT_TEXTURES) == held_out


def test_both_kinds_of_combinations_are_held_out() -> None:
    groups = [group for seed in range(300) for group in sample(seed, held_out=True).groups]
    assert {(group.count, group.shape) for group in groups} >= HELD_OUT_COUNTS
    assert {(group.texture, group.color) for group in groups} >= HELD_OUT_TEXTURES


def test_what_a_caption_does_not_tell_is_not_what_is_held_out() -> None:
    """Else a model that paints another colour, as it may, would not have to compose."""
    scenes = [sample(seed, held_out=True) for seed in range(500)]
    negated = [group for scene in scenes for group in scene.groups if group.not_color]
    assert len(negated) > 50
    assert not {(group.texture, group.color) for group in negated} & HELD_OUT_TEXTURES


@pytest.mark.parametrize("held_out", [False, True])
def test_layouts_are_equally_probable(held_out: bool) -> None:
    rng = np.random.default_rng(1)
    layouts = Counter(sample_groups(rng, held_out).layout for _ in range(2000))
    assert set(layouts) == set(LAYOUTS)
    for count in layouts.values():
        assert count / 2000 == pytest.approx(1 / 3, abs=0.04)  # 3.5 standard deviations


def test_there_are_three_or_four_objects_where_the_layout_says(scenes: list[GroupScene]) -> None:
    for scene in scenes:
        all_places, all_counts = LAYOUTS[scene.layout]
        counts = tuple(group.count for group in scene.groups)
        assert scene.places in all_places
        assert counts in all_counts
        assert sum(counts) in (3, 4)
    seen = {(scene.layout, scene.places, len(scene.groups[0].centres)) for scene in scenes}
    assert len(seen) == 2 + 2 * 3 + 8


def test_attributes_are_uniform(scenes: list[GroupScene]) -> None:
    groups = [group for scene in scenes for group in scene.groups if group.not_color is None]
    textures = Counter((group.texture, group.color) for group in groups)
    expected = set(itertools.product(TEXTURES, COLORS)) - HELD_OUT_TEXTURES
    assert set(textures) == expected
    ones = Counter(group.shape for group in groups if group.count == 1)
    sizes = Counter(group.size for group in groups if group.count < 4)
    backgrounds = Counter(scene.background for scene in scenes)
    for counter, names in ((ones, SHAPES), (sizes, SIZES), (backgrounds, BACKGROUNDS)):
        assert set(counter) == set(names)
        mean = sum(counter.values()) / len(names)
        assert all(abs(count - mean) < 4.5 * math.sqrt(mean) for count in counter.values())


def test_a_third_of_scenes_of_several_groups_says_which_colour_one_has_not(
    scenes: list[GroupScene],
) -> None:
    several = [scene for scene in scenes if len(scene.groups) > 1]
    negated = [scene for scene in several if any(group.not_color for group in scene.groups)]
    assert len(negated) / len(several) == pytest.approx(1 / 3, abs=0.04)
    for scene in negated:
        [group] = [group for group in scene.groups if group.not_color]
        assert group is not scene.groups[0]
        assert group.not_color == scene.groups[0].color != group.color


def test_offsets_stay_in_the_jitter(scenes: list[GroupScene]) -> None:
    offsets = np.array([o for scene in scenes for g in scene.groups for o in g.offsets])
    assert np.abs(offsets).max() <= JITTER
    np.testing.assert_allclose(offsets.std(axis=0), JITTER / math.sqrt(3), rtol=0.03)


def test_a_seed_gives_the_same_scene_for_ever() -> None:
    # A changed draw would silently change every trained model and every benchmark.
    scenes = [sample_groups(np.random.default_rng([0, i])) for i in range(6)]
    assert [describe_groups(scenes[i]) for i in (0, 1, 4)] == [
        "a small orange cross below a small black triangle, which is right of a small striped "
        "black circle, on a pink background",
        "two small green circles in a row below two large dotted circles in a row that are not "
        "green on a pink background",
        "a large dotted green circle below three small striped yellow circles in a row on a white "
        "background",
    ]


# Drawing


def test_objects_do_not_touch_each_other_nor_the_edge() -> None:
    """Also where each is moved as far as it may be towards the next."""
    apart = (-JITTER, JITTER), (JITTER, -JITTER)
    for size, count in (("large", 2), ("large", 3), ("small", 4)):
        for offsets in (apart * 2, apart[::-1] * 2):
            group = Group(size, "solid", "red", "square", MIDDLE, offsets[:count])
            covered = np.stack([cover("square", SIZES[size], c, 256) for c in group.centres]).sum(0)
            assert covered.max() < 1.2  # Lanczos overshoots by a tenth
            assert np.abs(covered[:, [0, -1]]).max() < 0.1


@pytest.mark.parametrize("texture", TEXTURES[1:])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_shows_its_texture(shape: str, size: str, texture: str) -> None:
    marks = cover_marks(texture, shape, SIZES[size], (0.5, 0.5), 64)
    coverage = cover(shape, SIZES[size], (0.5, 0.5), 64)
    assert 0.15 < marks.sum() / coverage.sum() < 0.5
    assert (marks - coverage).max() < 0.25  # none lies outside, but for what Lanczos spreads


def test_solid_objects_have_no_marks() -> None:
    pixels = draw_groups(row(4, color="black", background="navy"))
    assert pixels.max() < 100
    assert draw_groups(row(4, color="black", texture="dotted", background="navy")).max() > 200


def test_striped_and_dotted_are_told_by_direction() -> None:
    """Along a stripe the coverage stays, along a row of dots it comes and goes."""
    marks = {
        texture: cover_marks(texture, "square", 0.4, (0.5, 0.5), 256)
        for texture in ("striped", "dotted")
    }
    line = slice(60, 196)
    assert marks["striped"][87, line].min() > 0.9  # y = -.4 radii
    assert marks["dotted"][82, line].min() < 0.1 < 0.9 < marks["dotted"][82, line].max()


def test_a_picture_is_its_background_colour_and_marks() -> None:
    """The identity on which the reader rests."""
    gray = np.array(BACKGROUNDS["gray"], np.float32)
    for shape, color, texture in itertools.product(SHAPES, COLORS, TEXTURES[1:]):
        scene = row(3, shape, color, texture, background="gray")
        expected = np.broadcast_to(gray, (64, 64, 3)).copy()
        for centre in scene.groups[0].centres:
            marks = cover_marks(texture, shape, SIZES["small"], centre, 64)[..., None]
            coverage = cover(shape, SIZES["small"], centre, 64)[..., None]
            expected += (coverage - marks) * (np.array(COLORS[color], np.float32) - gray)
            expected += marks * (np.array(MARKS, np.float32) - gray)
        difference = np.abs(draw_groups(scene) - np.clip(expected, 0, 255))
        # Lanczos clips what overshoots white after each of its two passes.
        assert difference.max() < 20
        assert difference.mean() < 0.3


# Captions


def test_canonical_captions() -> None:
    assert (
        describe_groups(row(3, texture="striped"))
        == "three small striped red circles in a row on a white background"
    )
    assert describe_groups(row(4, "cross")).startswith("four small red crosses in a row on a")
    ring = Group("small", "solid", "red", "ring", CORNERS[0], (STILL,))
    star = Group("large", "dotted", "blue", "star", CORNERS[1], (STILL,), "red")
    cross = Group("small", "solid", "blue", "cross", CORNERS[2], (STILL,))
    assert (
        describe_groups(GroupScene("gray", (ring, star, cross)))
        == "a small red ring left of a large dotted star that is not red, which is above a small "
        "blue cross, on a gray background"
    )
    two = Group("large", "solid", "green", "square", HALVES[1], (STILL, STILL), "red")
    one = Group("small", "solid", "red", "ring", HALVES[0], (STILL,))
    assert (
        describe_groups(GroupScene("navy", (one, two)))
        == "a small red ring above two large squares in a row that are not red on a navy background"
    )


@given(seeds, st.booleans())
@settings(deadline=None)
def test_canonical_captions_round_trip(seed: int, held_out: bool) -> None:
    scene = sample(seed, held_out)
    caption = describe_groups(scene)
    parsed = parse_groups(caption)
    assert describe_groups(parsed) == caption
    assert describe(parsed) == describe(scene)
    assert all(offset == STILL for group in parsed.groups for offset in group.offsets)
    assert parsed.is_held_out == held_out


@given(seeds)
@settings(deadline=None)
def test_every_paraphrase_is_true(seed: int) -> None:
    scene = sample(seed)
    for paraphrase in paraphrase_groups(scene, np.random.default_rng(seed), 8):
        assert describe(parse_groups(canonize(paraphrase))) == describe(scene)


def test_paraphrases_use_every_wording() -> None:
    rng = np.random.default_rng(0)
    texts = [text for seed in range(60) for text in paraphrase_groups(sample(seed), rng, 10)]
    spoken = " ".join(texts)
    for wording in (
        *("two ", "2 ", "three ", "3 ", "four ", "4 ", "in a row", "side by side", "striped"),
        *("stripy", "dotted", "spotted", "big", "tiny", "to the left of", "beneath", "on navy"),
        *("that is not ", "that are not "),
    ):
        assert wording in spoken, wording


# Errors


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a large red circle on a gray background",
        "two small red circles in a row on a gray background",
        "four large red circles in a row on a gray background",
        "three small red circle in a row on a gray background",
        "three small red circles on a gray background",
        "a small red circles above two small red circles in a row on a gray background",
        "a small red circle left of two small blue stars in a row on a gray background",
        "a small red circle above a small blue star on a gray background",
        "a small red circle above two small stars in a row on a gray background",
        "a small red circle above two small red stars in a row that are not red on a gray "
        "background",
        "a small red circle above two small blue stars in a row that are not red on a gray "
        "background",
        "a small red circle left of a small blue star, which is left of a small red ring, on a "
        "gray background",
        "a small plaid red circle above two small blue stars in a row on a gray background",
    ],
)
def test_other_captions_are_refused_with_what_was_expected(caption: str) -> None:
    with pytest.raises(DataError, match="Expected `GROUP on a BACKGROUND") as caught:
        parse_groups(caption)
    assert f"`{caption}`" in str(caught.value)
    for word in (*BACKGROUNDS, *COLORS, *SHAPES, *SIZES, *TEXTURES[1:], "left of", "below"):
        assert word in str(caught.value)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DataError, match="Unknown scene texture: `plaid`"):
        row(3, texture="plaid")
    with pytest.raises(DataError, match="Unknown scene shape: `hexagon`"):
        row(3, "hexagon")
    with pytest.raises(DataError, match="Unknown scene color: `mauve`"):
        row(3, color="mauve")
    with pytest.raises(DataError, match="Unknown scene color: `mauve`"):
        Group("small", "solid", "red", "star", MIDDLE, (STILL,), "mauve")
    with pytest.raises(DataError, match="Unknown scene size: `huge`"):
        row(3, size="huge")
    with pytest.raises(DataError, match="Unknown scene background: `beige`"):
        row(3, background="beige")


def test_what_has_no_room_is_refused() -> None:
    with pytest.raises(DataError, match=r"No room for 4 large objects .* 4 small ones"):
        row(4, size="large")
    with pytest.raises(DataError, match="No room for 0 small objects"):
        row(0)
    with pytest.raises(DataError, match=r"Groups of 2 objects cannot stand at \(\(0.5, 0.5\),\)"):
        row(2)
    with pytest.raises(DataError, match="not red cannot be `red`"):
        Group("small", "solid", "red", "star", MIDDLE, (STILL,), "red")


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least 64 pixels a side: `63`"):
        draw_groups(sample(0), 63)
