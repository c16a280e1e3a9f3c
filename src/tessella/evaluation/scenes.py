"""Classifies pictures of scenes: does each object of the prompt stand there, and as described?

Stands at the end of the data's way: `sample_prompts` chooses scenes that training never drew, the
model paints their captions, `classify_scenes` reads each picture and `compute_scene_accuracy`
counts.

A picture is compared with a rendering of every alternative: 4 backgrounds, and at each place of
the expected scene 6 shapes × 2 sizes × 8 colours, moved over the range of the jitter, or nothing
at all. The nearest in squared distance is the picture's class. The classifier knows the places of
the expected scene, never its offsets. "Nothing" is an alternative so that an object that was left
out cannot pass for a faint one.

Alternatives are not rendered picture by picture. With P the pixels, b the background, c the colour
and m the coverage (1 inside, 0 outside) of one shape, size and offset,

    |P − b − m (c − b)|² = |P − b|² − 2 (c − b)·⟨P − b, m⟩ + |c − b|² ⟨m, m⟩

so one matrix product of all pictures with all coverages gives every distance. Two objects lie in
different halves of the picture, hence their last two terms add up and each object is chosen
alone, given the background.
"""

import math
import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessella.data import scenes as drawn
from tessella.data.scenes import Point, Scene, SceneObject
from tessella.errors import DataError, ShapeError

# Offsets tried along each axis over ± JITTER: at S = 64 a step is half a pixel, one pixel of the
# canvas on which scenes are drawn.
_NUM_OFFSETS: Final = 9
# Lanczos spreads an edge over this many pixels; beyond, a coverage is 0.
_EDGE_PIXELS: Final = 3
# Bounds the memory of the distances: about 16 MB.
_CHUNK: Final = 128
# The key of the random stream of prompts; see sample_prompts.
_PROMPT_STREAM: Final = 1

_BACKGROUND_NAMES: Final = tuple(drawn.BACKGROUNDS)
_COLOR_NAMES: Final = tuple(drawn.COLORS)
_KINDS: Final = tuple((shape, size) for shape in drawn.SHAPES for size in drawn.SIZES)


@dataclass(frozen=True, slots=True)
class ClassifiedObject:
    """What a picture shows at the place of one object."""

    expected: SceneObject
    shape: str | None  # None, like the next two: nothing is at the place
    size: str | None
    color: str | None

    @property
    def all_correct(self) -> bool:
        """Whether shape, size and colour are the expected ones."""
        look = operator.attrgetter("shape", "size", "color")
        return bool(look(self) == look(self.expected))


@dataclass(frozen=True, slots=True)
class ClassifiedScene:
    """What a picture of a scene shows."""

    expected: Scene
    background: str
    objects: tuple[ClassifiedObject, ...]  # in the order of the scene's objects

    @property
    def background_correct(self) -> bool:
        """Whether the background is the expected one."""
        return self.background == self.expected.background

    @property
    def all_correct(self) -> bool:
        """Whether the background and every object are as expected."""
        return self.background_correct and all(item.all_correct for item in self.objects)


@dataclass(frozen=True, slots=True, eq=False)
class _Coverages:
    """Every shape, size and offset at one place, cut to the window that they can reach."""

    rows: slice
    columns: slice
    masks: NDArray[np.float32]  # (M, h·w), M = kinds × offsets, the offset counting fastest
    sums: NDArray[np.float32]  # (M,)
    squares: NDArray[np.float32]  # (M,) ⟨m, m⟩


