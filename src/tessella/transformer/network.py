"""text tokens + known codes → logits (B, Q, K) at the places that are asked.

The first half of the layers reads: text tokens look at text only, codes at the text and at the
codes before them. The second half asks: a learned vector plus the embedding of the asked place
looks at what the reading half made of text and codes. Asked places do not see each other, so any
number of them is asked at once; what was read stays in a `Memory` and is never read again.

Source: the two halves are ARPG's (arXiv:2503.10568).
"""

from dataclasses import dataclass
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tessella.config import Settings
from tessella.transformer.layers import Layer
from tessella.transformer.memory import Memory, build_mask

_EMBEDDING_STD = 0.1


class TransformerSettings(Settings):
    """The transformer's size."""

    width: int = Field(128, ge=16)
    """Model width (D)."""
    depth: int = Field(4, ge=2, multiple_of=2)
    """Layers; the first half reads text and codes, the second half answers."""
    heads: int = Field(4, ge=1)
    """Attention heads; they divide the width."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of each layer's update that is dropped in training."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerSettings":
        if self.width % self.heads:
            raise ValueError(
                f"`heads` must divide `width`: {self.heads} does not divide {self.width}"
            )
        return self


@dataclass(frozen=True)
class TransformerShape:
    """What the transformer must know of its surroundings."""

    vocabulary_size: int  # V, text tokens
    max_text_tokens: int  # longest text (T)
    pad_id: int  # the text token that means "nothing here"
    codebook_size: int  # K
    num_places: int  # N = h·w


class Transformer(nn.Module):
    """One transformer for every objective: read text, read codes, ask places."""

    def __init__(self, settings: TransformerSettings, shape: TransformerShape) -> None:
        """Creates an untrained transformer."""
        super().__init__()
        self.settings = settings
        self.shape = shape
        width = settings.width
        self.text_embedding = nn.Embedding(shape.vocabulary_size, width)
        self.text_position = nn.Embedding(shape.max_text_tokens, width)
        self.code_embedding = nn.Embedding(shape.codebook_size, width)
        self.place_embedding = nn.Embedding(shape.num_places, width)
        self.question = nn.Parameter(torch.zeros(width))
        half = settings.depth // 2
        size = (width, settings.heads, settings.dropout)
        self.reading = nn.ModuleList(Layer(*size) for _ in range(half))
        self.asking = nn.ModuleList(Layer(*size) for _ in range(half))
        self.memory_norm = nn.LayerNorm(width, bias=False)
        self.out_norm = nn.LayerNorm(width, bias=False)
        self.out = nn.Linear(width, shape.codebook_size)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_EMBEDDING_STD)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the matrices inside the layers: what Muon trains."""
        layers = [*self.reading, *self.asking]
        return [p for layer in layers for p in layer.parameters() if p.ndim > 1]

    def read_text(self, text_tokens: Tensor) -> Memory:
        """Reads text tokens (B, T), padded at the end; each looks at the whole text."""
        visible = text_tokens != self.shape.pad_id
        positions = torch.arange(text_tokens.shape[1], device=text_tokens.device)
        hidden = self.text_embedding(text_tokens) + self.text_position(positions)
        return self._read(hidden, Memory((), (), visible), visible[:, None, None, :])

    def read_codes(self, memory: Memory, codes: Tensor, places: Tensor) -> Memory:
        """Reads codes (B, M) at places (B, M); each looks at the text and the codes up to itself.

        Returns:
            The memory lengthened by them; the one given stays as it is.
        """
        hidden = self.code_embedding(codes) + self.place_embedding(places)
        total = memory.num_codes + codes.shape[1]
        visible = torch.arange(memory.num_codes + 1, total + 1, device=codes.device)
        longer = Memory(memory.keys, memory.values, memory.text_visible, total)
        return self._read(hidden, longer, build_mask(memory.text_visible, visible, total))

    def ask(self, memory: Memory, places: Tensor, num_visible_codes: Tensor) -> Tensor:
        """Asks which code belongs at each place.

        Args:
            memory: what was read.
            places: (B, Q) int64 in [0, N).
            num_visible_codes: (Q,) int64, how many of the codes read each question may see.

        Returns:
            (B, Q, K) logits.
        """
        hidden = self.question + self.place_embedding(places)
        mask = build_mask(memory.text_visible, num_visible_codes, memory.num_codes)
        half = len(self.reading)
        for layer, keys, values in zip(
            _layers(self.asking), memory.keys[half:], memory.values[half:], strict=True
        ):
            hidden = layer(hidden, layer.attention_norm(hidden), keys, values, mask)
        logits: Tensor = self.out(self.out_norm(hidden))
        return logits

    def _read(self, hidden: Tensor, past: Memory, mask: Tensor) -> Memory:
        """Sends rows (B, M, D) through the reading half; all that both halves need is kept."""
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def remember(layer: Layer, normed: Tensor) -> None:
            key, value = layer.remember(normed)
            if past.keys:
                index = len(keys)
                key = torch.cat([past.keys[index], key], dim=2)
                value = torch.cat([past.values[index], value], dim=2)
            keys.append(key)
            values.append(value)

        for layer in _layers(self.reading):
            normed = layer.attention_norm(hidden)
            remember(layer, normed)
            hidden = layer(hidden, normed, keys[-1], values[-1], mask)
        made = self.memory_norm(hidden)
        for layer in _layers(self.asking):
            remember(layer, made)
        return Memory(tuple(keys), tuple(values), past.text_visible, past.num_codes)


def _layers(modules: nn.ModuleList) -> list[Layer]:
    """Says to the type checker what a ModuleList holds."""
    return cast("list[Layer]", list(modules))
