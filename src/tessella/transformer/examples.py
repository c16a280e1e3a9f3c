"""Examples beside the prompt: the codes and captions of other pictures → rows to attend to.

Every layer attends to them as it does to the text, but they do not run through the layers
themselves: their keys and values are projected straight from the embeddings, once for all layers of
a half. For each layer anew they would cost a step half as much again (docs/log.md).

Examples are often the same thing drawn otherwise, in the same place. So what they show at a
position is also added to the embedding of that position, of codes and of queries: no attention over
positions has to be learned for it, and a code beside what the examples show there says how the
picture differs from them. Which example counts, prompt and captions say: of the same subject, the
one in the style that is nearest to the prompt's.

Source: retrieved neighbours as a prefix, arXiv:2204.11824 and arXiv:2209.14491.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.transformer.head import CodeEmbedding
from tessella.transformer.layers import Rotation, rotate

_RELEVANCE_WIDTH = 32
_RELEVANCE_SCALE = 3.0  # averaged embeddings are small: without it they are slow to tell apart


class Examples(NamedTuple):
    """The pictures that each picture of a batch looks at."""

    codes: Tensor  # (B, k, N, M) int64; -1 where there is no example
    text: Tensor  # (B, k, T) tokens or (B, k, T, F) features of their captions, padded

    @property
    def visible(self) -> Tensor:
        """(B, k) bool, False where there is no example."""
        return self.codes[..., 0, 0] >= 0

    def add_empty(self, count: int) -> "Examples":
        """Adds rows without examples at the end of the batch."""
        none = torch.full_like(self.codes[:1], -1).expand(count, -1, -1, -1)
        text = torch.zeros_like(self.text[:1]).expand(count, *self.text.shape[1:])
        return Examples(torch.cat([self.codes, none]), torch.cat([self.text, text]))


class ExampleEncoder(nn.Module):
    """Embeds examples: code, position and caption, mixed with the codes around.

    Args:
        code_embedding: of its own.
        grid: (h, w).
        width: D.
        heads: of the layers.
    """

    def __init__(
        self, code_embedding: CodeEmbedding, grid: tuple[int, int], width: int, heads: int
    ) -> None:
        super().__init__()
        self.grid, self.heads = grid, heads
        self.code_embedding = code_embedding
        self.caption = nn.Linear(width, width, bias=False)
        self.mix_in = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix_out = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width, bias=False)
        self.key_value = nn.Linear(width, 4 * width, bias=False)
        self.key_norms = nn.ModuleList(nn.LayerNorm(width // heads, bias=False) for _ in range(2))
        nn.init.zeros_(self.mix_out.weight)
        self.prompt_query = nn.Linear(width, _RELEVANCE_WIDTH, bias=False)
        self.caption_key = nn.Linear(width, _RELEVANCE_WIDTH, bias=False)
        self.relevance = nn.Linear(width, 1, bias=False)
        self.aligned = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.relevance.weight)
        nn.init.zeros_(self.aligned.weight)

    def forward(self, codes: Tensor, positions: Tensor, captions: Tensor) -> Tensor:
        """Embeds codes.

        Args:
            codes: (B, k, N, M) int64; what stands where there is no example is masked later.
            positions: (N, D) embeddings of the positions.
            captions: (B, k, D) embeddings of the captions.

        Returns:
            (B, k · N, D).
        """
        batch, count, num_positions, _ = codes.shape
        rows = self.code_embedding(codes.clamp(min=0)) + positions
        rows = rows + self.caption(captions)[:, :, None]
        grids = rows.flatten(0, 1).transpose(1, 2).unflatten(2, self.grid)  # (B · k, D, h, w)
        mixed = functional.relu(self.mix_in(grids)).square().flatten(2).transpose(1, 2)
        rows = rows + self.mix_out(mixed).view_as(rows)
        normed: Tensor = self.norm(rows)
        return normed.view(batch, count * num_positions, -1)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the matrices that Muon trains."""
        linear = [self.caption, self.mix_out, self.key_value]
        linear += [self.prompt_query, self.caption_key, self.aligned]
        return [parameter for one in linear for parameter in one.parameters()]

    def align(self, normed: Tensor, captions: Tensor, prompt: Tensor, visible: Tensor) -> Tensor:
        """Adds up what the examples show at each position, the more relevant of them the most.

        Args:
            normed: (B, k · N, D), as `forward` returns them.
            captions: (B, k, D) embeddings of the captions.
            prompt: (B, D) embedding of the prompt.
            visible: (B, k) bool, False where there is no example.

        Returns:
            (B, N, D), zero where a picture has no example.
        """
        rows = normed.unflatten(1, (visible.shape[1], -1))  # (B, k, N, D)
        said = (self.caption_key(captions) * self.prompt_query(prompt)[:, None]).sum(-1)
        relevance = self.relevance(rows)[..., 0] + _RELEVANCE_SCALE * said[:, :, None]
        hidden = ~visible[:, :, None]
        weights = relevance.masked_fill(hidden, torch.finfo(relevance.dtype).min).softmax(1)
        weights = weights.masked_fill(hidden, 0)[..., None]  # (B, k, N, 1)
        aligned: Tensor = self.aligned((rows * weights).sum(1))
        return aligned

    def project_kv(self, normed: Tensor, rotation: Rotation) -> list[tuple[Tensor, Tensor]]:
        """Projects keys and values (B, heads, k · N, D / heads) for the two halves of the layers.

        Args:
            normed: (B, k · N, D), as `forward` returns them.
            rotation: of the rows' positions.
        """
        split = self.key_value(normed).unflatten(-1, (2, 2, self.heads, -1))
        halves = split.permute(2, 3, 0, 4, 1, 5)  # (2, 2, B, heads, k · N, D / heads)
        return [
            (rotate(norm(keys), rotation), values)
            for norm, (keys, values) in zip(self.key_norms, halves, strict=True)
        ]


def average_tokens(embedded: Tensor, visible: Tensor) -> Tensor:
    """Averages token embeddings (..., T, D) where they are visible (..., T): (..., D)."""
    weights = visible.to(embedded.dtype)[..., None]
    return (embedded * weights).sum(-2) / weights.sum(-2).clamp(min=1)
