"""The report's rule, by hand."""

import pytest
import torch
from torch import Tensor

from tessella.generation import GenerationSettings
from tessella.objectives import GenerationBatch, GenerationStep
from tessella.objectives.latent_mse import LatentMSE
from tessella.transformer import KVCache, Transformer, TransformerSettings, TransformerShape

CODEBOOK = torch.tensor([[0.0], [4.0], [8.0]])


class FixedTransformer(Transformer):
    """A transformer of two positions and three codes that always predicts the same."""

    def __init__(self) -> None:
        shape = TransformerShape(4, 4, 0, codebook_size=3, grid=(1, 2), code_width=1)
        super().__init__(TransformerSettings(width=16, depth=2, heads=2), shape)

    def predict(self, cache: KVCache, positions: Tensor, num_visible_codes: Tensor) -> Tensor:
        assert positions.tolist() == [[0, 1]] * len(positions)
        assert num_visible_codes.tolist() == [0, 0]
        logits = torch.tensor([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]]).log()
        return logits.expand(len(positions), -1, -1)


OBJECTIVE = LatentMSE(FixedTransformer(), CODEBOOK)
TEXT = torch.tensor([[1, 2]])


def create_batch(
    known_codes: Tensor = torch.zeros(2, 2, dtype=torch.int64),  # noqa: B008
    known: Tensor = torch.zeros(2, 2, dtype=torch.bool),  # noqa: B008
) -> GenerationBatch:
    rows = torch.zeros(2, dtype=torch.int64)
    settings = GenerationSettings()
    return GenerationBatch(TEXT, TEXT, rows, rows, [1, 2], settings, known_codes, known)


def test_the_loss_and_the_picture() -> None:
    """Codes 0, 4 and 8 on a line; expected 4·½ + 8·¼ = 4 and 0; the picture has 8 and 4.

    The squares are 16 and 16: the mean is 16. The likeliest codes are 1 and 0: none is right.
    """
    scored = OBJECTIVE(TEXT, torch.tensor([[[2, 1]]]))
    assert scored.loss.item() == pytest.approx(16.0)
    assert scored.accuracy.item() == 0.0
    generated = OBJECTIVE.generate(create_batch())
    assert generated.codes is None
    assert generated.latent.tolist() == [[[[4.0, 0.0]]]] * 2


def test_autocast_does_not_coarsen_the_expected_latent() -> None:
    """`.float()` beside autocast once gave a product in bfloat16: 257 and 0 came out as 256."""
    objective = LatentMSE(FixedTransformer(), torch.tensor([[0.0], [257.0], [514.0]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scored = objective(TEXT, torch.tensor([[[1, 0]]]))
        generated = objective.generate(create_batch())
    assert scored.loss.item() == pytest.approx(0.0, abs=1e-6)
    assert generated.latent.flatten().tolist() == pytest.approx([257.0, 0.0] * 2)


def test_known_positions_have_the_latent_of_their_codes() -> None:
    """A step shows them too; once it showed the likeliest codes at their positions."""
    seen: list[GenerationStep] = []
    known = torch.tensor([[True, False], [False, True]])
    batch = create_batch(known=known, known_codes=torch.tensor([[2, -1], [-1, 1]]))
    generated = OBJECTIVE.generate(batch, seen.append)
    assert generated.latent.tolist() == [[[[8.0, 0.0]]], [[[4.0, 4.0]]]]
    [step] = seen
    assert step.codes.tolist() == [[2, 0], [1, 1]]
    assert step.is_decoded.all()
