"""Reconstruction losses, by hand."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tessella.errors import ConfigError
from tessella.files import write_tensors
from tessella.tokenizer.losses import ReconstructionLoss, ReconstructionLossSettings
from tessella.tokenizer.perceptual import PerceptualLoss, ResNet18

IMAGE = torch.tensor([-1.0, 0.0, 0.5, 1.0]).reshape(1, 1, 2, 2)
MADE = torch.tensor([-1.0, 0.5, -0.5, 3.0]).reshape(1, 1, 2, 2)
# Differences 0, 0.5, -1, 2: squares 0.25 + 1 + 4 = 5.25 over 4; absolute values 3.5 over 4.
MSE, L1 = 1.3125, 0.875


def compute(settings: ReconstructionLossSettings, made: Tensor, image: Tensor) -> float:
    return ReconstructionLoss(settings)(made, image).total.item()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a ResNet-18's stem and first stage."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    write_tensors(path, ResNet18(("conv1", "layer1.0", "layer1.1")).state_dict())
    return path


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
    losses = ReconstructionLoss(settings)(MADE, IMAGE)
    assert losses.total.item() == pytest.approx(expected)
    assert losses.perceptual is None


@given(st.floats(0, 9), st.floats(0, 9).filter(lambda w: w == 0 or w > 1e-3))
def test_no_difference_is_no_loss(mse: float, l1: float) -> None:
    if mse == 0 and l1 == 0:
        mse = 1.0
    settings = ReconstructionLossSettings(mse=mse, l1=l1)
    assert compute(settings, IMAGE, IMAGE) == 0
    assert compute(settings, MADE, IMAGE) >= 0


def test_pixels_and_features_are_added(weights: Path) -> None:
    settings = ReconstructionLossSettings().replace(
        mse=0.5, perceptual={"layers": {"layer1": 2.0}, "weights": weights}
    )
    torch.manual_seed(0)
    image, made = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    losses = ReconstructionLoss(settings)(made, image)
    features = PerceptualLoss(settings.perceptual)(made, image)
    pixels = 0.5 * (made - image).square().mean()
    assert losses.perceptual is not None
    assert losses.perceptual.item() == pytest.approx(features.item())
    assert losses.total.item() == pytest.approx((pixels + features).item(), rel=1e-5)


def test_a_network_that_holds_it_has_none_of_its_networks_as_a_part(weights: Path) -> None:
    """They would be trained and saved with it."""
    settings = ReconstructionLossSettings().replace(
        perceptual={"layers": {"conv1": 1.0}, "weights": weights}
    )
    holder = nn.Module()
    holder.loss = ReconstructionLoss(settings)
    assert not list(holder.parameters())
    assert not holder.state_dict()


def test_lpips_is_the_package_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself needs torchvision; a stand-in with its interface shows what is asked."""

    class LPIPS(nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(3.0))
            assert (net, verbose) == ("vgg", False)

        def forward(self, made: Tensor, image: Tensor) -> Tensor:
            return self.weight * (made - image).abs().mean((1, 2, 3), keepdim=True)

    package = ModuleType("lpips")
    package.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    settings = ReconstructionLossSettings().replace(mse=0, lpips=2.0)
    made = MADE.clone().requires_grad_()
    losses = ReconstructionLoss(settings)(made, IMAGE)
    assert losses.total.item() == pytest.approx(2 * 3 * L1)
    losses.total.backward()
    assert made.grad is not None


def test_lpips_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ConfigError, match=r"`lpips` needs the package.*pip install lpips"):
        ReconstructionLoss(ReconstructionLossSettings().replace(lpips=1.0))


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"all weights of the reconstruction loss are 0.*mse = 1"):
        ReconstructionLossSettings().replace(mse=0)
    with pytest.raises(ConfigError, match=r"`l1`: got: `-1.0`; input should be greater"):
        ReconstructionLossSettings().replace(l1=-1.0)
    # A discriminator alone knows nothing of the picture that was to be reconstructed.
    with pytest.raises(ConfigError, match=r"all weights"):
        ReconstructionLossSettings().replace(mse=0, adversarial={"weight": 1.0})
