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
from tessella.objectives.parallel import ask_everywhere
from tessella.transformer import Transformer


class LatentMSESettings(Settings):
    """Settings of the `latent_mse` objective."""

    name: Literal["latent_mse"] = "latent_mse"
    """The objective's name."""


class LatentMSE(Objective):
    """Regresses the latent of the image from the text."""

    name = "latent_mse"
    is_guided = False
    has_likelihood = False
    lays_codes = False
    has_steps = False

    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Squared distance between the expected latent and the image's own."""
        logits = ask_everywhere(transformer, text)
        expected = _expect_latent(logits, codebook)
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
        """Paints each prompt's expected latent; every seed gives the same picture.

        There is nothing to guide or to sample; known places have the latent of their codes.
        """
        logits = ask_everywhere(transformer, request.text)
        codes = logits.argmax(-1).index_select(0, request.prompt_of)
        latent = _expect_latent(logits, codebook).index_select(0, request.prompt_of)
        if request.known is not None and request.known_codes is not None:
            codes = request.known_codes.where(request.known, codes)
            latent = functional.embedding(codes, codebook).where(request.known[..., None], latent)
        if watch is not None:
            watch(GenerationStep(1, 1, codes, torch.ones_like(codes, dtype=torch.bool)))
        return Painted(latent.movedim(-1, 1).unflatten(-1, grid), None)


def _expect_latent(logits: Tensor, codebook: Tensor) -> Tensor:
    """Averages the codebook (K, C) as logits (B, N, K) weigh it: (B, N, C), in fp32."""
    with torch.autocast(logits.device.type, enabled=False):
        return logits.float().softmax(-1) @ codebook
