"""text tokens + examples + known codes → logits (B, Q, M, K) at the queried positions.

The first half of the layers is the self-decoder: text tokens attend to text, codes to the context
(text and examples) and to the codes before them. The second half is the cross-decoder: a mask token
plus the embedding of the queried position attends to the keys and values that the first half made
of context and codes. Queried positions do not see each other, so any number is predicted at once;
encoded rows stay in a `KVCache` and are never encoded again. `predict_masked` uses the same layers
for one pass in which all positions see each other. Of a position with several codes, each is
predicted from the ones before it as well (`head.py`).

Source: the two halves are ARPG's (arXiv:2503.10568).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tessella.config import Settings
from tessella.errors import ShapeError
from tessella.transformer.examples import ExampleEncoder, Examples, average_tokens
from tessella.transformer.head import CodeEmbedding, NextCode
from tessella.transformer.kv_cache import KVCache, build_mask
from tessella.transformer.layers import Layer, Rotation, compute_rotations

_EMBEDDING_STD = 0.1


class TransformerSettings(Settings):
    """The transformer's size."""

    width: int = Field(128, ge=16)
    """Model width (D)."""
    depth: int = Field(4, ge=2, multiple_of=2)
    """Layers; the first half encodes text and codes, the second half predicts."""
    heads: int = Field(4, ge=1)
    """Attention heads; they divide the width."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0, allow_inf_nan=False)
    """Fraction of each layer's update that is dropped in training."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerSettings":
        if self.width % self.heads:
            raise ValueError(
                f"`heads` must divide `width`: {self.heads} does not divide {self.width}"
            )
        if self.width // self.heads % 4:
            raise ValueError(
                "`width` over `heads` must be a multiple of 4, for the positions along two axes: "
                f"{self.width} / {self.heads} is {self.width // self.heads}"
            )
        return self


@dataclass(frozen=True)
class TransformerShape:
    """What the transformer must fit: the texts, the codebook and the grid."""

    vocabulary_size: int  # V, text tokens
    max_text_tokens: int  # longest text (T)
    pad_id: int  # the text token that means "nothing here"
    codebook_size: int  # K, of each codebook
    grid: tuple[int, int]  # (h, w)
    code_width: int  # C, of the latent
    text_features: int | None = None  # F, width of a frozen text encoder's features; None: tokens
    max_examples: int = 0  # the most examples beside a prompt (k)
    codes_per_position: int = 1  # M

    @property
    def num_positions(self) -> int:
        """Positions of a picture, N = h·w."""
        return self.grid[0] * self.grid[1]


