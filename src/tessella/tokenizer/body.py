"""Layers one after another, between a network's first and last convolution.

Activation checkpointing (arXiv:1604.06174) keeps only what enters a layer and computes what is
inside again in the backward pass: less memory, about a third more arithmetic.
"""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Body(nn.Sequential):
    """Runs its layers in their order; `recompute` switches activation checkpointing on."""

    recompute = False

    def forward(self, hidden: Tensor) -> Tensor:
        """Runs (B, C, H, W) through all layers."""
        for layer in self:
            if self.recompute and self.training:
                # No layer draws random numbers, so their state need not be kept.
                hidden = checkpoint(layer, hidden, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = layer(hidden)
        return hidden
