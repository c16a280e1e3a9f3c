"""What encoders and decoders are built of: blocks, a body of them, a first and a last layer.

Activation checkpointing (arXiv:1604.06174) keeps only what enters a layer and computes what is
inside again in the backward pass: less memory, about a third more arithmetic.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Body(nn.Sequential):
    """Layers in their order; `recompute` switches activation checkpointing on."""

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


class Network(nn.Module):
    """An encoder or a decoder: a first layer, a body and a last layer."""

    def __init__(self, first: nn.Module, body: Iterable[nn.Module], last: nn.Module) -> None:
        """Takes the layers; those of the body are the ones that Muon trains."""
        super().__init__()
        self.first = first
        self.body = Body(*body)
        self.last = last

    def forward(self, hidden: Tensor) -> Tensor:
        """Runs a batch (B, C, H, W) of images in [-1, 1] or of quantized latents."""
        output: Tensor = self.last(self.body(self.first(hidden)))
        return output


class NormalizedBlock(nn.Module):
    """(B, width_in, H, W) → (B, width_out, H, W): two normalised 3×3 convolutions around a skip.

    Source:
        The block of Taming Transformers (arXiv:2012.09841).
    """

    def __init__(
        self, width_in: int, width_out: int, create_norm: Callable[[int], nn.Module]
    ) -> None:
        """Creates a block; a 1×1 convolution fits the skip to another width."""
        super().__init__()
        self.norm1 = create_norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = create_norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        is_same = width_in == width_out
        self.skip = nn.Identity() if is_same else nn.Conv2d(width_in, width_out, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Adds the convolutions' result to the skip."""
        update: Tensor = self.conv1(functional.silu(self.norm1(hidden)))
        update = self.conv2(functional.silu(self.norm2(update)))
        summed: Tensor = self.skip(hidden) + update
        return summed
