"""`latent_mse`, the founding report's: one pass, an expected latent, squared error.

To learn: a distribution over the codes at each position, from the text alone → its expected
codebook vector → MSE against the image's quantized latent. To generate: the same expected latent,
decoded. The latent has no code at a position: where several codes are likely it is their mean.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tessella.objectives.base import Generated, GenerationBatch, Objective, ObjectiveLoss, OnStep
from tessella.objectives.decoding import DecodingState
from tessella.objectives.parallel import predict_everywhere
from tessella.objectives.sampling import compute_accuracy
from tessella.transformer import Examples


class LatentMSE(Objective):
    """Regresses the latent of the image from the text."""

    name = "latent_mse"
    is_guided = False
    has_likelihood = False
    can_edit = False
    has_steps = False

    def forward(
        self, text: Tensor, codes: Tensor, examples: Examples | None = None
    ) -> ObjectiveLoss:
        """Squared distance between the expected latent and the image's own."""
        flat = codes.flatten(1)
        logits = predict_everywhere(self.transformer, text, examples)
        target = functional.embedding(flat, self.codebook)
        loss = functional.mse_loss(self._expect_latent(logits), target)
        return ObjectiveLoss(loss, compute_accuracy(logits, flat))

    @torch.inference_mode()
    def generate(self, batch: GenerationBatch, on_step: OnStep | None = None) -> Generated:
        """Generates each prompt's expected latent; every seed gives the same picture.

        There is nothing to guide or to sample; known positions have the latent of their codes.
        """
        state = DecodingState(self.transformer, batch, 1, on_step)
        logits = predict_everywhere(self.transformer, batch.text, batch.examples)
        state.fill(logits.argmax(-1).index_select(0, batch.prompt_of))
        latent = self._expect_latent(logits).index_select(0, batch.prompt_of)
        known_latent = functional.embedding(state.codes, self.codebook)
        latent = known_latent.where(batch.known[..., None], latent).movedim(-1, 1)
        return Generated(latent.unflatten(-1, self.transformer.shape.grid), codes=None)

    def _expect_latent(self, logits: Tensor) -> Tensor:
        """Averages the codebook (K, C) as logits (B, N, K) weigh it: (B, N, C), in fp32."""
        with torch.autocast(logits.device.type, enabled=False):
            return logits.float().softmax(-1) @ self.codebook
