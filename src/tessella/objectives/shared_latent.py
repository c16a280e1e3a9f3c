"""`shared_latent`, the founding report's first plan: text and image meet in one latent space.

A text autoencoder (text → latent → text) beside the image tokenizer (image → latent → image). To
learn: MSE between the two latents plus the text's reconstruction; the image's reconstruction is
what the tokenizer learned in stage 1, and doesn't change. To generate: text → latent → the nearest
codes → the image decoder.
"""

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tessella.batch import average_over_batch
from tessella.config import Settings
from tessella.errors import ConfigError
from tessella.objectives.base import Generated, GenerationBatch, Objective, ObjectiveLoss, OnStep
from tessella.objectives.decoding import DecodingState
from tessella.tokenizer import look_up_codes
from tessella.transformer import (
    Examples,
    Layer,
    Transformer,
    TransformerSettings,
    TransformerShape,
    flatten_codes,
)


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
        self.text_decoder = nn.ModuleList(Layer(*size) for _ in range(half))
        self.text_norm = nn.LayerNorm(width, bias=False)
        self.text_out = nn.Linear(width, shape.vocabulary_size)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the matrices inside the layers, the text decoder's included."""
        decoder = [p for p in self.text_decoder.parameters() if p.ndim > 1]
        return [*super().hidden_matrices(), *decoder]

    def encode_latent(self, text: Tensor, examples: Examples | None = None) -> Tensor:
        """Encodes text tokens (B, T), and examples beside them, into a latent (B, N, C)."""
        cache = self.encode_context(text, examples)
        num_positions = self.shape.num_positions
        positions = torch.arange(num_positions, device=text.device).expand(len(text), -1)
        visible = torch.zeros(num_positions, dtype=torch.int64, device=text.device)
        latent: Tensor = self.latent_out(self.predict(cache, positions, visible))
        return latent

    def decode_text(self, latent: Tensor, text: Tensor) -> Tensor:
        """Predicts each next token of a text from a latent and the tokens before it.

        Args:
            latent: (B, N, C).
            text: (B, T) int64.

        Returns:
            (B, T - 1, V) logits of the tokens from the second on.
        """
        grid_positions = torch.arange(latent.shape[1], device=text.device)
        text_positions = torch.arange(text.shape[1] - 1, device=text.device)
        prefix = self.latent_in(latent) + self.position_embedding(grid_positions)  # (B, N, D)
        tokens = self.text_embedding(text[:, :-1]) + self.text_position(text_positions)
        hidden = torch.cat([prefix, tokens], dim=1)
        total, num_prefix = hidden.shape[1], latent.shape[1]
        order = torch.arange(total, device=text.device)
        # The latent sees itself; each token sees the latent and the tokens up to itself.
        mask = order[None, :] <= order[:, None].clamp(min=num_prefix - 1)
        for layer in cast("list[Layer]", list(self.text_decoder)):
            normed = layer.attention_norm(hidden)
            keys, values = layer.project_kv(normed)
            hidden = layer(hidden, normed, keys, values, mask[None, None])
        logits: Tensor = self.text_out(self.text_norm(hidden[:, num_prefix:]))
        return logits


class SharedLatent(Objective):
    """Brings the latents of text and image together."""

    name = "shared_latent"
    is_guided = False
    has_likelihood = False
    can_edit = False
    has_steps = False
    reads_codes = False
    settings: SharedLatentSettings
    default_settings = SharedLatentSettings()

    def __init__(
        self, transformer: Transformer, codebook: Tensor, settings: Settings | None = None
    ) -> None:
        """Checks the transformer.

        Raises:
            ConfigError: the transformer has no text decoder.
        """
        if not isinstance(transformer, SharedLatentTransformer):
            raise ConfigError(
                "`shared_latent` needs a transformer with a text decoder: "
                f"`{type(transformer).__name__}`. Create it with `create_transformer`."
            )
        super().__init__(transformer, codebook, settings)

    def list_unused(self) -> list[nn.Parameter]:
        """Lists what predicts codes, too: the latent takes its place."""
        parts = (self.transformer.code_embedding, self.transformer.out, self.transformer.next_code)
        others = {p: None for p in super().list_unused()}
        return list(others | {p: None for part in parts for p in part.parameters()})

    @property
    def _text_autoencoder(self) -> SharedLatentTransformer:
        return cast("SharedLatentTransformer", self.transformer)

    def forward(
        self, text: Tensor, codes: Tensor, examples: Examples | None = None
    ) -> ObjectiveLoss:
        """Squared distance of the latents plus the weighted cross-entropy of the text."""
        target = look_up_codes(self.codebook, codes).flatten(2).mT
        latent = self._text_autoencoder.encode_latent(text, examples)
        logits = self._text_autoencoder.decode_text(latent, text)
        pad_id = self.transformer.shape.pad_id
        total = functional.cross_entropy(
            logits.flatten(0, 1).float(),
            text[:, 1:].flatten(),
            ignore_index=pad_id,
            reduction="sum",
        )
        num_tokens = (text[:, 1:] != pad_id).sum().float()
        if self.training:  # texts are shared out by number, not by length
            average_over_batch(num_tokens)
        reconstruction = total / num_tokens
        distance = functional.mse_loss(latent.float(), target)
        nearest = self._find_nearest(latent.detach())
        accuracy = (nearest == flatten_codes(codes)).to(torch.float32).mean()
        return ObjectiveLoss(distance + self.settings.text_weight * reconstruction, accuracy)

    @torch.inference_mode()
    def generate(self, batch: GenerationBatch, on_step: OnStep | None = None) -> Generated:
        """Takes the codes nearest to each text's latent; every seed gives the same picture."""
        state = DecodingState(self.transformer, batch, 1, on_step)
        latent = self._text_autoencoder.encode_latent(batch.text, batch.examples)
        state.fill(self._find_nearest(latent).index_select(0, batch.prompt_of))
        return self.look_up(state.codes.mT)

    def _find_nearest(self, latent: Tensor) -> Tensor:
        """Finds the codes (B, N, M) whose vectors come nearest to each latent (B, N, C), in fp32.

        One codebook after the other, each for what is left over. Where each has channels of its
        own that is the nearest of all.
        """
        codes = []
        with torch.autocast(latent.device.type, enabled=False):
            rest = latent.float()
            for book in self.codebook:
                # |l - c|² without |l|², which is the same for every code.
                codes.append((book.square().sum(1) - 2 * rest @ book.T).argmin(-1))
                rest = rest - functional.embedding(codes[-1], book)
        return torch.stack(codes, -1)
