"""Reconstruction losses, by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessella.errors import ConfigError
from tessella.tokenizer import ReconstructionLossSettings, compute_reconstruction_loss

IMAGE = torch.tensor([-1.0, 0.0, 0.5, 1.0]).reshape(1, 1, 2, 2)
MADE = torch.tensor([-1.0, 0.5, -0.5, 3.0]).reshape(1, 1, 2, 2)
# Differences 0, 0.5, -1, 2: squares 0.25 + 1 + 4 = 5.25 over 4; absolute values 3.5 over 4.
MSE, L1 = 1.3125, 0.875


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, MSE),
        ({"mse": 0, "l1": 1}, L1),
        ({"mse": 2, "l1": 4}, 2 * MSE + 4 * L1),
    ],
)
def test_by_hand(weights: dict[str, float], expected: float) -> None:
    settings = ReconstructionLossSettings().replace(**weights)
    assert compute_reconstruction_loss(MADE, IMAGE, settings).item() == pytest.approx(expected)


@given(st.floats(0, 9), st.floats(0, 9).filter(lambda w: w == 0 or w > 1e-3))
def test_no_difference_is_no_loss(mse: float, l1: float) -> None:
    if mse == 0 and l1 == 0:
        mse = 1.0
    settings = ReconstructionLossSettings(mse=mse, l1=l1)
    assert compute_reconstruction_loss(IMAGE, IMAGE, settings).item() == 0
    assert compute_reconstruction_loss(MADE, IMAGE, settings).item() >= 0


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"all weights of the reconstruction loss are 0.*mse = 1"):
        ReconstructionLossSettings().replace(mse=0)
    with pytest.raises(ConfigError, match=r"`l1`: got: `-1.0`; input should be greater"):
        ReconstructionLossSettings().replace(l1=-1.0)
