"""Scenes of three or four objects in groups, `scenes2:N`: counts, textures, relations, negation.

    row        three or four alike in a row
    rows       a row of one to three above or below another, three or four objects together
    corners    three objects in three corners: the first beside, above or below the second, and the
               second beside, above or below the third

Objects are solid, striped or dotted. Of a later group a caption may say only which colour it has
not: that of the first group. Training shows no combination of HELD_OUT_COUNTS or HELD_OUT_TEXTURES.

All lengths are fractions of the picture's side S, x to the right and y down.
"""

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessella.data.scenes.shapes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    TEXTURES,
    Point,
    check_name,
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
from tessella.errors import DataError, ShapeError

_T = TypeVar("_T")
Places: TypeAlias = tuple[Point, ...]
"""Where the groups of a scene stand, in the order of the caption."""

# Radius of each size; four large ones have no room in a row.
SIZES: Final[Mapping[str, float]] = {"small": 0.095, "large": 0.135}
# Every coordinate is moved by a uniform random amount in ± JITTER.
JITTER: Final = 0.02
# x of each object of a row, from the middle of the row.
ROWS: Final[Mapping[int, tuple[float, ...]]] = {
    1: (0.0,),
    2: (-0.2, 0.2),
    3: (-0.31, 0.0, 0.31),
    4: (-0.36, -0.12, 0.12, 0.36),
}
MIDDLE: Final = (0.5, 0.5)
HALVES: Final = ((0.5, 0.27), (0.5, 0.73))  # upper, lower
CORNERS: Final = ((0.27, 0.27), (0.73, 0.27), (0.73, 0.73), (0.27, 0.73))  # clockwise
# Three corners, each beside the next, in every order.
_TURNS: Final = tuple(
    tuple(CORNERS[(start + step * i) % 4] for i in range(3))
    for start in range(4)
    for step in (1, -1)
)
# The places of groups that a scene may have, and the numbers of objects that may stand there.
LAYOUTS: Final[Mapping[str, tuple[tuple[Places, ...], tuple[tuple[int, ...], ...]]]] = {
    "row": (((MIDDLE,),), ((3,), (4,))),
    "rows": ((HALVES, HALVES[::-1]), ((1, 2), (2, 1), (1, 3), (3, 1), (2, 2))),
    "corners": (_TURNS, ((1, 1, 1),)),
}
NEGATED_PROBABILITY: Final = 1 / 3
# What training never shows: (number, shape) and (texture, colour).
HELD_OUT_COUNTS: Final = frozenset({(2, "triangle"), (3, "star"), (4, "ring")})
HELD_OUT_TEXTURES: Final = frozenset(
    {("striped", "green"), ("striped", "orange"), ("dotted", "blue"), ("dotted", "yellow")}
)

_NUMBERS: Final = {"two": 2, "three": 3, "four": 4}
# Wordings with the same meaning, the canonical one first.
_NUMBER_WORDINGS: Final = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
_TEXTURE_WORDINGS: Final = {
    "solid": ("",),
    "striped": ("striped ", "stripy "),
    "dotted": ("dotted ", "spotted "),
}
_ROW_WORDINGS: Final = ("in a row", "side by side")
_PLURALS: Final = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}
_SHAPES_BY_WORD: Final = {word: shape for shape, word in _PLURALS.items()} | {
    shape: shape for shape in SHAPES
}


def _list(words: Sequence[str]) -> str:
    return f"({'|'.join(words)})"


_GROUP_PATTERN: Final = (
    rf"(?:a|{_list([*_NUMBERS])}) {_list([*SIZES])} (?:{_list(TEXTURES[1:])} )?"
    rf"(?:{_list([*COLORS])} )?{_list([*_PLURALS.values(), *SHAPES])}(?: in a row)?"
    rf"(?: that (?:is|are) not {_list([*COLORS])})?"
)
_RELATION_PATTERN: Final = _list([*RELATION_WORDINGS])
_CAPTION_PATTERN: Final = re.compile(
    rf"{_GROUP_PATTERN}(?: {_RELATION_PATTERN} {_GROUP_PATTERN})?"
    rf"(?:, which is {_RELATION_PATTERN} {_GROUP_PATTERN},)?"
    rf" on a {_list([*BACKGROUNDS])} background"
)
_NUM_WORDS: Final = 6  # that _GROUP_PATTERN captures


