"""Classifies pictures of `scenes2`: which demands of the prompt does a picture meet?

A picture is compared with a rendering of every alternative: 4 backgrounds; in each region of the
expected layout (the middle, the halves, the corners) a row of one to four; and at each place of a
row 3 textures × 6 shapes × 2 sizes × 8 colours, moved over the range of the jitter, or nothing at
all. The nearest in squared distance is what the picture shows (`looks.py`).

What is shown is then compared with the prompt. Its groups are found by their looks, wherever they
stand, so that objects that changed places fail the relation and nothing else. A picture is all
correct if it meets every demand, and no region of the layout has objects that nobody asked for;
what is painted outside of the layout's regions is not looked at.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tessella.data.scenes.groups import (
    CORNERS,
    HALVES,
    JITTER,
    MIDDLE,
    ROWS,
    SIZES,
    Group,
    GroupScene,
    Places,
    check_size,
)
from tessella.data.scenes.shapes import SHAPES, TEXTURES, Point, cover, cover_marks
from tessella.evaluation.scenes.looks import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    Coverages,
    blur,
    check_pictures,
    weigh_backgrounds,
    weigh_looks,
)

# The regions of each layout where objects may stand.
_REGIONS: Final[Mapping[str, Places]] = {"row": (MIDDLE,), "rows": HALVES, "corners": CORNERS}
# Offsets tried along each axis: at S = 64 a step is .6 pixels, about one of the canvas on which
# scenes are drawn. More steps read no better.
_NUM_OFFSETS: Final = 7
# Lanczos spreads an edge over this many pixels; beyond, a coverage is 0.
_EDGE_PIXELS: Final = 5
# Pictures and alternatives are blurred alike before they are compared, by this fraction of S: what
# a tokenizer blurs is then still read, textures above all (1 pixel at S = 64).
_BLUR: Final = 1 / 64
# Bounds the memory of the distances: about 30 MB.
_CHUNK: Final = 64
_LARGEST: Final = 128  # side of pictures that are read as they are, up to twice that
# The size counts fastest, the texture slowest, as `Coverages` wants.
_KINDS: Final = tuple(itertools.product(TEXTURES, SHAPES, SIZES))


class Look(NamedTuple):
    """How an object looks."""

    texture: str
    shape: str
    size: str
    color: str


class Row(NamedTuple):
    """What stands in a region."""

    looks: tuple[Look | None, ...]  # of each place of the row; None: nothing is there

    @property
    def found(self) -> tuple[Look, ...]:
        """The looks of the objects that are there."""
        return tuple(look for look in self.looks if look is not None)


@dataclass(frozen=True, slots=True)
class ClassifiedGroups:
    """What a picture of a scene shows."""

    expected: GroupScene
    background: str
    rows: Mapping[Point, Row]  # by the middle of each region of the layout

    @property
    def demands(self) -> dict[str, tuple[bool, ...]]:
        """Whether each demand of the caption is met, by their kind.

        One of a background and of all numbers of objects; a size, texture, shape and colour (or
        `negation`, where the caption says which colour it has not) of each group; and each
        relation of a group to the next.
        """
        expected = self.expected
        regions = self._find_groups()
        rows = [self.rows[region] for region in regions]
        others = [row for region, row in self.rows.items() if region not in regions]
        counts = [_has_count(row, group) for row, group in zip(rows, expected.groups, strict=True)]
        demands: dict[str, list[bool]] = defaultdict(list)
        demands["background"].append(self.background == expected.background)
        demands["count"].append(all(counts) and not any(row.found for row in others))
        for row, group in zip(rows, expected.groups, strict=True):
            for kind, is_met in _compare(row, group).items():
                demands[kind].append(is_met)
        for index, wanted in enumerate(itertools.pairwise(expected.places)):
            seen = regions[index : index + 2]
            are_there = all(row.found for row in rows[index : index + 2])
            demands["relation"].append(are_there and _displace(*seen) == _displace(*wanted))
        return {kind: tuple(are_met) for kind, are_met in demands.items()}

    @property
    def all_correct(self) -> bool:
        """Whether every demand is met."""
        return all(all(are_met) for are_met in self.demands.values())

    def _find_groups(self) -> Places:
        """Finds the region of each group: where most demands of number and look are met.

        Of several ways the one where the groups stand as expected.
        """
        groups, places = self.expected.groups, self.expected.places
        regions = (*places, *(region for region in self.rows if region not in places))
        met = {
            (index, region): _has_count(row, group) + sum(_compare(row, group).values())
            for index, group in enumerate(groups)
            for region, row in self.rows.items()
        }
        return max(  # the first one of several; permutations begin with the order given
            itertools.permutations(regions, len(groups)),
            key=lambda found: sum(met[pair] for pair in enumerate(found)),
        )


def classify_groups(
    pixels: NDArray[np.uint8], scenes: Sequence[GroupScene]
) -> list[ClassifiedGroups]:
    """Classifies the background and the groups of pictures of scenes.

    Args:
        pixels: (B, S, S, 3) uint8 RGB in [0, 255], S at least 64; from 256 on they are read
            reduced by a whole number, because the alternatives grow with their area.
        scenes: the B expected scenes; only their layout counts for what is seen.

    Returns:
        One for each picture, in order.

    Raises:
        ShapeError: the pixels are not a uint8 batch of square RGB pictures, or not as many as the
            scenes; says both.
    """
    check_pictures(pixels, len(scenes))
    pixels = _reduce(pixels)
    members: dict[str, list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes):
        members[scene.layout].append(index)
    classified: dict[int, ClassifiedGroups] = {}
    for layout, indices in members.items():
        for start in range(0, len(indices), _CHUNK):
            chunk = indices[start : start + _CHUNK]
            seen = _read(pixels[chunk], _REGIONS[layout])
            for index, (background, rows) in zip(chunk, seen, strict=True):
                classified[index] = ClassifiedGroups(scenes[index], background, rows)
    return [classified[index] for index in range(len(scenes))]


def _reduce(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Averages blocks of pixels, so that sides are below twice _LARGEST; crops what is over."""
    factor = max(1, pixels.shape[1] // _LARGEST)
    side = pixels.shape[1] // factor
    if factor == 1:
        return pixels
    cropped = pixels[:, : side * factor, : side * factor]
    blocks = cropped.reshape(len(pixels), side, factor, side, factor, 3)
    means: NDArray[np.uint8] = blocks.mean(axis=(2, 4)).round().astype(np.uint8)
    return means


def _has_count(row: Row, group: Group) -> bool:
    return len(row.looks) == len(row.found) == group.count


def _compare(row: Row, group: Group) -> dict[str, bool]:
    """Says whether all objects of a row look as a group; no objects look like nothing."""
    found = row.found
    are_met = {
        kind: {getattr(look, kind) for look in found} == {getattr(group, kind)}
        for kind in ("size", "texture", "shape")
    }
    colors = {look.color for look in found}
    if group.not_color is None:
        return {**are_met, "color": colors == {group.color}}
    return {**are_met, "negation": bool(colors) and group.not_color not in colors}


def _displace(first: Point, second: Point) -> Point:
    return second[0] - first[0], second[1] - first[1]


def _read(pixels: NDArray[np.uint8], regions: Places) -> list[tuple[str, dict[Point, Row]]]:
    """Finds the nearest background and rows of pictures (B, S, S, 3)."""
    image = blur(np.divide(pixels, 255, dtype=np.float32), _BLUR * pixels.shape[1])
    distances = weigh_backgrounds(image)  # (B, 4)
    # In a corner there may be one object, elsewhere a row of any length.
    lengths = (1,) if len(regions) > 2 else tuple(ROWS)
    read = [_RegionReader(image, region, lengths) for region in regions]
    for region in read:
        distances += region.gains
    return [
        (
            BACKGROUND_NAMES[background],
            {place: one.name(row, background) for place, one in zip(regions, read, strict=True)},
        )
        for row, background in enumerate(distances.argmin(axis=1).tolist())
    ]


class _RegionReader:
    """The nearest row of a region, for every picture and background.

    Args:
        image: (B, S, S, 3) in [0, 1].
        middle: of the region.
        lengths: that a row may have.
    """

    def __init__(self, image: NDArray[np.float32], middle: Point, lengths: tuple[int, ...]) -> None:
        x, y = middle
        self._lengths = lengths
        # Each place is weighed once; four large objects have no room.
        weighed = {
            step: _weigh_place(image, (x + step, y))
            for step in {s for n in lengths for s in ROWS[n]}
        }
        self._best = [
            [_choose(weighed[step], only_small=n == 4) for step in ROWS[n]] for n in lengths
        ]
        # Where nothing is nearer than any object, it adds 0.
        sums = [sum(np.minimum(gain, 0) for gain, _ in places) for places in self._best]
        stacked = np.stack(sums)  # (lengths, B, 4)
        self._choice = stacked.argmin(axis=0)
        self.gains: NDArray[np.float32] = stacked.min(axis=0)
        """(B, 4) what the row adds to the squared distance of the background alone."""

    def name(self, row: int, background: int) -> Row:
        """Names what one picture shows before a background."""
        places = self._best[self._choice[row, background]]
        at = row, background
        return Row(tuple(_name(int(best[at])) if gain[at] < 0 else None for gain, best in places))


def _choose(
    weights: NDArray[np.float32], *, only_small: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The lowest of (B, 4, 8, K) and the number of its look."""
    if only_small:
        is_small = np.array([size == "small" for _, _, size in _KINDS])
        weights = np.where(is_small, weights, np.inf)
    flat = weights.reshape(*weights.shape[:2], -1)
    return flat.min(axis=-1), flat.argmin(axis=-1)


def _name(look: int) -> Look:
    color, kind = divmod(look, len(_KINDS))
    return Look(*_KINDS[kind], COLOR_NAMES[color])


def _weigh_place(image: NDArray[np.float32], place: Point) -> NDArray[np.float32]:
    """Weighs every look at a place of pictures: (B, 4, 8, K)."""
    size = image.shape[1]
    reach = _reach(size)
    # Coverages are rendered around the corner of a pixel, and so serve every place.
    column, row = (round(coordinate * size) for coordinate in place)
    # What no object of a place reaches may lie outside of the picture.
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    return weigh_looks(padded[:, row : row + 2 * reach, column : column + 2 * reach], _render(size))


def _reach(size: int) -> int:
    """How many pixels from a place its objects can touch."""
    return math.ceil((max(SIZES.values()) + JITTER) * size + 0.5) + _EDGE_PIXELS


@lru_cache(maxsize=2)  # 11 MB at S = 64, four times as much at 128
def _render(size: int) -> Coverages:
    """Renders every kind and offset around the middle of a window."""
    check_size(size)
    side = 2 * _reach(size)
    scale = size / side
    farthest = (JITTER + 0.5 / size) * scale
    steps = (0.5 + np.linspace(-farthest, farthest, _NUM_OFFSETS)).tolist()
    colored, marks = [], []
    for texture, shape, name in _KINDS:
        for centre in itertools.product(steps, steps):
            radius = SIZES[name] * scale
            whole = cover(shape, radius, centre, side)
            if texture != "solid":
                marks.append(cover_marks(texture, shape, radius, centre, side))
                whole = whole - marks[-1]
            colored.append(whole)
    all_colored, all_marks = (
        blur(np.stack(masks)[..., None], _BLUR * size).reshape(len(masks), -1)
        for masks in (colored, marks)
    )
    return Coverages(all_colored, all_marks, _NUM_OFFSETS**2)
