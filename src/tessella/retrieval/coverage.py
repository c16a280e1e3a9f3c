"""Would looking pictures up help? For how many captions another picture's caption is useful.

    captions ─ index, the own picture left out ─▶ the best neighbours ─▶ what they cover

Captions alone are read: whether the pictures help as well is found out by `retrieval.neighbors`.
What a caption says is the sum over its words of their idf: rare words say much, those of every
caption almost nothing.
"""

from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tessella.retrieval.index import CaptionIndex, compute_idf, split_stems

USEFUL = 0.5
"""Of what a caption says; a neighbour that covers as much is useful."""

NUM_NEIGHBORS = 3
"""That are looked up for a caption."""

_MAX_INDEXED = 100_000  # captions; their index is built in seconds
_MAX_TRIED = 1_000
_NUM_SHOWN = 2


@dataclass(frozen=True)
class CoveredCaption:
    """A caption with the neighbour that covers most of it."""

    caption: str
    neighbor: str  # its caption
    covered: float  # fraction of what the caption says


@dataclass(frozen=True)
class CoverageReport:
    """For how many captions a useful neighbour exists."""

    tried: int  # captions
    useful: int  # of these, that have a useful neighbour
    indexed: int  # captions among which neighbours are looked up
    captions: int  # all there are
    examples: tuple[CoveredCaption, ...]  # some that have one
    without: tuple[str, ...]  # some that have none

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, ready for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """Says it in one line."""
        among = "" if self.indexed == self.captions else f" among {self.indexed:,} of the data's"
        parts = [
            f"useful for {self.useful / self.tried:.0%} of {self.tried:,} captions{among}: another "
            f"picture's caption has at least {USEFUL:.0%} of what they say"
        ]
        parts += [f"`{one.neighbor}` for `{one.caption}`" for one in self.examples[:1]]
        parts += [f"none for `{caption}`" for caption in self.without[:1]]
        return "; ".join(parts)


class CoverageMeter:
    """Collects the captions of pictures, then looks up the neighbours of some.

    Of many captions it keeps a random sample, so that memory stays flat.

    Args:
        max_indexed: captions that are kept.
        max_tried: captions whose neighbours are looked up.
    """

    def __init__(self, max_indexed: int = _MAX_INDEXED, max_tried: int = _MAX_TRIED) -> None:
        self._max_indexed, self._max_tried = max_indexed, max_tried
        self._rng = np.random.default_rng(0)
        self._captions: list[str] = []
        self._families = array("q")  # of each caption's picture
        self._number_of: dict[str, int] = {}
        self._num_captions = 0

    def add(self, captions: Sequence[str], family: str) -> None:
        """Adds a picture.

        Args:
            captions: of the picture.
            family: the same for pictures that are never on both sides of the split; they are no
                neighbours of each other.
        """
        number = self._number_of.setdefault(family, len(self._number_of))
        for caption in captions:
            self._num_captions += 1
            if len(self._captions) < self._max_indexed:
                self._captions.append(caption)
                self._families.append(number)
            elif (at := int(self._rng.integers(self._num_captions))) < self._max_indexed:
                self._captions[at], self._families[at] = caption, number

    def measure(self) -> CoverageReport | None:
        """Looks up neighbours; None without captions."""
        if not self._captions:
            return None
        index = CaptionIndex.build(self._captions)
        families = np.array(self._families, np.int64)
        order = np.random.default_rng(0).permutation(len(self._captions))[: self._max_tried]
        found = [self._find_best(index, families, int(at)) for at in np.sort(order)]
        useful = [one for one in found if one.covered >= USEFUL]
        # The same words again would show nothing.
        shown = sorted(useful, key=lambda one: one.covered == 1.0)
        without = [one.caption for one in found if one.covered < USEFUL]
        return CoverageReport(
            tried=len(found),
            useful=len(useful),
            indexed=len(self._captions),
            captions=self._num_captions,
            examples=tuple(shown[:_NUM_SHOWN]),
            without=tuple(without[:_NUM_SHOWN]),
        )

    def _find_best(
        self, index: CaptionIndex, families: npt.NDArray[np.int64], at: int
    ) -> CoveredCaption:
        """Finds the neighbour that covers most of one caption."""
        caption, own = self._captions[at], families[at]
        looked_up = index.look_up(
            caption, NUM_NEIGHBORS, families, find_excluded=lambda few: few == own
        )
        neighbors = [self._captions[int(row)] for row in looked_up[:, 0] if row >= 0]
        weights = _weigh_words(index, caption, len(self._captions))
        covered = [CoveredCaption(caption, one, _cover(weights, one)) for one in neighbors]
        nothing = CoveredCaption(caption, "", 0.0)
        return max(covered, key=lambda one: one.covered, default=nothing)


def _weigh_words(index: CaptionIndex, caption: str, num_captions: int) -> dict[str, float]:
    """Computes what each different word of an indexed caption says."""
    counts = {word: index.count_captions(word) for word in split_stems(caption)}
    idf = compute_idf(list(counts.values()), num_captions)
    return dict(zip(counts, idf.tolist(), strict=True))


def _cover(weights: dict[str, float], caption: str) -> float:
    """Computes which fraction of the weights a caption's words have."""
    words = set(split_stems(caption))
    return sum(w for word, w in weights.items() if word in words) / sum(weights.values())
