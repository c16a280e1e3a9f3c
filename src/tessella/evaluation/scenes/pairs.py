"""Classifies pictures of `scenes`: does each object of the prompt stand there, and as described?

A picture is compared with a rendering of every alternative: 4 backgrounds, and at each place of
the expected scene 6 shapes × 2 sizes × 8 colours, moved over the range of the jitter, or nothing
at all. The nearest in squared distance is the picture's class. The classifier knows the places of
the expected scene, never its offsets. "Nothing" is an alternative so that an object that was left
out cannot pass for a faint one.

Two objects lie in different halves of the picture, hence each is chosen alone, given the
background (`looks.py`).
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

from tessella.data.scenes import pairs as drawn
from tessella.data.scenes.pairs import Scene, SceneObject
from tessella.data.scenes.shapes import BACKGROUNDS, SHAPES, Point
from tessella.evaluation.scenes.looks import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    Coverages,
    check_pictures,
    weigh_backgrounds,
    weigh_looks,
)

# Offsets tried along each axis over ± JITTER: at S = 64 a step is half a pixel, one pixel of the
# canvas on which scenes are drawn.
_NUM_OFFSETS: Final = 9
# Lanczos spreads an edge over this many pixels; beyond, a coverage is 0.
_EDGE_PIXELS: Final = 3
# Bounds the memory of the distances: about 16 MB.
_CHUNK: Final = 128

_KINDS: Final = tuple((shape, size) for shape in SHAPES for size in drawn.SIZES)


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

    @property
    def demands(self) -> dict[str, tuple[bool, ...]]:
        """Whether each demand of the caption is met, by their kind."""
        return {"background": (self.background_correct,)} | {
            kind: tuple(
                getattr(item, kind) == getattr(item.expected, kind) for item in self.objects
            )
            for kind in ("size", "color", "shape")
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Every shape, size and offset at one place, cut to the window that they can reach."""

    rows: slice
    columns: slice
    coverages: Coverages


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
    check_pictures(pixels, len(scenes))
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


def _classify(
    pixels: NDArray[np.uint8], scenes: Sequence[Scene], places: tuple[Point, ...]
) -> list[ClassifiedScene]:
    """Finds the nearest background and objects of pictures (B, S, S, 3) with the same places."""
    image = np.divide(pixels, 255, dtype=np.float32)
    distances = weigh_backgrounds(image)  # (B, 4)
    choices = []
    for place in places:
        gains, best = _nearest_objects(image, place)
        distances += gains
        choices.append(best)
    nearest = distances.argmin(axis=1)  # (B,)
    return [
        ClassifiedScene(
            scene,
            BACKGROUND_NAMES[background],
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
    return *_KINDS[kind], COLOR_NAMES[color]


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
    seen = _render(image.shape[1], place)
    looks = weigh_looks(image[:, seen.rows, seen.columns], seen.coverages)
    looks = looks.reshape(len(image), len(BACKGROUNDS), -1)  # (B, 4, 8 · kinds)
    best, gains = looks.argmin(axis=-1), looks.min(axis=-1)
    nothing = gains >= 0
    gains[nothing], best[nothing] = 0, -1
    return gains, best


# Five places, at two sizes: about 20 MB at S = 64, four times as much at 128.
@lru_cache(maxsize=10)
def _render(size: int, place: Point) -> _Place:
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
    return _Place(rows, columns, Coverages(masks, masks[:0], _NUM_OFFSETS**2))


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
