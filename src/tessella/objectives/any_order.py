"""`any_order`, the default: codes in any order, each predicted from its position.

To learn: every picture's codes in a fresh random order; the code at each position is predicted from
the text and the codes before it; cross-entropy at every position.
To generate: sets of positions on a schedule; each set is predicted at once, sampled and appended.
Every code is appended once and, unless the order goes by confidence, every position predicted once,
however many steps it takes.

Source: ARPG (arXiv:2503.10568).
"""

import torch
from torch import Tensor

from tessella.objectives.base import Generated, GenerationBatch, Objective, ObjectiveLoss, OnStep
from tessella.objectives.decoding import DecodingState, gather_positions
from tessella.objectives.sampling import (
    draw_uniform,
    gather_log_probability,
    split_positions,
)
from tessella.transformer import Examples, Transformer, flatten_codes


class AnyOrder(Objective):
    """Predicts codes in any order, many positions at once."""

    name = "any_order"

    def forward(
        self, text: Tensor, codes: Tensor, examples: Examples | None = None
    ) -> ObjectiveLoss:
        """Cross-entropy of every code, given the context and those before it in a random order."""
        flat = flatten_codes(codes)
        positions = draw_uniform(flat, flat.shape[1]).argsort(1)
        ordered = gather_positions(flat, positions)
        logits = predict_in_order(self.transformer, text, ordered, positions, examples)
        return ObjectiveLoss.of_logits(logits, ordered)

    @torch.inference_mode()
    def generate(self, batch: GenerationBatch, on_step: OnStep | None = None) -> Generated:
        """Decodes each picture's codes set by set."""
        settings, num_positions = batch.settings, self.transformer.shape.num_positions
        num_open = num_positions - batch.num_known
        sizes = split_positions(num_open, settings.steps, settings.step_schedule)
        state = DecodingState(self.transformer, batch, len(sizes), on_step)
        state.encode_prompts(capacity=num_positions)
        state.append(state.decoded_positions())
        if settings.order == "confidence":
            _decode_by_confidence(state, sizes)
        elif sizes:
            state.decode_in_order(state.order_open_positions(settings.order).split(sizes, dim=1))
        return self.look_up(state.codes.mT)

    @torch.inference_mode()
    def compute_log_likelihood(
        self, text: Tensor, codes: Tensor, *, num_orders: int = 4, seed: int = 0
    ) -> Tensor:
        """Sums the log-probabilities along random orders and takes the mean over them.

        By Jensen's inequality it is a lower bound of the likelihood of the mixture over orders.
        """
        flat = flatten_codes(codes)
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(len(flat), device=flat.device)
        for _ in range(num_orders):
            order = torch.randperm(flat.shape[1], generator=generator).to(flat.device)
            positions = order.expand(len(flat), -1)
            ordered = gather_positions(flat, positions)
            logits = predict_in_order(self.transformer, text, ordered, positions)
            total += gather_log_probability(logits, ordered).sum((1, 2))
        return total / num_orders


def predict_in_order(
    transformer: Transformer,
    text: Tensor,
    codes: Tensor,
    positions: Tensor,
    examples: Examples | None = None,
) -> Tensor:
    """Predicts codes (B, N, M) at positions (B, N) from the context and the codes before them.

    Returns:
        (B, N, M, K) logits, in the order given.
    """
    cache = transformer.encode_context(text, examples)
    transformer.append_codes(cache, codes[:, :-1], positions[:, :-1])
    num_before = torch.arange(codes.shape[1], device=codes.device)
    return transformer.compute_logits(transformer.predict(cache, positions, num_before), codes)


def _decode_by_confidence(state: DecodingState, sizes: list[int]) -> None:
    """Predicts all open positions at each step and keeps the surest: more work a step."""
    for index, size in enumerate(sizes):
        open_positions = state.open_positions()
        surest, codes = state.sample_confident(state.predict(open_positions), size)
        positions = open_positions.gather(1, surest)
        state.update(positions, codes)
        if index + 1 < len(sizes):
            state.append(positions)
