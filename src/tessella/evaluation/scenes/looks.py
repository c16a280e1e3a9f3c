"""Looks: which object, drawn at a place of a picture, brings the picture nearest.

Alternatives are not rendered picture by picture. With P the pixels, b the background, c the colour
of the object and w that of stripes and dots, u and t the coverages of both (0 to 1),

    |P − b − u (c − b) − t (w − b)|² = |P − b|² − 2 (c − b)·⟨P − b, u⟩ − 2 (w − b)·⟨P − b, t⟩
        + |c − b|² ⟨u, u⟩ + |w − b|² ⟨t, t⟩ + 2 (c − b)·(w − b) ⟨u, t⟩

so one matrix product of all pictures with all coverages gives every distance. Objects that do not
overlap add up, hence each is chosen alone, given the background.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessella.data.scenes.shapes import BACKGROUNDS, COLORS, MARKS
from tessella.errors import ShapeError

BACKGROUND_NAMES: Final = tuple(BACKGROUNDS)
COLOR_NAMES: Final = tuple(COLORS)


@dataclass(frozen=True, slots=True, eq=False)
class Coverages:
    """How much of h·w pixels an object covers, for K kinds of objects, each at F offsets.

    The offset counts fastest. Only the last kinds may have marks: stripes or dots.
    """

    colored: NDArray[np.float32]  # (K·F, h·w) what has the object's colour
    marks: NDArray[np.float32]  # (≤ K·F, h·w) marks of the last rows; may be empty
    num_offsets: int  # F


def weigh_looks(windows: NDArray[np.float32], coverages: Coverages) -> NDArray[np.float32]:
    """Weighs every look that an object may have, at its best offset.

    Args:
        windows: (B, h, w, 3) pixels of pictures in [0, 1].
        coverages: of the same pixels.

    Returns:
        (B, 4, 8, K) what an object of a kind and colour adds to the squared distance of each
        background alone; below 0 where it brings the picture nearer.
    """
    batch = len(windows)
    rows = windows.reshape(batch, -1, 3).transpose(0, 2, 1).reshape(batch * 3, -1)
    colored, marks = coverages.colored, coverages.marks
    products = (rows @ colored.T).reshape(batch, 3, -1)  # (B, 3, K·F)
    mark_products = (rows @ marks.T).reshape(batch, 3, -1)
    sums, squares = colored.sum(axis=1), (colored**2).sum(axis=1)
    mark_sums, mark_squares = marks.sum(axis=1), (marks**2).sum(axis=1)
    marked = slice(len(colored) - len(marks), None)
    overlaps = (colored[marked] * marks).sum(axis=1)
    colors, [mark] = to_palette(tuple(COLORS.values())), to_palette([MARKS])
    gains = []
    for background in to_palette(tuple(BACKGROUNDS.values())):
        contrast, mark_contrast = colors - background, mark - background  # (8, 3), (3,)
        # The terms that no picture changes: 2 (c − b)·b Σu + |c − b|² ⟨u, u⟩, and so for marks.
        fixed = np.multiply.outer(2 * contrast @ background, sums)  # (8, K·F)
        fixed += np.multiply.outer((contrast**2).sum(axis=1), squares)
        fixed[:, marked] += 2 * (mark_contrast @ background) * mark_sums
        fixed[:, marked] += (mark_contrast**2).sum() * mark_squares
        fixed[:, marked] += np.multiply.outer(2 * contrast @ mark_contrast, overlaps)
        gain = -2 * contrast @ products  # (B, 8, K·F)
        gain += fixed
        gain[..., marked] += -2 * (mark_contrast @ mark_products)[:, None]
        gains.append(gain.reshape(batch, len(colors), -1, coverages.num_offsets).min(axis=-1))
    return np.stack(gains, axis=1)


def weigh_backgrounds(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes the squared distance of pictures from each background alone.

    Args:
        image: (B, S, S, 3) in [0, 1].

    Returns:
        (B, 4) up to |P|², which is the same for every alternative and left out.
    """
    backgrounds = to_palette(tuple(BACKGROUNDS.values()))  # (4, 3)
    sums = image.sum(axis=(1, 2))  # (B, 3)
    num_pixels = image.shape[1] * image.shape[2]
    distances: NDArray[np.float32] = (
        num_pixels * (backgrounds**2).sum(axis=1) - 2 * sums @ backgrounds.T
    )
    return distances


def blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blurs pictures (B, h, w, C) by a Gaussian of `sigma` pixels, and repeats their edges."""
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        edges = [(reach, reach) if each == axis else (0, 0) for each in range(4)]
        padded = np.pad(image, edges, mode="edge")
        slices = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis)
        image = slices @ weights.astype(np.float32)
    return image


def to_palette(colors: Sequence[tuple[int, int, int]]) -> NDArray[np.float32]:
    """(P, 3) colours in [0, 1]."""
    return np.divide(colors, 255, dtype=np.float32)


def check_pictures(pixels: NDArray[np.uint8], num_scenes: int) -> None:
    """Checks that pictures are a uint8 batch of square RGB pictures, one a scene.

    Raises:
        ShapeError: they are not; says both.
    """
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (*pixels.shape[1:2] * 2, 3):
        raise ShapeError(
            "Pictures to classify must be (B, S, S, 3) uint8: "
            f"`{pixels.shape} {pixels.dtype}`. Give RGB in [0, 255], channels last."
        )
    if len(pixels) != num_scenes:
        raise ShapeError(
            f"Each picture needs its scene: `{len(pixels)}` pictures, `{num_scenes}` scenes."
        )
