"""Likelihoods: whatever a picture may be, the probabilities of all pictures add up to 1."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.objectives import Objective
from tessella.objectives.any_order import AnyOrder, predict_in_order
from tessella.objectives.autoregressive import Autoregressive
from tessella.objectives.masked import Masked
from tessella.objectives.parallel import Parallel
from tessella.transformer import Transformer, TransformerSettings, TransformerShape

K, N = 3, 4
SHAPE = TransformerShape(11, 6, 0, codebook_size=K, grid=(2, 2), code_width=2)
TEXT = torch.tensor([[1, 5, 2, 0], [1, 6, 7, 2]])
EVERY_PICTURE = torch.cartesian_prod(*[torch.arange(K)] * N).view(-1, 1, 2, 2)  # 81
PAIRS = TransformerShape(11, 6, 0, codebook_size=2, grid=(1, 3), code_width=2, codes_per_position=2)
EVERY_PAIR = torch.cartesian_prod(*[torch.arange(2)] * 6).view(-1, 2, 1, 3)  # 64


def create(shape: TransformerShape) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(TransformerSettings(width=16, depth=2, heads=2), shape).eval()
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return transformer.requires_grad_(False)


TRANSFORMER, OF_PAIRS = create(SHAPE), create(PAIRS)
KINDS = (AnyOrder, Autoregressive, Masked, Parallel)
SCORING = [kind(TRANSFORMER, torch.zeros(1, K, 2)) for kind in KINDS]
ANY_ORDER, AUTOREGRESSIVE, MASKED, PARALLEL = SCORING
SCORING_PAIRS = {kind: kind(OF_PAIRS, torch.zeros(2, 2, 2)) for kind in KINDS}
EVERY = pytest.mark.parametrize("objective", SCORING, ids=lambda o: o.name)


def score(objective: Objective, codes: Tensor, text: Tensor = TEXT[:1], **more: Any) -> Tensor:
    expanded = text.expand(len(codes), -1)
    return objective.compute_log_likelihood(expanded, codes, **more)


@pytest.mark.parametrize("objective", [ANY_ORDER, AUTOREGRESSIVE, PARALLEL], ids=lambda o: o.name)
def test_the_probabilities_add_up_to_one(objective: Objective) -> None:
    """Of `any_order` those along any one order."""
    for row in (0, 1):
        for seed in (0, 1):
            made = score(objective, EVERY_PICTURE, TEXT[row : row + 1], num_orders=1, seed=seed)
            assert made.shape == (81,)
            assert made.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
            assert made.std() > 0.1  # and are not all the same


@pytest.mark.parametrize("kind", [AnyOrder, Autoregressive, Parallel])
def test_the_probabilities_of_all_pairs_of_codes_add_up_to_one(kind: type[Objective]) -> None:
    """Three positions of two codes each."""
    for row, seed in itertools.product((0, 1), (0, 1)):
        text = TEXT[row : row + 1].expand(64, -1)
        made = SCORING_PAIRS[kind].compute_log_likelihood(text, EVERY_PAIR, num_orders=1, seed=seed)
        assert made.shape == (64,)
        assert made.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
        assert made.std() > 0.1


@pytest.mark.parametrize(("time", "share", "expected"), [(0.99, 1.0, 1.0), (0.0, 1 / 3, 16.0)])
def test_masked_probabilities_of_pairs_add_up_to_one(
    time: float, share: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of three positions hidden; with one alone, for each of the others' 16 pictures.

    Of one hidden position the estimate is three times its own log-probability.
    """
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(time))
    for row, seed in itertools.product((0, 1), (0, 1)):
        text = TEXT[row : row + 1].expand(64, -1)
        made = SCORING_PAIRS[Masked].compute_log_likelihood(
            text, EVERY_PAIR, num_orders=1, seed=seed
        )
        assert (share * made).exp().sum().item() == pytest.approx(expected, abs=1e-3)
        assert made.std() > 0.1


def test_a_position_s_codes_are_not_independent() -> None:
    """The chain rule, code by code within a position: of `parallel` written out."""
    codes = EVERY_PAIR[37]
    cache = OF_PAIRS.encode_context(TEXT[:1])
    hidden = OF_PAIRS.predict(cache, torch.arange(3)[None], torch.zeros(3, dtype=torch.int64))
    total = 0.0
    for position in range(3):
        first, second = codes[:, 0, position].tolist()
        row = hidden[:, position : position + 1]
        shares = (OF_PAIRS.out.weight[:2] @ row[0, 0] + OF_PAIRS.out.bias[:2]).softmax(0)
        total += shares[first].log().item()
        row = OF_PAIRS.next_code[0](row, OF_PAIRS.code_embedding.weight[first])
        shares = (OF_PAIRS.out.weight[2:] @ row[0, 0] + OF_PAIRS.out.bias[2:]).softmax(0)
        total += shares[second].log().item()
    made = SCORING_PAIRS[Parallel].compute_log_likelihood(TEXT[:1], codes[None])
    assert made.item() == pytest.approx(total, abs=1e-4)
    # The second code's odds depend on the first.
    logits = OF_PAIRS.compute_logits(hidden.expand(2, -1, -1), EVERY_PAIR[[0, 56]].flatten(2).mT)
    odds = logits[:, :, 1, 0] - logits[:, :, 1, 1]
    assert ((odds[0] - odds[1]).abs() > 1e-2).all()


