"""Sets: what each set of scenes can do, by its name in DATA."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessella.data.scenes import groups, pairs

_Scene = TypeVar("_Scene")


@dataclass(frozen=True)
class SceneSet(Generic[_Scene]):
    """One set of scenes; each function's docstring is that of its file."""

    sample: Callable[[np.random.Generator, bool], _Scene]  # with held-out combinations, or without
    draw: Callable[[_Scene, int], NDArray[np.uint8]]  # (S, S, 3)
    caption: Callable[[_Scene], str]  # canonical
    paraphrase: Callable[[_Scene, np.random.Generator, int], list[str]]
    parse: Callable[[str], _Scene]  # of a canonical caption, else a DataError


SCENE_SETS: Final[Mapping[str, SceneSet[Any]]] = {
    "scenes": SceneSet(
        pairs.sample_scene,
        pairs.draw_scene,
        pairs.canonical_caption,
        pairs.paraphrases,
        pairs.parse_caption,
    ),
    "scenes2": SceneSet(
        groups.sample_groups,
        groups.draw_groups,
        groups.describe_groups,
        groups.paraphrase_groups,
        groups.parse_groups,
    ),
}
