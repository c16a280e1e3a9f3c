"""`shared_latent`, the founding report's first plan: text and image meet in one latent space.

A text autoencoder (text → latent → text) beside the image tokenizer (image → latent → image). To
learn: MSE between the two latents plus the text's reconstruction; the image's reconstruction is
what the tokenizer learned in stage 1, and it stays as it is. To generate: text → latent → the
nearest codes → the image decoder.
"""

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tessella.config import Settings
from tessella.errors import ConfigError
from tessella.objectives.base import (
    GenerationRequest,
    GenerationStep,
    Objective,
    ObjectiveLoss,
    Painted,
    StepCallback,
    to_painted,
)
from tessella.transformer import Layer, Transformer, TransformerSettings, TransformerShape


class SharedLatentSettings(Settings):
    """Settings of the `shared_latent` objective."""

    name: Literal["shared_latent"] = "shared_latent"
    """The objective's name."""
    text_weight: float = Field(0.1, ge=0.0, allow_inf_nan=False)
    """Weight of the text's reconstruction beside the distance of the latents."""


class SharedLatentTransformer(Transformer):
    """The transformer as a text encoder into the image's latent space, and a text decoder."""

    def __init__(self, settings: TransformerSettings, shape: TransformerShape) -> None:
        """Creates an untrained pair.

        Raises:
            ConfigError: the text comes as features of a frozen encoder, which cannot be decoded.
        """
        if shape.text_features is not None:
            raise ConfigError(
                "`shared_latent` reconstructs text tokens, which a frozen text encoder does not "
                "give: leave text.encoder out."
            )
        super().__init__(settings, shape)
        width = settings.width
        self.latent_out = nn.Linear(width, shape.code_width)
        self.latent_in = nn.Linear(shape.code_width, width)
        half = settings.depth // 2
        size = (width, settings.heads, settings.dropout)
        self.writing = nn.ModuleList(Layer(*size) for _ in range(half))
        self.text_norm = nn.LayerNorm(width, bias=False)
        self.text_out = nn.Linear(width, shape.vocabulary_size)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the matrices inside the layers, those of the text decoder too."""
        mine = [p for p in self.writing.parameters() if p.ndim > 1]
        return [*super().hidden_matrices(), *mine]

    def encode_text(self, text: Tensor) -> Tensor:
        """Encodes text tokens (B, T) into a latent (B, N, C)."""
        memory = self.read_text(text)
        places = torch.arange(self.shape.num_places, device=text.device).expand(len(text), -1)
        visible = torch.zeros(places.shape[1], dtype=torch.int64, device=text.device)
        latent: Tensor = self.latent_out(self.answer(memory, places, visible))
        return latent

    def decode_text(self, latent: Tensor, text: Tensor) -> Tensor:
        """Predicts each next token of a text from a latent and the tokens before it.

        Args:
            latent: (B, N, C).
            text: (B, T) int64.

        Returns:
            (B, T - 1, V) logits of the tokens from the second on.
        """
        places = torch.arange(latent.shape[1], device=text.device)
        positions = torch.arange(text.shape[1] - 1, device=text.device)
        seen = self.latent_in(latent) + self.place_embedding(places)  # (B, N, D)
        tokens = self.text_embedding(text[:, :-1]) + self.text_position(positions)
        hidden = torch.cat([seen, tokens], dim=1)
        total, first = hidden.shape[1], latent.shape[1]
        order = torch.arange(total, device=text.device)
        # The latent sees itself, each token the latent and the tokens up to itself.
        mask = order[None, :] <= order[:, None].clamp(min=first - 1)
        for layer in cast("list[Layer]", list(self.writing)):
            normed = layer.attention_norm(hidden)
            keys, values = layer.remember(normed)
            hidden = layer(hidden, normed, keys, values, mask[None, None])
        logits: Tensor = self.text_out(self.text_norm(hidden[:, first:]))
        return logits


class SharedLatent(Objective):
    """Brings the latents of text and image together."""

    name = "shared_latent"
    is_guided = False
    has_likelihood = False
    lays_codes = False
    has_steps = False

    def __init__(self, settings: SharedLatentSettings | None = None) -> None:
        """Takes the weight of the text's reconstruction."""
        self.settings = settings or SharedLatentSettings()

    def compute_loss(
        self, transformer: Transformer, codebook: Tensor, text: Tensor, codes: Tensor
    ) -> ObjectiveLoss:
        """Squared distance of the latents plus the weighted cross-entropy of the text."""
        network = _with_text_decoder(transformer)
        own = functional.embedding(codes.flatten(1), codebook)
        latent = network.encode_text(text)
        words = network.decode_text(latent, text)
        reconstruction = functional.cross_entropy(
            words.flatten(0, 1).float(),
            text[:, 1:].flatten(),
            ignore_index=transformer.shape.pad_id,
        )
        loss = functional.mse_loss(latent.float(), own) + self.settings.text_weight * reconstruction
        nearest = _find_nearest(latent.detach(), codebook)
        accuracy = (nearest == codes.flatten(1)).to(torch.float32).mean()
        return ObjectiveLoss(loss, accuracy)

    @torch.inference_mode()
    def generate(
        self,
        transformer: Transformer,
        codebook: Tensor,
        grid: tuple[int, int],
        request: GenerationRequest,
        watch: StepCallback | None = None,
    ) -> Painted:
        """Paints the codes nearest to each text's latent; every seed gives the same picture."""
        latent = _with_text_decoder(transformer).encode_text(request.text)
        codes = _find_nearest(latent, codebook).index_select(0, request.prompt_of)
        if request.known is not None and request.known_codes is not None:
            codes = request.known_codes.where(request.known, codes)
        if watch is not None:
            watch(GenerationStep(1, 1, codes, torch.ones_like(codes, dtype=torch.bool)))
        return to_painted(codes, codebook, grid)


def _with_text_decoder(transformer: Transformer) -> SharedLatentTransformer:
    if not isinstance(transformer, SharedLatentTransformer):
        raise ConfigError(
            "`shared_latent` needs a transformer with a text decoder: "
            f"`{type(transformer).__name__}`. Create it by `create_transformer`."
        )
    return transformer


def _find_nearest(latent: Tensor, codebook: Tensor) -> Tensor:
    """Finds the code (B, N) whose vector is nearest to each latent (B, N, C), in fp32."""
    # |l - c|² without |l|², which is the same for every code.
    with torch.autocast(latent.device.type, enabled=False):
        return (codebook.square().sum(1) - 2 * latent.float() @ codebook.T).argmin(-1)
