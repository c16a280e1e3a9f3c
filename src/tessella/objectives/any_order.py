"""`any_order`, the default: codes in any order, each asked by its place.

To learn: every picture's codes in a fresh random order; the code at each place is predicted from
the text and the codes before it; cross-entropy at every place.
To generate: sets of places on a schedule, each set asked at once, sampled, and read. Every code is
read once and, unless the order goes by confidence, every place asked once, however many steps it
takes.

Source: ARPG (arXiv:2503.10568).
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
from tessella.objectives.sampling import split_places
from tessella.transformer import Memory, Transformer


class AnyOrderSettings(Settings):
    """Settings of the `any_order` objective."""

    name: Literal["any_order"] = "any_order"
    """The objective's name."""


class AnyOrder(Objective):
    """Predicts codes in any order, many places at once."""

    name = "any_order"

    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Cross-entropy of every code, given the text and the codes before it in a random order."""
        flat = codes.flatten(1)
        places = torch.rand(flat.shape, device=flat.device).argsort(1)
        ordered = flat.gather(1, places)
        logits = predict_in_order(transformer, text, ordered, places)
        return score_logits(logits, ordered)

    @torch.inference_mode()
    def generate(
        self,
        transformer: Transformer,
        codebook: Tensor,
        grid: tuple[int, int],
        request: GenerationRequest,
        watch: StepCallback | None = None,
    ) -> Painted:
        """Lays each picture's codes set by set."""
        settings = request.settings
        known = 0 if request.known is None else int(request.known[0].sum())
        num_places = grid[0] * grid[1]
        sizes = split_places(num_places - known, settings.steps, settings.step_schedule)
        mosaic = Mosaic(request, grid, len(sizes), watch)
        memory = read_prompts(transformer, request, mosaic, room=num_places)
        if known:
            places = mosaic.laid.nonzero()[:, 1].view(mosaic.batch, -1)
            codes = mosaic.codes.gather(1, places)
            memory = transformer.read_codes(memory, mosaic.double(codes), mosaic.double(places))
        if settings.order == "confidence":
            _lay_by_confidence(transformer, memory, mosaic, sizes)
        elif sizes:
            order = "halton" if settings.order == "halton" else "random"
            sets = mosaic.order_open_places(order).split(sizes, dim=1)
            lay_in_order(transformer, memory, mosaic, sets)
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
        """Sums the log-probabilities along random orders and takes the mean over them.

        By Jensen's inequality it is a lower bound of the likelihood of the mixture over orders.
        """
        flat = codes.flatten(1)
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(len(flat), device=flat.device)
        for _ in range(num_orders):
            order = torch.randperm(flat.shape[1], generator=generator).to(flat.device)
            places = order.expand(len(flat), -1)
            ordered = flat.gather(1, places)
            logits = predict_in_order(transformer, text, ordered, places)
            total += gather_log_probability(logits, ordered).sum(1)
        return total / num_orders


def predict_in_order(
    transformer: Transformer, text: Tensor, codes: Tensor, places: Tensor
) -> Tensor:
    """Predicts each code (B, N) at its place (B, N) from the text and the codes before it.

    Returns:
        (B, N, K) logits, in the order given.
    """
    memory = transformer.read_text(text)
    memory = transformer.read_codes(memory, codes[:, :-1], places[:, :-1])
    return transformer.ask(memory, places, torch.arange(codes.shape[1], device=codes.device))


def _lay_by_confidence(
    transformer: Transformer, memory: Memory, mosaic: Mosaic, sizes: list[int]
) -> None:
    """Asks all open places at each step and keeps the surest: more work, no order given before."""
    for index, size in enumerate(sizes):
        still_open = mosaic.open_places()
        logits = ask_all(transformer, memory, mosaic.double(still_open))
        kept, codes = mosaic.sample_confident(logits, size)
        places = still_open.gather(1, kept)
        mosaic.lay(places, codes)
        if index + 1 < len(sizes):
            memory = transformer.read_codes(memory, mosaic.double(codes), mosaic.double(places))
