"""What `any_order` and `autoregressive` learn, one position at a time."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tessella.objectives import Objective
from tessella.objectives.any_order import AnyOrder, predict_in_order
from tessella.objectives.autoregressive import Autoregressive
from tessella.transformer import Transformer, TransformerSettings, TransformerShape

K, N = 5, 6
SHAPE = TransformerShape(11, 6, 0, codebook_size=K, grid=(2, 3), code_width=2)
TEXT = torch.tensor([[1, 5, 2, 0, 0], [1, 6, 7, 8, 2], [1, 9, 2, 0, 0]])
CODES = torch.randint(K, (3, 2, 3), generator=torch.Generator().manual_seed(2))
RASTER = torch.arange(N).expand(3, -1)


class RecordingTransformer(Transformer):
    """A transformer that records the positions it predicts."""

    def __init__(self) -> None:
        super().__init__(TransformerSettings(width=16, depth=2, heads=2), SHAPE)
        self.predicted: list[Tensor] = []

    def predict(self, cache: Any, positions: Tensor, num_visible_codes: Tensor) -> Tensor:
        self.predicted.append(positions)
        return super().predict(cache, positions, num_visible_codes)


def create() -> RecordingTransformer:
    torch.manual_seed(0)
    transformer = RecordingTransformer().eval().requires_grad_(False)
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return transformer


TRANSFORMER = create()


@pytest.mark.parametrize("kind", [AnyOrder, Autoregressive], ids=lambda kind: kind.name)
def test_the_loss_predicts_every_position_by_itself(kind: type[Objective]) -> None:
    """Brute force: for each position, encode the text and the codes before it afresh."""
    transformer = create()
    objective = kind(transformer, torch.zeros(K, 2))
    scored = objective(TEXT, CODES)
    [order] = transformer.predicted
    assert torch.equal(order.sort(1).values, RASTER)
    if objective.name == "autoregressive":
        assert torch.equal(order, RASTER)
    else:
        assert len({tuple(row) for row in order.tolist()}) == 3  # each picture's is its own

    flat, losses, right = CODES.flatten(1), [], 0
    for picture, index in itertools.product(range(3), range(N)):
        cache = transformer.encode_context(TEXT[picture : picture + 1])
        for position in order[picture, :index].tolist():
            code = flat[picture, position].reshape(1, 1)
            transformer.append_codes(cache, code, torch.tensor([[position]]))
        position = int(order[picture, index])
        [[logits]] = transformer.predict(cache, torch.tensor([[position]]), torch.tensor([index]))
        losses.append(functional.cross_entropy(logits, flat[picture, position]))
        right += int(logits.argmax() == flat[picture, position])
    assert scored.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert scored.accuracy.item() == pytest.approx(right / (3 * N))


def test_a_fresh_order_each_time() -> None:
    for kind, num_orders in ((AnyOrder, 4), (Autoregressive, 1)):
        objective = kind(create(), torch.zeros(K, 2))
        assert len({objective(TEXT, CODES).loss.item() for _ in range(4)}) == num_orders


@settings(max_examples=25, deadline=None)
@given(st.integers(0, N - 1), st.integers(1, K - 1), st.integers(0, 99))
def test_a_code_changes_no_logit_before_it(changed: int, by: int, seed: int) -> None:
    """In raster order, logits up to the changed position stay and those after it move."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(K, (3, N), generator=generator)
    others = codes.clone()
    others[:, changed] = (others[:, changed] + by) % K
    before, after = (predict_in_order(TRANSFORMER, TEXT, c, RASTER) for c in (codes, others))
    torch.testing.assert_close(
        after[:, : changed + 1], before[:, : changed + 1], atol=1e-6, rtol=1e-6
    )
    moved = (after - before)[:, changed + 1 :].abs().amax(2)
    assert (moved > 1e-4).all()


def test_a_picture_of_one_position() -> None:
    """No code comes before the only one, which is predicted from the text alone."""
    positions, code = torch.zeros(3, 1, dtype=torch.int64), torch.tensor([[1], [2], [3]])
    logits = predict_in_order(TRANSFORMER, TEXT, code, positions)
    expected = TRANSFORMER.predict(TRANSFORMER.encode_context(TEXT), positions, torch.tensor([0]))
    torch.testing.assert_close(logits, expected)
