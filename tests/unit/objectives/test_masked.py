"""What `masked` learns: what is hidden, in which shares."""

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.errors import ConfigError
from tessella.objectives import Masked, MaskedSettings
from tessella.transformer import KVCache, TransformerShape

N, K = 8, 5


class Spy(nn.Module):
    """A transformer that keeps what was hidden and answers by position."""

    shape = TransformerShape(4, 4, 0, codebook_size=K, grid=(2, 4), code_width=1)

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.randn(N, K, generator=torch.Generator().manual_seed(1))
        self.known: list[Tensor] = []

    def encode_text(self, text: Tensor) -> KVCache:
        return KVCache((), (), text != 0)

    def predict_masked(self, cache: KVCache, codes: Tensor, known: Tensor) -> Tensor:
        self.known.append(known)
        return self.logits.expand(len(codes), -1, -1)


def compute(batch: int, schedule: Literal["cosine", "arccos"] = "cosine") -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    spy: Any = Spy()
    codes = torch.randint(K, (batch, 2, 4))
    objective = Masked(MaskedSettings(mask_schedule=schedule))
    made = objective.compute_loss(spy, torch.zeros(K, 1), torch.ones(batch, 2).long(), codes)
    return made, ~spy.known[0], (spy.logits, codes.flatten(1))


def test_the_loss_is_of_what_is_hidden_and_each_picture_counts_alike() -> None:
    made, hidden, (logits, codes) = compute(9)
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
    assert made.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    right = (logits.argmax(-1) == codes)[hidden]
    assert made.accuracy.item() == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize("schedule", ["cosine", "arccos"])
def test_how_much_is_hidden(schedule: Literal["cosine", "arccos"]) -> None:
    """m of 8 positions when the share, rounded up, is m / 8; which of them is fair chance."""
    _, hidden, _ = compute(20_000, schedule)
    counts = torch.bincount(hidden.sum(1), minlength=N + 1) / 20_000
    # The time at which a share is reached.
    inverse = {
        "cosine": lambda share: math.acos(share) * 2 / math.pi,
        "arccos": lambda share: math.cos(share * math.pi / 2),
    }[schedule]
    expected = [0.0] + [inverse((m - 1) / N) - inverse(m / N) for m in range(1, N + 1)]
    torch.testing.assert_close(counts, torch.tensor(expected), atol=0.012, rtol=0)
    for count in (1, 4):
        which = hidden[hidden.sum(1) == count].float().mean(0)
        torch.testing.assert_close(which, torch.full((N,), count / N), atol=0.06, rtol=0)


def test_a_schedule_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="`mask_schedule`: got: `linear`; input should be"):
        MaskedSettings().replace(mask_schedule="linear")
