"""Which places are asked when, and which code is taken: plain functions without state."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tessella.objectives.base import GenerationSettings


def cosine_schedule(num_places: int, steps: int) -> list[int]:
    """Splits the places into sets: few at first, when little is known, many at the end.

    Args:
        num_places: N >= 1.
        steps: sets wanted, >= 1; more than there are places counts as one a place.

    Returns:
        Sizes of the sets, each >= 1, that add up to N.

    Source:
        Section 3.2 of MaskGIT (arXiv:2202.04200).
    """
    steps = min(steps, num_places)
    sizes: list[int] = []
    for step in range(1, steps + 1):
        known = num_places * (1 - math.cos(math.pi / 2 * step / steps))
        # At least one place now, and one left for each step to come.
        size = max(1, round(known) - sum(sizes))
        sizes.append(min(size, num_places - sum(sizes) - (steps - step)))
    sizes[-1] += num_places - sum(sizes)
    return sizes


def random_orders(num_places: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws an order of places (B, N) for each picture from its own generator."""
    return torch.stack([torch.randperm(num_places, generator=g) for g in generators])


def halton_order(height: int, width: int) -> Tensor:
    """Orders the places (h·w,) of a grid so that every beginning is spread evenly over it.

    Source:
        Halton's sequence in bases 2 and 3; for masked image models arXiv:2503.17076.
    """
    order: dict[int, None] = {}
    index = 1
    while len(order) < height * width:
        row, column = _radical_inverse(index, 2), _radical_inverse(index, 3)
        order[int(row * height) * width + int(column * width)] = None
        index += 1
    return torch.tensor(list(order))


def _radical_inverse(index: int, base: int) -> float:
    """Mirrors the digits of an index at the decimal point."""
    value, scale = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * scale
        scale /= base
    return value


def sample_codes(logits: Tensor, noise: Tensor, settings: GenerationSettings) -> Tensor:
    """Samples a code at each place by the Gumbel-max rule.

    Args:
        logits: (..., K).
        noise: (..., K) uniform in [0, 1); the only randomness.
        settings: temperature, top_k and top_p; what is filtered out is never taken.

    Returns:
        (...) int64.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    # The likeliest at 0: however low the temperature, it stays finite.
    logits = (logits - logits.amax(-1, keepdim=True)) / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        # A code goes when those before it already reach top_p: the likeliest always stays.
        gone = probability.cumsum(-1) - probability >= settings.top_p
        logits = logits.masked_fill(gone.scatter(-1, index, gone), -torch.inf)
    gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))
    return (logits + gumbel).argmax(-1)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Moves logits from those of no prompt through those of the prompt, `scale` times as far.

    Source:
        Classifier-free guidance, arXiv:2207.12598, on logits as in Muse (arXiv:2301.00704).
    """
    return unconditional + scale * (conditional - unconditional)