def project(hidden: Tensor) -> Tensor:
    """Logits of hidden rows with one code."""
    return hidden @ TRANSFORMER.out.weight.T + TRANSFORMER.out.bias


def test_autoregressive_by_hand() -> None:
    """The chain rule, code by code."""
    codes, total = torch.tensor([2, 0, 1, 2]), 0.0
    for index in range(N):
        cache = TRANSFORMER.encode_context(TEXT[:1])
        TRANSFORMER.append_codes(cache, codes[None, :index, None], torch.arange(index)[None])
        [[row]] = TRANSFORMER.predict(cache, torch.tensor([[index]]), torch.tensor([index]))
        total += project(row).softmax(0)[codes[index]].log().item()
    made = score(AUTOREGRESSIVE, codes.view(1, 1, 2, 2))
    assert made.item() == pytest.approx(total, abs=1e-4)


def test_parallel_by_hand() -> None:
    codes, positions = torch.tensor([2, 0, 1, 2]), torch.arange(N)[None]
    cache = TRANSFORMER.encode_context(TEXT[:1])
    [rows] = TRANSFORMER.predict(cache, positions, torch.zeros(N, dtype=torch.int64))
    shares = project(rows).softmax(-1)
    expected = shares[torch.arange(N), codes].log().sum().item()
    assert score(PARALLEL, codes.view(1, 1, 2, 2)).item() == pytest.approx(expected, abs=1e-4)


def draw_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every permutation of the positions in turn, instead of chance."""
    turns = itertools.cycle(itertools.permutations(range(N)))
    monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.tensor(next(turns)))


def test_any_order_is_the_mean_over_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by Jensen's inequality below the likelihood of their mixture."""
    codes, along = EVERY_PICTURE[50], []
    for order in itertools.permutations(range(N)):
        positions = torch.tensor([order])
        ordered = codes.flatten()[positions]
        made = predict_in_order(TRANSFORMER, TEXT[:1], ordered[..., None], positions)
        shares = made[:, :, 0].softmax(-1)
        along.append(shares[0, torch.arange(N), ordered[0]].log().sum())
    draw_every_order(monkeypatch)
    made = score(ANY_ORDER, codes[None], num_orders=24)
    assert made.item() == pytest.approx(torch.stack(along).mean().item(), abs=1e-4)
    assert made.item() < torch.stack(along).exp().mean().log().item()


def test_masked_is_the_mean_over_orders_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound over maskings against its other form, code after code along every order.

    Each number of hidden positions with each permutation: what the estimate is in expectation.
    """
    codes, along = EVERY_PICTURE[50].flatten(), []
    cache = TRANSFORMER.encode_context(TEXT[:1])
    for order in itertools.permutations(range(N)):
        known, total = torch.zeros(1, N, dtype=torch.bool), 0.0
        for position in order:
            shares = project(
                TRANSFORMER.predict_masked(cache, codes[None, :, None], known)
            ).softmax(-1)
            total += shares[0, position, codes[position]].log().item()
            known[0, position] = True
        along.append(total)
    draw_every_order(monkeypatch)
    made = score(MASKED, codes.view(1, 1, 2, 2), num_orders=N * 24)
    assert made.item() == pytest.approx(sum(along) / 24, abs=1e-4)


@EVERY
def test_the_same_seed_is_the_same_estimate(objective: Objective) -> None:
    codes = EVERY_PICTURE[[3, 50, 3, 77]]
    state = torch.get_rng_state()
    made = score(objective, codes, seed=1)
    assert torch.equal(score(objective, codes, seed=1), made)
    assert torch.equal(torch.get_rng_state(), state)
    is_estimate = objective.name in ("any_order", "masked")
    assert torch.equal(score(objective, codes, seed=2), made) is not is_estimate
    # More orders lie closer together.
    if is_estimate:
        spread = [
            torch.stack([score(objective, codes[:1], num_orders=n, seed=s) for s in range(8)]).std()
            for n in (1, 16)
        ]
        assert spread[1] < 0.6 * spread[0]


@EVERY
def test_every_row_sees_the_same_orders(objective: Objective) -> None:
    """Alone or beside others, at whichever row: the estimates differ by text and picture alone."""
    codes = EVERY_PICTURE[[3, 50, 3, 77]]
    text = TEXT[[0, 1, 0, 1]]
    together = objective.compute_log_likelihood(text, codes, num_orders=3)
    torch.testing.assert_close(together[0], together[2])
    for row in range(4):
        alone = objective.compute_log_likelihood(
            text[row : row + 1], codes[row : row + 1], num_orders=3
        )
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)
    other = objective.compute_log_likelihood(text.flip(0), codes, num_orders=3)
    assert ((other - together).abs() > 1e-3).all()
