"""Readers: chooses scenes for a test, and counts what pictures of them show, for every set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tessella.data.scenes.groups import GroupScene
from tessella.data.scenes.pairs import Scene
from tessella.data.scenes.sets import SCENE_SETS
from tessella.errors import DataError
from tessella.evaluation.scenes.groups import classify_groups
from tessella.evaluation.scenes.pairs import classify_scenes

# The key of the random stream of prompts; see sample_prompts.
_PROMPT_STREAM: Final = 1


class Classified(Protocol):
    """What a picture of a scene shows."""

    @property
    def all_correct(self) -> bool:
        """Whether it shows all of its scene."""

    @property
    def demands(self) -> Mapping[str, tuple[bool, ...]]:
        """Whether each demand of the caption is met, by their kind."""


READERS: Final[Mapping[str, Callable[..., Sequence[Classified]]]] = {
    "scenes": classify_scenes,
    "scenes2": classify_groups,
}
"""Each takes pixels (B, S, S, 3) and the B expected scenes of its set."""


@dataclass(frozen=True)
class DemandCount:
    """How many demands of one kind there are."""

    met: int
    all: int


def sample_prompts(
    count: int, seed: int = 0, held_out: bool = False, set_name: str = "scenes"
) -> list[Any]:
    """Chooses scenes for a benchmark.

    Scene i comes from its own random stream, made of the seed, i and a key that training lacks:
    training draws scene i of seed s from ``np.random.default_rng([s, i])``, whose state no pair
    (seed, key, i) can give. So no prompt replays a training scene, whatever the two seeds. There
    are few kinds of scenes with one object, so training may still draw, by chance, one that
    differs only in its offsets; `held_out` scenes are the ones that it never describes.

    Args:
        count: how many scenes, 0 or more; the first n are the same whatever the count.
        seed: which benchmark, 0 or more.
        held_out: True for scenes with at least one held-out combination, False for scenes with
            none.
        set_name: of SCENE_SETS.

    Returns:
        `count` scenes of the set.
    """
    return [
        SCENE_SETS[set_name].sample(
            np.random.default_rng(np.random.SeedSequence([seed, i], spawn_key=(_PROMPT_STREAM,))),
            held_out,
        )
        for i in range(count)
    ]


def compute_scene_accuracy(
    pixels: NDArray[np.uint8],
    scenes: Sequence[Scene] | Sequence[GroupScene],
    set_name: str = "scenes",
) -> float:
    """Computes the fraction of pictures that show all of their scenes.

    Args:
        pixels: (B, S, S, 3) uint8 RGB in [0, 255], B at least 1.
        scenes: the B expected scenes.
        set_name: of SCENE_SETS, whose scenes they are.

    Raises:
        DataError: there is not a single picture.
        ShapeError: as `classify_scenes`.
    """
    classified = READERS[set_name](pixels, scenes)
    if not classified:
        raise DataError("Scene accuracy needs at least one picture: `0`. Sample some prompts.")
    return sum(scene.all_correct for scene in classified) / len(classified)


def count_demands(classified: Sequence[Classified]) -> dict[str, DemandCount]:
    """Counts the demands that pictures meet, by their kind."""
    are_met: dict[str, list[bool]] = {}
    for picture in classified:
        for kind, answers in picture.demands.items():
            are_met.setdefault(kind, []).extend(answers)
    return {kind: DemandCount(sum(answers), len(answers)) for kind, answers in are_met.items()}
