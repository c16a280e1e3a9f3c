"""How far one set of pictures is from another: FID, KID, precision and recall over any features.

    pictures ─ features ─▶ (B, F) ─▶ one number

FID compares mean and covariance; it falls with the number of pictures, so that only numbers over
equally many can be compared. KID compares all moments up to the third and does not fall.
Precision and recall tell apart what the two mix: pictures that look like no original, and
originals that no picture looks like.

Source: FID arXiv:1706.08500, KID arXiv:1801.01401, both as torchmetrics computes them; improved
precision and recall arXiv:1904.06991.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tessella.errors import DataError

MIN_PICTURES = 4
"""On each side; below, no two subsets of KID would differ, and no picture has three neighbours."""

NEIGHBOURS = 3
"""Precision and recall: a picture's ball reaches to its so-manieth nearest neighbour."""

_SUBSETS = 100
_MAX_SUBSET_SIZE = 1000
_ROWS = 256  # whose distances to all others are in memory at once


class _Given(nn.Module):
    """Passes features on, in the place of the network that would compute them.

    The pictures' features are computed once, for both distances.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


@dataclass(frozen=True)
class KernelDistance:
    """KID, and how it was got."""

    value: float  # mean over the subsets
    std: float  # over the subsets
    subsets: int
    subset_size: int  # pictures of each side in a subset


@dataclass(frozen=True)
class PrecisionRecall:
    """How far two sets of pictures lie among each other."""

    precision: float  # share of the others that lie among the originals
    recall: float  # share of the originals that lie among the others


def compute_fid(originals: Tensor, others: Tensor) -> float:
    """Computes the Fréchet distance between two sets of features.

    Args:
        originals: (A, F) features, A >= 4.
        others: (B, F), B >= 4.

    Raises:
        DataError: there are fewer.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _check_enough(originals, others)
    metric = FrechetInceptionDistance(_Given(originals.shape[1]))
    metric.update(originals.double(), real=True)
    metric.update(others.double(), real=False)
    return float(metric.compute())


def compute_kid(originals: Tensor, others: Tensor, *, seed: int = 0) -> KernelDistance:
    """Computes the squared maximum mean discrepancy, without bias, by the kernel (f·g / F + 1)³.

    It is the mean over 100 subsets of each side, of 1000 pictures or of half the smaller side.

    Args:
        originals: (A, F) features, A >= 4.
        others: (B, F), B >= 4.
        seed: of the choice of subsets.

    Raises:
        DataError: there are fewer.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    _check_enough(originals, others)
    subset_size = min(_MAX_SUBSET_SIZE, len(originals) // 2, len(others) // 2)
    with warnings.catch_warnings():
        # It warns that it keeps all features, which are here anyway.
        warnings.simplefilter("ignore")
        metric = KernelInceptionDistance(
            _Given(originals.shape[1]), subsets=_SUBSETS, subset_size=subset_size
        )
    metric.update(originals.double(), real=True)
    metric.update(others.double(), real=False)
    # Subsets are drawn from torch's own generator on the CPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        value, std = metric.compute()
    return KernelDistance(float(value), float(std), _SUBSETS, subset_size)


def compute_precision_recall(originals: Tensor, others: Tensor) -> PrecisionRecall:
    """Computes which share of each side lies among the other side's pictures.

    A picture lies among others if it is in the ball around one of them. A ball reaches to the
    third nearest neighbour on its own side; its border belongs to it.

    Args:
        originals: (A, F) features, A >= 4.
        others: (B, F), B >= 4.

    Raises:
        DataError: there are fewer.

    Source:
        Section 2 of arXiv:1904.06991, with k = 3.
    """
    _check_enough(originals, others)
    return PrecisionRecall(_share_among(others, originals), _share_among(originals, others))


def compute_distances(first: Tensor, second: Tensor) -> Tensor:
    """Computes the Euclidean distances (A, B) of features (A, F) and (B, F).

    By differences: products would give equal pictures a distance of rounding errors.
    """
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def _share_among(pictures: Tensor, others: Tensor) -> float:
    """Returns the share of pictures (A, F) that lie among others (B, F)."""
    # The nearest of all is the picture itself.
    radii = [
        compute_distances(rows, others).kthvalue(NEIGHBOURS + 1).values
        for rows in others.split(_ROWS)
    ]
    reach = torch.cat(radii)  # (B,)
    inside = [(compute_distances(rows, others) <= reach).any(1) for rows in pictures.split(_ROWS)]
    return float(torch.cat(inside).double().mean())


def _check_enough(originals: Tensor, others: Tensor) -> None:
    fewest = min(len(originals), len(others))
    if fewest < MIN_PICTURES:
        raise DataError(
            f"FID, KID, precision and recall need {MIN_PICTURES} pictures on each side, better "
            f"thousands: `{fewest}`. Give more."
        )
