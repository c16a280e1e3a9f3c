"""`masked`: codes are hidden and predicted from all others, as MaskGIT and Muse do.

To learn: a random share of the places is hidden; cross-entropy there, every place seeing the text
and all places that are not hidden. To generate: all are hidden; each step predicts every hidden
place in one full pass, samples, and keeps a set of them: the surest (MaskGIT), the next of
Halton's order, or random ones.

Source: MaskGIT (arXiv:2202.04200), Muse (arXiv:2301.00704); Halton's order arXiv:2503.17076.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tessella.config import Settings
from tessella.objectives.base import (
    GenerationRequest,
    Objective,
    ObjectiveLoss,
    Painted,
    StepCallback,
    gather_log_probability,
    to_painted,
)
from tessella.objectives.laying import Mosaic, read_prompts
from tessella.objectives.sampling import split_places
from tessella.transformer import Transformer


class MaskedSettings(Settings):
    """Settings of the `masked` objective."""

    name: Literal["masked"] = "masked"
    """The objective's name."""
    mask_schedule: Literal["cosine", "arccos"] = "cosine"
    """How the hidden share is drawn in training: as `cosine` or `arccos` of a uniform number."""


class Masked(Objective):
    """Predicts hidden codes from all others."""

    name = "masked"

    def __init__(self, settings: MaskedSettings | None = None) -> None:
        """Takes how much is hidden in training."""
        self.settings = settings or MaskedSettings()

    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Cross-entropy of the hidden codes; each picture counts alike."""
        flat = codes.flatten(1)
        time = torch.rand(len(flat), 1, device=flat.device)
        if self.settings.mask_schedule == "arccos":
            share = time.acos() * 2 / torch.pi
        else:
            share = (time * torch.pi / 2).cos()
        hidden = (share * flat.shape[1]).ceil().clamp(min=1)
        rank = torch.rand(flat.shape, device=flat.device).argsort(1).argsort(1)
        known = rank >= hidden
        logits = transformer.fill(transformer.read_text(text), flat, known)
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(), flat.flatten(), reduction="none"
        ).view_as(flat)
        loss = (losses * ~known).sum(1) / hidden[:, 0]
        # Not indexed by what is hidden: on CUDA that waits for the device.
        right = (logits.detach().argmax(-1) == flat) & ~known
        return ObjectiveLoss(loss.mean(), right.sum() / hidden.sum())

    @torch.inference_mode()
    def generate(
        self,
        transformer: Transformer,
        codebook: Tensor,
        grid: tuple[int, int],
        request: GenerationRequest,
        watch: StepCallback | None = None,
    ) -> Painted:
        """Lays each picture's codes set by set, with a full pass a step."""
        settings = request.settings
        num_known = 0 if request.known is None else int(request.known[0].sum())
        sizes = split_places(grid[0] * grid[1] - num_known, settings.steps, settings.step_schedule)
        mosaic = Mosaic(request, grid, len(sizes), watch)
        memory = read_prompts(transformer, request, mosaic)
        by_confidence = settings.order in ("auto", "confidence")
        places = mosaic.open_places() if by_confidence else mosaic.order_open_places(settings.order)
        for size in sizes:
            known = mosaic.double(mosaic.laid)
            logits = transformer.fill(memory, mosaic.double(mosaic.codes), known)
            if by_confidence:
                places = mosaic.open_places()
                here = _gather_places(logits, mosaic.double(places))
                kept, codes = mosaic.sample_confident(here, size)
                mosaic.lay(places.gather(1, kept), codes)
            else:
                now, places = places[:, :size], places[:, size:]
                here = _gather_places(logits, mosaic.double(now))
                mosaic.lay(now, mosaic.sample(here))
        return to_painted(mosaic.codes, codebook, grid)

    @torch.inference_mode()
    def compute_log_likelihood(
        self,
        transformer: Transformer,
        text: Tensor,
        codes: Tensor,
        *,
        num_orders: int = 4,
        seed: int = 0,
    ) -> Tensor:
        """Estimates the lower bound that hiding gives: N times the mean hidden log-probability.

        The numbers of hidden places are spread evenly from 1 to N, which of them is drawn.

        Source:
            Theorem 2 of arXiv:2406.03736 (any-order likelihood of masked models).
        """
        flat = codes.flatten(1)
        num_places = flat.shape[1]
        generator = torch.Generator().manual_seed(seed)
        memory = transformer.read_text(text)
        total = torch.zeros(len(flat), device=flat.device)
        for index in range(num_orders):
            offset = torch.rand((), generator=generator).item()
            hidden = min(num_places, 1 + int(num_places * (index + offset) / num_orders))
            rank = torch.randperm(num_places, generator=generator).to(flat.device)
            known = (rank >= hidden).expand(len(flat), -1)
            found = gather_log_probability(transformer.fill(memory, flat, known), flat)
            total += (found * ~known).sum(1) * num_places / hidden
        return total / num_orders


def _gather_places(logits: Tensor, places: Tensor) -> Tensor:
    """Takes the logits (B, N, K) of some places (B, Q)."""
    return logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
