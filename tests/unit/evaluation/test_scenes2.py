"""The reader of scenes2: real pictures meet every demand; what is wrong fails just that demand."""

import dataclasses
import io
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tessella.data.scenes.groups import (
    CORNERS,
    HALVES,
    MIDDLE,
    SIZES,
    Group,
    GroupScene,
    describe_groups,
    draw_groups,
    parse_groups,
    sample_groups,
)
from tessella.data.scenes.shapes import (
    BACKGROUNDS,
    COLORS,
    MARKS,
    SHAPES,
    TEXTURES,
    draw_object,
    draw_picture,
    reduce_picture,
)
from tessella.errors import DataError, ShapeError
from tessella.evaluation.scenes import (
    ClassifiedGroups,
    classify_groups,
    compute_scene_accuracy,
    count_demands,
    sample_prompts,
)
from tessella.evaluation.scenes.looks import Coverages, blur, weigh_looks

KINDS = ("background", "count", "size", "texture", "shape", "color", "negation", "relation")


def draw_all(scenes: Sequence[GroupScene], size: int = 64) -> np.ndarray:
    return np.stack([draw_groups(scene, size) for scene in scenes])


def failed(classified: ClassifiedGroups) -> set[str]:
    """The kinds of demands that a picture does not meet."""
    return {kind for kind, are_met in classified.demands.items() if not all(are_met)}


