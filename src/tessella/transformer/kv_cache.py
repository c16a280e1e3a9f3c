"""The key-value cache: keys and values of encoded text and codes, layer by layer.

Text is encoded once; its entries serve every later step and every picture of the prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class KVCache:
    """Keys and values of encoded rows: one pair a layer, the self-decoder's layers first.

    The tensors may have spare capacity behind the rows (`select`): new rows are written there
    instead of copying all. Only one continuation of such a cache may be followed.
    """

    keys: tuple[Tensor, ...]  # a layer: (B, heads, T + M or more, D / heads), M codes
    values: tuple[Tensor, ...]  # as keys
    text_visible: Tensor  # (B, T) bool, False where the text is padding
    num_codes: int = 0  # M

    @property
    def length(self) -> int:
        """Rows, T + M."""
        return self.text_visible.shape[1] + self.num_codes

    def select(self, rows: Tensor, *, capacity: int = 0) -> "KVCache":
        """Returns the cache of some batch entries by index, each as often as named.

        This is how a prompt that is encoded once serves many pictures.

        Args:
            rows: (R,) int64.
            capacity: codes that will be appended; they are allocated once.
        """
        selected = [
            [
                functional.pad(rows_of_layer.index_select(0, rows), (0, 0, 0, capacity))
                for rows_of_layer in layers
            ]
            for layers in (self.keys, self.values)
        ]
        return KVCache(
            keys=tuple(selected[0]),
            values=tuple(selected[1]),
            text_visible=self.text_visible.index_select(0, rows),
            num_codes=self.num_codes,
        )

    def append_layer(
        self, keys: list[Tensor], values: list[Tensor], new_keys: Tensor, new_values: Tensor
    ) -> None:
        """Appends the next layer's rows, joined with this cache's own of that layer.

        Args:
            keys: of the layers before; the new layer's follow.
            values: as keys.
            new_keys: (B, heads, M, D / heads), the last M of this cache's length.
            new_values: as new_keys.
        """
        if self.keys:
            index, before = len(keys), self.length - new_keys.shape[2]
            new_keys = append_rows(self.keys[index], before, new_keys)
            new_values = append_rows(self.values[index], before, new_values)
        keys.append(new_keys)
        values.append(new_values)


def append_rows(past: Tensor, length: int, new: Tensor) -> Tensor:
    """Puts new rows behind the first `length` of the past ones.

    Args:
        past: (B, heads, S, D / heads), S >= length.
        length: rows of it that count.
        new: (B, heads, M, D / heads).

    Returns:
        `past` itself, written to, if it has the capacity; else both joined.
    """
    total = length + new.shape[2]
    if past.shape[2] >= total:
        past[:, :, length:total] = new
        return past
    return torch.cat([past[:, :, :length], new], dim=2)


def build_mask(text_visible: Tensor, num_visible_codes: Tensor, num_codes: int) -> Tensor:
    """Builds the attention mask of rows that see the text and a number of the first codes each.

    Args:
        text_visible: (B, T) bool, False where the text is padding.
        num_visible_codes: (Q,) int64 in [0, num_codes].
        num_codes: how many codes there are (M).

    Returns:
        (B, 1, Q, T + M) bool, True where a row may look.
    """
    batch, num_rows = len(text_visible), len(num_visible_codes)
    order = torch.arange(num_codes, device=text_visible.device)
    codes = order < num_visible_codes[:, None]  # (Q, M)
    return torch.cat(
        [
            text_visible[:, None, :].expand(-1, num_rows, -1),
            codes.expand(batch, -1, -1),
        ],
        dim=-1,
    )[:, None]
