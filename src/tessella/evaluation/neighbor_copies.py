"""Does a model paint, or does it copy what it looks at? Painted pictures beside their examples.

    painted ─ pixels ─▶ distance to each of its examples, decoded ─▶ the nearest, copy rate

Protocol of the copy rate: a picture counts as a copy if it is nearer to the decoded codes of one of
its examples than these are to their own original: no stranger could tell it from a worse
recompression. The distance is the mean squared difference of pixels in [-1, 1]. Drawings of one
subject are alike without any copying, so the same is counted on the real pictures of the same
captions, recompressed, beside the same examples.

Where the originals are not at hand, the codes are compared: nine in ten the same is a copy.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import torch

from tessella.data.cache import CaptionedImages
from tessella.evaluation.memorisation import MAX_PAIRS, Pair
from tessella.evaluation.metric import Metric, Results
from tessella.images import Pixels
from tessella.model.codec import encode_stored
from tessella.model.pipeline import TextToImage
from tessella.retrieval import Example
from tessella.retrieval.copies import are_same
from tessella.retrieval.examples import Codes

SAME_CODES = 0.9
"""Fraction of the codes; a picture of which as many are those of an example is a copy."""

_MAX_SAME_NAME = 8  # pictures of one file name that are compared with an example

_COPIES = ("neighbor_copy_rate", "neighbor_copy_rate_real", "neighbor_copy_excess")
_SAME = ("neighbor_same_codes_rate", "neighbor_same_codes_rate_real")
_DISTANCES = ("neighbor_distance", "neighbor_distance_real")


@dataclass(frozen=True)
class Beside:
    """Painted pictures and the real ones of the same captions, with what both are beside."""

    prompts: Sequence[str]  # B
    examples: Sequence[tuple[Example, ...]]  # B: of the memory
    pixels: Pixels  # (B, S, S, 3) painted
    codes: Codes | None  # (B, M, h, w) painted; None: the objective generates none
    real_codes: Codes  # (B, M, h, w)
    description: str  # which real pictures these are


def measure_neighbor_copies(
    model: TextToImage, beside: Beside, training: CaptionedImages | None, missing_training: str
) -> tuple[Results, list[Pair]]:
    """Counts the pictures that are as good as one of their examples.

    Args:
        model: with a memory.
        beside: what it has painted.
        training: has the originals of its examples; None if they are not at hand.
        missing_training: why not.

    Returns:
        `neighbor_copy_rate`, `neighbor_distance` and `neighbor_same_codes_rate`, each with `_real`
        for the real pictures, and `neighbor_copy_excess`, or the reasons why they are left out;
        and the painted pictures that are nearest to an example.
    """
    rows = [row for row, examples in enumerate(beside.examples) if examples]
    if not rows:
        return dict.fromkeys((*_COPIES, *_DISTANCES, *_SAME), "No caption finds an example."), []
    comparison = ExampleComparison(model, [beside.examples[row] for row in rows], training)
    painted = comparison.measure(beside.pixels[rows])
    real = comparison.measure(_decode(model, beside.real_codes[rows]))
    results = _compare_pixels(comparison, painted, real, beside, missing_training)
    if beside.codes is None:
        results |= dict.fromkeys(_SAME, "The objective generates no codes.")
    else:
        sides = (beside.codes[rows], beside.real_codes[rows])
        results |= _describe_sides(
            _SAME,
            [comparison.compute_same_codes_rate(side) for side in sides],
            f"share of {len(rows)} {{}} of whose codes {SAME_CODES:.0%} are those of one of their "
            "examples",
            beside.description,
        )
    prompts = [beside.prompts[row] for row in rows]
    return results, comparison.list_pairs(beside.pixels[rows], prompts, painted)


def _compare_pixels(
    comparison: "ExampleComparison",
    painted: Sequence[Sequence[float]],
    real: Sequence[Sequence[float]],
    beside: Beside,
    missing_training: str,
) -> Results:
    """Compares the distances of both sides to their examples."""
    results = _describe_sides(
        _DISTANCES,
        [float(np.median([min(row) for row in side])) for side in (painted, real)],
        f"median over {len(painted)} {{}} of the distance to the nearest of their examples, "
        "decoded: mean squared difference of pixels in [-1, 1]",
        beside.description,
    )
    count = comparison.num_judged
    if not count:
        none = "The originals of its examples are not among the training pictures."
        return results | dict.fromkeys(
            _COPIES, none if comparison.has_training else missing_training
        )
    rates = [comparison.compute_copy_rate(side) for side in (painted, real)]
    what = (
        f"share of {count} {{}} nearer to one of their examples, decoded, than that is to its "
        "original, by squared difference of pixels"
    )
    results |= _describe_sides(_COPIES[:2], rates, what, beside.description)
    results[_COPIES[2]] = Metric(rates[0] - rates[1], " minus ".join(_COPIES[:2]))
    return results


def _describe_sides(
    names: Sequence[str], values: Sequence[float], protocol: str, description: str
) -> Results:
    """Makes a metric of the painted pictures and one of the real ones."""
    sides = (
        "painted pictures",
        f"real pictures of the same captions, recompressed, {description},",
    )
    return {
        name: Metric(value, protocol.format(side))
        for name, value, side in zip(names, values, sides, strict=True)
    }


class ExampleComparison:
    """Compares pictures with the examples that they are beside.

    Args:
        model: decodes the examples.
        examples: (B) of the model's memory, one at least for each picture.
        training: has their originals; None if they are not at hand.
    """

    def __init__(
        self,
        model: TextToImage,
        examples: Sequence[tuple[Example, ...]],
        training: CaptionedImages | None = None,
    ) -> None:
        self._examples = examples
        self.has_training = training is not None
        distinct = {one.index: one for row in examples for one in row}
        pixels = _decode(model, np.stack([one.codes for one in distinct.values()]))
        self._decoded = dict(zip(distinct, pixels, strict=True))
        originals = find_originals(model, list(distinct.values()), training)
        self._errors = {
            index: compute_mse(self._decoded[index], original)
            for index, original in originals.items()
        }

    @property
    def num_judged(self) -> int:
        """How many pictures have an example whose original is at hand."""
        return sum(any(one.index in self._errors for one in row) for row in self._examples)

    def measure(self, pixels: Pixels) -> list[list[float]]:
        """Computes the distances of pictures (B, S, S, 3) to each of their examples."""
        return [
            [compute_mse(image, self._decoded[one.index]) for one in row]
            for image, row in zip(pixels, self._examples, strict=True)
        ]

    def compute_copy_rate(self, distances: Sequence[Sequence[float]]) -> float:
        """Computes which fraction is nearer to an example than that is to its original."""
        copies = [
            any(
                distance < self._errors.get(one.index, 0.0)
                for distance, one in zip(to_examples, row, strict=True)
            )
            for to_examples, row in zip(distances, self._examples, strict=True)
        ]
        return sum(copies) / self.num_judged

    def compute_same_codes_rate(self, codes: Codes) -> float:
        """Computes which fraction of codes (B, M, h, w) are almost those of an example."""
        same = [
            any(float(np.mean(one.codes == picture)) >= SAME_CODES for one in row)
            for picture, row in zip(codes, self._examples, strict=True)
        ]
        return sum(same) / len(same)

    def list_pairs(
        self, pixels: Pixels, prompts: Sequence[str], distances: Sequence[Sequence[float]]
    ) -> list[Pair]:
        """Lists the pictures that lean on an example most, each beside it, the worst first.

        By how the distance compares with that of the example to its original, where one is at hand.
        """
        pairs = []
        for image, prompt, to_examples, row in zip(
            pixels, prompts, distances, self._examples, strict=True
        ):
            limits = [self._errors.get(one.index) for one in row]
            ratios = [
                (limit is None, distance / (limit or 1.0))
                for distance, limit in zip(to_examples, limits, strict=True)
            ]
            at = min(range(len(row)), key=ratios.__getitem__)
            one = row[at]
            pair = Pair(
                image,
                prompt,
                self._decoded[one.index],
                one.caption,
                to_examples[at],
                example=one.name,
                limit=limits[at],
            )
            pairs.append((ratios[at], pair))
        pairs.sort(key=lambda each: each[0])
        return [pair for _, pair in pairs[:MAX_PAIRS]]


def find_originals(
    model: TextToImage, examples: Sequence[Example], training: CaptionedImages | None
) -> dict[int | None, Pixels]:
    """Finds the pictures (S, S, 3) that examples were encoded from, by name and codes.

    Args:
        model: encodes pictures.
        examples: of its memory.
        training: pictures that they may be among; None if there are none.

    Returns:
        By the examples' indices; those that are not found are left out.
    """
    if training is None:
        return {}
    numbers_of = defaultdict[str, list[int]](list)
    wanted = {_file_name(one.name) for one in examples}
    for number in range(len(training)):
        if (name := _file_name(training.name(number))) in wanted:
            numbers_of[name].append(number)
    candidates: list[tuple[Example, int]] = []
    for one in examples:
        numbers = numbers_of[_file_name(one.name)]
        # The same path first: many folders may have a 1.png.
        numbers.sort(key=lambda number: training.name(number) != one.name)
        candidates += [(one, number) for number in numbers[:_MAX_SAME_NAME]]
    if not candidates:
        return {}
    pixels = training.pixels([number for _, number in candidates])
    found: dict[int | None, Pixels] = {}
    encoded = encode_stored(model.tokenizer, pixels)
    for (one, _), codes, image in zip(candidates, encoded, pixels, strict=True):
        if one.index not in found and are_same(one.codes, codes):
            found[one.index] = image
    return found


def compute_mse(first: Pixels, second: Pixels) -> float:
    """Computes the mean squared difference of pictures (S, S, 3), their pixels in [-1, 1]."""
    difference = first.astype(np.float32) - second.astype(np.float32)
    return float(np.square(difference / 127.5).mean())


def _decode(model: TextToImage, codes: Codes) -> Pixels:
    return model.decode_codes(torch.from_numpy(codes.astype(np.int64)))


def _file_name(name: str) -> str:
    return PurePath(name).name
