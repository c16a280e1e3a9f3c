"""`autoregressive`: the next code in raster order, as Taming Transformers and DALL-E do.

It is `any_order` with one fixed order. To learn: the code at each position is predicted from the
text and the codes before it, row by row. To generate: one position a step, with a key-value cache.

Source: Taming Transformers (arXiv:2012.09841), DALL-E (arXiv:2102.12092).
"""

import torch
from torch import Tensor

from tessella.objectives.any_order import predict_in_order
from tessella.objectives.base import Generated, GenerationBatch, Objective, ObjectiveLoss, OnStep
from tessella.objectives.decoding import DecodingState
from tessella.objectives.sampling import gather_log_probability
from tessella.transformer import Examples, flatten_codes


class Autoregressive(Objective):
    """Predicts the next code, row by row."""

    name = "autoregressive"

    def forward(
        self, text: Tensor, codes: Tensor, examples: Examples | None = None
    ) -> ObjectiveLoss:
        """Cross-entropy of every code, given the text and the codes before it in raster order."""
        flat = flatten_codes(codes)
        logits = predict_in_order(self.transformer, text, flat, _raster(flat), examples)
        return ObjectiveLoss.of_logits(logits, flat)

    @torch.inference_mode()
    def generate(self, batch: GenerationBatch, on_step: OnStep | None = None) -> Generated:
        """Decodes code after code; a known one is appended when its turn comes."""
        # Known codes take their turn too, so that all pictures draw the same random numbers.
        num_positions = self.transformer.shape.num_positions
        state = DecodingState(self.transformer, batch, num_positions, on_step)
        state.encode_prompts(capacity=num_positions)
        state.decode_in_order(_raster(state.codes).split(1, dim=1))
        return self.look_up(state.codes.mT)

    @torch.inference_mode()
    def compute_log_likelihood(
        self, text: Tensor, codes: Tensor, *, num_orders: int = 4, seed: int = 0
    ) -> Tensor:
        """Sums the log-probabilities along the one order; exact."""
        flat = flatten_codes(codes)
        logits = predict_in_order(self.transformer, text, flat, _raster(flat))
        return gather_log_probability(logits, flat).sum((1, 2))


def _raster(codes: Tensor) -> Tensor:
    return torch.arange(codes.shape[1], device=codes.device).expand(len(codes), -1)
