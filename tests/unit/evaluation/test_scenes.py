"""The classifier of scenes: real scenes score 100 %; each wrong attribute is caught as such."""

import dataclasses
import itertools
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from tessella.data.scenes import (
    BACKGROUNDS,
    COLORS,
    JITTER,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    canonical_caption,
    draw_coverage,
    draw_scene,
    parse_caption,
    sample_scene,
)
from tessella.errors import DataError, ShapeError
from tessella.evaluation.scenes import (
    ClassifiedScene,
    classify_scenes,
    compute_scene_accuracy,
    sample_prompts,
)

seeds = st.integers(0, 2**32 - 1)


def draw_all(scenes: list[Scene], size: int = 64) -> np.ndarray:
    return np.stack([draw_scene(scene, size) for scene in scenes])


def classify(drawn: Scene, expected: Scene, size: int) -> ClassifiedScene:
    [classified] = classify_scenes(draw_all([drawn], size), [expected])
    return classified


def compute_fractions(
    pixels: np.ndarray, expected: Sequence[Scene]
) -> tuple[float, float, float, float]:
    """The fractions of right backgrounds, shapes, sizes and colours."""
    scenes = classify_scenes(pixels, expected)
    objects = [item for scene in scenes for item in scene.objects]
    return (
        fmean(scene.background_correct for scene in scenes),
        fmean(item.shape == item.expected.shape for item in objects),
        fmean(item.size == item.expected.size for item in objects),
        fmean(item.color == item.expected.color for item in objects),
    )


@pytest.fixture(scope="module")
def prompts() -> list[Scene]:
    return sample_prompts(700, seed=5) + sample_prompts(300, seed=5, held_out=True)


@pytest.fixture(scope="module")
def pixels(prompts: list[Scene]) -> np.ndarray:
    return draw_all(prompts)


# Real scenes


def test_real_scenes_score_100_percent(prompts: list[Scene], pixels: np.ndarray) -> None:
    assert compute_scene_accuracy(pixels, prompts) == 1
    assert compute_fractions(pixels, prompts) == (1, 1, 1, 1)


@pytest.mark.parametrize("size", [33, 128])
def test_real_scenes_score_100_percent_at_other_sizes(size: int, prompts: list[Scene]) -> None:
    scenes = prompts[690:710]
    assert compute_scene_accuracy(draw_all(scenes, size), scenes) == 1


def test_every_single_object_on_every_background_is_read() -> None:
    """Also the faint ones: black on navy, yellow on white, small shapes alike."""
    rng = np.random.default_rng(0)
    scenes = [
        Scene(background, (SceneObject(shape, color, size, x, y),), "single")
        for background, shape, color, size in itertools.product(BACKGROUNDS, SHAPES, COLORS, SIZES)
        for x, y in [0.5 + rng.uniform(-JITTER, JITTER, 2)]
    ]
    assert len(scenes) == 384
    wrong = [
        canonical_caption(scene)
        for scene, classified in zip(scenes, classify_scenes(draw_all(scenes), scenes), strict=True)
        if not classified.all_correct
    ]
    assert wrong == []


def test_mild_noise_and_blur_change_nothing(prompts: list[Scene], pixels: np.ndarray) -> None:
    scenes, pictures = prompts[640:760], pixels[640:760]
    noise = np.random.default_rng(0).normal(0, 12, pictures.shape)
    noisy = np.clip(pictures + noise, 0, 255).astype(np.uint8)
    assert compute_scene_accuracy(noisy, scenes) == 1
    blur = ImageFilter.GaussianBlur(0.8)
    blurred = np.stack([np.array(Image.fromarray(picture).filter(blur)) for picture in pictures])
    assert compute_scene_accuracy(blurred, scenes) == 1


def test_only_the_places_of_a_scene_count(prompts: list[Scene], pixels: np.ndarray) -> None:
    """A prompt read back from its caption has no offsets, and is classified alike."""
    expected = [parse_caption(canonical_caption(scene)) for scene in prompts[:200]]
    for one, other in zip(
        classify_scenes(pixels[:200], expected),
        classify_scenes(pixels[:200], prompts[:200]),
        strict=True,
    ):
        assert one.background == other.background
        for item, same in zip(one.objects, other.objects, strict=True):
            assert (item.shape, item.size, item.color) == (same.shape, same.size, same.color)


# Wrong pictures