def sample_prompts(count: int, seed: int = 0, held_out: bool = False) -> list[Scene]:
    """Chooses scenes for a benchmark.

    Scene i comes from its own random stream, made of the seed, i and a key that training lacks:
    training draws scene i of seed s from ``np.random.default_rng([s, i])``, whose state no pair
    (seed, key, i) can give. So no prompt replays a training scene, whatever the two seeds. There
    are few kinds of scenes with one object, so training may still draw, by chance, one that
    differs only in its offsets; `held_out` scenes are the ones that it never describes.

    Args:
        count: how many scenes, 0 or more; the first n are the same whatever the count.
        seed: which benchmark, 0 or more.
        held_out: True for scenes with at least one pair of HELD_OUT, False for scenes with none.

    Returns:
        `count` scenes.
    """
    return [
        drawn.sample_scene(
            np.random.default_rng(np.random.SeedSequence([seed, i], spawn_key=(_PROMPT_STREAM,))),
            held_out,
        )
        for i in range(count)
    ]


def classify_scenes(pixels: NDArray[np.uint8], scenes: Sequence[Scene]) -> list[ClassifiedScene]:
    """Classifies the background and the objects of pictures of scenes.

    Args:
        pixels: (B, S, S, 3) uint8 RGB in [0, 255], S at least 16.
        scenes: the B expected scenes; of their objects' centres only the places count, not the
            offsets.

    Returns:
        One for each picture, in order. A background, shape, size and colour drawn at random
        would be right in 1/4, 1/6, 1/2 and 1/8 of cases.

    Raises:
        ShapeError: the pixels are not a uint8 batch of square RGB pictures, or not as many as the
            scenes; says both.
    """
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (*pixels.shape[1:2] * 2, 3):
        raise ShapeError(
            "Pictures to classify must be (B, S, S, 3) uint8: "
            f"`{pixels.shape} {pixels.dtype}`. Give RGB in [0, 255], channels last."
        )
    if len(pixels) != len(scenes):
        raise ShapeError(
            f"Each picture needs its scene: `{len(pixels)}` pictures, `{len(scenes)}` scenes."
        )
    groups: dict[tuple[Point, ...], list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes):
        groups[scene.places].append(index)
    classified: dict[int, ClassifiedScene] = {}
    for places, members in groups.items():
        for start in range(0, len(members), _CHUNK):
            indices = members[start : start + _CHUNK]
            chunk = _classify(pixels[indices], [scenes[index] for index in indices], places)
            classified |= zip(indices, chunk, strict=True)
    return [classified[index] for index in range(len(scenes))]


def compute_scene_accuracy(pixels: NDArray[np.uint8], scenes: Sequence[Scene]) -> float:
    """Computes the fraction of pictures whose background and objects are all as expected.

    Args:
        pixels: (B, S, S, 3) uint8 RGB in [0, 255], B at least 1.
        scenes: the B expected scenes.

    Raises:
        DataError: there is not a single picture.
        ShapeError: as `classify_scenes`.
    """
    classified = classify_scenes(pixels, scenes)
    if not classified:
        raise DataError("Scene accuracy needs at least one picture: `0`. Sample some prompts.")
    return sum(scene.all_correct for scene in classified) / len(classified)


def _classify(
    pixels: NDArray[np.uint8], scenes: Sequence[Scene], places: tuple[Point, ...]
) -> list[ClassifiedScene]:
    """Finds the nearest background and objects of pictures (B, S, S, 3) with the same places."""
    image = np.divide(pixels, 255, dtype=np.float32)
    backgrounds = _palette(tuple(drawn.BACKGROUNDS.values()))  # (4, 3)
    # |P − b|² over the whole picture, from sums alone.
    sums = image.sum(axis=(1, 2))  # (B, 3)
    num_pixels = image.shape[1] * image.shape[2]
    # |P|² is the same for every alternative, so it is left out.
    distances = num_pixels * (backgrounds**2).sum(axis=1) - 2 * sums @ backgrounds.T  # (B, 4)
    choices = []
    for place in places:
        gains, best = _nearest_objects(image, place)
        distances += gains
        choices.append(best)
    nearest = distances.argmin(axis=1)  # (B,)
    return [
        ClassifiedScene(
            scene,
            _BACKGROUND_NAMES[background],
            tuple(
                ClassifiedObject(item, *_name(int(best[row, background])))
                for item, best in zip(scene.objects, choices, strict=True)
            ),
        )
        for row, (scene, background) in enumerate(zip(scenes, nearest, strict=True))
    ]


