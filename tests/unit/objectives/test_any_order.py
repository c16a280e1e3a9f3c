"""What `any_order` and `autoregressive` learn, one mask_token at a time."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tessella.objectives import AnyOrder, Autoregressive, Objective
from tessella.objectives.any_order import predict_in_order
from tessella.transformer import Transformer, TransformerSettings, TransformerShape

K, N = 5, 6
SHAPE = TransformerShape(11, 6, 0, codebook_size=K, grid=(2, 3), code_width=2)
TEXT = torch.tensor([[1, 5, 2, 0, 0], [1, 6, 7, 8, 2], [1, 9, 2, 0, 0]])
CODES = torch.randint(K, (3, 2, 3), generator=torch.Generator().manual_seed(2))
RASTER = torch.arange(N).expand(3, -1)


class Watched(Transformer):
    """A transformer that keeps the positions that it was asked."""

    def __init__(self) -> None:
        super().__init__(TransformerSettings(width=16, depth=2, heads=2), SHAPE)
        self.asked: list[Tensor] = []

    def predict(self, cache: Any, positions: Tensor, num_visible_codes: Tensor) -> Tensor:
        self.asked.append(positions)
        return super().predict(cache, positions, num_visible_codes)


def create() -> Watched:
    torch.manual_seed(0)
    made = Watched().eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return made


TRANSFORMER = create()


@pytest.mark.parametrize("objective", [AnyOrder(), Autoregressive()], ids=lambda o: o.name)
def test_the_loss_is_every_question_asked_by_itself(objective: Objective) -> None:
    """Brute force: for each position a fresh reading of the text and of the codes before it."""
    transformer = create()
    made = objective.compute_loss(transformer, torch.zeros(K, 2), TEXT, CODES)
    [order] = transformer.asked
    assert torch.equal(order.sort(1).values, RASTER)
    if objective.name == "autoregressive":
        assert torch.equal(order, RASTER)
    else:
        assert len({tuple(row) for row in order.tolist()}) == 3  # each picture's is its own

    flat, losses, right = CODES.flatten(1), [], 0
    for picture, index in itertools.product(range(3), range(N)):
        cache = transformer.encode_text(TEXT[picture : picture + 1])
        for position in order[picture, :index].tolist():
            code = flat[picture, position].reshape(1, 1)
            cache = transformer.append_codes(cache, code, torch.tensor([[position]]))
        position = int(order[picture, index])
        [[logits]] = transformer.predict(cache, torch.tensor([[position]]), torch.tensor([index]))
        losses.append(functional.cross_entropy(logits, flat[picture, position]))
        right += int(logits.argmax() == flat[picture, position])
    assert made.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert made.accuracy.item() == pytest.approx(right / (3 * N))


def test_a_fresh_order_each_time() -> None:
    transformer = create()
    for objective, different in ((AnyOrder(), 4), (Autoregressive(), 1)):
        losses = {
            objective.compute_loss(transformer, torch.zeros(K, 2), TEXT, CODES).loss.item()
            for _ in range(4)
        }
        assert len(losses) == different


@settings(max_examples=25, deadline=None)
@given(st.integers(0, N - 1), st.integers(1, K - 1), st.integers(0, 99))
def test_a_code_changes_no_logit_before_it(changed: int, by: int, seed: int) -> None:
    """In raster order: the logits of the positions up to the changed one stay, those after it move."""
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


def test_a_picture_of_one_place() -> None:
    """Nothing was is_decoded before the only code: it is known by the text alone."""
    positions, code = torch.zeros(3, 1, dtype=torch.int64), torch.tensor([[1], [2], [3]])
    made = predict_in_order(TRANSFORMER, TEXT, code, positions)
    expected = TRANSFORMER.predict(TRANSFORMER.encode_text(TEXT), positions, torch.tensor([0]))
    torch.testing.assert_close(made, expected)
