"""Several codes at a position: their embedding, and the step from each to the next.

The position's hidden row predicts its first code; each next one is predicted from the row and the
codes before it, by one MLP a code. It is the depth transformer as small as it can be: with a few
codes there is nothing to attend to that a running sum does not hold.

Source: arXiv:2203.01941, section 3.2.
"""

from torch import Tensor, nn
from torch.nn import functional

from tessella.tokenizer import number_codes


class CodeEmbedding(nn.Embedding):
    """Embeds the codes of a position as one row: the scaled sum of theirs.

    Args:
        codebook_size: K.
        codes_per_position: M.
        width: D.
    """

    def __init__(self, codebook_size: int, codes_per_position: int, width: int) -> None:
        super().__init__(codes_per_position * codebook_size, width)
        self.codebook_size, self.scale = codebook_size, codes_per_position**-0.5

    def forward(self, codes: Tensor) -> Tensor:
        """Embeds codes (..., M): (..., D)."""
        rows = super().forward(number_codes(codes, self.codebook_size, -1))
        embedded: Tensor = rows.sum(-2) * self.scale
        return embedded

    def embed_one(self, codes: Tensor, number: int) -> Tensor:
        """Embeds codes (...) of one of the codebooks: (..., D)."""
        return super().forward(codes + number * self.codebook_size)


class NextCode(nn.Module):
    """Turns a row that has predicted a code into one that predicts the next."""

    def __init__(self, width: int) -> None:
        """Creates a step that starts by adding the code's embedding alone."""
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 2 * width, bias=False)
        self.mlp_out = nn.Linear(2 * width, width, bias=False)
        self.out_norm = nn.LayerNorm(width, bias=False)
        nn.init.zeros_(self.mlp_out.weight)

    def forward(self, hidden: Tensor, code: Tensor) -> Tensor:
        """Adds a chosen code's embedding (B, Q, D) to hidden rows (B, Q, D)."""
        hidden = hidden + code
        update = self.mlp_out(functional.relu(self.mlp_in(self.norm(hidden))).square())
        normalised: Tensor = self.out_norm(hidden + update)
        return normalised


def flatten_codes(codes: Tensor) -> Tensor:
    """Lists codes (B, M, h, w) by position, a row for each: (B, N, M)."""
    return codes.flatten(2).transpose(1, 2)
