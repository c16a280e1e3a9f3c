"""captions → what a model looks at while it is measured: no picture is its own example.

A picture that is in the memory finds neither itself nor a near copy of itself, as in training; any
other finds what its caption finds, as in painting.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tessella.images import Pixels
from tessella.model.codec import encode_stored
from tessella.model.pipeline import TextToImage
from tessella.retrieval import Example, ExampleMemory
from tessella.retrieval.copies import NearCopies, are_same, count_tolerated
from tessella.retrieval.examples import Codes
from tessella.retrieval.index import FindExcluded
from tessella.tokenizer import VQAutoencoder

_CHUNK = 1 << 15  # examples whose codes are in memory at once


class ExampleLookup:
    """Finds the examples of pictures that a model is measured on.

    Args:
        memory: of the model.
        tokenizer: the model's.
        count: examples of a picture, >= 1.
    """

    def __init__(self, memory: ExampleMemory, tokenizer: VQAutoencoder, count: int) -> None:
        self.memory, self.count = memory, count
        self._tokenizer = tokenizer

    @classmethod
    def create(cls, model: TextToImage) -> "ExampleLookup | None":
        """Looks up as a model does when it paints; None if it looks nothing up."""
        if model.memory is None:
            return None
        asked = model.config.generation.neighbors
        count = model.examples.most if asked is None else asked
        if not count or not len(model.memory):
            return None
        return cls(model.memory, model.tokenizer, count)

    def describe(self) -> str:
        """Says for a protocol what is looked at."""
        return f"beside at most {self.count} examples, none of them the picture itself"

    def find(
        self, captions: Sequence[str], codes: Codes, *, learned: bool = False
    ) -> list[tuple[Example, ...]]:
        """Finds the examples of pictures.

        Args:
            captions: (B) one of each.
            codes: (B, M, h, w) of the pictures.
            learned: the model has learned from these pictures: near copies are left out even of
                those that are not in the memory any more.

        Returns:
            (B) the best first; fewer where a caption finds no more.
        """
        found = []
        for caption, picture, own in zip(captions, codes, self.find_own(codes), strict=True):
            excluded: FindExcluded | None = None
            if own is not None:
                excluded = functools.partial(self._copies.find, own)
            elif learned:
                excluded = functools.partial(self._copies.find_like, picture, [caption])
            rows = self.memory.look_up(caption, self.count, find_excluded=excluded)[:, 0]
            found.append(tuple(self.memory.by_caption(int(row)) for row in rows if row >= 0))
        return found

    def encode(self, pixels: Pixels) -> Codes:
        """Encodes pictures (B, S, S, 3) as the memory holds them: (B, M, h, w)."""
        return encode_stored(self._tokenizer, pixels)

    def find_own(self, codes: Codes) -> list[int | None]:
        """Finds which pictures (B, M, h, w) are in the memory: an example with the same codes."""
        own: list[int | None] = [None] * len(codes)
        if not len(codes):
            return own
        # Codes that differ at `most` positions agree in one of `most + 1` parts at least.
        num_parts = count_tolerated(codes[0].size) + 1
        rows_of = defaultdict[tuple[int, int], list[int]](list)
        for part, keys in enumerate(_hash_parts(codes, num_parts)):
            for row, key in enumerate(keys.tolist()):
                rows_of[part, key].append(row)
        wanted = [
            np.array([key for of_part, key in rows_of if of_part == part], np.uint64)
            for part in range(num_parts)
        ]
        for start in range(0, len(self.memory), _CHUNK):
            stored = np.asarray(self.memory.codes[start : start + _CHUNK])
            for part, keys in enumerate(_hash_parts(stored, num_parts)):
                for at in np.flatnonzero(np.isin(keys, wanted[part])).tolist():
                    for row in rows_of[part, int(keys[at])]:
                        if own[row] is None and are_same(stored[at], codes[row]):
                            own[row] = start + at
        return own

    @functools.cached_property
    def _copies(self) -> NearCopies:
        return NearCopies(self.memory, self._tokenizer.codebook.cpu().numpy())


def _hash_parts(codes: Codes, num_parts: int) -> list[npt.NDArray[np.uint64]]:
    """Gives each part of some codes (B, M, h, w), interleaved, a number (B,)."""
    flat = codes.reshape(len(codes), -1).astype(np.uint64)
    factors = np.random.default_rng(0).integers(1, 1 << 63, flat.shape[1], np.uint64)
    products = flat * factors  # the sums overflow, as hashes do
    return [products[:, part::num_parts].sum(1) for part in range(num_parts)]
