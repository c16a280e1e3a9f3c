"""Scenes of one or two simple objects, `scenes:N`, whose captions can be checked exactly.

`sample_scene` draws a scene's attributes, `draw_scene` its picture; `canonical_caption` and
`paraphrases` describe it, and `parse_caption` reads a canonical caption back.
`evaluation/scenes/pairs.py` checks pictures with the same constants.

All lengths are fractions of the picture's side S, x to the right and y down.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessella.data.scenes.shapes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    Point,
    check_name,
    cover,
    draw_object,
    draw_picture,
    reduce_picture,
)
from tessella.data.scenes.words import (
    BACKGROUND_WORDINGS,
    INVERSE,
    RELATION_WORDINGS,
    SIZE_WORDINGS,
    Choose,
    choose_canonical,
    choose_randomly,
)
from tessella.errors import DataError

Arrangement: TypeAlias = Literal["single", "horizontal", "vertical"]

# Radius of each size, as a fraction of S.
SIZES: Final[Mapping[str, float]] = {"small": 0.11, "large": 0.20}
# Centres (x, y) of each arrangement, from left to right or from top to bottom.
PLACES: Final[Mapping[Arrangement, tuple[Point, ...]]] = {
    "single": ((0.5, 0.5),),
    "horizontal": ((0.27, 0.5), (0.73, 0.5)),
    "vertical": ((0.5, 0.27), (0.5, 0.73)),
}
# Every coordinate is moved by a uniform random amount in ± JITTER.
JITTER: Final = 0.03
SINGLE_PROBABILITY: Final = 1 / 3
# (colour, shape) pairs that no training scene contains; they test whether a model composes.
HELD_OUT: Final = frozenset(
    {
        ("red", "star"),
        ("green", "ring"),
        ("blue", "triangle"),
        ("yellow", "cross"),
        ("purple", "square"),
        ("orange", "circle"),
    }
)
# The relation of a caption's first object to its second, for each arrangement: if the first object
# is at the first of PLACES, and if it is at the second.
RELATIONS: Final[Mapping[Arrangement, tuple[str, str]]] = {
    "horizontal": ("left of", "right of"),
    "vertical": ("above", "below"),
}

# The arrangement that a relation tells, and whether the first object is at its second place.
_ARRANGEMENTS: Final[Mapping[str, tuple[Arrangement, bool]]] = {
    pair[turned]: (name, turned) for turned in (False, True) for name, pair in RELATIONS.items()
}

_OBJECT_PATTERN: Final = (
    rf"a ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"  # size, colour, shape
)
_CAPTION_PATTERN: Final = re.compile(
    rf"{_OBJECT_PATTERN}(?: ({'|'.join(RELATION_WORDINGS)}) {_OBJECT_PATTERN})?"
    rf" on a ({'|'.join(BACKGROUNDS)}) background"
)

_SIZE_NAMES: Final = tuple(SIZES)
_BACKGROUND_NAMES: Final = tuple(BACKGROUNDS)
_PAIRS: Final = tuple(itertools.product(COLORS, SHAPES))


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene.

    Raises:
        DataError: an unknown shape, colour or size; names the known ones.
    """

    shape: str  # one of SHAPES
    color: str  # one of COLORS
    size: str  # one of SIZES
    x: float  # centre, fraction of S from the left
    y: float  # centre, fraction of S from the top

    def __post_init__(self) -> None:
        """Checks the names."""
        check_name("shape", self.shape, SHAPES)
        check_name("color", self.color, COLORS)
        check_name("size", self.size, SIZES)


@dataclass(frozen=True, slots=True)
class Scene:
    """The contents of one picture.

    Raises:
        DataError: an unknown background or arrangement, or one that does not fit the number of
            objects; names the known or fitting ones.
    """

    background: str  # one of BACKGROUNDS
    objects: tuple[SceneObject, ...]  # one or two, in the order of the caption
    arrangement: Arrangement  # "single" for one object, or the direction of two

    def __post_init__(self) -> None:
        """Checks the names and that arrangement and objects agree."""
        check_name("background", self.background, BACKGROUNDS)
        check_name("arrangement", self.arrangement, PLACES)
        expected = len(PLACES[self.arrangement])
        if len(self.objects) != expected:
            raise DataError(
                f"The arrangement `{self.arrangement}` takes {expected} object(s), got: "
                f"`{len(self.objects)}`. One object is `single`; two are `horizontal` or "
                "`vertical`."
            )

    @property
    def places(self) -> tuple[Point, ...]:
        """The place (x, y) of each object without jitter."""
        return _order_places(self.arrangement, self._is_turned)

    @property
    def relation(self) -> str | None:
        """The relation of the first object to the second; None for a single object."""
        if self.arrangement == "single":
            return None
        return RELATIONS[self.arrangement][self._is_turned]

    @property
    def is_held_out(self) -> bool:
        """Whether an object's (colour, shape) is held out from training."""
        return any((item.color, item.shape) in HELD_OUT for item in self.objects)

    @property
    def _is_turned(self) -> bool:
        """Whether the first object is the right or the lower one."""
        first, last = self.objects[0], self.objects[-1]
        return first.y > last.y if self.arrangement == "vertical" else first.x > last.x