class Transformer(nn.Module):
    """One transformer for every objective: encodes text and codes, predicts positions."""

    rotation_cosine: Tensor
    rotation_sine: Tensor

    def __init__(self, settings: TransformerSettings, shape: TransformerShape) -> None:
        """Creates an untrained transformer."""
        super().__init__()
        self.settings = settings
        self.shape = shape
        width = settings.width
        self.text_embedding: nn.Module
        if shape.text_features is None:
            self.text_embedding = nn.Embedding(shape.vocabulary_size, width)
        else:
            self.text_embedding = nn.Linear(shape.text_features, width)
        self.text_position = nn.Embedding(shape.max_text_tokens, width)
        self.code_embedding = CodeEmbedding(shape.codebook_size, shape.codes_per_position, width)
        self.position_embedding = nn.Embedding(shape.num_positions, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        half = settings.depth // 2
        size = (width, settings.heads, settings.dropout)
        self.self_decoder = nn.ModuleList(Layer(*size) for _ in range(half))
        self.cross_decoder = nn.ModuleList(Layer(*size) for _ in range(half))
        self.kv_norm = nn.LayerNorm(width, bias=False)
        self.out_norm = nn.LayerNorm(width, bias=False)
        self.out = nn.Linear(width, shape.codes_per_position * shape.codebook_size)
        cosine, sine = compute_rotations(shape.grid, width // settings.heads)
        self.register_buffer("rotation_cosine", cosine, persistent=False)
        self.register_buffer("rotation_sine", sine, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_EMBEDDING_STD)
        self.next_code = nn.ModuleList(NextCode(width) for _ in range(shape.codes_per_position - 1))
        self.example_encoder: ExampleEncoder | None = None
        if shape.max_examples:  # last: without it the others begin with the same weights
            embedding = CodeEmbedding(shape.codebook_size, shape.codes_per_position, width)
            self.example_encoder = ExampleEncoder(embedding, shape.grid, *size[:2])
            nn.init.normal_(self.example_encoder.code_embedding.weight, std=_EMBEDDING_STD)

    @torch.no_grad()
    def embed_codebook(self, codebook: Tensor) -> None:
        """Starts the embeddings of the codes, and their logits, as projections of the codebook.

        Similar codes then begin alike, and what is learned of one holds for the others until they
        are told apart: docs/log.md compares.

        Args:
            codebook: (M, K, C), of any scale.
        """
        spread = codebook.std(1, keepdim=True)
        # A group of channels that another codebook is for says nothing.
        vectors = (codebook - codebook.mean(1, keepdim=True)) / spread.clamp(min=1e-6)
        num_channels = (spread > 0).sum(-1, keepdim=True).clamp(min=1)
        weights = [self.code_embedding.weight, self.out.weight]
        if self.example_encoder is not None:
            weights.append(self.example_encoder.code_embedding.weight)
        for weight in weights:
            projection = torch.randn(len(codebook), codebook.shape[2], weight.shape[1])
            projected = vectors @ projection / num_channels**0.5
            weight.copy_(projected.flatten(0, 1) * weight.std())

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the matrices inside the layers: what Muon trains."""
        layers = [*self.self_decoder, *self.cross_decoder]
        layers += list(self.next_code)
        matrices = [p for layer in layers for p in layer.parameters() if p.ndim > 1]
        if self.example_encoder is not None:
            matrices += self.example_encoder.hidden_matrices()
        return matrices

    def set_recompute(self, recompute: bool) -> None:
        """Switches activation checkpointing in training on or off."""
        for layer in (*_layers(self.self_decoder), *_layers(self.cross_decoder)):
            layer.recompute = recompute

    def encode_context(self, text: Tensor, examples: Examples | None = None) -> KVCache:
        """Encodes texts, each token attending to the whole of its own, and the examples beside.

        Args:
            text: (B, T) int64 tokens padded at the end, or (B, T, F) features of a frozen encoder
                whose padding is zero.
            examples: what each picture looks at, at most `shape.max_examples`; None is nothing.

        Raises:
            ShapeError: there are more examples than the transformer was made for.
        """
        visible = self._find_visible(text)
        positions = torch.arange(text.shape[1], device=text.device)
        embedded = self.text_embedding(text)
        cache = KVCache(visible)
        hidden = embedded + self.text_position(positions)
        self._append(cache, hidden, visible[:, None, None, :], None)
        if examples is not None and examples.codes.shape[1]:
            self._append_examples(cache, examples, average_tokens(embedded, visible))
        return cache

    def append_codes(self, cache: KVCache, codes: Tensor, positions: Tensor) -> None:
        """Encodes codes (B, S, M) at positions (B, S) and appends them to the cache.

        Each position sees the context, the codes in the cache and the new ones up to itself.
        """
        if not codes.shape[1]:  # a picture of one position, in training
            return
        hidden = self.code_embedding(codes) + self._embed_positions(cache, positions)
        total = cache.num_codes + codes.shape[1]
        visible = torch.arange(cache.num_codes + 1, total + 1, device=codes.device)
        mask = build_mask(cache.context_visible, visible, total)
        self._append(cache, hidden, mask, self._look_up_rotations(positions))

    def predict(self, cache: KVCache, positions: Tensor, num_visible_codes: Tensor) -> Tensor:
        """Predicts positions, as hidden rows: `compute_logits` or `choose_codes` read them.

        Args:
            cache: context and codes.
            positions: (B, Q) int64 in [0, N).
            num_visible_codes: (Q,) int64, how many of the cache's positions each query may see.

        Returns:
            (B, Q, D), normalised.
        """
        hidden = self.mask_token + self._embed_positions(cache, positions)
        mask = build_mask(cache.context_visible, num_visible_codes, cache.num_codes)
        rotation, length = self._look_up_rotations(positions), cache.length
        for index, layer in enumerate(_layers(self.cross_decoder), start=len(self.self_decoder)):
            keys, values = cache.keys[index][:, :, :length], cache.values[index][:, :, :length]
            hidden = layer(hidden, layer.attention_norm(hidden), keys, values, mask, rotation)
        normalised: Tensor = self.out_norm(hidden)
        return normalised

    def predict_masked(self, cache: KVCache, codes: Tensor, known: Tensor) -> Tensor:
        """Predicts all positions at once, each seeing the context and all positions.

        Args:
            cache: of the context alone.
            codes: (B, N, M) int64, read where `known`.
            known: (B, N) bool; the other positions hold the mask token.

        Returns:
            (B, N, D) hidden rows of every position, known or not, as `predict` returns them.
        """
        positions = torch.arange(codes.shape[1], device=codes.device).expand_as(known)
        embedded = self.code_embedding(codes).where(known[..., None], self.mask_token)
        hidden = embedded + self._embed_positions(cache, positions)
        rotation = self._look_up_rotations(positions)
        everything = torch.full_like(positions[0], codes.shape[1])
        mask = build_mask(cache.context_visible, everything, codes.shape[1])
        layers = [*_layers(self.self_decoder), *_layers(self.cross_decoder)]
        for layer, past_keys, past_values in zip(layers, cache.keys, cache.values, strict=True):
            normed = layer.attention_norm(hidden)
            keys, values = layer.project_kv(normed, rotation)
            keys = torch.cat([past_keys, keys], dim=2)
            values = torch.cat([past_values, values], dim=2)
            hidden = layer(hidden, normed, keys, values, mask, rotation)
        normalised: Tensor = self.out_norm(hidden)
        return normalised

    def compute_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Computes the logits of each code of a position, given the ones before it.

        Args:
            hidden: (B, Q, D), of `predict`.
            codes: (B, Q, M) int64, the right ones; of the last nothing is read.

        Returns:
            (B, Q, M, K).
        """
        before = iter(codes.unbind(-1))
        return torch.stack(self._run_head(hidden, lambda _: next(before)), 2)

    def choose_codes(self, hidden: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Chooses the codes of positions, one after the other.

        Args:
            hidden: (R, Q, D), of `predict`.
            choose: gets the logits (R, Q, K) of each code; returns (B, Q), of which R is a
                multiple: guidance's branches share their codes.

        Returns:
            (B, Q, M).
        """
        chosen: list[Tensor] = []

        def remember(logits: Tensor) -> Tensor:
            chosen.append(choose(logits))
            return torch.cat([chosen[-1]] * (len(hidden) // len(chosen[-1])))

        self._run_head(hidden, remember)
        return torch.stack(chosen, 2)

    def _run_head(self, hidden: Tensor, choose: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Computes the logits (R, Q, K) of M codes, each after the one before was chosen."""
        each = []
        size = self.shape.codebook_size
        weights, biases = self.out.weight.split(size), self.out.bias.split(size)
        for m, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            each.append(functional.linear(hidden, weight, bias))
            codes = choose(each[-1])
            if m < len(self.next_code):
                hidden = self.next_code[m](hidden, self.code_embedding.embed_one(codes, m))
        return each

    def _append_examples(self, cache: KVCache, examples: Examples, prompt: Tensor) -> None:
        """Caches what examples show, and their keys and values behind the text's in every layer.

        Args:
            cache: of the text alone.
            examples: at least one a picture, or a place for it.
            prompt: (B, D) the text's average embedding.
        """
        _, count, num_positions, _ = examples.codes.shape
        if count > self.shape.max_examples or self.example_encoder is None:
            raise ShapeError(
                f"The transformer looks at {self.shape.max_examples} examples at most: `{count}`."
            )
        embedded = self.text_embedding(examples.text)
        captions = average_tokens(embedded, self._find_visible(examples.text))
        normed = self.example_encoder(examples.codes, self.position_embedding.weight, captions)
        positions = torch.arange(num_positions, device=normed.device).repeat(count)
        rotation = self._look_up_rotations(positions[None])
        cache.aligned = self.example_encoder.align(normed, captions, prompt, examples.visible)
        halves = self.example_encoder.project_kv(normed, rotation)
        for index in range(self.settings.depth):
            cache.insert(index, *halves[index >= len(self.self_decoder)])
        cache.length += normed.shape[1]
        visible = examples.visible[:, :, None].expand(-1, -1, num_positions)
        cache.context_visible = torch.cat([cache.context_visible, visible.flatten(1)], 1)

    def _find_visible(self, text: Tensor) -> Tensor:
        """Finds where texts (..., T) or (..., T, F) are not padding: (..., T) bool."""
        return (
            text != self.shape.pad_id if self.shape.text_features is None else (text != 0).any(-1)
        )

    def _append(
        self, cache: KVCache, hidden: Tensor, mask: Tensor, rotation: Rotation | None
    ) -> None:
        """Sends rows (B, S, D) through the self-decoder and caches every layer's keys and values.

        Args:
            cache: lengthened by S.
            hidden: the rows.
            mask: (B, 1, S, S') bool.
            rotation: of the rows' positions.
        """
        num_rows = hidden.shape[1]
        for index, layer in enumerate(_layers(self.self_decoder)):
            normed = layer.attention_norm(hidden)
            keys, values = cache.insert(index, *layer.project_kv(normed, rotation))
            hidden = layer(hidden, normed, keys, values, mask, rotation)
        normed = self.kv_norm(hidden)
        for index, layer in enumerate(_layers(self.cross_decoder), start=len(self.self_decoder)):
            cache.insert(index, *layer.project_kv(normed, rotation))
        cache.length += num_rows

    def _embed_positions(self, cache: KVCache, positions: Tensor) -> Tensor:
        """Embeds positions (B, S), with what the examples show there: (B, S, D)."""
        embedded: Tensor = self.position_embedding(positions)
        if cache.aligned is None:
            return embedded
        index = positions[..., None].expand(-1, -1, embedded.shape[-1])
        return embedded + cache.aligned.gather(1, index)

    def _look_up_rotations(self, positions: Tensor) -> Rotation:
        """Looks up the rotations (B, 1, S, D / heads / 2) of positions (B, S)."""
        return self.rotation_cosine[positions][:, None], self.rotation_sine[positions][:, None]


def _layers(modules: nn.ModuleList) -> list[Layer]:
    """Tells the type checker what a ModuleList holds."""
    return cast("list[Layer]", list(modules))
