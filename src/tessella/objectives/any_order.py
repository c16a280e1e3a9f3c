"""`any_order`, the default: codes in a random order, each asked by its place.

To learn: every picture's codes in a fresh random order; the code at each place is predicted from
the text and the codes before it; cross-entropy at every place.
To generate: sets of places on a cosine schedule, each set asked at once, sampled, and read. Every
code is read once and every place asked once, however many steps it takes.

Source: ARPG (arXiv:2503.10568).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tessella.config import Settings
from tessella.objectives.base import (
    GenerationRequest,
    GenerationStep,
    Objective,
    ObjectiveLoss,
    Painted,
    StepCallback,
    compute_accuracy,
)
from tessella.objectives.sampling import (
    cosine_schedule,
    guide,
    halton_order,
    random_orders,
    sample_codes,
)
from tessella.transformer import Memory, Transformer


class AnyOrderSettings(Settings):
    """Settings of the `any_order` objective."""

    name: Literal["any_order"] = "any_order"
    """The objective's name."""


class AnyOrder(Objective):
    """Predicts codes in any order, many places at once."""

    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text_tokens: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Cross-entropy of every code, given the text and the codes before it in a random order."""
        flat = codes.flatten(1)
        places = torch.rand(flat.shape, device=flat.device).argsort(1)
        ordered = flat.gather(1, places)
        memory = transformer.read_text(text_tokens)
        memory = transformer.read_codes(memory, ordered[:, :-1], places[:, :-1])
        visible = torch.arange(flat.shape[1], device=flat.device)
        logits = transformer.ask(memory, places, visible)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), ordered.flatten())
        return ObjectiveLoss(loss, compute_accuracy(logits, ordered))

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
        device = request.prompt_of.device
        batch, num_places = len(request.seeds), grid[0] * grid[1]
        # Random numbers come from the CPU: a seed means the same picture on every device.
        generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        if settings.order == "halton":
            order = halton_order(*grid).expand(batch, -1).to(device)
        else:
            order = random_orders(num_places, generators).to(device)
        guided = settings.guidance_scale != 1
        memory = _read_prompts(transformer, request, guided)

        codes = torch.zeros(batch, num_places, dtype=torch.int64, device=device)
        laid = torch.zeros_like(codes, dtype=torch.bool)
        sizes = cosine_schedule(num_places, settings.steps)
        for step, places in enumerate(order.split(sizes, dim=1), start=1):
            asked = places.repeat(2, 1) if guided else places
            visible = torch.full((asked.shape[1],), memory.num_codes, device=device)
            logits = transformer.ask(memory, asked, visible).float()
            if guided:
                logits = guide(logits[:batch], logits[batch:], settings.guidance_scale)
            shape = logits.shape[1:]
            noise = torch.stack([torch.rand(shape, generator=g) for g in generators]).to(device)
            sampled = sample_codes(logits, noise, settings)
            codes.scatter_(1, places, sampled)
            laid.scatter_(1, places, True)
            if watch is not None:
                watch(GenerationStep(step, len(sizes), codes.clone(), laid.clone()))
            if step < len(sizes):
                known = sampled.repeat(2, 1) if guided else sampled
                memory = transformer.read_codes(memory, known, asked)
        mosaic = codes.unflatten(1, grid)
        return Painted(functional.embedding(mosaic, codebook).movedim(-1, 1), mosaic)


def _read_prompts(transformer: Transformer, request: GenerationRequest, guided: bool) -> Memory:
    """Reads each prompt once; guided pictures follow in the same order with the empty prompt."""
    tokens, rows = request.text_tokens, request.prompt_of
    if guided:
        length = max(tokens.shape[1], request.empty_tokens.shape[1])
        pad = transformer.shape.pad_id
        both = [
            functional.pad(t, (0, length - t.shape[1]), value=pad)
            for t in (tokens, request.empty_tokens)
        ]
        rows = torch.cat([rows, torch.full_like(rows, len(tokens))])
        tokens = torch.cat(both)
    return transformer.read_text(tokens).select(rows)