@dataclass(frozen=True, slots=True)
class Group:
    """Objects of one look that stand in a row.

    Raises:
        DataError: an unknown size, texture, colour or shape, or an unfitting number of objects.
    """

    size: str  # one of SIZES
    texture: str  # one of TEXTURES
    color: str  # one of COLORS
    shape: str  # one of SHAPES
    place: Point  # middle of the row
    offsets: tuple[Point, ...]  # of each object from its place in the row, from left to right
    not_color: str | None = None  # the caption says only that the colour isn't this one

    def __post_init__(self) -> None:
        """Checks the names and the number."""
        check_name("size", self.size, SIZES)
        check_name("texture", self.texture, TEXTURES)
        check_name("color", self.color, COLORS)
        check_name("shape", self.shape, SHAPES)
        if self.not_color is not None:
            check_name("color", self.not_color, COLORS)
        if self.count not in ROWS or (self.count == 4 and self.size != "small"):
            raise DataError(
                f"No room for {self.count} {self.size} objects in a row. Expected 1 to 3, or 4 "
                "small ones."
            )
        if self.color == self.not_color:
            raise DataError(f"A group that is not {self.not_color} cannot be `{self.color}`.")

    @property
    def count(self) -> int:
        """The number of objects."""
        return len(self.offsets)

    @property
    def centres(self) -> tuple[Point, ...]:
        """The centre of each object, from left to right."""
        x, y = self.place
        return tuple(
            (x + step + dx, y + dy)
            for step, (dx, dy) in zip(ROWS[self.count], self.offsets, strict=True)
        )

    @property
    def is_held_out(self) -> bool:
        """Whether its number and shape, or its texture and colour, are held out from training."""
        is_count = (self.count, self.shape) in HELD_OUT_COUNTS
        return is_count or (self.texture, self.color) in HELD_OUT_TEXTURES


@dataclass(frozen=True, slots=True)
class GroupScene:
    """The contents of one picture.

    Raises:
        DataError: an unknown background, or groups that do not stand as in LAYOUTS.
    """

    background: str  # one of BACKGROUNDS
    groups: tuple[Group, ...]  # one to three, in the order of the caption

    def __post_init__(self) -> None:
        """Checks the background and the layout."""
        check_name("background", self.background, BACKGROUNDS)
        counts = tuple(group.count for group in self.groups)
        if not any(self.places in p and counts in c for p, c in LAYOUTS.values()):
            raise DataError(
                f"Groups of {', '.join(map(str, counts))} objects cannot stand at {self.places}. "
                "Expected three or four in a row in the middle; a row of one to three above or "
                "below another, three or four together; or three corners, each beside the next."
            )

    @property
    def places(self) -> Places:
        """The place (x, y) of each group."""
        return tuple(group.place for group in self.groups)

    @property
    def layout(self) -> str:
        """Which of LAYOUTS it has: the number of groups tells."""
        return tuple(LAYOUTS)[len(self.groups) - 1]

    @property
    def relations(self) -> tuple[str, ...]:
        """The relation of each group to the next."""
        return _find_relations(self.places)

    @property
    def is_held_out(self) -> bool:
        """Whether a combination is held out from training."""
        return any(group.is_held_out for group in self.groups)


