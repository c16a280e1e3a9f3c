"""Scenes: what is drawn is what the specification says, and every caption tells the truth."""

import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_captions import canonize
from tessella.data.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    JITTER,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    canonical_caption,
    draw_coverage,
    draw_scene,
    paraphrases,
    parse_caption,
    sample_scene,
)
from tessella.data.scenes.sets import SCENE_SETS
from tessella.errors import DataError, ShapeError

seeds = st.integers(0, 2**32 - 1)


def sample(seed: int, held_out: bool = False) -> Scene:
    return sample_scene(np.random.default_rng(seed), held_out)


def describe(scene: Scene) -> tuple[str, frozenset[tuple[object, ...]]]:
    """Everything that a caption can tell of a scene, whatever the order of its objects."""
    return scene.background, frozenset(
        (place, item.shape, item.color, item.size)
        for place, item in zip(scene.places, scene.objects, strict=True)
    )


def single(shape: str, color: str, size: str, background: str = "white") -> Scene:
    return Scene(background, (SceneObject(shape, color, size, 0.5, 0.5),), "single")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(6000)]


# Choosing a scene


@pytest.mark.parametrize("held_out", [False, True])
def test_held_out_pairs_occur_exactly_when_asked_for(held_out: bool) -> None:
    for seed in range(500):
        scene = sample(seed, held_out)
        pairs = {(item.color, item.shape) for item in scene.objects}
        assert bool(pairs & HELD_OUT) == held_out
        assert scene.is_held_out == held_out


@pytest.mark.parametrize("held_out", [False, True])
def test_one_object_has_probability_one_third(held_out: bool) -> None:
    rng = np.random.default_rng(1)
    count = sum(len(sample_scene(rng, held_out).objects) == 1 for _ in range(3000))
    assert count / 3000 == pytest.approx(1 / 3, abs=0.03)  # 3.5 standard deviations


def test_attributes_are_uniform(scenes: list[Scene]) -> None:
    objects = [item for scene in scenes for item in scene.objects]
    counts = [
        (Counter(scene.background for scene in scenes), set(BACKGROUNDS)),
        (Counter(item.size for item in objects), set(SIZES)),
        (
            Counter(scene.relation for scene in scenes if scene.relation),
            {"left of", "right of", "above", "below"},
        ),
        (
            Counter((item.color, item.shape) for item in objects),
            set(itertools.product(COLORS, SHAPES)) - HELD_OUT,
        ),
    ]
    for counter, expected_names in counts:
        assert set(counter) == expected_names
        expected = sum(counter.values()) / len(expected_names)
        for count in counter.values():
            assert abs(count - expected) < 4.5 * math.sqrt(expected)


def test_offsets_are_uniform_in_the_jitter(scenes: list[Scene]) -> None:
    offsets = np.array(
        [
            (item.x - x, item.y - y)
            for scene in scenes
            for item, (x, y) in zip(scene.objects, scene.places, strict=True)
        ]
    )
    assert np.abs(offsets).max() <= JITTER + 1e-12
    np.testing.assert_allclose(offsets.mean(axis=0), 0, atol=0.001)
    np.testing.assert_allclose(offsets.std(axis=0), JITTER / math.sqrt(3), rtol=0.03)


