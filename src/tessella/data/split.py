"""Split: decides by content which images are held out for validation.

Nothing is drawn at random: an image's side follows from its pixels (or from the value of the
`split_by` field), so it does not change when files are renamed, reordered or added.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]


def split_key(value: str) -> int:
    """Hashes a digest or field value to a 64-bit key."""
    digest = hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def assign_sides(pixel_keys: Keys, group_keys: Keys, fraction: float) -> npt.NDArray[np.bool_]:
    """Decides for each image whether it is for validation.

    Images that share their pixels or their group, directly or through others, form a family. A
    whole family goes to validation if its key, a uniform number, lies below the fraction. If that
    leaves a side empty and there are two families, the family with the lowest key goes to
    validation, or the one with the highest to training.

    Args:
        pixel_keys: (N,) key of each image's square pixels.
        group_keys: (N,) key of each image's field value; its pixel key if it has none.
        fraction: of the images for validation, in [0, 1); 0 sends all to training.

    Returns:
        (N,) bool, true for validation.
    """
    if fraction == 0 or not len(pixel_keys):
        return np.zeros(len(pixel_keys), dtype=np.bool_)
    keys = _mix(_families(pixel_keys, group_keys))
    # Compared in float64: 2**64 times the fraction need not fit 64 bits exactly.
    validation: npt.NDArray[np.bool_] = keys.astype(np.float64) < fraction * 2.0**64
    lowest, highest = keys.min(), keys.max()
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
