"""What `any_order` and `autoregressive` learn, one position at a time."""

import dataclasses
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
BOTH = pytest.mark.parametrize("books", [1, 2])
TEXT = torch.tensor([[1, 5, 2, 0, 0], [1, 6, 7, 8, 2], [1, 9, 2, 0, 0]])
RASTER = torch.arange(N).expand(3, -1)


def draw_codes(books: int) -> Tensor:
    """Codes (B, M, h, w) of three pictures."""
    return torch.randint(K, (3, books, 2, 3), generator=torch.Generator().manual_seed(2))


class RecordingTransformer(Transformer):
    """A transformer that records the positions it predicts."""

    def __init__(self, books: int) -> None:
        shape = dataclasses.replace(SHAPE, codes_per_position=books)
        super().__init__(TransformerSettings(width=16, depth=2, heads=2), shape)
        self.predicted: list[Tensor] = []

    def predict(self, cache: Any, positions: Tensor, num_visible_codes: Tensor) -> Tensor:
        self.predicted.append(positions)
        return super().predict(cache, positions, num_visible_codes)


def create(books: int = 1) -> RecordingTransformer:
    torch.manual_seed(0)
    transformer = RecordingTransformer(books).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return transformer


TRANSFORMERS = {books: create(books) for books in (1, 2)}


@BOTH
@pytest.mark.parametrize("kind", [AnyOrder, Autoregressive], ids=lambda kind: kind.name)
def test_the_loss_predicts_every_position_by_itself(kind: type[Objective], books: int) -> None:
    """Brute force: for each position, encode the text and the codes before it afresh.

    The codes of a position come one after the other; their losses are added.
    """
    transformer, codes = create(books), draw_codes(books)
    objective = kind(transformer, torch.zeros(books, K, 2))
    scored = objective(TEXT, codes)
    [order] = transformer.predicted
    assert torch.equal(order.sort(1).values, RASTER)
    if objective.name == "autoregressive":
        assert torch.equal(order, RASTER)
    else:
        assert len({tuple(row) for row in order.tolist()}) == 3  # each picture's is its own

    flat, losses, right = codes.flatten(2).mT, [], 0
    for picture, index in itertools.product(range(3), range(N)):
        cache = transformer.encode_context(TEXT[picture : picture + 1])
        for position in order[picture, :index].tolist():
            here = flat[picture, position].view(1, 1, books)
            transformer.append_codes(cache, here, torch.tensor([[position]]))
        position = order[picture, index].view(1, 1)
        row = transformer.predict(cache, position, torch.tensor([index]))
        own = flat[picture, int(position)]
        logits = transformer.compute_logits(row, own.view(1, 1, books))[0, 0]
        losses.append(functional.cross_entropy(logits, own, reduction="sum"))
        right += int((logits.argmax(-1) == own).sum())
        first = transformer.out.weight[:K] @ row[0, 0] + transformer.out.bias[:K]
        torch.testing.assert_close(logits[0], first, atol=1e-5, rtol=1e-5)
    assert scored.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert scored.accuracy.item() == pytest.approx(right / (3 * N * books))


def test_a_fresh_order_each_time() -> None:
    for kind, num_orders in ((AnyOrder, 4), (Autoregressive, 1)):
        objective = kind(create(), torch.zeros(1, K, 2))
        assert len({objective(TEXT, draw_codes(1)).loss.item() for _ in range(4)}) == num_orders


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, N - 1),
    st.sampled_from([(1, 0), (2, 0), (2, 1)]),
    st.integers(1, K - 1),
    st.integers(0, 99),
)
def test_a_code_changes_no_logit_before_it(
    changed: int, one_of: tuple[int, int], by: int, seed: int
) -> None:
    """In raster order, logits up to the changed code stay and those after it move."""
    books, m = one_of
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(K, (3, N, books), generator=generator)
    others = codes.clone()
    others[:, changed, m] = (others[:, changed, m] + by) % K
    before, after = (
        predict_in_order(TRANSFORMERS[books], TEXT, c, RASTER).flatten(1, 2)
        for c in (codes, others)
    )
    last = changed * books + m
    torch.testing.assert_close(after[:, : last + 1], before[:, : last + 1], atol=1e-6, rtol=1e-6)
    moved = (after - before)[:, last + 1 :].abs().amax(2)
    assert (moved > 1e-4).all()


def test_a_picture_of_one_position() -> None:
    """No code comes before the only one, which is predicted from the text alone."""
    positions, code = torch.zeros(3, 1, dtype=torch.int64), torch.tensor([[[1]], [[2]], [[3]]])
    network = TRANSFORMERS[1]
    logits = predict_in_order(network, TEXT, code, positions)
    hidden = network.predict(network.encode_context(TEXT), positions, torch.tensor([0]))
    expected = hidden @ network.out.weight.T + network.out.bias
    torch.testing.assert_close(logits[:, :, 0], expected)
