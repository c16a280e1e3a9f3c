"""What the transformer has read so far: keys and values of text and codes, layer by layer.

Text is read once; its entries serve every later step and every picture of the prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Memory:
    """Keys and values of what was read: one pair a layer, reading layers first.

    The tensors may have room behind what was read (`select`): what is read next is written there
    instead of copying all. Only one continuation of such a memory may be followed.
    """

    keys: tuple[Tensor, ...]  # a layer: (B, heads, T + M or more, D / heads), M codes read
    values: tuple[Tensor, ...]  # as keys
    text_visible: Tensor  # (B, T) bool, False where the text is padding
    num_codes: int = 0  # M

    @property
    def length(self) -> int:
        """Rows that were read, T + M."""
        return self.text_visible.shape[1] + self.num_codes

    def select(self, rows: Tensor, *, room: int = 0) -> "Memory":
        """Returns the memory with its batch entries chosen by index (R,), each as often as named.

        This is how one reading of a prompt serves many pictures.

        Args:
            rows: (R,) int64.
            room: codes that will be read; place is made for them once.
        """
        chosen = [
            [functional.pad(kept.index_select(0, rows), (0, 0, 0, room)) for kept in several]
            for several in (self.keys, self.values)
        ]
        return Memory(
            keys=tuple(chosen[0]),
            values=tuple(chosen[1]),
            text_visible=self.text_visible.index_select(0, rows),
            num_codes=self.num_codes,
        )


def append_rows(past: Tensor, length: int, new: Tensor) -> Tensor:
    """Puts new rows behind the first `length` of the past ones.

    Args:
        past: (B, heads, S, D / heads), S >= length.
        length: rows of it that count.
        new: (B, heads, M, D / heads).

    Returns:
        `past` itself, written to, if it has room for them; else both joined.
    """
    total = length + new.shape[2]
    if past.shape[2] >= total:
        past[:, :, length:total] = new
        return past
    return torch.cat([past[:, :, :length], new], dim=2)


def build_mask(text_visible: Tensor, num_visible_codes: Tensor, num_codes: int) -> Tensor:
    """Builds the attention mask of rows that see the text and the first so many codes each.

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
