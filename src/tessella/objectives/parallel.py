"""`parallel`: every place at once from the text alone, with cross-entropy.

What `latent_mse` is without its squared error: each place has a distribution over the codes that
knows the text and none of the other codes. To generate: one pass, every place sampled by itself.
"""

from typing import Literal

import torch
from torch import Tensor

from tessella.config import Settings
from tessella.objectives.base import (
    GenerationRequest,
    Objective,
    ObjectiveLoss,
    Painted,
    StepCallback,
    gather_log_probability,
    score_logits,
    to_painted,
)
from tessella.objectives.laying import Mosaic, ask_all, lay_in_order, read_prompts
from tessella.transformer import Transformer


class ParallelSettings(Settings):
    """Settings of the `parallel` objective."""

    name: Literal["parallel"] = "parallel"
    """The objective's name."""


class Parallel(Objective):
    """Predicts every code from the text alone."""

    name = "parallel"
    has_steps = False

    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Cross-entropy of every code, given the text."""
        flat = codes.flatten(1)
        logits = ask_everywhere(transformer, text)
        return score_logits(logits, flat)

    @torch.inference_mode()
    def generate(
        self,
        transformer: Transformer,
        codebook: Tensor,
        grid: tuple[int, int],
        request: GenerationRequest,
        watch: StepCallback | None = None,
    ) -> Painted:
        """Samples every place at once."""
        mosaic = Mosaic(request, grid, 1, watch)
        memory = read_prompts(transformer, request, mosaic)
        lay_in_order(transformer, memory, mosaic, [mosaic.open_places()])
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
        """Sums the log-probabilities of the places, which are independent; exact."""
        flat = codes.flatten(1)
        return gather_log_probability(ask_everywhere(transformer, text), flat).sum(1)


def ask_everywhere(transformer: Transformer, text: Tensor) -> Tensor:
    """Asks all places at once from the text (B, T) or (B, T, F) alone: (B, N, K)."""
    memory = transformer.read_text(text)
    places = torch.arange(transformer.shape.num_places, device=text.device)
    return ask_all(transformer, memory, places.expand(len(text), -1))