def sample_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """Draws a scene at random.

    The number of objects, arrangement, background, sizes, offsets and the order of two objects are
    drawn once, uniformly. The (colour, shape) pairs are drawn uniformly, all of them again until
    they satisfy `held_out` (rejection), so that the probabilities of the other attributes,
    including the number of objects, do not depend on `held_out`.

    Args:
        rng: the only source of randomness; the same state gives the same scene.
        held_out: False for a scene without any pair of HELD_OUT (training), True for one with at
            least one.

    Returns:
        The scene; one object with probability 1/3, else two.
    """
    arrangement: Arrangement = "single"
    if rng.random() >= SINGLE_PROBABILITY:
        arrangement = "horizontal" if rng.random() < 0.5 else "vertical"
    is_turned = arrangement != "single" and rng.random() < 0.5
    centres = _order_places(arrangement, is_turned)
    background = _BACKGROUND_NAMES[rng.integers(len(_BACKGROUND_NAMES))]
    sizes = rng.integers(len(_SIZE_NAMES), size=len(centres))
    offsets = rng.uniform(-JITTER, JITTER, size=(len(centres), 2))
    while True:
        pairs = [_PAIRS[index] for index in rng.integers(len(_PAIRS), size=len(centres))]
        if any(pair in HELD_OUT for pair in pairs) == held_out:
            break
    objects = tuple(
        SceneObject(shape, color, _SIZE_NAMES[size], x + float(dx), y + float(dy))
        for (color, shape), size, (x, y), (dx, dy) in zip(
            pairs, sizes, centres, offsets, strict=True
        )
    )
    return Scene(background, objects, arrangement)


def draw_scene(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """Draws a scene at twice the size and reduces it with Lanczos.

    Args:
        scene: to draw.
        size: side S of the picture in pixels, at least 16.

    Returns:
        (S, S, 3) uint8 RGB in [0, 255].

    Raises:
        ShapeError: the size is too small to tell the shapes apart; names the smallest.
    """
    canvas = draw_picture(scene.background, size)
    for item in scene.objects:
        draw_object(canvas, item.shape, "solid", item.color, SIZES[item.size], (item.x, item.y))
    return reduce_picture(canvas)


def draw_coverage(
    shape: str,
    object_size: str,
    centre: Point,
    size: int = 64,
    window: tuple[slice, slice] | None = None,
) -> NDArray[np.float32]:
    """Draws how much of each pixel an object covers.

    Up to rounding and clipping to [0, 255], a picture is
    ``background + coverage * (color - background)``.

    Args:
        shape: one of SHAPES.
        object_size: one of SIZES.
        centre: (x, y) of the object, fractions of S.
        size: side S of the picture in pixels, at least 16.
        window: the (rows, columns) to return, as slices with start and stop; None for all.

    Returns:
        (S, S) float32, or its window: 0 outside and 1 inside; Lanczos overshoots both a little at
        edges.

    Raises:
        DataError: an unknown shape or size; names the known ones.
        ShapeError: the picture's size is too small; names the smallest.
    """
    check_name("size", object_size, SIZES)
    return cover(shape, SIZES[object_size], centre, size, window)


def canonical_caption(scene: Scene) -> str:
    """Describes a scene in its canonical wording.

    Args:
        scene: to describe.

    Returns:
        For example ``a small blue star left of a large green ring on a white background``.
    """
    return _compose_caption(scene, False, choose_canonical)


def paraphrases(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """Describes a scene in other words, drawn at random and all of them true.

    Sizes (big, little, tiny), relations (to the left of, over, under, beneath, …), the background
    (`on white`) and the order of two objects are drawn uniformly and independently, so a wording
    may come twice and may be the canonical one.

    Args:
        scene: to describe.
        rng: the only source of randomness.
        count: number of captions, 0 or more.

    Returns:
        `count` captions.
    """
    choose = choose_randomly(rng)
    return [_compose_caption(scene, bool(rng.integers(2)), choose) for _ in range(count)]


def parse_caption(caption: str) -> Scene:
    """Reads a canonical caption back.

    Args:
        caption: as `canonical_caption` writes it; no other wording.

    Returns:
        The scene that it describes, with every object exactly at its place (no jitter).

    Raises:
        DataError: not a canonical caption; shows the form of one.
    """
    match = _CAPTION_PATTERN.fullmatch(caption)
    if match is None:
        raise DataError(
            f"Not a canonical scene caption: `{caption}`. Expected `a SIZE COLOR SHAPE on a "
            "BACKGROUND background` or `a SIZE COLOR SHAPE RELATION a SIZE COLOR SHAPE on a "
            f"BACKGROUND background` with SIZE one of {', '.join(SIZES)}; COLOR one of "
            f"{', '.join(COLORS)}; SHAPE one of {', '.join(SHAPES)}; RELATION one of "
            f"{', '.join(RELATION_WORDINGS)}; BACKGROUND one of {', '.join(BACKGROUNDS)}."
        )
    words = match.groups()
    arrangement, is_turned = _ARRANGEMENTS.get(words[3], ("single", False))
    # The words of a second object are None if there is none, and then its place is missing too.
    objects = tuple(
        SceneObject(shape, color, size, x, y)
        for (size, color, shape), (x, y) in zip(
            (words[:3], words[4:7]), _order_places(arrangement, is_turned), strict=False
        )
    )
    return Scene(words[-1], objects, arrangement)


def _order_places(arrangement: Arrangement, is_turned: bool) -> tuple[Point, ...]:
    """Returns the places of an arrangement, the second first if it is turned."""
    return PLACES[arrangement][::-1] if is_turned else PLACES[arrangement]


def _compose_caption(scene: Scene, is_reversed: bool, choose: Choose) -> str:
    """Describes a scene, two objects in reverse order if asked for."""

    def describe(item: SceneObject) -> str:
        return f"a {choose(SIZE_WORDINGS[item.size])} {item.color} {item.shape}"

    parts = [describe(item) for item in scene.objects]
    relation = scene.relation
    if relation is not None:
        if is_reversed:
            parts.reverse()
            relation = INVERSE[relation]
        parts.insert(1, choose(RELATION_WORDINGS[relation]))
    parts.append(choose(BACKGROUND_WORDINGS).format(scene.background))
    return " ".join(parts)
