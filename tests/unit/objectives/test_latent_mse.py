"""The report's rule, by hand."""

import pytest
import torch
from torch import Tensor, nn

from tessella.generation import GenerationSettings
from tessella.objectives import GenerationBatch, GenerationStep
from tessella.objectives.latent_mse import LatentMSE
from tessella.transformer import KVCache, Transformer, TransformerSettings, TransformerShape

CODEBOOK = torch.tensor([[[0.0], [4.0], [8.0]]])


class FixedTransformer(Transformer):
    """A transformer of two positions and three codes that always predicts the same.

    Of more codes at a position the shares are equal.
    """

    def __init__(self, books: int = 1) -> None:
        shape = TransformerShape(
            4, 4, 0, codebook_size=3, grid=(1, 2), code_width=1, codes_per_position=books
        )
        super().__init__(TransformerSettings(width=16, depth=2, heads=2), shape)
        shares = torch.tensor([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
        nn.init.zeros_(self.out.bias)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.weight[:3, :2] = shares.log().clamp(min=-1000).T

    def predict(self, cache: KVCache, positions: Tensor, num_visible_codes: Tensor) -> Tensor:
        assert positions.tolist() == [[0, 1]] * len(positions)
        assert num_visible_codes.tolist() == [0, 0]
        return torch.eye(2, 16).expand(len(positions), -1, -1)


OBJECTIVE = LatentMSE(FixedTransformer(), CODEBOOK)
TEXT = torch.tensor([[1, 2]])


def create_batch(
    known_codes: Tensor = torch.zeros(2, 2, 1, dtype=torch.int64),  # noqa: B008
    known: Tensor = torch.zeros(2, 2, dtype=torch.bool),  # noqa: B008
) -> GenerationBatch:
    rows = torch.zeros(2, dtype=torch.int64)
    settings = GenerationSettings()
    return GenerationBatch(TEXT, TEXT, rows, rows, [1, 2], settings, known_codes, known)


def test_the_loss_and_the_picture() -> None:
    """Codes 0, 4 and 8 on a line; expected 4·½ + 8·¼ = 4 and 0; the picture has 8 and 4.

    The squares are 16 and 16: the mean is 16. The likeliest codes are 1 and 0: none is right.
    """
    scored = OBJECTIVE(TEXT, torch.tensor([[[[2, 1]]]]))
    assert scored.loss.item() == pytest.approx(16.0)
    assert scored.accuracy.item() == 0.0
    generated = OBJECTIVE.generate(create_batch())
    assert generated.codes is None
    assert generated.latent.tolist() == [[[[4.0, 0.0]]]] * 2


def test_autocast_does_not_coarsen_the_expected_latent() -> None:
    """`.float()` beside autocast once gave a product in bfloat16: 257 and 0 came out as 256."""
    objective = LatentMSE(FixedTransformer(), torch.tensor([[[0.0], [257.0], [514.0]]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scored = objective(TEXT, torch.tensor([[[[1, 0]]]]))
        generated = objective.generate(create_batch())
    assert scored.loss.item() == pytest.approx(0.0, abs=1e-6)
    assert generated.latent.flatten().tolist() == pytest.approx([257.0, 0.0] * 2)


def test_known_positions_have_the_latent_of_their_codes() -> None:
    """A step shows them too; once it showed the likeliest codes at their positions."""
    seen: list[GenerationStep] = []
    known = torch.tensor([[True, False], [False, True]])
    batch = create_batch(known=known, known_codes=torch.tensor([[[2], [-1]], [[-1], [1]]]))
    generated = OBJECTIVE.generate(batch, seen.append)
    assert generated.latent.tolist() == [[[[8.0, 0.0]]], [[[4.0, 4.0]]]]
    [step] = seen
    assert step.codes.tolist() == [[[2, 0]], [[1, 1]]]
    assert step.is_decoded.all()


def test_of_two_codes_the_second_is_expected_given_the_first() -> None:
    """The second code is always the same as the first; their vectors are 0, 4, 8 and 0, 100, 200.

    Of the first 4 and 0 are expected, as by itself; of the second what the code before says: in
    training the picture's own, in a generated picture the likeliest.
    """
    transformer = FixedTransformer(books=2).requires_grad_(False)
    # A code's embedding outweighs the row; the second code's logits read it: 1000 for the same.
    transformer.code_embedding.weight.zero_()
    transformer.code_embedding.weight[:3, 4:7] = 1e4 * torch.eye(3)
    transformer.out.weight[3:, 4:7] = 1e3 * torch.eye(3)
    codebook = torch.tensor([[[0.0], [4.0], [8.0]], [[0.0], [100.0], [200.0]]])
    objective = LatentMSE(transformer, codebook)
    scored = objective(TEXT, torch.tensor([[[[2, 1]], [[2, 0]]]]))
    # Expected 4 + 200 and 0 + 100; the picture has 8 + 200 and 4 + 0.
    assert scored.loss.item() == pytest.approx((4**2 + 96**2) / 2)
    assert scored.accuracy.item() == 0.25
    nothing = torch.zeros(2, 2, 2, dtype=torch.int64)
    seen: list[GenerationStep] = []
    generated = objective.generate(create_batch(nothing), seen.append)
    assert generated.latent.tolist() == [[[[104.0, 0.0]]]] * 2
    assert seen[0].codes.tolist() == [[[1, 0], [1, 0]]] * 2
    known = torch.tensor([[True, False], [False, True]])
    codes = torch.tensor([[[2, 1], [-1, -1]], [[-1, -1], [0, 2]]])
    generated = objective.generate(create_batch(codes, known))
    assert generated.latent.tolist() == [[[[108.0, 0.0]]], [[[104.0, 200.0]]]]
