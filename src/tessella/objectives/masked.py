"""`masked`: codes are masked and predicted from all others, as MaskGIT and Muse do.

To learn: a random fraction of the positions is masked; cross-entropy there, every position seeing
the text and all positions that are not masked. To generate: all are masked; each step predicts
every masked position in one full pass, samples, and keeps a set of them: the surest (MaskGIT), the
next of Halton's order, or random ones.

Source: MaskGIT (arXiv:2202.04200), Muse (arXiv:2301.00704); Halton's order arXiv:2503.17076.
"""

from typing import Literal

import torch
from torch import Tensor

from tessella.batch import average_over_batch
from tessella.config import Settings
from tessella.objectives.base import Generated, GenerationBatch, Objective, ObjectiveLoss, OnStep
from tessella.objectives.decoding import DecodingState, gather_positions
from tessella.objectives.sampling import (
    draw_uniform,
    gather_log_probability,
    split_positions,
)
from tessella.transformer import Examples, flatten_codes


class MaskedSettings(Settings):
    """Settings of the `masked` objective."""

    name: Literal["masked"] = "masked"
    """The objective's name."""
    mask_schedule: Literal["cosine", "arccos"] = "cosine"
    """How the masked fraction is drawn in training: `cosine` or `arccos` of a uniform number."""


class Masked(Objective):
    """Predicts masked codes from all others."""

    name = "masked"
    settings: MaskedSettings
    default_settings = MaskedSettings()

    def forward(
        self, text: Tensor, codes: Tensor, examples: Examples | None = None
    ) -> ObjectiveLoss:
        """Cross-entropy of the masked codes; each picture counts alike."""
        flat = flatten_codes(codes)
        time = draw_uniform(flat, 1)
        if self.settings.mask_schedule == "arccos":
            fraction = time.acos() * 2 / torch.pi
        else:
            fraction = (time * torch.pi / 2).cos()
        num_masked = (fraction * flat.shape[1]).ceil().clamp(min=1)
        rank = draw_uniform(flat, flat.shape[1]).argsort(1).argsort(1)
        known = rank >= num_masked
        cache = self.transformer.encode_context(text, examples)
        hidden = self.transformer.predict_masked(cache, flat, known)
        logits = self.transformer.compute_logits(hidden, flat)
        losses = -gather_log_probability(logits, flat).sum(-1)  # (B, N)
        loss = (losses * ~known).sum(1) / num_masked[:, 0]
        # Not indexed by the mask: on CUDA that waits for the device.
        is_right = (logits.detach().argmax(-1) == flat) & ~known[..., None]
        num_codes = num_masked.sum() * flat.shape[-1]
        if self.training:
            average_over_batch(num_codes)
        return ObjectiveLoss(loss.mean(), is_right.sum() / num_codes)

    @torch.inference_mode()
    def generate(self, batch: GenerationBatch, on_step: OnStep | None = None) -> Generated:
        """Decodes each picture's codes set by set, with a full pass a step."""
        settings = batch.settings
        num_open = self.transformer.shape.num_positions - batch.num_known
        sizes = split_positions(num_open, settings.steps, settings.step_schedule)
        state = DecodingState(self.transformer, batch, len(sizes), on_step)
        cache = state.encode_prompts()
        by_confidence = settings.order in ("auto", "confidence")
        order = None if by_confidence else state.order_open_positions(settings.order)
        for size in sizes:
            hidden = self.transformer.predict_masked(
                cache, state.double(state.codes), state.double(state.is_decoded)
            )
            if order is None:
                positions = state.open_positions()
            else:
                positions, order = order[:, :size], order[:, size:]
            candidates = gather_positions(hidden, state.double(positions))
            if order is None:
                surest, codes = state.sample_confident(candidates, size)
                state.update(positions.gather(1, surest), codes)
            else:
                state.update(positions, state.sample(candidates))
        return self.look_up(state.codes.mT)

    @torch.inference_mode()
    def compute_log_likelihood(
        self, text: Tensor, codes: Tensor, *, num_orders: int = 4, seed: int = 0
    ) -> Tensor:
        """Estimates the lower bound that masking gives: N times the mean masked log-probability.

        The numbers of masked positions are spread evenly from 1 to N; which of them is drawn.

        Source:
            Theorem 2 of arXiv:2406.03736 (any-order likelihood of masked models).
        """
        flat = flatten_codes(codes)
        num_positions = flat.shape[1]
        generator = torch.Generator().manual_seed(seed)
        cache = self.transformer.encode_context(text)
        total = torch.zeros(len(flat), device=flat.device)
        for index in range(num_orders):
            offset = torch.rand((), generator=generator).item()
            num_masked = min(num_positions, 1 + int(num_positions * (index + offset) / num_orders))
            rank = torch.randperm(num_positions, generator=generator).to(flat.device)
            known = (rank >= num_masked).expand(len(flat), -1)
            hidden = self.transformer.predict_masked(cache, flat, known)
            logits = self.transformer.compute_logits(hidden, flat)
            log_probability = gather_log_probability(logits, flat).sum(-1)
            total += (log_probability * ~known).sum(1) * num_positions / num_masked
        return total / num_orders
