"""Split: decides by content which images are held out for validation.

Nothing is drawn at random: an image's side is the one that the data itself names, or follows from
its pixels (or from the value of the `split_by` field), so it does not change when files are
renamed, reordered or added.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]

NAMED_SIDES = {None: -1, "train": 0, "validation": 1}
"""How the side that the data names is written in an array."""


def split_key(value: str) -> int:
    """Hashes a digest or field value to a 64-bit key."""
    digest = hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def settle_named_sides(
    named: npt.NDArray[np.int8], sources: npt.NDArray[np.int32]
) -> npt.NDArray[np.int8]:
    """Settles which images' sides the data names.

    A source that names pictures of both sides is split so: what it does not name is for training.
    A source with one side only is not split by its names: a folder called `train` alone says
    nothing about validation.

    Args:
        named: (N,) as in `NAMED_SIDES`, what folders, tables and columns say.
        sources: (N,) which source each image is from.

    Returns:
        (N,) as in `NAMED_SIDES`.
    """
    settled = np.full(len(named), -1, dtype=np.int8)
    for source in np.unique(sources):
        of_source = sources == source
        held_out = of_source & (named == 1)
        if held_out.any() and not np.array_equal(held_out, of_source):
            settled[of_source] = held_out[of_source]
    return settled


def assign_sides(
    pixel_keys: Keys,
    group_keys: Keys,
    fraction: float,
    named: npt.NDArray[np.int8] | None = None,
) -> npt.NDArray[np.bool_]:
    """Decides for each image whether it is for validation.

    Images that share their pixels or their group, directly or through others, form a family. A
    whole family goes to validation if its key, a uniform number, lies below the fraction. If that
    leaves a side empty and there are two families, the family with the lowest key goes to
    validation, or the one with the highest to training.

    Where the data names sides, they count instead: a family with an image that is held out is held
    out as a whole, another one with a named image is for training.

    Args:
        pixel_keys: (N,) key of each image's square pixels.
        group_keys: (N,) key of each image's field value; its pixel key if it has none.
        fraction: of the images for validation, in [0, 1); 0 sends all to training that are not
            named.
        named: (N,) as in `NAMED_SIDES`, from `settle_named_sides`; None if no image's side is.

    Returns:
        (N,) bool, true for validation.
    """
    if not len(pixel_keys):
        return np.zeros(0, dtype=np.bool_)
    if named is None or not (named >= 0).any():
        return _assign_by_key(_mix(_families(pixel_keys, group_keys)), fraction)
    families = _families(pixel_keys, group_keys)
    _, family = np.unique(families, return_inverse=True)
    side = np.full(family.max() + 1, -1, dtype=np.int8)
    np.maximum.at(side, family, named)
    validation: npt.NDArray[np.bool_] = side[family] == 1
    is_free = side[family] == -1
    validation[is_free] = _assign_by_key(_mix(families[is_free]), fraction)
    return validation


def bound_keys(parts: Iterable[Keys]) -> tuple[int, int]:
    """Finds the lowest and the highest key of many images, as `assign_by_key` compares them."""
    lowest, highest = 2**64, -1
    for keys in parts:
        if len(keys):
            mixed = _mix(keys)
            lowest, highest = min(lowest, int(mixed.min())), max(highest, int(mixed.max()))
    return lowest, highest


def assign_by_key(
    pixel_keys: Keys, fraction: float, bounds: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Decides for some of many images whether they are for validation, as `assign_sides` does.

    Where no groups and no named sides connect images, an image's own key decides, and no other
    image has to be known.

    Args:
        pixel_keys: (N,) of these images.
        fraction: of all images for validation.
        bounds: of all images, from `bound_keys`.
    """
    return _assign_by_key(_mix(pixel_keys), fraction, bounds)


def _assign_by_key(
    keys: Keys, fraction: float, bounds: tuple[int, int] | None = None
) -> npt.NDArray[np.bool_]:
    """Decides by each image's family's key, a uniform number."""
    if fraction == 0 or not len(keys):
        return np.zeros(len(keys), dtype=np.bool_)
    # Compared in float64: 2**64 times the fraction need not fit 64 bits exactly.
    validation: npt.NDArray[np.bool_] = keys.astype(np.float64) < fraction * 2.0**64
    lowest, highest = (int(keys.min()), int(keys.max())) if bounds is None else bounds
    if lowest != highest:
        validation |= keys == lowest
        validation &= keys != highest
    else:
        validation[:] = False
    return validation


def _families(pixel_keys: Keys, group_keys: Keys) -> Keys:
    """Finds for each image the lowest group key that it is connected to."""
    _, pixel = np.unique(pixel_keys, return_inverse=True)
    _, group = np.unique(group_keys, return_inverse=True)
    label = group_keys.copy()
    while True:
        before = label
        label = _lowest(_lowest(label, pixel), group)
        if np.array_equal(label, before):
            return label


def _lowest(label: Keys, members: npt.NDArray[np.intp]) -> Keys:
    """Finds for each image the lowest label among those with the same membership."""
    lowest = np.full(members.max() + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(lowest, members, label)
    label_of_image: Keys = lowest[members]
    return label_of_image


def _mix(keys: Keys) -> Keys:
    """Spreads keys uniformly again: the lowest of several is no longer uniform.

    Source: the finalizer of SplitMix64 (Steele, Lea and Flood 2014).
    """
    mixed: Keys = keys ^ (keys >> np.uint64(30))
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed = mixed * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