@given(seeds, st.data())
@settings(max_examples=80, deadline=None)
def test_one_wrong_attribute_flips_exactly_its_class(seed: int, data: st.DataObject) -> None:
    expected = sample_scene(np.random.default_rng(seed))
    names = {"shape": SHAPES, "size": tuple(SIZES), "color": tuple(COLORS)}
    attributes = [("background", None)]
    attributes += [(name, i) for name in names for i in range(len(expected.objects))]
    attribute, index = data.draw(st.sampled_from(attributes))
    if index is None:
        value = data.draw(st.sampled_from(sorted(set(BACKGROUNDS) - {expected.background})))
        classified = classify(dataclasses.replace(expected, background=value), expected, 32)
        assert classified.background == value
    else:
        old = getattr(expected.objects[index], attribute)
        value = data.draw(st.sampled_from(sorted(set(names[attribute]) - {old})))
        objects = list(expected.objects)
        objects[index] = dataclasses.replace(objects[index], **{attribute: value})
        classified = classify(dataclasses.replace(expected, objects=tuple(objects)), expected, 32)
        assert getattr(classified.objects[index], attribute) == value
    assert not classified.all_correct
    assert classified.background_correct == (attribute != "background")
    for i, item in enumerate(classified.objects):
        for name in names:
            is_correct = getattr(item, name) == getattr(item.expected, name)
            assert is_correct == ((name, i) != (attribute, index))


def test_swapped_objects_fail(prompts: list[Scene]) -> None:
    expected, swapped = [], []
    for scene in prompts[:100]:
        looks = {(item.shape, item.color, item.size) for item in scene.objects}
        if len(looks) == 2:
            first, second = scene.objects
            objects = (
                dataclasses.replace(second, x=first.x, y=first.y),
                dataclasses.replace(first, x=second.x, y=second.y),
            )
            expected.append(scene)
            swapped.append(dataclasses.replace(scene, objects=objects))
    assert len(expected) > 40
    classified_scenes = classify_scenes(draw_all(swapped), expected)
    for scene, classified in zip(swapped, classified_scenes, strict=True):
        assert not classified.all_correct
        assert classified.background_correct
        for item, drawn in zip(classified.objects, scene.objects, strict=True):
            seen = (item.shape, item.color, item.size)
            assert seen == (drawn.shape, drawn.color, drawn.size)


def test_another_arrangement_fails(prompts: list[Scene], pixels: np.ndarray) -> None:
    """One object is no answer to two, nor side by side to one above the other."""
    order = np.random.default_rng(0).permutation(400)
    pairs = [
        (picture, scene)
        for picture, drawn, scene in zip(
            pixels[:400], prompts[:400], [prompts[i] for i in order], strict=True
        )
        if drawn.arrangement != scene.arrangement
    ]
    assert len(pairs) > 150
    pictures, expected = zip(*pairs, strict=True)
    assert compute_scene_accuracy(np.stack(pictures), expected) == 0


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_nothing_is_seen_in_an_empty_picture(background: str) -> None:
    """An object left out must not pass for the alternative that happens to be faintest."""
    prompts = sample_prompts(30)
    empty = np.full((30, 64, 64, 3), BACKGROUNDS[background], np.uint8)
    for classified in classify_scenes(empty, prompts):
        assert classified.background == background
        for item in classified.objects:
            assert (item.shape, item.size, item.color, item.all_correct) == (
                None,
                None,
                None,
                False,
            )


def test_one_object_left_out_is_missed_alone(prompts: list[Scene]) -> None:
    expected = [scene for scene in prompts if len(scene.objects) == 2][:50]
    lone = [Scene(scene.background, scene.objects[:1], "single") for scene in expected]
    for classified in classify_scenes(draw_all(lone), expected):
        first, second = classified.objects
        assert classified.background_correct
        assert first.all_correct
        assert (second.shape, second.all_correct) == (None, False)


def test_noise_scores_about_chance() -> None:
    prompts = sample_prompts(300)
    noise = np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), np.uint8)
    assert compute_scene_accuracy(noise, prompts) <= 3 / 300
    background, shape, size, color = compute_fractions(noise, prompts)
    assert background == pytest.approx(1 / 4, abs=0.1)
    assert shape <= 1 / 6 + 0.08
    assert size <= 1 / 2 + 0.08
    assert color <= 1 / 8 + 0.08


def test_pictures_of_other_prompts_score_about_chance(
    prompts: list[Scene], pixels: np.ndarray
) -> None:
    """Among single scenes every attribute is right as often as two scenes agree by chance."""
    chosen = [i for i, scene in enumerate(prompts[:700]) if len(scene.objects) == 1]
    expected = [prompts[i] for i in np.roll(chosen, 1)]
    assert compute_scene_accuracy(pixels[chosen], expected) < 0.03
    background, shape, size, color = compute_fractions(pixels[chosen], expected)
    assert background == pytest.approx(1 / 4, abs=0.1)
    assert shape == pytest.approx(1 / 6, abs=0.1)
    assert size == pytest.approx(1 / 2, abs=0.12)
    assert color == pytest.approx(1 / 8, abs=0.1)