def _name(choice: int) -> tuple[str | None, str | None, str | None]:
    """Names the shape, size and colour of an alternative of `_nearest_objects`."""
    if choice < 0:
        return None, None, None
    color, kind = divmod(choice, len(_KINDS))
    return *_KINDS[kind], _COLOR_NAMES[color]


def _nearest_objects(
    image: NDArray[np.float32], place: Point
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Finds, for every background, the object at a place that brings a picture nearest.

    Args:
        image: (B, S, S, 3) in [0, 1].
        place: where an object is expected.

    Returns:
        (B, 4) what the object adds to the squared distance of the background alone, at most 0;
        (B, 4) the object as color · kinds + kind, or -1 where nothing is nearest.
    """
    batch = len(image)
    coverages = _render_coverages(image.shape[1], place)
    window = image[:, coverages.rows, coverages.columns]  # (B, h, w, 3)
    window = window.reshape(batch, -1, 3).transpose(0, 2, 1).reshape(batch * 3, -1)
    products = (window @ coverages.masks.T).reshape(batch, 3, -1)  # (B, 3, M)
    colors = _palette(tuple(drawn.COLORS.values()))  # (8, 3)
    gains = np.empty((batch, len(drawn.BACKGROUNDS)), np.float32)
    best = np.empty((batch, len(drawn.BACKGROUNDS)), np.int64)
    for index, background in enumerate(_palette(tuple(drawn.BACKGROUNDS.values()))):
        contrast = colors - background  # (8, 3)
        gain = -2 * contrast @ products  # (B, 8, M)
        # The terms that no picture changes: 2 (c − b)·b Σm + |c − b|² ⟨m, m⟩.
        gain += np.multiply.outer(2 * contrast @ background, coverages.sums)
        gain += np.multiply.outer((contrast**2).sum(axis=1), coverages.squares)
        gain = gain.reshape(batch, -1)  # (B, 8 · M)
        lowest = gain.argmin(axis=1)
        gains[:, index] = gain[np.arange(batch), lowest]
        best[:, index] = lowest // _NUM_OFFSETS**2
    nothing = gains >= 0
    gains[nothing], best[nothing] = 0, -1
    return gains, best


def _palette(colors: Sequence[tuple[int, int, int]]) -> NDArray[np.float32]:
    """(P, 3) colours in [0, 1]."""
    return np.divide(colors, 255, dtype=np.float32)


# Five places, at two sizes: about 20 MB at S = 64, four times as much at 128.
@lru_cache(maxsize=10)
def _render_coverages(size: int, place: Point) -> _Coverages:
    """Renders every shape, size and offset at one place, once for each size of pictures."""
    columns, rows = (_reach(coordinate, size) for coordinate in place)
    steps = np.linspace(-drawn.JITTER, drawn.JITTER, _NUM_OFFSETS).tolist()
    masks = np.stack(
        [
            drawn.draw_coverage(
                shape, object_size, (place[0] + dx, place[1] + dy), size, (rows, columns)
            ).ravel()
            for shape, object_size in _KINDS
            for dy in steps
            for dx in steps
        ]
    )
    masks.setflags(write=False)
    return _Coverages(rows, columns, masks, masks.sum(axis=1), (masks**2).sum(axis=1))


def _reach(coordinate: float, size: int) -> slice:
    """The pixels along one axis that an object of a place can touch, within its half."""
    reach = max(drawn.SIZES.values()) + drawn.JITTER
    low = math.floor((coordinate - reach) * size) - _EDGE_PIXELS
    high = math.ceil((coordinate + reach) * size) + _EDGE_PIXELS
    middle = size // 2
    if coordinate < 0.5:
        high = min(high, middle)
    elif coordinate > 0.5:
        low = max(low, middle)
    return slice(max(low, 0), min(high, size))
