"""Which positions are decoded when, and which code is sampled: functions without state."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tessella.batch import draw_rows
from tessella.generation import GenerationSettings


def split_positions(num_positions: int, steps: int, schedule: str = "cosine") -> list[int]:
    """Splits the positions into sets: few at first, when little is known, many at the end.

    Args:
        num_positions: N >= 0.
        steps: number of sets, >= 1; at most one a position.
        schedule: cosine or arccos; the fraction of positions left after a fraction t of the steps
            is cos(π t / 2) or arccos(t) · 2 / π.

    Returns:
        Sizes of the sets, each >= 1, that add up to N.

    Source:
        Section 3.2 of MaskGIT (arXiv:2202.04200); arccos from Besnier and Chen's MaskGIT
        (arXiv:2310.14400).
    """
    steps = min(steps, num_positions)
    sizes: list[int] = []
    for step in range(1, steps + 1):
        known = num_positions * (1 - unknown_fraction(step / steps, schedule))
        # At least one position now, and one left for each step to come.
        size = max(1, round(known) - sum(sizes))
        sizes.append(min(size, num_positions - sum(sizes) - (steps - step)))
    return sizes


def unknown_fraction(time: float, schedule: str = "cosine") -> float:
    """Computes the fraction of positions still unknown after a fraction of the steps."""
    if schedule == "arccos":
        return math.acos(time) * 2 / math.pi
    return math.cos(math.pi / 2 * time)


def random_orders(num_positions: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws an order of positions (B, N) for each picture from its own generator."""
    return torch.stack([torch.randperm(num_positions, generator=g) for g in generators])


def halton_order(height: int, width: int) -> Tensor:
    """Orders the positions (h·w,) of a grid so that every beginning is spread evenly over it.

    Source:
        Halton's sequence in bases 2 and 3; for masked image models arXiv:2503.17076.
    """
    return torch.tensor(_list_halton(height, width))


@functools.cache  # a batch of 16 × 16 positions would take longer to order than to predict
def _list_halton(height: int, width: int) -> tuple[int, ...]:
    order: dict[int, None] = {}
    index = 1
    while len(order) < height * width:
        row, column = _radical_inverse(index, 2), _radical_inverse(index, 3)
        order[int(row * height) * width + int(column * width)] = None
        index += 1
    return tuple(order)


def _radical_inverse(index: int, base: int) -> float:
    """Mirrors the digits of an index at the decimal point."""
    value, scale = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * scale
        scale /= base
    return value


def draw_uniform(codes: Tensor, count: int) -> Tensor:
    """Draws numbers in [0, 1) to learn codes (B, N, M) by: `count` for each picture, (B, count)."""
    device = codes.device
    return draw_rows(
        len(codes), lambda rows, own: torch.rand(rows, count, device=device, generator=own)
    )


def gather_log_probability(logits: Tensor, codes: Tensor) -> Tensor:
    """Takes the log-probability (...) of each code (...) under logits (..., K)."""
    return logits.float().log_softmax(-1).gather(-1, codes[..., None])[..., 0]


def compute_accuracy(logits: Tensor, codes: Tensor) -> Tensor:
    """Computes how often the likeliest code under logits (..., K) is the right one (...)."""
    return (logits.detach().argmax(-1) == codes).to(torch.float32).mean()


def sample_codes(logits: Tensor, noise: Tensor | None, settings: GenerationSettings) -> Tensor:
    """Samples a code at each position by the Gumbel-max rule.

    Args:
        logits: (..., K).
        noise: (..., K) uniform in [0, 1); the only randomness. None, or a temperature of 0, takes
            the likeliest.
        settings: temperature, top_k and top_p; what they filter out is never sampled.

    Returns:
        (...) int64.
    """
    if noise is None or settings.temperature == 0:
        return logits.argmax(-1)
    # The likeliest at 0: however low the temperature, it stays finite.
    logits = (logits - logits.amax(-1, keepdim=True)).div_(settings.temperature)
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        # A code is cut when those before it already reach top_p: the likeliest always stays.
        is_cut = probability.cumsum(-1) - probability >= settings.top_p
        logits = logits.masked_fill(is_cut.scatter(-1, index, is_cut), -torch.inf)
    return to_gumbel(noise).add_(logits).argmax(-1)


def to_gumbel(noise: Tensor) -> Tensor:
    """Turns uniform numbers in [0, 1) into standard Gumbel ones."""
    # In place from the copy on: a fresh tensor for each step costs more than the logarithms.
    return noise.clamp(1e-20, 1 - 1e-7).log_().neg_().log_().neg_()


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Moves logits from those of no prompt through those of the prompt, `scale` times as far.

    Source:
        Classifier-free guidance, arXiv:2207.12598, on logits as in Muse (arXiv:2301.00704).
    """
    return unconditional + scale * (conditional - unconditional)


def scale_guidance(settings: GenerationSettings, step: int, steps: int) -> float:
    """Returns the guidance scale of a step, counted from 1; the last has the scale in full.

    Source:
        The linear ramp is Muse's (arXiv:2301.00704, section 2.7).
    """
    if settings.guidance_schedule == "linear":
        return 1 + (settings.guidance_scale - 1) * step / steps
    return settings.guidance_scale


def choose_confident(
    log_probability: Tensor, noise: Tensor, count: int, temperature: float
) -> Tensor:
    """Chooses the positions whose sampled codes the transformer is surest of.

    Args:
        log_probability: (B, Q) of the sampled codes.
        noise: (B, Q) uniform in [0, 1).
        count: how many positions a picture, in [1, Q].
        temperature: of the Gumbel noise that is added to the log-probability; 0 adds none.

    Returns:
        (B, count) int64 in [0, Q), in rising order.

    Source:
        MaskGIT (arXiv:2202.04200), section 3.2 and its code's `mask_by_random_topk`.
    """
    confidence = log_probability + temperature * to_gumbel(noise)
    return confidence.topk(count, dim=1).indices.sort(1).values