def read_by_brute_force(pixels: np.ndarray) -> tuple[str, str | None, str | None, str | None]:
    """Reads a picture of one object by the definition: every alternative, the nearest."""
    picture = pixels.astype(np.float32)
    steps = np.linspace(-JITTER, JITTER, 9)
    kinds = list(itertools.product(SHAPES, SIZES))
    masks = np.stack(
        [
            draw_coverage(*kind, (0.5 + dx, 0.5 + dy), len(picture))
            for kind in kinds
            for dy in steps
            for dx in steps
        ]
    )[..., None]
    nearest: tuple[float, tuple[str, str | None, str | None, str | None]]
    nearest = (np.inf, ("", None, None, None))
    for background in BACKGROUNDS:
        base = np.array(BACKGROUNDS[background], np.float32)
        found = ((picture - base) ** 2).sum()
        nearest = min(nearest, (found, (background, None, None, None)), key=lambda pair: pair[0])
        for color in COLORS:
            renders = base + masks * (np.array(COLORS[color], np.float32) - base)
            distances = ((picture - renders) ** 2).sum(axis=(1, 2, 3))
            shape, size = kinds[distances.argmin() // 81]
            candidate = (distances.min(), (background, shape, size, color))
            nearest = min(nearest, candidate, key=lambda pair: pair[0])
    return nearest[1]


@pytest.mark.parametrize("kind", ["noise", "blend", "scene"])
def test_agrees_with_the_definition_by_brute_force(kind: str) -> None:
    """The matrix products against plain squared distances, on pictures that are no scenes."""
    rng = np.random.default_rng(2)
    scenes = [scene for scene in sample_prompts(30) if len(scene.objects) == 1][:3]
    pixels = draw_all(scenes, 16)
    if kind == "noise":
        pixels = rng.integers(0, 256, pixels.shape, np.uint8)
    elif kind == "blend":
        weights = rng.dirichlet(np.ones(3), 3)
        pixels = np.einsum("ij,jhwc->ihwc", weights, pixels).astype(np.uint8)
    for picture, classified in zip(pixels, classify_scenes(pixels, scenes), strict=True):
        [item] = classified.objects
        seen = (classified.background, item.shape, item.size, item.color)
        assert seen == read_by_brute_force(picture)


def test_counts_are_of_scenes_and_of_objects() -> None:
    expected = [scene for scene in sample_prompts(40) if len(scene.objects) == 2][:4]
    drawn = list(expected)
    objects = list(expected[0].objects)
    objects[1] = dataclasses.replace(
        objects[1], color="red" if objects[1].color != "red" else "blue"
    )
    drawn[0] = dataclasses.replace(expected[0], objects=tuple(objects))
    other = "pink" if expected[1].background != "pink" else "navy"
    drawn[1] = dataclasses.replace(expected[1], background=other)
    assert compute_scene_accuracy(draw_all(drawn), expected) == 0.5
    assert compute_fractions(draw_all(drawn), expected) == (0.75, 1, 1, 0.875)


# Prompts


def test_prompts_are_the_same_whatever_the_count() -> None:
    assert sample_prompts(3, seed=2) == sample_prompts(9, seed=2)[:3]
    assert sample_prompts(9, seed=2) != sample_prompts(9, seed=3)
    assert sample_prompts(0) == []


@pytest.mark.parametrize("held_out", [False, True])
def test_prompts_hold_out_as_asked(held_out: bool) -> None:
    assert {scene.is_held_out for scene in sample_prompts(100, held_out=held_out)} == {held_out}


def test_no_prompt_is_a_training_scene() -> None:
    training = {
        sample_scene(np.random.default_rng([seed, i])) for seed in range(3) for i in range(300)
    }
    prompts = {scene for seed in range(3) for scene in sample_prompts(300, seed)}
    assert len(training) == len(prompts) == 900
    assert not training & prompts


# Errors


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((1, 64, 32, 3), np.uint8),
        np.zeros((1, 64, 64, 4), np.uint8),
    ],
)
def test_other_pixels_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"must be \(B, S, S, 3\) uint8: `\(.*\) (float32|uint8)`"):
        classify_scenes(pixels, sample_prompts(1))


def test_each_picture_needs_its_scene() -> None:
    with pytest.raises(ShapeError, match="`2` pictures, `1` scenes"):
        classify_scenes(np.zeros((2, 64, 64, 3), np.uint8), sample_prompts(1))


def test_too_small_pictures_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least 16 pixels: `8`"):
        classify_scenes(np.zeros((1, 8, 8, 3), np.uint8), sample_prompts(1))


def test_no_picture_has_no_accuracy_but_an_empty_list() -> None:
    empty = np.zeros((0, 64, 64, 3), np.uint8)
    assert classify_scenes(empty, []) == []
    with pytest.raises(DataError, match="at least one picture: `0`"):
        compute_scene_accuracy(empty, [])
