"""What `masked` learns: what is hidden, and how much."""

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tessella.errors import ConfigError
from tessella.objectives import MaskedSettings
from tessella.objectives.masked import Masked
from tessella.transformer import KVCache, Transformer, TransformerSettings, TransformerShape

N, K = 8, 5


class RecordingTransformer(Transformer):
    """A transformer that records what is known and predicts by position."""

    def __init__(self, books: int) -> None:
        shape = TransformerShape(
            4, 4, 0, codebook_size=K, grid=(2, 4), code_width=1, codes_per_position=books
        )
        super().__init__(TransformerSettings(width=16, depth=2, heads=2), shape)
        self.requires_grad_(False)
        self.logits = torch.randn(N, K, generator=torch.Generator().manual_seed(1))
        # The first code's logits: each position is a row of the identity.
        self.out.weight[:K].zero_()[:, :N] = self.logits.T
        self.out.bias.zero_()
        self.known: list[Tensor] = []

    def predict_masked(self, cache: KVCache, codes: Tensor, known: Tensor) -> Tensor:
        self.known.append(known)
        return torch.eye(N, 16).expand(len(codes), -1, -1)


def compute(
    batch: int, schedule: Literal["cosine", "arccos"] = "cosine", books: int = 1
) -> tuple[Any, Any, Any]:
    """The loss, what is hidden (B, N), and the logits and codes of every position."""
    transformer = RecordingTransformer(books)
    torch.manual_seed(0)
    codes = torch.randint(K, (batch, books, 2, 4))
    settings = MaskedSettings(mask_schedule=schedule)
    objective = Masked(transformer, torch.zeros(books, K, 1), settings)
    scored = objective(torch.ones(batch, 2).long(), codes)
    flat = codes.flatten(2).mT
    if books == 1:
        return scored, ~transformer.known[0], (transformer.logits, flat[..., 0])
    logits = transformer.compute_logits(torch.eye(N, 16).expand(batch, -1, -1), flat)
    return scored, ~transformer.known[0], (logits, flat)


def test_the_loss_is_of_what_is_hidden_and_each_picture_counts_alike() -> None:
    scored, hidden, (logits, codes) = compute(9)
    assert hidden.sum(1).min() >= 1
    assert len(hidden.sum(1).unique()) > 1
    losses = [
        torch.stack(
            [
                functional.cross_entropy(logits[position], codes[picture, position])
                for position in range(N)
                if hidden[picture, position]
            ]
        ).mean()
        for picture in range(9)
    ]
    assert scored.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    right = (logits.argmax(-1) == codes)[hidden]
    assert scored.accuracy.item() == pytest.approx(right.float().mean().item())


def test_all_codes_of_a_hidden_position_are_hidden_and_count() -> None:
    """Each position's loss is the sum over its codes; the accuracy is of single codes."""
    scored, hidden, (logits, codes) = compute(9, books=3)
    losses, right = [], []
    for picture in range(9):
        of_positions = []
        for position in hidden[picture].nonzero()[:, 0].tolist():
            own, target = logits[picture, position], codes[picture, position]
            of_positions.append(sum(functional.cross_entropy(own[m], target[m]) for m in range(3)))
            right += (own.argmax(-1) == target).tolist()
        losses.append(torch.stack(of_positions).mean())
    assert scored.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert scored.accuracy.item() == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("schedule", ["cosine", "arccos"])
def test_how_much_is_hidden(schedule: Literal["cosine", "arccos"]) -> None:
    """m of 8 positions when the fraction, rounded up, is m / 8; each position is equally likely."""
    _, hidden, _ = compute(20_000, schedule)
    counts = torch.bincount(hidden.sum(1), minlength=N + 1) / 20_000
    # The time at which a fraction is reached.
    inverse = {
        "cosine": lambda fraction: math.acos(fraction) * 2 / math.pi,
        "arccos": lambda fraction: math.cos(fraction * math.pi / 2),
    }[schedule]
    expected = [0.0] + [inverse((m - 1) / N) - inverse(m / N) for m in range(1, N + 1)]
    torch.testing.assert_close(counts, torch.tensor(expected), atol=0.012, rtol=0)
    for count in (1, 4):
        which = hidden[hidden.sum(1) == count].float().mean(0)
        torch.testing.assert_close(which, torch.full((N,), count / N), atol=0.06, rtol=0)


def test_an_unknown_schedule() -> None:
    with pytest.raises(ConfigError, match="`mask_schedule`: got: `linear`; input should be"):
        MaskedSettings().replace(mask_schedule="linear")
