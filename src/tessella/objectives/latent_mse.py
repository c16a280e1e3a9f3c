"""`latent_mse`, the founding report's: one pass, an expected latent, squared error.

To learn: a distribution over the codes at each position, from the text alone → its expected
codebook vector → MSE against the image's quantized latent. To generate: the same expected latent,
decoded. The latent has no code at a position: where several codes are likely it is their mean. Of
several codes at a position each is expected given the likeliest ones before it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tessella.objectives.base import Generated, GenerationBatch, Objective, ObjectiveLoss, OnStep
from tessella.objectives.decoding import DecodingState
from tessella.objectives.parallel import predict_everywhere
from tessella.objectives.sampling import compute_accuracy
from tessella.tokenizer import look_up_codes
from tessella.transformer import Examples, flatten_codes


class LatentMSE(Objective):
    """Regresses the latent of the image from the text."""

    name = "latent_mse"
    is_guided = False
    has_likelihood = False
    can_edit = False
    has_steps = False
    reads_codes = False

    def forward(
        self, text: Tensor, codes: Tensor, examples: Examples | None = None
    ) -> ObjectiveLoss:
        """Squared distance between the expected latent and the image's own."""
        flat = flatten_codes(codes)
        hidden = predict_everywhere(self.transformer, text, examples)
        logits = self.transformer.compute_logits(hidden, flat)
        target = look_up_codes(self.codebook, codes).flatten(2).mT
        loss = functional.mse_loss(self._expect_latent(logits), target)
        return ObjectiveLoss(loss, compute_accuracy(logits, flat))

    @torch.inference_mode()
    def generate(self, batch: GenerationBatch, on_step: OnStep | None = None) -> Generated:
        """Generates each prompt's expected latent; every seed gives the same picture.

        There is nothing to guide or to sample; known positions have the latent of their codes.
        """
        state = DecodingState(self.transformer, batch, 1, on_step)
        hidden = predict_everywhere(self.transformer, batch.text, batch.examples)
        likeliest = self.transformer.choose_codes(hidden, lambda logits: logits.argmax(-1))
        state.fill(likeliest.index_select(0, batch.prompt_of))
        logits = self.transformer.compute_logits(hidden, likeliest)
        latent = self._expect_latent(logits).index_select(0, batch.prompt_of).mT
        known_latent = look_up_codes(self.codebook, state.codes.mT)
        latent = known_latent.where(batch.known[:, None], latent)
        return Generated(latent.unflatten(-1, self.transformer.shape.grid), codes=None)

    def _expect_latent(self, logits: Tensor) -> Tensor:
        """Averages the codebook (M, K, C) as logits (B, N, M, K) weigh it: (B, N, C), in fp32."""
        with torch.autocast(logits.device.type, enabled=False):
            return torch.einsum("bnmk,mkc->bnc", logits.float().softmax(-1), self.codebook)
