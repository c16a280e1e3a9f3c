"""The transformer's layer: attention over given keys and values, then an MLP."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (B, 1, S, D / heads / 2), the angles by which a row's pairs are turned."""


class Layer(nn.Module):
    """Attention and MLP, each normalised before and added to its input.

    Keys and values are projected apart (`project_kv`), so that they can be cached: a self-decoder
    layer attends to its own input, a cross-decoder layer to the self-decoder's output.

    Source: arXiv:1706.03762; query-key normalisation as in arXiv:2302.05442; rotary positions
    arXiv:2104.09864; the MLP's squared ReLU arXiv:2109.08668, which docs/log.md compares.
    """

    recompute = False
    """Whether training keeps only what enters the layer (activation checkpointing,
    arXiv:1604.06174)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Creates a layer that starts as the identity; `heads` divides `width`."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        self.attention_norm = _norm(width)
        self.query_norm = _norm(width // heads)
        self.key_norm = _norm(width // heads)
        self.mlp_norm = _norm(width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.attention_out.weight)
        nn.init.zeros_(self.mlp_out.weight)

    def project_kv(self, normed: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor]:
        """Projects keys and values (B, heads, S, D / heads) of normalised rows (B, S, D)."""
        keys, values = self.key_value(normed).chunk(2, dim=-1)
        return rotate(self.key_norm(self._split(keys)), rotation), self._split(values)

    def forward(
        self,
        hidden: Tensor,
        normed: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Updates rows by what they attend to.

        Args:
            hidden: (B, Q, D).
            normed: (B, Q, D), `attention_norm` of it.
            keys: (B, heads, S, D / heads).
            values: as keys.
            mask: (B, 1, Q, S) bool, True where a row may attend.
            rotation: by the rows' positions; None where they have none.

        Returns:
            (B, Q, D).
        """
        rows = hidden, normed, keys, values, mask, rotation
        if self.recompute and self.training:
            updated: Tensor = checkpoint(self._update, *rows, use_reentrant=False)
            return updated
        return self._update(*rows)

    def _update(
        self,
        hidden: Tensor,
        normed: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        rotation: Rotation | None,
    ) -> Tensor:
        queries = rotate(self.query_norm(self._split(self.query(normed))), rotation)
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        hidden = hidden + self.dropout(self.attention_out(attended.transpose(1, 2).flatten(2)))
        update = self.mlp_out(functional.relu(self.mlp_in(self.mlp_norm(hidden))).square())
        updated: Tensor = hidden + self.dropout(update)
        return updated

    def _split(self, hidden: Tensor) -> Tensor:
        batch, rows, width = hidden.shape
        split = hidden.view(batch, rows, self.heads, width // self.heads)
        return split.transpose(1, 2)  # (B, heads, S, D / heads)


def rotate(rows: Tensor, rotation: Rotation | None) -> Tensor:
    """Turns each pair (i, i + half) of rows (B, heads, S, D / heads) by its angle."""
    if rotation is None:
        return rows
    cosine, sine = rotation
    first, second = rows.chunk(2, dim=-1)
    turned = (first * cosine - second * sine, first * sine + second * cosine)
    return torch.cat(turned, dim=-1)


def compute_rotations(grid: tuple[int, int], size: int) -> Rotation:
    """Computes the rotations of the positions of a grid (h, w) for heads of a size.

    The first half of a head's pairs turns with the row, the second with the column, at frequencies
    from 1 down to almost 1/100: grids are small.

    Returns:
        Cosines and sines (N, size / 2).

    Source:
        Rotary positions along two axes, section 3.2 of arXiv:2403.13298.
    """
    frequency = 100.0 ** -(torch.arange(size // 4) / (size // 4))
    positions = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))  # (N, 2)
    angle = (positions[:, :, None] * frequency).flatten(1)
    return angle.cos(), angle.sin()


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, bias=False)
