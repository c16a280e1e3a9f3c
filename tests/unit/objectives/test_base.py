"""Settings and requests that cannot be, and what objectives share."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.errors import ConfigError, GenerationError, ShapeError
from tessella.objectives import (
    GenerationBatch,
    GenerationSettings,
    LatentMSE,
    Objective,
    SharedLatent,
)
from tessella.objectives.base import compute_accuracy, gather_log_probability, to_generated


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "`steps`: got: `0`; input should be greater than or equal to 1"),
        ({"steps": 1_000_000}, "`steps`: got: `1000000`; input should be less than or equal to 40"),
        ({"steps": math.nan}, "`steps`: got: `nan`"),
        ({"temperature": -0.1}, "`temperature`: got: `-0.1`"),
        ({"temperature": math.nan}, "`temperature`: got: `nan`"),
        ({"temperature": math.inf}, "`temperature`: got: `inf`"),
        ({"temperature": 101}, "`temperature`: got: `101`"),
        ({"top_k": 0}, "`top_k`: got: `0`"),
        ({"top_p": 0.0}, "`top_p`: got: `0.0`; input should be greater than 0"),
        ({"top_p": 1.1}, "`top_p`: got: `1.1`; input should be less than or equal to 1"),
        ({"top_p": math.nan}, "`top_p`: got: `nan`"),
        ({"guidance_scale": math.inf}, "`guidance_scale`: got: `inf`"),
        ({"guidance_scale": math.nan}, "`guidance_scale`: got: `nan`"),
        ({"guidance_scale": -1.0}, "`guidance_scale`: got: `-1.0`"),
        ({"guidance_schedule": "cosine"}, "`cosine`; input should be 'constant' or 'linear'"),
        ({"confidence_temperature": -1.0}, "`confidence_temperature`: got: `-1.0`"),
        ({"confidence_temperature": math.nan}, "`confidence_temperature`: got: `nan`"),
        ({"confidence_temperature": math.inf}, "`confidence_temperature`: got: `inf`"),
        ({"step_schedule": "linear"}, "`linear`; input should be 'cosine' or 'arccos'"),
        (
            {"order": "raster"},
            "`raster`; input should be 'auto', 'random', 'halton' or 'confidence'",
        ),
        ({"temprature": 1}, "Unknown setting `temprature`; did you mean `temperature`"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GenerationSettings().replace(**changes)


def request(**known: Any) -> GenerationBatch:
    text = torch.tensor([[1, 2]])
    rows = torch.zeros(2, dtype=torch.int64)
    return GenerationBatch(text, text, rows, rows, [1, 2], GenerationSettings(), **known)


def positions(*rows: list[int]) -> Tensor:
    return torch.tensor(rows).bool()


def test_what_is_known_may_lie_anywhere() -> None:
    codes = torch.zeros(2, 3, dtype=torch.int64)
    for known in (positions([0, 0, 0], [0, 0, 0]), positions([1, 0, 1], [0, 1, 1])):
        assert request(known=known, known_codes=codes).known is known


@pytest.mark.parametrize(
    ("known", "codes", "said"),
    [
        (
            positions([1, 0, 1], [0, 0, 1]),
            torch.zeros(2, 3).long(),
            r"must know equally many positions: `\[2, 1\]`. Generate them one after the other.",
        ),
        (
            positions([1, 0, 1], [0, 0, 1]),
            torch.zeros(2, 4).long(),
            r"must have one shape \(B, N\): `\(2, 3\)` and `\(2, 4\)`.",
        ),
        (positions([1], [1]), None, "`known` and `known_codes` belong together: one is missing."),
        (None, torch.zeros(2, 3).long(), "`known` and `known_codes` belong together"),
    ],
)
def test_known_codes_that_cannot_be(known: Tensor | None, codes: Tensor | None, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        request(known=known, known_codes=codes)


@pytest.mark.parametrize("objective", [LatentMSE(), SharedLatent()], ids=lambda o: o.name)
def test_an_objective_without_a_likelihood(objective: Objective) -> None:
    transformer: Any = None
    with pytest.raises(
        GenerationError,
        match=f"no likelihood, so pictures cannot be scored: `{objective.name}`. "
        "any_order, autoregressive, masked and parallel have one.",
    ):
        objective.compute_log_likelihood(transformer, torch.zeros(1, 2), torch.zeros(1, 2, 2))


def test_accuracy_and_log_probability_by_hand() -> None:
    logits = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]]).log()
    codes = torch.tensor([[1, 0, 1]])
    assert compute_accuracy(logits, codes).item() == pytest.approx(2 / 3)
    made = gather_log_probability(logits + 7, codes).exp()
    torch.testing.assert_close(made, torch.tensor([[0.75, 0.5, 0.1]]))


def test_codes_are_looked_up_row_by_row() -> None:
    codebook = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    painted = to_generated(torch.tensor([[0, 1, 2, 2, 1, 0]]), codebook, (2, 3))
    assert painted.codes is not None
    assert painted.codes.tolist() == [[[0, 1, 2], [2, 1, 0]]]
    assert painted.latent.tolist() == [
        [[[0.0, 2.0, 4.0], [4.0, 2.0, 0.0]], [[1.0, 3.0, 5.0], [5.0, 3.0, 1.0]]]
    ]
