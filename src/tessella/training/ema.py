"""An exponential moving average of the weights: evaluation, painting and the saved model use it."""

import copy
from typing import TypeVar

import torch
from torch import nn

from tessella.training.shards import local

M = TypeVar("M", bound=nn.Module)

# Early averages must not remember the random start: the half-life is at most this fraction
# of the run so far.
_RAMP = 0.05


def create_average(network: M) -> M:
    """Returns a copy that will follow the network, without gradients and in eval mode."""
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
        average: from `create_average`.
        network: the one it follows; buffers are copied as they are.
        half_life_images: images after which a weight counts half; 0 copies the network.
        images_seen: progress, this step included.
        step_images: images of this step.

    Source:
        Section 3.1 and the ramp of EDM2's training loop (arXiv:2312.02696).
    """
    half_life = min(half_life_images, _RAMP * images_seen)
    weight = 1.0 if half_life <= 0 else 1.0 - 0.5 ** (step_images / half_life)
    averages, current = (list(map(local, one.parameters())) for one in (average, network))
    torch._foreach_lerp_(averages, current, weight)
    for buffer, new in zip(average.buffers(), network.buffers(), strict=True):
        buffer.copy_(new)
