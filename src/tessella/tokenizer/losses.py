"""image and its reconstruction → one loss.

Source: pixel MSE is the founding report's; L1 is that of Taming Transformers (arXiv:2012.09841).
"""

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from tessella.config import Settings


class ReconstructionLossSettings(Settings):
    """Weights of the reconstruction losses."""

    mse: float = Field(1.0, ge=0.0)
    """Weight of the mean squared difference of pixels in [-1, 1]."""
    l1: float = Field(0.0, ge=0.0)
    """Weight of the mean absolute difference of pixels in [-1, 1]."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ReconstructionLossSettings":
        if self.mse == 0 and self.l1 == 0:
            raise ValueError("All weights of the reconstruction loss are 0. Give one, e.g. mse = 1")
        return self


def compute_reconstruction_loss(
    reconstruction: Tensor, image: Tensor, settings: ReconstructionLossSettings
) -> Tensor:
    """Weighs how far a reconstruction (B, 3, H, W) is from its image, both about [-1, 1].

    Returns:
        () the weighted sum of the losses whose weight is not 0.
    """
    loss = image.new_zeros(())
    if settings.mse:
        loss = loss + settings.mse * functional.mse_loss(reconstruction, image)
    if settings.l1:
        loss = loss + settings.l1 * functional.l1_loss(reconstruction, image)
    return loss
