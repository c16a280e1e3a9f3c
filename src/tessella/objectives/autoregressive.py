"""`autoregressive`: the next code in raster order, as Taming Transformers and DALL-E do.

It is `any_order` with one fixed order: to learn, the code at each place is predicted from the text
and the codes before it, row by row; to generate, one place a step, with the keys and values of all
that was read kept.

Source: Taming Transformers (arXiv:2012.09841), DALL-E (arXiv:2102.12092).
"""

from typing import Literal

import torch
from torch import Tensor

from tessella.config import Settings
from tessella.objectives.any_order import predict_in_order
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
from tessella.objectives.laying import Mosaic, lay_in_order, read_prompts
from tessella.transformer import Transformer


class AutoregressiveSettings(Settings):
    """Settings of the `autoregressive` objective."""

    name: Literal["autoregressive"] = "autoregressive"
    """The objective's name."""


class Autoregressive(Objective):
    """Predicts the next code, row by row."""

    name = "autoregressive"

    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Cross-entropy of every code, given the text and the codes before it in raster order."""
        flat = codes.flatten(1)
        logits = predict_in_order(transformer, text, flat, _raster(flat))
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
        """Lays code after code; a known one is read where its turn comes."""
        # Known ones take a turn as well: a picture draws the same whatever others of a batch know.
        num_places = grid[0] * grid[1]
        mosaic = Mosaic(request, grid, num_places, watch)
        memory = read_prompts(transformer, request, mosaic, room=num_places)
        lay_in_order(transformer, memory, mosaic, _raster(mosaic.codes).split(1, dim=1))
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
        """Sums the log-probabilities along the one order; exact."""
        flat = codes.flatten(1)
        logits = predict_in_order(transformer, text, flat, _raster(flat))
        return gather_log_probability(logits, flat).sum(1)


def _raster(codes: Tensor) -> Tensor:
    return torch.arange(codes.shape[1], device=codes.device).expand(len(codes), -1)
