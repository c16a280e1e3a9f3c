"""The report's rule, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.objectives import (
    GenerationBatch,
    GenerationSettings,
    GenerationStep,
    LatentMSE,
)
from tessella.transformer import KVCache, TransformerShape

CODEBOOK = torch.tensor([[0.0], [4.0], [8.0]])


class Fixed(nn.Module):
    """A transformer of two positions and three codes that always answers the same."""

    shape = TransformerShape(4, 4, 0, codebook_size=3, grid=(1, 2), code_width=1)

    def encode_text(self, text: Tensor) -> KVCache:
        return KVCache((), (), text != 0)

    def predict(self, cache: KVCache, positions: Tensor, visible: Tensor) -> Tensor:
        assert positions.tolist() == [[0, 1]] * len(positions)
        assert visible.tolist() == [0, 0]
        logits = torch.tensor([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]]).log()
        return logits.expand(len(positions), -1, -1)


FIXED: Any = Fixed()
TEXT = torch.tensor([[1, 2]])


def request(**known: Tensor) -> GenerationBatch:
    rows = torch.zeros(2, dtype=torch.int64)
    return GenerationBatch(TEXT, TEXT, rows, rows, [1, 2], GenerationSettings(), **known)


def test_the_loss_and_the_picture() -> None:
    """Codes 0, 4 and 8 on a line; expected 4·½ + 8·¼ = 4 and 0; the picture has 8 and 4.

    The squares are 16 and 16: the mean is 16. The likeliest codes are 1 and 0: none is right.
    """
    made = LatentMSE().compute_loss(FIXED, CODEBOOK, TEXT, torch.tensor([[[2, 1]]]))
    assert made.loss.item() == pytest.approx(16.0)
    assert made.accuracy.item() == 0.0
    painted = LatentMSE().generate(FIXED, CODEBOOK, (1, 2), request())
    assert painted.codes is None
    assert painted.latent.tolist() == [[[[4.0, 0.0]]]] * 2


def test_autocast_does_not_coarsen_the_expected_latent() -> None:
    """`.float()` beside autocast once gave a product in bfloat16: 257 and 0 came out as 256."""
    codebook = torch.tensor([[0.0], [257.0], [514.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = LatentMSE().compute_loss(FIXED, codebook, TEXT, torch.tensor([[[1, 0]]]))
        painted = LatentMSE().generate(FIXED, codebook, (1, 2), request())
    assert made.loss.item() == pytest.approx(0.0, abs=1e-6)
    assert painted.latent.flatten().tolist() == pytest.approx([257.0, 0.0] * 2)


def test_known_places_have_the_latent_of_their_codes() -> None:
    """Whoever watches sees them too; once the likeliest codes were shown in their positions."""
    seen: list[GenerationStep] = []
    known = torch.tensor([[True, False], [False, True]])
    asked = request(known=known, known_codes=torch.tensor([[2, -1], [-1, 1]]))
    painted = LatentMSE().generate(FIXED, CODEBOOK, (1, 2), asked, seen.append)
    assert painted.latent.tolist() == [[[[8.0, 0.0]]], [[[4.0, 4.0]]]]
    [step] = seen
    assert step.codes.tolist() == [[2, 0], [1, 1]]
    assert step.is_decoded.all()