def test_places_are_those_of_the_arrangement(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert sorted(scene.places) == sorted(PLACES[scene.arrangement])


def test_a_seed_gives_the_same_scene_for_ever() -> None:
    # A changed draw would silently change every trained model and every benchmark.
    first = sample_scene(np.random.default_rng([0, 0]))
    assert first == sample_scene(np.random.default_rng([0, 0]))
    assert [canonical_caption(sample_scene(np.random.default_rng([0, i]))) for i in range(3)] == [
        "a small black star right of a small purple triangle on a white background",
        "a large red triangle above a large cyan star on a white background",
        "a small yellow triangle on a gray background",
    ]


# Drawing


def test_a_seed_gives_the_same_pixels_and_captions_for_ever() -> None:
    """A hash of both sets: a changed pixel would change what every number so far was measured on.

    Lanczos is exact arithmetic, so the hashes hold on every machine.
    """
    hashes = {}
    for name, scenes in SCENE_SETS.items():
        drawn = hashlib.sha256()
        for index in range(60):
            rng = np.random.default_rng([7, index])
            scene = scenes.sample(rng, index % 3 == 0)
            captions = (scenes.caption(scene), *scenes.paraphrase(scene, rng, 4))
            drawn.update("\n".join(captions).encode())
            drawn.update(scenes.draw(scene, 64).tobytes() + scenes.draw(scene, 65).tobytes())
        hashes[name] = drawn.hexdigest()[:16]
    assert hashes == {"scenes": "2259744fe05f1534", "scenes2": "6a6fed4356989762"}


@pytest.mark.parametrize("size", [32, 64, 128])
def test_background_and_centre_have_the_named_colors(size: int) -> None:
    for background, color in itertools.product(BACKGROUNDS, COLORS):
        pixels = draw_scene(single("square", color, "large", background), size)
        assert pixels.shape == (size, size, 3)
        assert pixels.dtype == np.uint8
        for corner in itertools.product((0, -1), repeat=2):
            assert tuple(pixels[corner]) == BACKGROUNDS[background]
        assert tuple(pixels[size // 2, size // 2]) == COLORS[color]


def test_a_drawn_picture_may_be_written_to() -> None:
    # torch.from_numpy warns of read-only memory, and Pillow's buffer is read-only.
    assert draw_scene(sample(0)).flags.writeable


AREAS = {
    "circle": math.pi,
    "square": 4.0,
    "triangle": 2.0,
    "star": 5 * 0.45 * math.sin(math.pi / 5),
    "cross": 2 * 2 * 0.7 - 0.7**2,
    "ring": math.pi * (1 - 0.6**2),
}


@pytest.mark.parametrize("object_size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_area_extent_and_centre(shape: str, object_size: str) -> None:
    side, x, y = 256, 0.45, 0.52
    coverage = draw_coverage(shape, object_size, (x, y), side)
    radius = SIZES[object_size] * side
    assert coverage.sum() / radius**2 == pytest.approx(AREAS[shape], rel=0.05)
    rows, columns = (np.flatnonzero((coverage > 0.4).any(axis=axis)) for axis in (1, 0))
    # Extents in units of the radius: a star's lower and side points do not reach 1.
    lower = math.cos(math.pi / 5) if shape == "star" else 1.0
    side_reach = math.sin(2 * math.pi / 5) if shape == "star" else 1.0
    np.testing.assert_allclose(
        [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1],
        [
            y * side - radius,
            y * side + lower * radius,
            x * side - side_reach * radius,
            x * side + side_reach * radius,
        ],
        atol=2.0,
    )


def test_a_ring_has_a_hole_and_a_cross_has_corners() -> None:
    ring = draw_coverage("ring", "large", (0.5, 0.5), 256)
    radius = int(SIZES["large"] * 256)
    assert ring[128, 128] == 0
    assert ring[128, 128 + round(0.8 * radius)] == pytest.approx(1)  # the middle of its width
    cross = draw_coverage("cross", "large", (0.5, 0.5), 256)
    assert cross[128 - radius // 2, 128 - radius // 2] == 0
    assert cross[128 - round(0.9 * radius), 128] == pytest.approx(1)


def test_a_picture_is_its_background_and_covered_color() -> None:
    """The identity on which the judge rests; on gray, only highlights are clipped."""
    gray = np.array(BACKGROUNDS["gray"], np.float32)
    for shape, color, object_size in itertools.product(SHAPES, COLORS, SIZES):
        scene = Scene("gray", (SceneObject(shape, color, object_size, 0.52, 0.49),), "single")
        coverage = draw_coverage(shape, object_size, (0.52, 0.49))
        expected = gray + coverage[..., None] * (np.array(COLORS[color], np.float32) - gray)
        np.testing.assert_allclose(draw_scene(scene), np.clip(expected, 0, 255), atol=2.5)


def test_a_window_of_a_coverage_is_cut_from_the_whole() -> None:
    rows, columns = slice(5, 32), slice(20, 60)
    for shape in SHAPES:
        whole = draw_coverage(shape, "large", (0.45, 0.48))
        window = draw_coverage(shape, "large", (0.45, 0.48), 64, (rows, columns))
        np.testing.assert_allclose(window, whole[rows, columns], atol=1e-6)


# Captions


def test_canonical_captions_of_the_specification() -> None:
    assert (
        canonical_caption(single("circle", "red", "large", "gray"))
        == "a large red circle on a gray background"
    )
    star = SceneObject("star", "blue", "small", 0.27, 0.5)
    ring = SceneObject("ring", "green", "large", 0.73, 0.5)
    assert (
        canonical_caption(Scene("white", (star, ring), "horizontal"))
        == "a small blue star left of a large green ring on a white background"
    )
    assert (
        canonical_caption(Scene("white", (ring, star), "horizontal"))
        == "a large green ring right of a small blue star on a white background"
    )


@pytest.mark.parametrize(
    ("arrangement", "first", "second", "relation"),
    [
        ("horizontal", (0.29, 0.48), (0.72, 0.52), "left of"),
        ("horizontal", (0.72, 0.52), (0.29, 0.48), "right of"),
        ("vertical", (0.52, 0.25), (0.48, 0.75), "above"),
        ("vertical", (0.48, 0.75), (0.52, 0.25), "below"),
    ],
)
def test_relation_of_the_first_object_to_the_second(
    arrangement: str, first: tuple[float, float], second: tuple[float, float], relation: str
) -> None:
    objects = (
        SceneObject("star", "blue", "small", *first),
        SceneObject("ring", "green", "large", *second),
    )
    assert Scene("pink", objects, arrangement).relation == relation


def test_one_object_has_no_relation() -> None:
    assert single("star", "blue", "small").relation is None


@given(seeds, st.booleans())
def test_canonical_captions_round_trip(seed: int, held_out: bool) -> None:
    scene = sample(seed, held_out)
    caption = canonical_caption(scene)
    parsed = parse_caption(caption)
    assert canonical_caption(parsed) == caption
    assert describe(parsed) == describe(scene)
    assert tuple((item.x, item.y) for item in parsed.objects) == scene.places


@given(seeds)
def test_every_paraphrase_is_true(seed: int) -> None:
    scene = sample(seed)
    for paraphrase in paraphrases(scene, np.random.default_rng(seed), 8):
        assert describe(parse_caption(canonize(paraphrase))) == describe(scene)


def test_paraphrases_use_every_wording() -> None:
    scenes = [sample(seed) for seed in range(60)]
    rng = np.random.default_rng(0)
    texts = [text for scene in scenes for text in paraphrases(scene, rng, 10)]
    spoken = " ".join(texts)
    for wording in (
        *("large", "big", "small", "little", "tiny", "left of", "to the left of", "right of"),
        *("to the right of", "above", "over", "below", "under", "beneath"),
        *("on white ", "on a white background"),
    ):
        assert wording in spoken, wording
    two = next(scene for scene in scenes if len(scene.objects) == 2)
    orders = {parse_caption(canonize(text)).relation for text in paraphrases(two, rng, 40)}
    assert len(orders) == 2


def test_paraphrases_follow_from_the_generator_alone() -> None:
    scene = sample(3)
    again = [paraphrases(scene, np.random.default_rng(7), 5) for _ in range(2)]
    assert again[0] == again[1]
    assert paraphrases(scene, np.random.default_rng(7), 0) == []


# Errors


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a dog",
        "a large red circle",
        "a big red circle on a gray background",
        "a large red circle on a gray background ",
        "A large red circle on a gray background",
        "a large red circle near a small red star on a gray background",
        "a large red circle left of a small pink star on a gray background",
    ],
)
def test_other_captions_are_refused_with_what_was_expected(caption: str) -> None:
    with pytest.raises(DataError, match="Expected `a SIZE COLOR SHAPE on a") as caught:
        parse_caption(caption)
    assert f"`{caption}`" in str(caught.value)
    for word in (*BACKGROUNDS, *COLORS, *SHAPES, *SIZES, "left of", "below"):
        assert word in str(caught.value)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"Unknown scene shape: `hexagon`\. Expected one of: circle"
    ):
        single("hexagon", "red", "large")
    with pytest.raises(DataError, match="Unknown scene color: `mauve`"):
        single("star", "mauve", "large")
    with pytest.raises(DataError, match="Unknown scene size: `huge`"):
        single("star", "red", "huge")
    with pytest.raises(DataError, match="Unknown scene background: `beige`"):
        single("star", "red", "large", "beige")
    with pytest.raises(DataError, match="Unknown scene arrangement: `diagonal`"):
        Scene("white", single("star", "red", "large").objects, "diagonal")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Unknown scene shape: `hexagon`"):
        draw_coverage("hexagon", "large", (0.5, 0.5))
    with pytest.raises(DataError, match="Unknown scene size: `huge`"):
        draw_coverage("star", "huge", (0.5, 0.5))


def test_arrangement_and_objects_must_agree() -> None:
    [item] = single("star", "red", "large").objects
    with pytest.raises(DataError, match=r"`vertical` takes 2 object\(s\), got: `1`"):
        Scene("white", (item,), "vertical")
    with pytest.raises(DataError, match=r"`single` takes 1 object\(s\), got: `2`"):
        Scene("white", (item, item), "single")


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least 16 pixels: `15`"):
        draw_scene(sample(0), 15)