def sample_groups(rng: np.random.Generator, held_out: bool = False) -> GroupScene:
    """Draws a scene at random.

    The layout and, given it, the places, numbers, background, sizes, offsets and which group is
    negated are drawn once, uniformly. Textures, colours and shapes are drawn uniformly, all of them
    again until they satisfy `held_out` (rejection), so that the other probabilities do not depend
    on it. The colour of a negated group, which the caption does not tell, is never held out.

    Args:
        rng: the only source of randomness; the same state gives the same scene.
        held_out: False for a scene without any combination of HELD_OUT_COUNTS or
            HELD_OUT_TEXTURES (training), True for one with at least one.
    """
    all_places, all_counts = _choose(rng, tuple(LAYOUTS.values()))
    places, counts = _choose(rng, all_places), _choose(rng, all_counts)
    background = _choose(rng, tuple(BACKGROUNDS))
    sizes = [_choose(rng, tuple(SIZES)[: 1 if count == 4 else 2]) for count in counts]
    offsets = [rng.uniform(-JITTER, JITTER, size=(count, 2)).tolist() for count in counts]
    negated = 0
    if len(counts) > 1 and rng.random() < NEGATED_PROBABILITY:
        negated = int(rng.integers(1, len(counts)))
    while True:
        groups: list[Group] = []
        for index, (place, size) in enumerate(zip(places, sizes, strict=True)):
            texture, shape = _choose(rng, TEXTURES), _choose(rng, SHAPES)
            not_color = groups[0].color if index and index == negated else None
            colors = tuple(COLORS) if not_color is None else _list_others(texture, not_color)
            moves = tuple((dx, dy) for dx, dy in offsets[index])
            color = _choose(rng, colors)
            groups.append(Group(size, texture, color, shape, place, moves, not_color))
        scene = GroupScene(background, tuple(groups))
        if scene.is_held_out == held_out:
            return scene


def draw_groups(scene: GroupScene, size: int = 64) -> NDArray[np.uint8]:
    """Draws a scene at twice the size and reduces it with Lanczos.

    Args:
        scene: to draw.
        size: side S of the picture in pixels, at least 64.

    Returns:
        (S, S, 3) uint8 RGB in [0, 255].

    Raises:
        ShapeError: the size is too small to tell the objects apart; names the smallest.
    """
    check_size(size)
    canvas = draw_picture(scene.background, size)
    for group in scene.groups:
        for centre in group.centres:
            draw_object(canvas, group.shape, group.texture, group.color, SIZES[group.size], centre)
    return reduce_picture(canvas)


def check_size(size: int) -> None:
    """Raises a ShapeError if pictures of S × S pixels are too small to tell objects apart."""
    if size < 64:
        raise ShapeError(
            f"A picture of scenes2 must have at least 64 pixels a side: `{size}`. Below that its "
            "textures cannot be told apart for certain; set data.image_size=64."
        )


def describe_groups(scene: GroupScene) -> str:
    """Describes a scene in its canonical wording.

    Returns:
        For example ``three small striped red circles in a row on a white background`` or ``a small
        red ring left of a large dotted star that is not red, which is above a small blue cross, on
        a gray background``.
    """
    return _compose(scene, False, choose_canonical)


def paraphrase_groups(scene: GroupScene, rng: np.random.Generator, count: int) -> list[str]:
    """Describes a scene in other words, drawn at random and all of them true.

    Numbers (3), sizes, textures (stripy, spotted), rows (side by side), relations, the background
    and the order of the groups are drawn uniformly and independently, so a wording may come twice
    and may be the canonical one.

    Args:
        scene: to describe.
        rng: the only source of randomness.
        count: number of captions, 0 or more.
    """
    choose = choose_randomly(rng)
    return [_compose(scene, bool(rng.integers(2)), choose) for _ in range(count)]


