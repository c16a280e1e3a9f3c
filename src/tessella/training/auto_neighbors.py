"""`retrieval.neighbors = auto`: does a prompt find pictures that help?

    captions ─ are their words rare? ─ no ─▶ 0: every word is seen often enough to be learned
    pictures ─ are neighbours alike? ─ no ─▶ 0: a neighbour is no nearer than any other picture
                                     yes ─▶ 3

Held-out pictures are compared with those that their captions find. It takes seconds and no
training: a short training cannot tell, for the two losses part only after minutes (docs/log.md).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tessella.data.cache import CaptionedImages
from tessella.data.prepare import PreparedData
from tessella.model.find import find_model
from tessella.model.folder import read_model_config
from tessella.retrieval import ExampleMemory
from tessella.retrieval.examples import ExampleRow
from tessella.training.recipe import Recipe

NEIGHBORS = 3
"""Examples beside each prompt where they help."""

# Emoji and scenes, Flickr8k and clothing lie on either side of these: docs/log.md.
_RARE = 50  # captions: a word that fewer have is rare
_MIN_RARE = 0.2  # of the captions have a rare word
_MAX_DISTANCE = 0.8  # of a neighbour, as a fraction of that of a random picture

_MIN_IMAGES = 20_000  # of stage 2: a shorter training does not learn to use examples
_MIN_MINUTES = 10.0
_SEARCHED, _TRIED = 20_000, 256  # pictures
_SIDE = 8  # of the pictures that are compared, in pixels: their shapes and colours


@dataclass(frozen=True)
class NeighborChoice:
    """How many examples a model gets, and why."""

    neighbors: int
    why: str
    rare: float | None = None  # fraction of the captions with a rare word
    distance: float | None = None  # of a neighbour, as a fraction of that of a random picture


def choose_neighbors(recipe: Recipe, minutes: float | None, data: PreparedData) -> NeighborChoice:
    """Decides about `retrieval.neighbors = auto`.

    Args:
        recipe: of the run.
        minutes: that the run may take; None where the recipe says how long it trains.
        data: of the run.

    Raises:
        CheckpointError: the model that the transformer starts from cannot be read.
    """
    init_from = recipe.transformer_training.init_from
    if init_from is not None:
        neighbors = read_model_config(find_model(init_from)).neighbors
        return NeighborChoice(neighbors, f"as in `{init_from}`, where the transformer comes from")
    is_short = recipe.transformer_training.images < _MIN_IMAGES
    if is_short if minutes is None else minutes < _MIN_MINUTES:
        return NeighborChoice(0, "the training is too short to learn to use them")
    if not len(data.validation) or len(data.train) < 2 * NEIGHBORS:
        return NeighborChoice(0, "there are too few pictures to find out whether they help")
    step = -(-len(data.train) // _SEARCHED)
    rows = np.arange(0, len(data.train), step)
    memory = ExampleMemory.build(
        np.zeros((len(rows), 1, 1), np.uint16),
        [ExampleRow("", data.train.captions(row)) for row in rows.tolist()],
        "",
    )
    rare = measure_rare_words(memory)
    if rare < _MIN_RARE:
        why = f"the words of the captions are common enough to be learned ({rare:.0%} have a rare "
        return NeighborChoice(0, why + "one)", rare)
    distance = measure_neighbors(memory, data, rows)
    why = (
        "the nearest picture that a held-out caption finds is "
        f"{distance:.2f} times as far away as the nearest of as many random ones"
    )
    return NeighborChoice(NEIGHBORS if distance <= _MAX_DISTANCE else 0, why, rare, distance)


def measure_rare_words(memory: ExampleMemory) -> float:
    """Measures the fraction of captions with a word that fewer than 50 captions have."""
    counts = np.diff(memory.index.offsets)
    rare = memory.index.captions[np.repeat(counts < _RARE, counts)]
    return len(np.unique(rare)) / max(len(memory.example_of), 1)


def measure_neighbors(
    memory: ExampleMemory, data: PreparedData, rows: npt.NDArray[np.int64]
) -> float:
    """Measures how far held-out pictures are from the pictures that their captions find.

    Args:
        memory: of training pictures.
        data: of the run.
        rows: the training pictures of the memory.

    Returns:
        The mean distance to the nearest of the neighbours over that to the nearest of as many
        random pictures; 1 where captions say nothing about the pictures, or find none.
    """
    rng = np.random.default_rng(0)
    tried = np.arange(min(len(data.validation), _TRIED))
    distances = []
    for picture, pixels in zip(tried.tolist(), _shrink(data.validation, tried), strict=True):
        found = memory.look_up(data.validation.captions(picture)[0], NEIGHBORS)[:, 0]
        neighbors = memory.example_of[found[found >= 0]]
        if len(neighbors):
            others = rng.integers(len(rows), size=len(neighbors))
            both = _shrink(data.train, rows[np.concatenate([neighbors, others])])
            distance = np.square(both - pixels).mean((1, 2, 3)).reshape(2, -1)
            distances.append(distance.min(1))
    of_neighbors, of_others = np.mean(distances, axis=0) if distances else (1.0, 1.0)
    return float(of_neighbors / max(of_others, 1e-12))


def _shrink(images: CaptionedImages, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Reads pictures as (n, 3, 8, 8) in [0, 255]."""
    pixels = torch.from_numpy(images.pixels(rows)).permute(0, 3, 1, 2).float()
    shrunk: npt.NDArray[np.float32] = functional.adaptive_avg_pool2d(pixels, _SIDE).numpy()
    return shrunk
