"""Words: how captions of scenes say sizes, relations and backgrounds.

Wordings with the same meaning stand together, the canonical one first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np

Choose: TypeAlias = Callable[[Sequence[str]], str]
"""Chooses one of several wordings."""

SIZE_WORDINGS: Final = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
RELATION_WORDINGS: Final = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
BACKGROUND_WORDINGS: Final = ("on a {} background", "on {}")
INVERSE: Final[Mapping[str, str]] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}


def choose_canonical(wordings: Sequence[str]) -> str:
    """Chooses the canonical wording."""
    return wordings[0]


def choose_randomly(rng: np.random.Generator) -> Choose:
    """Chooses wordings uniformly at random."""
    return lambda wordings: wordings[int(rng.integers(len(wordings)))]