def parse_groups(caption: str) -> GroupScene:
    """Reads a canonical caption back.

    Args:
        caption: as `describe_groups` writes it; no other wording.

    Returns:
        The scene that it describes, with every object exactly at its place (no jitter). A negated
        group has the first colour that it may have.

    Raises:
        DataError: not a canonical caption; shows the form of one.
    """
    match = _CAPTION_PATTERN.fullmatch(caption)
    # The pattern allows more than there is, such as four large stars or two circle.
    with contextlib.suppress(DataError):
        scene = None if match is None else _read_words(match.groups())
        if scene is not None and describe_groups(scene) == caption:
            return scene
    raise DataError(
        f"Not a canonical caption of scenes2: `{caption}`. Expected `GROUP on a BACKGROUND "
        "background`, `GROUP above GROUP on …` or `GROUP left of GROUP, which is above GROUP, on "
        "…` with GROUP like `a small red circle`, `three large striped blue crosses in a row` or "
        f"`a small star that is not red`; sizes {', '.join(SIZES)}; textures "
        f"{', '.join(TEXTURES[1:])}; colors {', '.join(COLORS)}; shapes {', '.join(SHAPES)}; "
        f"relations {', '.join(RELATION_WORDINGS)}; backgrounds {', '.join(BACKGROUNDS)}."
    )


def _choose(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]


def _relate(first: Point, second: Point) -> str:
    """Names the relation of a place to another, beside, above or below it."""
    if first[1] == second[1]:
        return "left of" if first[0] < second[0] else "right of"
    return "above" if first[1] < second[1] else "below"


def _find_relations(places: Places) -> tuple[str, ...]:
    return tuple(_relate(*pair) for pair in itertools.pairwise(places))


def _list_others(texture: str, not_color: str) -> tuple[str, ...]:
    """Lists the colours of a group that is not of one."""
    return tuple(
        color
        for color in COLORS
        if color != not_color and (texture, color) not in HELD_OUT_TEXTURES
    )


def _read_words(words: Sequence[str | None]) -> GroupScene:
    """Reads what _CAPTION_PATTERN captures: groups with a relation between them, a background.

    Raises:
        DataError: there is no such scene.
    """
    step = _NUM_WORDS + 1
    described = [words[i : i + _NUM_WORDS] for i in range(0, len(words) - 1, step)]
    described = [group for group in described if group[-2]]
    relations = tuple(word for word in words[_NUM_WORDS:-1:step] if word)
    all_places = [places for alternatives, _ in LAYOUTS.values() for places in alternatives]
    places = next((places for places in all_places if _find_relations(places) == relations), ())
    groups = tuple(map(_read_group, described, places))
    return GroupScene(words[-1] or "", groups)


def _read_group(words: Sequence[str | None], place: Point) -> Group:
    """Reads one group; if its colour is not told, it gets the first that it may have."""
    number, size, texture, color, shape, not_color = (word or "" for word in words)
    texture = texture or "solid"
    if not color and not_color:
        color = _list_others(texture, not_color)[0]
    offsets = ((0.0, 0.0),) * _NUMBERS.get(number, 1)
    return Group(size, texture, color, _SHAPES_BY_WORD[shape], place, offsets, not_color or None)


def _compose(scene: GroupScene, is_reversed: bool, choose: Choose) -> str:
    """Describes a scene, its groups in reverse order if asked for."""
    groups = [_compose_group(group, choose) for group in scene.groups]
    relations = list(scene.relations)
    if is_reversed:
        groups.reverse()
        relations = [INVERSE[relation] for relation in reversed(relations)]
    words = [choose(RELATION_WORDINGS[relation]) for relation in relations]
    caption = groups[0]
    if len(groups) > 1:
        caption += f" {words[0]} {groups[1]}"
    if len(groups) > 2:
        caption += f", which is {words[1]} {groups[2]},"
    return f"{caption} {choose(BACKGROUND_WORDINGS).format(scene.background)}"


def _compose_group(group: Group, choose: Choose) -> str:
    is_one = group.count == 1
    number = "a" if is_one else choose(_NUMBER_WORDINGS[group.count])
    texture = choose(_TEXTURE_WORDINGS[group.texture])
    color = f"{group.color} " if group.not_color is None else ""
    shape = group.shape if is_one else f"{_PLURALS[group.shape]} {choose(_ROW_WORDINGS)}"
    negation = f" that {'is' if is_one else 'are'} not {group.not_color}" if group.not_color else ""
    return f"{number} {choose(SIZE_WORDINGS[group.size])} {texture}{color}{shape}{negation}"
