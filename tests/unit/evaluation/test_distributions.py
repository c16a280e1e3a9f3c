"""FID, KID, precision and recall, by hand and against their formulas written a second time."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessella.errors import DataError
from tessella.evaluation import distributions
from tessella.evaluation.distributions import compute_fid, compute_fraction_among, compute_kid

Array = np.ndarray[Any, np.dtype[np.float64]]


def draw(count: int, seed: int, num_features: int = 5) -> Tensor:
    """Features whose directions are not alike."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, num_features, generator=generator, dtype=torch.float64)
    return (mixed @ torch.randn(num_features, num_features, generator=generator).double()).exp()


def compute_fid_by_symmetric_roots(first: Array, second: Array) -> float:
    """|m1 - m2|² + Tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½), every root of a symmetric matrix."""

    def root(matrix: Array) -> Array:
        values, vectors = np.linalg.eigh(matrix)
        return np.asarray((vectors * np.sqrt(values.clip(0))) @ vectors.T)

    s1, s2 = (np.cov(side, rowvar=False) for side in (first, second))
    shift = np.square(first.mean(0) - second.mean(0)).sum()
    return float(shift + np.trace(s1 + s2 - 2 * root(root(s1) @ s2 @ root(s1))))


def compute_kid_once(first: Array, second: Array) -> float:
    """The mean of the kernel over pairs, none of a picture with itself, term by term."""
    num_features = first.shape[1]
    count = len(first)

    def kernel(a: Array, b: Array) -> float:
        return float((a @ b / num_features + 1) ** 3)

    others = [(i, j) for i in range(count) for j in range(count) if i != j]
    within = sum(kernel(s[i], s[j]) for s in (first, second) for i, j in others)
    between = sum(kernel(a, b) for a in first for b in second)
    return within / len(others) - 2 * between / count**2


def test_fid_by_hand() -> None:
    """One feature: means 2 apart, standard deviations 1 and 3: 2² + (3 - 1)²."""
    spread = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]) * (3 / 4) ** 0.5
    assert compute_fid(spread, 3 * spread + 2) == pytest.approx(8.0)


def test_fid_is_its_formula() -> None:
    first, second = draw(40, 1), draw(30, 2)
    expected = compute_fid_by_symmetric_roots(first.numpy(), second.numpy())
    assert expected > 1
    assert compute_fid(first, second) == pytest.approx(expected, rel=1e-6)
    assert compute_fid(second, first) == pytest.approx(expected, rel=1e-6)
    assert compute_fid(first, first) == pytest.approx(0, abs=1e-6 * expected)


def test_kid_by_hand() -> None:
    """One feature, always 0 and always 1: (0 + 1)³ + (1 + 1)³ - 2 (0 + 1)³ = 7."""
    kid = compute_kid(torch.zeros(6, 1), torch.ones(6, 1))
    assert kid.value == pytest.approx(7.0)
    assert kid.std == pytest.approx(0.0)
    assert (kid.subsets, kid.subset_size) == (100, 3)


def test_kid_is_its_formula_over_the_same_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "_SUBSETS", 4)
    first, second = draw(12, 1), draw(9, 2)
    generator = torch.Generator().manual_seed(3)
    values = []
    for _ in range(4):
        subsets = [
            side[torch.randperm(len(side), generator=generator)[:4]] for side in (first, second)
        ]
        values.append(compute_kid_once(subsets[0].numpy(), subsets[1].numpy()))
    kid = compute_kid(first, second, seed=3)
    assert kid.subset_size == 4  # half the smaller side
    assert kid.value == pytest.approx(np.mean(values), rel=1e-9)
    assert kid.std == pytest.approx(np.std(values), rel=1e-9)


def test_a_subset_has_at_most_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "_SUBSETS", 1)
    assert compute_kid(torch.zeros(2400, 1), torch.zeros(2100, 1)).subset_size == 1000


def test_kid_follows_its_seed_and_leaves_the_randomness_of_others_alone() -> None:
    first, second = draw(20, 1), draw(20, 2)
    before = torch.get_rng_state()
    kid = compute_kid(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert compute_kid(first, second) == kid
    assert compute_kid(first, second, seed=1) != kid


@pytest.mark.slow  # importing torchmetrics takes seconds
def test_fid_and_kid_are_those_of_torchmetrics_bit_for_bit() -> None:
    """It computes features itself, so it is given a network that passes them on."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Passing(torch.nn.Module):
        num_features = 6

        def forward(self, features: Tensor) -> Tensor:
            return features

    first, second = draw(50, 1, 6), draw(41, 2, 6)
    fid = FrechetInceptionDistance(Passing())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it keeps all features
        kid = KernelInceptionDistance(Passing(), subsets=100, subset_size=20)
    for metric in (fid, kid):
        metric.update(first, real=True)
        metric.update(second, real=False)
    assert compute_fid(first, second) == float(fid.compute())
    torch.manual_seed(7)
    value, std = kid.compute()
    ours = compute_kid(first, second, seed=7)
    assert (ours.value, ours.std) == (float(value), float(std))


@pytest.mark.parametrize("compute", [compute_fid, compute_kid, compute_fraction_among])
def test_too_few_pictures_are_refused(compute: Any) -> None:
    with pytest.raises(DataError, match="need 4 pictures on each side, better thousands: `3`"):
        compute(draw(5, 1), draw(3, 2))


def test_precision_and_recall_by_hand() -> None:
    """One feature. Originals 0 1 2 3: balls of 3, 2, 2, 3, so they reach from -3 to 6.

    Others 6 7 8 20: balls of 14, 13, 12, 14, from -8 to 34. Of the others the first lies among
    the originals, on the border; the originals all lie among the others.
    """
    originals, others = (torch.tensor(v).double()[:, None] for v in ([0, 1, 2, 3], [6, 7, 8, 20]))
    assert compute_fraction_among(others, originals) == 0.25
    assert compute_fraction_among(originals, others) == 1.0


def fraction_among_one_by_one(pictures: Array, others: Array) -> float:
    """Each picture and each ball on its own."""
    inside = 0
    for picture in pictures:
        for index, centre in enumerate(others):
            rest = np.delete(others, index, axis=0)
            radius = sorted(float(np.linalg.norm(centre - other)) for other in rest)[2]
            if np.linalg.norm(picture - centre) <= radius:
                inside += 1
                break
    return inside / len(pictures)


def test_precision_and_recall_are_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "_ROWS", 7)
    first, second = draw(40, 1), 1.5 * draw(30, 2)
    for pictures, others in ((first, second), (second, first)):
        found = compute_fraction_among(pictures, others)
        assert 0 < found < 1
        assert found == fraction_among_one_by_one(pictures.numpy(), others.numpy())


def test_a_set_lies_among_itself_and_far_ones_do_not() -> None:
    first = draw(20, 1)
    assert compute_fraction_among(first, first.clone()) == 1.0
    assert compute_fraction_among(first, first + 1e6) == 0.0


def test_equal_pictures_have_distance_zero() -> None:
    """Products of features would leave rounding errors: many features, far from zero."""
    features = 1e4 + draw(60, 1, num_features=40).float()
    assert distributions.compute_distances(features, features).diagonal().max() == 0
