"""The key-value cache: keys and values of the context and of encoded codes, layer by layer.

The context is the text and the examples beside it. It is encoded once; its rows serve every later
step and every picture of the prompt.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class KVCache:
    """Keys and values of encoded rows: the context, then codes. It grows as codes are appended.

    Layer i's tensors are `keys[i]` and `values[i]`, the self-decoder's layers first. They may have
    spare capacity behind the rows (`select`): new rows are written there, and nothing is copied.
    """

    context_visible: Tensor  # (B, S) bool, False at padding and where an example is missing
    keys: list[Tensor] = field(default_factory=list)  # a layer: (B, heads, ≥ S + P, D / heads)
    values: list[Tensor] = field(default_factory=list)  # as keys
    length: int = 0  # rows of every layer: S + P, for the codes of P positions
    aligned: Tensor | None = None  # (B, N, D) what the examples show at each position

    @property
    def num_codes(self) -> int:
        """Positions whose codes are cached (P)."""
        return self.length - self.context_visible.shape[1]

    def select(self, rows: Tensor, *, capacity: int = 0) -> "KVCache":
        """Copies the rows of some batch entries by index, each as often as named.

        This is how a prompt that is encoded once serves many pictures.

        Args:
            rows: (R,) int64.
            capacity: positions that will be appended; they are allocated once.
        """

        def copy(layers: list[Tensor]) -> list[Tensor]:
            spare = (0, 0, 0, capacity)
            return [functional.pad(layer.index_select(0, rows), spare) for layer in layers]

        context_visible = self.context_visible.index_select(0, rows)
        aligned = None if self.aligned is None else self.aligned.index_select(0, rows)
        return KVCache(context_visible, copy(self.keys), copy(self.values), self.length, aligned)

    def insert(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new rows (B, heads, P, D / heads) behind a layer's.

        `length` does not count them yet: the caller adds P once every layer has its rows.

        Returns:
            The layer's keys and values (B, heads, length + P, D / heads).
        """
        if layer == len(self.keys):
            self.keys.append(keys)
            self.values.append(values)
        else:
            self.keys[layer] = _append_rows(self.keys[layer], self.length, keys)
            self.values[layer] = _append_rows(self.values[layer], self.length, values)
        total = self.length + keys.shape[2]
        return self.keys[layer][:, :, :total], self.values[layer][:, :, :total]


def _append_rows(past: Tensor, length: int, new: Tensor) -> Tensor:
    """Puts new rows behind the first `length` of the past ones, in place if there is capacity."""
    total = length + new.shape[2]
    if past.shape[2] >= total:
        past[:, :, length:total] = new
        return past
    return torch.cat([past[:, :, :length], new], dim=2)


def build_mask(context_visible: Tensor, num_visible_codes: Tensor, num_codes: int) -> Tensor:
    """Builds the attention mask of rows that each see the context and some of the first codes.

    Args:
        context_visible: (B, S) bool, False at padding and where an example is missing.
        num_visible_codes: (Q,) int64 in [0, num_codes].
        num_codes: how many positions have codes (P).

    Returns:
        (B, 1, Q, S + P) bool, True where a row may look.
    """
    batch, num_rows = context_visible.shape[0], num_visible_codes.shape[0]
    order = torch.arange(num_codes, device=context_visible.device)
    codes = order < num_visible_codes[:, None]  # (Q, P)
    context = context_visible[:, None, :].expand(-1, num_rows, -1)
    return torch.cat([context, codes.expand(batch, -1, -1)], dim=-1)[:, None]
