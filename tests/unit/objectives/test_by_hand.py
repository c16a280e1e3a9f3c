"""Generation worked out by itself: which positions come when, and what their codes are made of."""

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
NOTHING_KNOWN = {
    "known_codes": torch.zeros(2, N, dtype=torch.int64),
    "known": torch.zeros(2, N, dtype=torch.bool),
}
TEXT, NEGATIVE = torch.tensor([[1, 6, 7, 8, 2]]), torch.tensor([[1, 4, 2]])


def create() -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(TransformerSettings(width=16, depth=2, heads=2), SHAPE).eval()
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return transformer.requires_grad_(False)


TRANSFORMER = create()
CODEBOOK = torch.zeros(K, 2)
ANY_ORDER, MASKED = AnyOrder(TRANSFORMER, CODEBOOK), Masked(TRANSFORMER, CODEBOOK)
ORDERED = pytest.mark.parametrize("objective", [ANY_ORDER, MASKED], ids=["any_order", "masked"])


def watch_steps(objective: Objective, **changes: Any) -> list[GenerationStep]:
    """Generates two pictures of one prompt; only the order is random."""
    rows, seen = torch.zeros(2, dtype=torch.int64), list[GenerationStep]()
    settings = GenerationSettings(temperature=0.0, confidence_temperature=0.0).replace(**changes)
    batch = GenerationBatch(TEXT, NEGATIVE, rows, rows, [1, 2], settings, **NOTHING_KNOWN)
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


@pytest.mark.parametrize(
    ("objective", "order"),
    [
        (ANY_ORDER, halton_order(*GRID).tolist()),
        (Autoregressive(TRANSFORMER, CODEBOOK), list(range(N))),
    ],
    ids=["any_order", "autoregressive"],
)
def test_later_codes_know_the_earlier_ones(objective: Objective, order: list[int]) -> None:
    """One position a step is the chain of likeliest codes."""
    generated = watch_steps(objective, order="halton", steps=N)[-1].codes
    cache, expected = TRANSFORMER.encode_context(TEXT), {}
    for index, position in enumerate(order):
        here = torch.tensor([[position]])
        code = TRANSFORMER.predict(cache, here, torch.tensor([index])).argmax(-1)
        expected[position] = code.item()
        TRANSFORMER.append_codes(cache, code, here)
    assert generated.tolist() == [[expected[position] for position in range(N)]] * 2


@ORDERED
@pytest.mark.parametrize("schedule", ["cosine", "arccos"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_surest_are_decoded_first(objective: Objective, schedule: str, scale: float) -> None:
    """Each step decodes the likeliest codes at the positions that are surest of them.

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
    codes, known = torch.zeros(1, N, dtype=torch.int64), torch.zeros(1, N, dtype=torch.bool)
    decoded: list[int] = []

    def predict(text: Tensor) -> Tensor:
        cache = TRANSFORMER.encode_context(text)
        if objective.name == "masked":
            return TRANSFORMER.predict_masked(cache, codes, known)[0]
        order = torch.tensor([decoded], dtype=torch.int64)
        TRANSFORMER.append_codes(cache, codes.gather(1, order), order)
        visible = torch.full((N,), len(decoded))
        return TRANSFORMER.predict(cache, torch.arange(N)[None], visible)[0]

    for index, size in enumerate(split_positions(N, 4, schedule)):
        ramped = 1 + (scale - 1) * (index + 1) / 4
        logits = guide(predict(TEXT), predict(NEGATIVE), ramped)
        sure, likeliest = logits.softmax(-1).max(-1)
        surest = sure.masked_fill(known[0], -1).topk(size).indices.sort().values
        codes[0, surest], known[0, surest] = likeliest[surest], True
        decoded.extend(surest.tolist())
        assert torch.equal(seen[index].is_decoded, known.expand(2, -1))
        assert torch.equal(seen[index].codes, codes.expand(2, -1))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_each_masked_step_is_one_pass(scale: float) -> None:
    """In Halton's order: the likeliest codes, given all that were decoded before."""
    seen = watch_steps(MASKED, order="halton", steps=5, guidance_scale=scale)
    codes, known = torch.zeros(1, N, dtype=torch.int64), torch.zeros(1, N, dtype=torch.bool)
    sets = halton_order(*GRID).split(split_positions(N, 5))
    for step, positions in zip(seen, sets, strict=True):
        filled, without = (
            TRANSFORMER.predict_masked(TRANSFORMER.encode_context(text), codes, known)
            for text in (TEXT, NEGATIVE)
        )
        likeliest = guide(filled, without, scale).argmax(-1)
        codes[0, positions], known[0, positions] = likeliest[0, positions], True
        assert torch.equal(step.codes, codes.expand(2, -1))
