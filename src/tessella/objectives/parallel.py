"""`parallel`: every position at once from the text alone, with cross-entropy.

It is `latent_mse` without the squared error: each position has its own distribution over the codes,
given the text and none of the other codes. To generate: one pass, each position sampled by itself.
"""

import torch
from torch import Tensor

from tessella.objectives.base import Generated, GenerationBatch, Objective, ObjectiveLoss, OnStep
from tessella.objectives.decoding import DecodingState, predict_all
from tessella.objectives.sampling import gather_log_probability
from tessella.transformer import Examples, Transformer, flatten_codes


class Parallel(Objective):
    """Predicts every code from the text alone."""

    name = "parallel"
    has_steps = False
    reads_codes = False

    def forward(
        self, text: Tensor, codes: Tensor, examples: Examples | None = None
    ) -> ObjectiveLoss:
        """Cross-entropy of every code, given the text."""
        flat = flatten_codes(codes)
        hidden = predict_everywhere(self.transformer, text, examples)
        return ObjectiveLoss.of_logits(self.transformer.compute_logits(hidden, flat), flat)

    @torch.inference_mode()
    def generate(self, batch: GenerationBatch, on_step: OnStep | None = None) -> Generated:
        """Samples every position at once."""
        state = DecodingState(self.transformer, batch, 1, on_step)
        state.encode_prompts()
        state.decode_in_order([state.open_positions()])
        return self.look_up(state.codes.mT)

    @torch.inference_mode()
    def compute_log_likelihood(
        self, text: Tensor, codes: Tensor, *, num_orders: int = 4, seed: int = 0
    ) -> Tensor:
        """Sums the log-probabilities of the positions, which are independent; exact."""
        flat = flatten_codes(codes)
        logits = self.transformer.compute_logits(predict_everywhere(self.transformer, text), flat)
        return gather_log_probability(logits, flat).sum((1, 2))


def predict_everywhere(
    transformer: Transformer, text: Tensor, examples: Examples | None = None
) -> Tensor:
    """Predicts all positions from the context alone: (B, N, D) hidden rows."""
    cache = transformer.encode_context(text, examples)
    positions = torch.arange(transformer.shape.num_positions, device=text.device)
    return predict_all(transformer, cache, positions.expand(len(text), -1))
