"""`latent_mse`, the founding report's: one pass, an expected latent, squared error.

To learn: a distribution over the codes at each place, from the text alone → its expected codebook
vector → MSE against the image's quantized latent. To generate: the same expected latent, decoded.
The latent has no code at a place: where several codes are likely it is their mean.
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
from tessella.transformer import Memory, Transformer


class LatentMSESettings(Settings):
    """Settings of the `latent_mse` objective."""

    name: Literal["latent_mse"] = "latent_mse"
    """The objective's name."""


class LatentMSE(Objective):
    """Regresses the latent of the image from the text."""

    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text_tokens: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Squared distance between the expected latent and the image's own."""
        logits = _ask_everywhere(transformer, transformer.read_text(text_tokens))
        expected = logits.float().softmax(-1) @ codebook  # (B, N, C)
        own = functional.embedding(codes.flatten(1), codebook)
        return ObjectiveLoss(
            functional.mse_loss(expected, own), compute_accuracy(logits, codes.flatten(1))
        )

    @torch.inference_mode()
    def generate(
        self,
        transformer: Transformer,
        codebook: Tensor,
        grid: tuple[int, int],
        request: GenerationRequest,
        watch: StepCallback | None = None,
    ) -> Painted:
        """Paints each prompt's expected latent; every seed gives the same picture."""
        memory = transformer.read_text(request.text_tokens)
        logits = _ask_everywhere(transformer, memory).float()
        if watch is not None:
            codes = logits.argmax(-1)[request.prompt_of]
            watch(GenerationStep(1, 1, codes, torch.ones_like(codes, dtype=torch.bool)))
        expected = (logits.softmax(-1) @ codebook).index_select(0, request.prompt_of)
        return Painted(expected.movedim(-1, 1).unflatten(-1, grid), None)


def _ask_everywhere(transformer: Transformer, memory: Memory) -> Tensor:
    """Asks all places at once from the text alone: (B, N, K)."""
    num_places = transformer.shape.num_places
    batch, device = len(memory.text_visible), memory.text_visible.device
    places = torch.arange(num_places, device=device).expand(batch, -1)
    return transformer.ask(memory, places, torch.zeros_like(places[0]))
