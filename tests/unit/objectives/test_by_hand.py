"""Generation worked out by itself: which positions come when, and what their codes are made of."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.generation import GenerationSettings
from tessella.objectives import GenerationBatch, GenerationStep, Objective
from tessella.objectives.any_order import AnyOrder
from tessella.objectives.autoregressive import Autoregressive
from tessella.objectives.masked import Masked
from tessella.objectives.sampling import guide, halton_order, split_positions
from tessella.transformer import Transformer, TransformerSettings, TransformerShape

K, GRID = 7, (3, 4)
N = GRID[0] * GRID[1]
SHAPE = TransformerShape(11, 6, 0, codebook_size=K, grid=GRID, code_width=2)
TEXT, NEGATIVE = torch.tensor([[1, 6, 7, 8, 2]]), torch.tensor([[1, 4, 2]])


def create(books: int) -> Transformer:
    torch.manual_seed(0)
    shape = dataclasses.replace(SHAPE, codes_per_position=books)
    transformer = Transformer(TransformerSettings(width=16, depth=2, heads=2), shape).eval()
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return transformer.requires_grad_(False)


TRANSFORMERS = {books: create(books) for books in (1, 2)}
BOTH = pytest.mark.parametrize("books", TRANSFORMERS)


def bind(kind: type[Objective], books: int) -> Objective:
    return kind(TRANSFORMERS[books], torch.zeros(books, K, 2))


ORDERED = pytest.mark.parametrize(
    "objective",
    [bind(kind, books) for kind in (AnyOrder, Masked) for books in TRANSFORMERS],
    ids=["any_order-1", "any_order-2", "masked-1", "masked-2"],
)


def take_likeliest(
    hidden: tuple[Tensor, ...], scale: float = 1.0, books: int = 1
) -> tuple[Tensor, Tensor]:
    """Takes code after code the likeliest, given those before it, by both prompts' hidden rows.

    Args:
        hidden: (B, Q, D) of the prompt, and with guidance of the negative one.
        scale: of the guidance.
        books: codes a position.

    Returns:
        Codes (B, Q, M) and the product of their probabilities (B, Q).
    """
    net = TRANSFORMERS[books]
    codes = torch.zeros(*hidden[0].shape[:2], books, dtype=torch.int64)
    sure = torch.ones(codes.shape[:2])
    for m in range(books):
        logits = net.compute_logits(hidden[0], codes)[:, :, m]
        if scale != 1:
            logits = guide(logits, net.compute_logits(hidden[1], codes)[:, :, m], scale)
        share, codes[:, :, m] = logits.softmax(-1).max(-1)
        sure = sure * share
    return codes, sure


def watch_steps(objective: Objective, **changes: Any) -> list[GenerationStep]:
    """Generates two pictures of one prompt; only the order is random."""
    rows, seen = torch.zeros(2, dtype=torch.int64), list[GenerationStep]()
    settings = GenerationSettings(temperature=0.0, confidence_temperature=0.0).replace(**changes)
    nothing = torch.zeros(2, N, len(objective.codebook), dtype=torch.int64)
    batch = GenerationBatch(
        TEXT, NEGATIVE, rows, rows, [1, 2], settings, nothing, nothing[..., 0].bool()
    )
    objective.generate(batch, seen.append)
    return seen


@ORDERED
def test_halton_decodes_its_first_positions_first(objective: Objective) -> None:
    seen = watch_steps(objective, order="halton", steps=N)
    assert len(seen) == N
    for count, step in enumerate(seen, start=1):
        expected = torch.zeros(N, dtype=torch.bool)
        expected[halton_order(*GRID)[:count]] = True
        assert torch.equal(step.is_decoded, expected.expand(2, -1))


@BOTH
@pytest.mark.parametrize(
    ("kind", "order"),
    [(AnyOrder, halton_order(*GRID).tolist()), (Autoregressive, list(range(N)))],
    ids=["any_order", "autoregressive"],
)
def test_later_codes_know_the_earlier_ones(
    kind: type[Objective], order: list[int], books: int
) -> None:
    """One position a step is the chain of likeliest codes."""
    generated = watch_steps(bind(kind, books), order="halton", steps=N)[-1].codes
    net = TRANSFORMERS[books]
    cache, expected = net.encode_context(TEXT), torch.zeros(1, N, books, dtype=torch.int64)
    for index, position in enumerate(order):
        here = torch.tensor([[position]])
        row = net.predict(cache, here, torch.tensor([index]))
        code, _ = take_likeliest((row,), books=books)
        if books == 1:
            assert torch.equal(code[..., 0], (row @ net.out.weight.T + net.out.bias).argmax(-1))
        expected[:, position] = code[:, 0]
        net.append_codes(cache, code, here)
    assert torch.equal(generated, expected.mT.expand(2, -1, -1))


@ORDERED
@pytest.mark.parametrize("schedule", ["cosine", "arccos"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_surest_are_decoded_first(objective: Objective, schedule: str, scale: float) -> None:
    """Each step decodes the likeliest codes at the positions that are surest of all of theirs.

    `masked` predicts all positions in one pass, `any_order` appends the known codes first.
    """
    seen = watch_steps(
        objective,
        order="confidence",
        steps=4,
        step_schedule=schedule,
        guidance_scale=scale,
        guidance_schedule="linear",
    )
    books = len(objective.codebook)
    net, known = TRANSFORMERS[books], torch.zeros(1, N, dtype=torch.bool)
    codes = torch.zeros(1, N, books, dtype=torch.int64)
    decoded: list[int] = []

    def predict(text: Tensor) -> Tensor:
        cache = net.encode_context(text)
        if objective.name == "masked":
            return net.predict_masked(cache, codes, known)
        order = torch.tensor([decoded], dtype=torch.int64)
        net.append_codes(cache, codes[:, decoded], order)
        return net.predict(cache, torch.arange(N)[None], torch.full((N,), len(decoded)))

    for index, size in enumerate(split_positions(N, 4, schedule)):
        ramped = 1 + (scale - 1) * (index + 1) / 4
        likeliest, sure = take_likeliest((predict(TEXT), predict(NEGATIVE)), ramped, books)
        surest = sure[0].masked_fill(known[0], -1).topk(size).indices.sort().values
        codes[0, surest], known[0, surest] = likeliest[0, surest], True
        decoded.extend(surest.tolist())
        assert torch.equal(seen[index].is_decoded, known.expand(2, -1))
        assert torch.equal(seen[index].codes, codes.mT.expand(2, -1, -1))


@BOTH
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_each_masked_step_is_one_pass(scale: float, books: int) -> None:
    """In Halton's order: the likeliest codes, given all that were decoded before."""
    seen = watch_steps(bind(Masked, books), order="halton", steps=5, guidance_scale=scale)
    net, known = TRANSFORMERS[books], torch.zeros(1, N, dtype=torch.bool)
    codes = torch.zeros(1, N, books, dtype=torch.int64)
    sets = halton_order(*GRID).split(split_positions(N, 5))
    for step, positions in zip(seen, sets, strict=True):
        both = tuple(
            net.predict_masked(net.encode_context(text), codes, known) for text in (TEXT, NEGATIVE)
        )
        likeliest, _ = take_likeliest(both, scale, books)
        codes[0, positions], known[0, positions] = likeliest[0, positions], True
        assert torch.equal(step.codes, codes.mT.expand(2, -1, -1))