def replace_group(scene: GroupScene, index: int, **changes: object) -> GroupScene:
    groups = list(scene.groups)
    groups[index] = dataclasses.replace(groups[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(scene, groups=tuple(groups))


@pytest.fixture(scope="module")
def prompts() -> list[GroupScene]:
    each = (sample_prompts(150, 5, held_out, "scenes2") for held_out in (False, True))
    return list(itertools.chain.from_iterable(each))


@pytest.fixture(scope="module")
def pixels(prompts: list[GroupScene]) -> np.ndarray:
    return draw_all(prompts)


# Real scenes


def test_real_scenes_meet_every_demand(prompts: list[GroupScene], pixels: np.ndarray) -> None:
    classified = classify_groups(pixels, prompts)
    wrong = [describe_groups(one.expected) for one in classified if not one.all_correct]
    assert wrong == []
    counts = count_demands(classified)
    assert set(counts) == set(KINDS)
    assert counts["background"].all == counts["count"].all == 300
    groups = [group for scene in prompts for group in scene.groups]
    assert counts["size"].all == counts["texture"].all == counts["shape"].all == len(groups)
    assert counts["negation"].all == sum(group.not_color is not None for group in groups)
    assert counts["color"].all == len(groups) - counts["negation"].all
    assert counts["relation"].all == len(groups) - 300
    assert all(count.met == count.all for count in counts.values())


@pytest.mark.parametrize("size", [65, 128, 257])
def test_real_scenes_are_read_at_other_sizes(size: int, prompts: list[GroupScene]) -> None:
    scenes = prompts[145:155]
    assert compute_scene_accuracy(draw_all(scenes, size), scenes, "scenes2") == 1


def test_every_look_is_read_on_every_background() -> None:
    """Also the faint ones: black on navy, yellow on white, small shapes alike."""
    looks = list(itertools.product(SHAPES, COLORS, TEXTURES))
    wrong = []
    for background, size in itertools.product(BACKGROUNDS, SIZES):
        scenes = [
            GroupScene(background, (Group(size, t, c, s, MIDDLE, ((0.011, -0.007),) * 3),))
            for s, c, t in looks
        ]
        # A third of them: each look before one background at least, in either size.
        scenes = scenes[(len(background) + len(size)) % 3 :: 3]
        classified = classify_groups(draw_all(scenes), scenes)
        wrong += [describe_groups(one.expected) for one in classified if not one.all_correct]
    assert wrong == []


def test_only_the_layout_of_a_prompt_tells_where_to_look(
    prompts: list[GroupScene], pixels: np.ndarray
) -> None:
    """A prompt read back from its caption has no offsets, and is read alike."""
    expected = [parse_groups(describe_groups(scene)) for scene in prompts[:60]]
    assert compute_scene_accuracy(pixels[:60], expected, "scenes2") == 1


# Damage such as a tokenizer does


def compress(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def test_what_blur_noise_and_compression_leave_is_read(
    prompts: list[GroupScene], pixels: np.ndarray
) -> None:
    scenes, pictures = prompts[100:200], pixels[100:200]
    noise = np.random.default_rng(0).normal(0, 12, pictures.shape)
    blurs = [ImageFilter.GaussianBlur(radius) for radius in (0.8, 1.0)]
    blurred = [
        np.stack([np.array(Image.fromarray(picture).filter(each)) for picture in pictures])
        for each in blurs
    ]
    noisy = np.clip(pictures + noise, 0, 255).astype(np.uint8)
    compressed = np.stack([compress(picture, 75) for picture in pictures])
    assert compute_scene_accuracy(noisy, scenes, "scenes2") == 1
    assert compute_scene_accuracy(blurred[0], scenes, "scenes2") >= 0.97
    assert compute_scene_accuracy(blurred[1], scenes, "scenes2") >= 0.95
    assert compute_scene_accuracy(compressed, scenes, "scenes2") >= 0.95


# Wrong pictures


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_fails_exactly_its_demand(kind: str) -> None:
    """Twelve scenes in which one thing is drawn otherwise."""
    rng = np.random.default_rng(7)
    expected, drawn = [], []
    while len(expected) < 12:
        scene = sample_groups(rng, held_out=bool(rng.integers(2)))
        if (other := spoil(scene, kind, rng)) is not None:
            expected.append(scene)
            drawn.append(other)
    for classified in classify_groups(draw_all(drawn), expected):
        assert failed(classified) == {kind}, describe_groups(classified.expected)
        assert not classified.all_correct
        assert sum(not is_met for is_met in classified.demands[kind]) in (1, 2)


def spoil(scene: GroupScene, kind: str, rng: np.random.Generator) -> GroupScene | None:
    """Changes one thing that a caption demands; None if it does not demand it."""
    index = int(rng.integers(len(scene.groups)))
    group = scene.groups[index]
    if kind == "background":
        plain = [name for name in BACKGROUNDS if name != "navy"]  # on which black is faint
        return dataclasses.replace(scene, background=other_than(scene.background, plain, rng))
    if kind in ("texture", "shape"):
        known = TEXTURES if kind == "texture" else SHAPES
        return replace_group(scene, index, **{kind: other_than(getattr(group, kind), known, rng)})
    if kind == "size" and group.count < 4:
        return replace_group(scene, index, size=other_than(group.size, SIZES, rng))
    if kind == "color" and group.not_color is None:
        return replace_group(scene, index, color=other_than(group.color, COLORS, rng))
    if kind == "negation" and group.not_color is not None:
        return replace_group(scene, index, color=group.not_color, not_color=None)
    if kind == "count" and scene.layout == "row":
        return (
            replace_group(
                replace_group(scene, 0, size="small"), 0, offsets=((0.0, 0.0),) * (7 - group.count)
            )
            if group.size == "small"
            else None
        )
    if kind == "relation" and scene.layout != "row":
        first, second = scene.groups[:2]
        if len({(one.size, one.texture, one.color, one.shape) for one in scene.groups}) == 1:
            return None
        if scene.layout == "corners":  # all turned around the middle: each stands opposite
            groups = tuple(
                dataclasses.replace(one, place=(1 - one.place[0], 1 - one.place[1]))
                for one in scene.groups
            )
            return dataclasses.replace(scene, groups=groups)
        groups = (
            dataclasses.replace(first, place=second.place),
            dataclasses.replace(second, place=first.place),
        )
        return dataclasses.replace(scene, groups=groups)
    return None


def other_than(name: str, known: Sequence[str], rng: np.random.Generator) -> str:
    others = [other for other in known if other != name]
    return others[int(rng.integers(len(others)))]


def corners(*looks: tuple[str, str], texture: str = "solid") -> GroupScene:
    """Large objects of a shape and colour in three corners, clockwise from the upper left."""
    return GroupScene(
        "gray",
        tuple(
            Group("large", texture, color, shape, place, ((0.0, 0.0),))
            for (shape, color), place in zip(looks, CORNERS, strict=False)
        ),
    )


THREE = corners(("circle", "red"), ("star", "blue"), ("ring", "green"))


def classify_one(pixels: np.ndarray, expected: GroupScene) -> ClassifiedGroups:
    [classified] = classify_groups(pixels[None], [expected])
    return classified


def test_the_second_and_the_third_that_change_places_fail_both_relations() -> None:
    """The first is then beside the third, and the second where the third should be."""
    swapped = corners(("circle", "red"), ("ring", "green"), ("star", "blue"))
    classified = classify_one(draw_groups(swapped), THREE)
    assert failed(classified) == {"relation"}
    assert classified.demands["relation"] == (False, False)


def test_a_third_in_the_other_corner_fails_the_second_relation_alone() -> None:
    canvas = draw_picture("gray", 64)
    for group, place in zip(THREE.groups, (*CORNERS[:2], CORNERS[3]), strict=True):
        draw_object(canvas, group.shape, "solid", group.color, SIZES["large"], place)
    classified = classify_one(reduce_picture(canvas), THREE)
    assert failed(classified) == {"relation"}
    assert classified.demands["relation"] == (True, False)


def test_an_object_too_many_fails_the_count_alone() -> None:
    canvas = draw_picture("gray", 64)
    for group in THREE.groups:
        draw_object(canvas, group.shape, "solid", group.color, SIZES["large"], group.place)
    draw_object(canvas, "cross", "dotted", "yellow", SIZES["small"], CORNERS[3])
    assert failed(classify_one(reduce_picture(canvas), THREE)) == {"count"}


def test_a_group_left_out_meets_nothing_that_is_asked_of_it() -> None:
    canvas = draw_picture("gray", 64)
    for group in THREE.groups[:2]:
        draw_object(canvas, group.shape, "solid", group.color, SIZES["large"], group.place)
    classified = classify_one(reduce_picture(canvas), THREE)
    assert classified.demands == {
        "background": (True,),
        "count": (False,),
        "size": (True, True, False),
        "texture": (True, True, False),
        "shape": (True, True, False),
        "color": (True, True, False),
        "relation": (True, False),
    }


def test_a_gap_in_a_row_fails_the_count_alone() -> None:
    expected = GroupScene(
        "pink", (Group("small", "striped", "red", "circle", MIDDLE, ((0.0, 0.0),) * 4),)
    )
    canvas = draw_picture("pink", 64)
    for centre in expected.groups[0].centres[1:]:
        draw_object(canvas, "circle", "striped", "red", SIZES["small"], centre)
    assert failed(classify_one(reduce_picture(canvas), expected)) == {"count"}


def test_one_of_a_row_in_another_colour_fails_the_colour_alone() -> None:
    expected = GroupScene(
        "pink", (Group("small", "solid", "red", "circle", MIDDLE, ((0.0, 0.0),) * 3),)
    )
    canvas = draw_picture("pink", 64)
    for color, centre in zip(("red", "red", "blue"), expected.groups[0].centres, strict=True):
        draw_object(canvas, "circle", "solid", color, SIZES["small"], centre)
    assert failed(classify_one(reduce_picture(canvas), expected)) == {"color"}


def test_looks_bound_to_the_wrong_object_are_no_change_of_places() -> None:
    """A red star and a blue circle for a red circle and a blue star: shapes are wrong."""
    bound = corners(("star", "red"), ("circle", "blue"), ("ring", "green"))
    assert failed(classify_one(draw_groups(bound), THREE)) == {"shape"}


def test_a_negated_group_may_have_any_other_colour() -> None:
    first = Group("small", "solid", "red", "circle", HALVES[0], ((0.0, 0.0),))
    for color in COLORS:
        second = Group("small", "solid", "green", "star", HALVES[1], ((0.0, 0.0),) * 2, "red")
        expected = GroupScene("white", (first, second))
        drawn = replace_group(expected, 1, color=color, not_color=None)
        wanted = {"negation"} if color == "red" else set()
        assert failed(classify_one(draw_groups(drawn), expected)) == wanted


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_nothing_is_seen_in_an_empty_picture(background: str) -> None:
    prompts = sample_prompts(20, 0, False, "scenes2")
    empty = np.full((20, 64, 64, 3), BACKGROUNDS[background], np.uint8)
    for classified in classify_groups(empty, prompts):
        assert classified.background == background
        assert not any(row.found for row in classified.rows.values())
        assert failed(classified) >= set(classified.demands) - {"background"}


def test_pictures_of_other_prompts_and_noise_are_wrong(
    prompts: list[GroupScene], pixels: np.ndarray
) -> None:
    assert compute_scene_accuracy(np.roll(pixels[:100], 1, axis=0), prompts[:100], "scenes2") == 0
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
    assert compute_scene_accuracy(noise, prompts[:60], "scenes2") == 0


# The distances, by their definition


def test_looks_are_weighed_by_squared_distance() -> None:
    """The matrix products against plain squared distances of every rendering."""
    rng = np.random.default_rng(3)
    windows = rng.random((2, 5, 4, 3), np.float32)
    marks = np.concatenate([np.zeros((4, 20)), rng.random((2, 20)) / 2]).astype(np.float32)
    colored = rng.random((6, 20)).astype(np.float32) / 2
    weights = weigh_looks(windows, Coverages(colored, marks[4:], 2))  # three kinds, two offsets
    assert weights.shape == (2, 4, 8, 3)
    mark = np.array(MARKS) / 255
    for b, (at, named) in itertools.product(range(2), enumerate(BACKGROUNDS.values())):
        flat, background = windows[b].reshape(20, 3), np.array(named) / 255
        alone = ((flat - background) ** 2).sum()
        for c, color in enumerate(COLORS.values()):
            renders = (
                background
                + colored[..., None] * (np.array(color) / 255 - background)
                + marks[..., None] * (mark - background)
            )
            added = ((flat - renders) ** 2).sum(axis=(1, 2)) - alone
            expected = added.reshape(3, 2).min(axis=1)
            np.testing.assert_allclose(weights[b, at, c], expected, atol=1e-4)


def test_blur_spreads_a_point_as_a_gaussian() -> None:
    image = np.zeros((1, 15, 15, 1), np.float32)
    image[0, 7, 7] = 1
    blurred = blur(image, 1.5)[0, :, :, 0]
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert blurred[7, 8] / blurred[7, 7] == pytest.approx(np.exp(-0.5 / 1.5**2), abs=1e-5)
    assert blurred[9, 4] == pytest.approx(blurred[4, 9])
    flat = np.full((1, 6, 6, 3), 0.3, np.float32)
    np.testing.assert_allclose(blur(flat, 2.0), flat, atol=1e-6)


# Prompts and errors


def test_no_prompt_is_a_training_scene() -> None:
    training = {sample_groups(np.random.default_rng([0, i])) for i in range(300)}
    prompts = set(sample_prompts(300, 0, False, "scenes2"))
    assert len(training) == len(prompts) == 300
    assert not training & prompts
    assert {one.is_held_out for one in sample_prompts(50, 0, True, "scenes2")} == {True}


def test_other_pictures_are_refused() -> None:
    prompts = sample_prompts(1, 0, False, "scenes2")
    with pytest.raises(ShapeError, match=r"must be \(B, S, S, 3\) uint8: `\(1, 64, 32, 3\)"):
        classify_groups(np.zeros((1, 64, 32, 3), np.uint8), prompts)
    with pytest.raises(ShapeError, match="`2` pictures, `1` scenes"):
        classify_groups(np.zeros((2, 64, 64, 3), np.uint8), prompts)
    with pytest.raises(ShapeError, match="at least 64 pixels a side: `32`"):
        classify_groups(np.zeros((1, 32, 32, 3), np.uint8), prompts)
    with pytest.raises(DataError, match="at least one picture: `0`"):
        compute_scene_accuracy(np.zeros((0, 64, 64, 3), np.uint8), [], "scenes2")
