"""Schedules: pure functions of the images seen, so a resumed run has nothing to remember."""

import numpy as np
import numpy.typing as npt


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


def step_seed(seed: int, rank: int, images_seen: int) -> int:
    """Returns the seed of all random numbers of one process in one step.

    Source: each step is seeded by (seed, rank, images) as in EDM2 (arXiv:2312.02696).
    """
    return int(np.random.SeedSequence([seed, rank, images_seen]).generate_state(1, np.uint64)[0])


class ImageOrder:
    """The endless order in which a run sees its images: pass after pass, each freshly shuffled."""

    def __init__(self, num_images: int, seed: int) -> None:
        """Fixes the order of `num_images` images (at least 1)."""
        self._num_images = num_images
        self._seed = seed
        self._epoch = -1
        self._shuffled = np.empty(0, dtype=np.int64)

    def indices(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Returns which images are the `start`-th to the (`start + count - 1`)-th seen."""
        positions = np.arange(start, start + count)
        epochs = positions // self._num_images
        parts = [
            self._epoch_order(int(epoch))[positions[epochs == epoch] % self._num_images]
            for epoch in np.unique(epochs)
        ]
        return np.concatenate(parts)

    def _epoch_order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._shuffled = rng.permutation(self._num_images)
            self._epoch = epoch
        return self._shuffled
