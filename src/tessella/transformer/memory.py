"""What the transformer has read so far: keys and values of text and codes, layer by layer.

Text is read once; its entries serve every later step and every picture of the prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Keys and values of what was read: one pair a layer, reading layers first."""

    keys: tuple[Tensor, ...]  # a layer: (B, heads, T + M, D / heads), M codes read
    values: tuple[Tensor, ...]  # as keys
    text_visible: Tensor  # (B, T) bool, False where the text is padding
    num_codes: int = 0  # M

    def select(self, rows: Tensor) -> "Memory":
        """Returns the memory with its batch entries chosen by index (R,), each as often as named.

        This is how one reading of a prompt serves many pictures.
        """
        return Memory(
            keys=tuple(k.index_select(0, rows) for k in self.keys),
            values=tuple(v.index_select(0, rows) for v in self.values),
            text_visible=self.text_visible.index_select(0, rows),
            num_codes=self.num_codes,
        )


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
