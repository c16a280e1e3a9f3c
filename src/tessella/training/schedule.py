"""Schedules: pure functions of the images seen, so a resumed run has nothing to remember.

Orders are such functions too: of the seed and of a position in an endless sequence of passes.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Last among the numbers of a seed: they tell what it is for. That of a pass has none.
_OF_IMAGE, _OF_STEP = 1, 2
_LISTED = 1 << 20  # images whose order is kept in memory, 8 bytes each
_LANES = 64
_BLOCK = 2048  # images that a lane mixes


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
    position = [seed, images_seen, 0 if rank is None else rank + 1, _OF_STEP]
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

    Their order is endless: pass after pass over `num_images`, each freshly shuffled. More than a
    million are shuffled without a list of them in memory.
    """
    epochs, places = np.divmod(np.arange(start, start + count), num_images)
    indices = np.empty(count, np.int64)
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        if num_images <= _LISTED:
            indices[chosen] = _shuffle(num_images, seed, epoch)[places[chosen]]
        else:
            indices[chosen] = _permute(places[chosen], num_images, seed, epoch)
    return indices


def order_streamed(
    unit_ends: npt.NDArray[np.int64], seed: int, start: int, count: int
) -> npt.NDArray[np.int64]:
    """Returns which images a run sees that reads shards one after another, as `order_images` does.

    In each pass the units of the data are shuffled, and laid end to end on 64 lanes of the same
    length. A run takes one image of each lane in turn. A lane is read from front to back through a
    buffer of 2,048 images, which are shuffled. So 131,072 images from all over the data are mixed
    at any time, some 64 to 128 units are open, and each is read in one or two stretches. A process
    that takes every W-th image, W a divisor of 64, reads only lanes of its own.

    Args:
        unit_ends: (U,) where each unit's images end.
        seed: of the order.
        start: images seen before.
        count: of images.

    Source:
        Shuffling whole shards, and blocks of samples inside: `py1b` of MosaicML's streaming.
    """
    num_images = int(unit_ends[-1])
    epochs, places = np.divmod(np.arange(start, start + count), num_images)
    offsets, lanes = np.divmod(places, _LANES)
    blocks, inside = np.divmod(offsets, _BLOCK)
    lengths = (num_images - lanes + _LANES - 1) // _LANES
    sizes = np.minimum(_BLOCK, lengths - blocks * _BLOCK)
    first = lanes * (num_images // _LANES) + np.minimum(lanes, num_images % _LANES)
    indices = np.empty(count, np.int64)
    all_ends = unit_ends.astype(np.int64).tobytes()
    where = zip(*(one.tolist() for one in (epochs, lanes, blocks, sizes)), strict=True)
    for number, (epoch, lane, block, size) in enumerate(where):
        mixed = _shuffle_block(size, seed, epoch, lane, block)[inside[number]]
        position = first[number] + block * _BLOCK + mixed
        starts, ends = _shuffle_units(all_ends, seed, epoch)
        unit = np.searchsorted(ends, position, side="right")
        indices[number] = starts[unit] + position
    return indices


@lru_cache(maxsize=2)
def _shuffle_units(
    unit_ends: bytes, seed: int, epoch: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lays units end to end in a new order.

    Returns:
        Of each in that order: what has to be added to a position in it to get an image's index,
        and where it ends.
    """
    ends = np.frombuffer(unit_ends, np.int64)
    sizes = np.diff(ends, prepend=0)
    order = np.random.default_rng([seed, epoch]).permutation(len(ends))
    new_ends = np.cumsum(sizes[order])
    return (ends - sizes)[order] - (new_ends - sizes[order]), new_ends


@lru_cache(maxsize=4 * _LANES)
def _shuffle_block(
    size: int, seed: int, epoch: int, lane: int, block: int
) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, lane, block]).permutation(size)


def _permute(
    places: npt.NDArray[np.int64], count: int, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Shuffles `count` numbers without listing them: returns what stands at some places.

    Source:
        A Feistel network of six rounds, walked until the number is below `count`: Black and
        Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.
    """
    keys = np.random.SeedSequence([seed, epoch]).generate_state(6, np.uint64)
    half = np.uint64(((count - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    numbers = places.astype(np.uint64)
    beyond = np.ones(len(numbers), np.bool_)
    while beyond.any():
        left, right = numbers[beyond] >> half, numbers[beyond] & mask
        for key in keys:
            # SplitMix64's finalizer (Steele, Lea and Flood 2014) spreads the bits.
            mixed = (right ^ key) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        numbers[beyond] = (left << half) | right
        beyond = numbers >= count
    return numbers.astype(np.int64)


@lru_cache(maxsize=1)
def _shuffle(num_images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_images)
