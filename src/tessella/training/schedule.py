"""Schedules: pure functions of the images seen, so a resumed run has nothing to remember."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Last among the numbers of a seed: they tell what it is for. That of a pass has none.
_OF_IMAGE, _OF_STEP = 1, 2


def learning_rate_multiplier(
    images_seen: int, images: int, warmup_images: int, decay_fraction: float
) -> float:
    """Returns the multiplier of the peak learning rate: up linearly, level, down linearly to 0.

    Args:
        images_seen: progress; beyond the end the rate is 0.
        images: the length of the training, at least 1.
        warmup_images: images until the peak.
        decay_fraction: fraction of the training, at its end, in which the rate falls.
    """
    warmup = min(1.0, (images_seen + 1) / (warmup_images + 1))
    left = max(0.0, (images - images_seen) / images)
    return min(warmup, left / decay_fraction if decay_fraction else 1.0, 1.0)


def step_seed(seed: int, images_seen: int, rank: int | None = None) -> int:
    """Returns the seed of what is drawn in one step: for the whole batch, or by one process.

    Source: each step is seeded by (seed, rank, images) as in EDM2 (arXiv:2312.02696).
    """
    who = 0 if rank is None else 1 + rank
    position = [seed, images_seen, who, _OF_STEP]
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0])


def create_image_generators(seed: int, start: int, count: int) -> list[np.random.Generator]:
    """Creates a generator for each of the `start`-th to `start + count - 1`-th images of a run.

    What is drawn for an image depends on its place in the run and on nothing else: not on the
    batch that it is in, nor on the process that reads it.
    """
    return [
        np.random.default_rng([seed, place, 0, _OF_IMAGE]) for place in range(start, start + count)
    ]


def order_images(num_images: int, seed: int, start: int, count: int) -> npt.NDArray[np.int64]:
    """Returns which images are the `start`-th to the (`start + count - 1`)-th that a run sees.

    Their order is endless: pass after pass over `num_images`, each freshly shuffled.
    """
    epochs, indices = np.divmod(np.arange(start, start + count), num_images)
    parts = [
        _shuffle(num_images, seed, epoch)[indices[epochs == epoch]]
        for epoch in np.unique(epochs).tolist()
    ]
    return np.concatenate(parts)


@lru_cache(maxsize=1)
def _shuffle(num_images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_images)
