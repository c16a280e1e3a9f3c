"""How far one set of pictures is from another: FID and KID over any features.

    pictures ─ features ─▶ (B, F) ─▶ one number

FID compares mean and covariance; it falls with the number of pictures, so that only numbers over
equally many can be compared. KID compares all moments up to the third and does not fall.

Source: FID arXiv:1706.08500, KID arXiv:1801.01401, both as torchmetrics computes them.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tessella.errors import DataError

MIN_PICTURES = 4
"""On each side; below, no two subsets of KID would differ."""

_SUBSETS = 100
_MAX_SUBSET_SIZE = 1000


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


def _check_enough(originals: Tensor, others: Tensor) -> None:
    fewest = min(len(originals), len(others))
    if fewest < MIN_PICTURES:
        raise DataError(
            f"FID and KID need {MIN_PICTURES} pictures on each side, better thousands: "
            f"`{fewest}`. Give more."
        )
