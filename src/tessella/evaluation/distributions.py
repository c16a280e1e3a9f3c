"""How far one set of pictures is from another: FID, KID, precision and recall over any features.

    pictures ─ features ─▶ (B, F) ─▶ one number

FID compares mean and covariance. It falls with the number of pictures, so only numbers over
equally many can be compared. KID compares all moments up to the third and does not fall.
Precision and recall tell apart what the two mix: pictures that look like no original, and
originals that no picture looks like.

Source: FID arXiv:1706.08500, KID arXiv:1801.01401, both bit for bit as torchmetrics computes
them; improved precision and recall arXiv:1904.06991.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tessella.errors import DataError
from tessella.evaluation.metric import Metric

MIN_PICTURES = 4
"""On each side: with fewer, all subsets of KID are alike and no picture has three neighbours."""

NEIGHBOURS = 3
"""Precision and recall: a picture's ball reaches to this nearest neighbour."""

_SUBSETS = 100
_MAX_SUBSET_SIZE = 1000
_ROWS = 256  # whose distances to all others are in memory at once


@dataclass(frozen=True)
class KernelDistance:
    """KID, and how it was computed."""

    value: float  # mean over the subsets
    std: float  # over the subsets
    subsets: int
    subset_size: int  # pictures of each side in a subset


def measure_set_distances(originals: Tensor, others: Tensor, protocol: str) -> dict[str, Metric]:
    """Computes FID and KID of features (A, F) and (B, F) as the metrics `fid` and `kid`.

    Raises:
        DataError: there are fewer than four on a side.
    """
    kid = compute_kid(originals, others)
    subsets = f"{kid.subsets} random subsets of {kid.subset_size}, std {kid.std:.3g}"
    return {
        "fid": Metric(compute_fid(originals, others), protocol),
        "kid": Metric(kid.value, f"{protocol}; {subsets}"),
    }


def compute_fid(originals: Tensor, others: Tensor) -> float:
    """Computes the Fréchet distance between two sets of features.

    Args:
        originals: (A, F) features, A >= 4.
        others: (B, F), B >= 4.

    Raises:
        DataError: there are fewer.

    Source:
        Equation 6 of arXiv:1706.08500.
    """
    _check_enough(originals, others)
    (mean, covariance), (mean2, covariance2) = map(_compute_moments, (originals, others))
    spread = covariance.trace() + covariance2.trace()
    # The trace of the root of a matrix is the sum of the roots of its eigenvalues.
    shared = torch.linalg.eigvals(covariance @ covariance2).sqrt().real.sum()
    return float((mean - mean2).square().sum() + spread - 2 * shared)


def _compute_moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the mean (F,) and the unbiased covariance (F, F) of features (B, F)."""
    features, count = features.double(), len(features)
    mean = features.sum(0) / count
    return mean, (features.T @ features - count * torch.outer(mean, mean)) / (count - 1)


def compute_kid(originals: Tensor, others: Tensor, *, seed: int = 0) -> KernelDistance:
    """Computes the unbiased squared maximum mean discrepancy with the kernel (f·g / F + 1)³.

    It is the mean over 100 subsets of each side, of 1000 pictures or of half the smaller side.

    Args:
        originals: (A, F) features, A >= 4.
        others: (B, F), B >= 4.
        seed: of the choice of subsets.

    Raises:
        DataError: there are fewer.

    Source:
        Section 4 of arXiv:1801.01401.
    """
    _check_enough(originals, others)
    size = min(_MAX_SUBSET_SIZE, len(originals) // 2, len(others) // 2)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(_SUBSETS):
        first, second = (
            side[torch.randperm(len(side), generator=generator)[:size]].double()
            for side in (originals, others)
        )
        within = _sum_pairs(first) + _sum_pairs(second)
        between = _kernel(first, second).sum(0).sum()
        values.append(within / (size * (size - 1)) - 2 * between / size**2)
    over_subsets = torch.stack(values)
    std = over_subsets.std(unbiased=False)
    return KernelDistance(float(over_subsets.mean()), float(std), _SUBSETS, size)


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """Computes KID's kernel (A, B) of features (A, F) and (B, F)."""
    return (first @ second.T * (1 / first.shape[1]) + 1) ** 3


def _sum_pairs(features: Tensor) -> Tensor:
    """Sums the kernel over all pairs of different pictures of one set."""
    kernel = _kernel(features, features)
    return (kernel.sum(1) - kernel.diag()).sum()


def compute_distances(first: Tensor, second: Tensor) -> Tensor:
    """Computes the Euclidean distances (A, B) of features (A, F) and (B, F).

    By differences: products would give equal pictures a distance of rounding errors.
    """
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def compute_fraction_among(pictures: Tensor, others: Tensor) -> float:
    """Computes which fraction of pictures lies among others.

    A picture lies among others if it is in the ball around one of them. A ball reaches to the
    third nearest neighbour on its own side; its border belongs to it. Of generated pictures among
    real ones this is the precision, of real ones among generated ones the recall.

    Args:
        pictures: (A, F) features, A >= 4.
        others: (B, F), B >= 4.

    Raises:
        DataError: there are fewer.

    Source:
        Section 2 of arXiv:1904.06991, with k = 3.
    """
    _check_enough(pictures, others)
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
