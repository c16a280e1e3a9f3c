"""An exponential moving average of the weights: what is evaluated, saved and painted with."""

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

# Early averages must not remember the random start: half-life at most this share of the run so far.
_RAMP = 0.05


def create_average(network: M) -> M:
    """Returns a copy that will follow the network; it takes no gradients and is in eval mode."""
    average = copy.deepcopy(network).eval()
    return average.requires_grad_(False)


@torch.no_grad()
def update_average(
    average: nn.Module,
    network: nn.Module,
    *,
    half_life_images: float,
    images_seen: int,
    step_images: int,
) -> None:
    """Moves the average towards the network by one step.

    Args:
        average: made by `create_average`.
        network: what it follows; buffers are copied as they are.
        half_life_images: images after which a weight counts half; 0 copies the network.
        images_seen: progress, this step included.
        step_images: images of this step.

    Source:
        Section 3.1 and the ramp of EDM2's training loop (arXiv:2312.02696).
    """
    half_life = min(half_life_images, _RAMP * images_seen)
    share = 1.0 if half_life <= 0 else 1.0 - 0.5 ** (step_images / half_life)
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), share)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)
