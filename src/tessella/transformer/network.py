"""text tokens + known codes → logits (B, Q, K) at the places that are asked.

The first half of the layers reads: text tokens look at text only, codes at the text and at the
codes before them. The second half asks: a learned vector plus the embedding of the asked place
looks at what the reading half made of text and codes. Asked places do not see each other, so any
number of them is asked at once; what was read stays in a `Memory` and is never read again.
`fill` uses the same layers for one pass in which all places see each other.

Source: the two halves are ARPG's (arXiv:2503.10568).
"""

from dataclasses import dataclass
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tessella.config import Settings
from tessella.transformer.layers import Layer, Rotation, compute_rotations
from tessella.transformer.memory import Memory, append_rows, build_mask

_EMBEDDING_STD = 0.1


class TransformerSettings(Settings):
    """The transformer's size."""

    width: int = Field(128, ge=16)
    """Model width (D)."""
    depth: int = Field(4, ge=2, multiple_of=2)
    """Layers; the first half reads text and codes, the second half answers."""
    heads: int = Field(4, ge=1)
    """Attention heads; they divide the width."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0, allow_inf_nan=False)
    """Share of each layer's update that is dropped in training."""

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
    """What the transformer must know of its surroundings."""

    vocabulary_size: int  # V, text tokens
    max_text_tokens: int  # longest text (T)
    pad_id: int  # the text token that means "nothing here"
    codebook_size: int  # K
    grid: tuple[int, int]  # (h, w)
    code_width: int  # C
    text_features: int | None = None  # F, width of a frozen text encoder's features; None: tokens

    @property
    def num_places(self) -> int:
        """Places of a picture, N = h·w."""
        return self.grid[0] * self.grid[1]


class Transformer(nn.Module):
    """One transformer for every objective: read text, read codes, ask places, fill a picture."""

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
        cosine, sine = compute_rotations(shape.grid, width // settings.heads)
        self.register_buffer("rotation_cosine", cosine, persistent=False)
        self.register_buffer("rotation_sine", sine, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_EMBEDDING_STD)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the matrices inside the layers: what Muon trains."""
        layers = [*self.reading, *self.asking]
        return [p for layer in layers for p in layer.parameters() if p.ndim > 1]

    def read_text(self, text: Tensor) -> Memory:
        """Reads texts, each of which looks at the whole of itself.

        Args:
            text: (B, T) int64 tokens padded at the end, or (B, T, F) features of a frozen encoder
                whose padding is zero.
        """
        is_tokens = self.shape.text_features is None
        visible = text != self.shape.pad_id if is_tokens else (text != 0).any(-1)
        positions = torch.arange(text.shape[1], device=text.device)
        hidden = self.text_embedding(text) + self.text_position(positions)
        return self._read(hidden, Memory((), (), visible), visible[:, None, None, :], None)

    def read_codes(self, memory: Memory, codes: Tensor, places: Tensor) -> Memory:
        """Reads codes (B, M) at places (B, M); each looks at the text and the codes up to itself.

        Returns:
            The memory lengthened by them. The one given stays as it is, but for the room that it
            may have.
        """
        if not codes.shape[1]:  # a picture of one place, in training
            return memory
        hidden = self.code_embedding(codes) + self.place_embedding(places)
        total = memory.num_codes + codes.shape[1]
        visible = torch.arange(memory.num_codes + 1, total + 1, device=codes.device)
        longer = Memory(memory.keys, memory.values, memory.text_visible, total)
        mask = build_mask(memory.text_visible, visible, total)
        return self._read(hidden, longer, mask, self._rotate(places))

    def ask(self, memory: Memory, places: Tensor, num_visible_codes: Tensor) -> Tensor:
        """Asks which code belongs at each place.

        Args:
            memory: what was read.
            places: (B, Q) int64 in [0, N).
            num_visible_codes: (Q,) int64, how many of the codes read each question may see.

        Returns:
            (B, Q, K) logits.
        """
        logits: Tensor = self.out(self.answer(memory, places, num_visible_codes))
        return logits

    def answer(self, memory: Memory, places: Tensor, num_visible_codes: Tensor) -> Tensor:
        """Asks as `ask` does; returns what the logits are made of, (B, Q, D) normalised."""
        hidden = self.question + self.place_embedding(places)
        mask = build_mask(memory.text_visible, num_visible_codes, memory.num_codes)
        rotation, seen = self._rotate(places), memory.length
        half = len(self.reading)
        for layer, keys, values in zip(
            _layers(self.asking), memory.keys[half:], memory.values[half:], strict=True
        ):
            normed = layer.attention_norm(hidden)
            hidden = layer(hidden, normed, keys[:, :, :seen], values[:, :, :seen], mask, rotation)
        answered: Tensor = self.out_norm(hidden)
        return answered

    def fill(self, memory: Memory, codes: Tensor, known: Tensor) -> Tensor:
        """Predicts all places at once, each seeing the text and all places.

        Args:
            memory: of the text alone.
            codes: (B, N) int64, looked at where `known`.
            known: (B, N) bool; the other places show that they are unknown.

        Returns:
            (B, N, K) logits of every place, known or not.
        """
        places = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
        shown = self.code_embedding(codes).where(known[..., None], self.question)
        hidden = shown + self.place_embedding(places)
        rotation = self._rotate(places)
        everyone = torch.full_like(places[0], codes.shape[1])
        mask = build_mask(memory.text_visible, everyone, codes.shape[1])
        layers = [*_layers(self.reading), *_layers(self.asking)]
        for layer, text_keys, text_values in zip(layers, memory.keys, memory.values, strict=True):
            normed = layer.attention_norm(hidden)
            keys, values = layer.remember(normed, rotation)
            keys = torch.cat([text_keys, keys], dim=2)
            values = torch.cat([text_values, values], dim=2)
            hidden = layer(hidden, normed, keys, values, mask, rotation)
        logits: Tensor = self.out(self.out_norm(hidden))
        return logits

    def _read(
        self, hidden: Tensor, longer: Memory, mask: Tensor, rotation: Rotation | None
    ) -> Memory:
        """Sends rows (B, M, D) through the reading half; all that both halves need is kept.

        Args:
            hidden: the rows.
            longer: what was read before, already counting them.
            mask: (B, 1, M, S) bool.
            rotation: of the rows' places.
        """
        keys: list[Tensor] = []
        values: list[Tensor] = []
        total = longer.length
        before = total - hidden.shape[1]

        def remember(layer: Layer, normed: Tensor) -> None:
            key, value = layer.remember(normed, rotation)
            if longer.keys:
                index = len(keys)
                key = append_rows(longer.keys[index], before, key)
                value = append_rows(longer.values[index], before, value)
            keys.append(key)
            values.append(value)

        for layer in _layers(self.reading):
            normed = layer.attention_norm(hidden)
            remember(layer, normed)
            seen_keys, seen_values = keys[-1][:, :, :total], values[-1][:, :, :total]
            hidden = layer(hidden, normed, seen_keys, seen_values, mask, rotation)
        made = self.memory_norm(hidden)
        for layer in _layers(self.asking):
            remember(layer, made)
        return Memory(tuple(keys), tuple(values), longer.text_visible, longer.num_codes)

    def _rotate(self, places: Tensor) -> Rotation:
        """Looks up the rotations (B, 1, M, D / heads / 2) of places (B, M)."""
        return self.rotation_cosine[places][:, None], self.rotation_sine[places][:, None]


def _layers(modules: nn.ModuleList) -> list[Layer]:
    """Says to the type checker what a ModuleList holds."""
    return cast("list[Layer]", list(modules))
