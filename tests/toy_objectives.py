"""Toy objectives, and what they paint.

Each has a transformer of 12 positions and 7 codes, with one code at a position and with two.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.generation import GenerationSettings
from tessella.objectives import (
    GenerationBatch,
    MaskedSettings,
    Objective,
    PlainObjectiveSettings,
    SharedLatentSettings,
    create_objective,
    create_transformer,
)
from tessella.transformer import Examples, TransformerSettings, TransformerShape, flatten_codes

SETTINGS = {
    "any_order": PlainObjectiveSettings(name="any_order"),
    "autoregressive": PlainObjectiveSettings(name="autoregressive"),
    "latent_mse": PlainObjectiveSettings(name="latent_mse"),
    "masked": MaskedSettings(),
    "parallel": PlainObjectiveSettings(name="parallel"),
    "shared_latent": SharedLatentSettings(),
}

K, GRID, PAD = 7, (3, 4), 0
N = GRID[0] * GRID[1]
SHAPE = TransformerShape(
    vocabulary_size=11,
    max_text_tokens=6,
    pad_id=PAD,
    codebook_size=K,
    grid=GRID,
    code_width=2,
    max_examples=3,
)
# Three prompts: a word, three words, another word.
TEXT = torch.tensor([[1, 5, 2, PAD, PAD], [1, 6, 7, 8, 2], [1, 9, 2, PAD, PAD]])
# What guidance moves away from: nothing, and something longer than any prompt.
NEGATIVE = torch.tensor([[1, 2, PAD, PAD, PAD, PAD], [1, 4, 10, 3, 4, 2]])
EMPTY = NEGATIVE[:1, :2]
CODEBOOKS = {
    books: torch.randn(books, K, 2, generator=torch.Generator().manual_seed(5)) for books in (1, 2)
}


def create(name: str, books: int = 1, codebook: Tensor | None = None) -> Objective:
    """An objective of some codes at a position, with a transformer whose every weight matters."""
    torch.manual_seed(0)
    size = TransformerSettings(width=16, depth=2, heads=2)
    shape = dataclasses.replace(SHAPE, codes_per_position=books)
    transformer = create_transformer(SETTINGS[name], size, shape).eval()
    torch.manual_seed(9)  # argmaxes that tell prompts apart: not every seed has them
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    codebook = CODEBOOKS[books] if codebook is None else codebook
    return create_objective(SETTINGS[name], transformer, codebook)


OBJECTIVES = {
    (name, books): create(name, books).requires_grad_(False)
    for books in CODEBOOKS
    for name in SETTINGS
}


def parametrize(names: Iterable[str]) -> pytest.MarkDecorator:
    """Runs a test with `objective`: each of those named, of one code at a position and of two."""
    keys = [(name, books) for name in names for books in CODEBOOKS]
    objectives = [OBJECTIVES[key] for key in keys]
    return pytest.mark.parametrize("objective", objectives, ids=[f"{n}-{m}" for n, m in keys])


EVERY = parametrize(SETTINGS)
SAMPLING = ["any_order", "autoregressive", "masked", "parallel"]
"""Those that draw codes; the others generate the same whatever the seed."""
SAMPLES = parametrize(SAMPLING)
ORDERED = ["any_order", "masked"]
"""Those that may go in any order, in any number of steps."""
ORDERS = [
    (objective, order)
    for (name, _), objective in OBJECTIVES.items()
    for order in (("auto", "random", "halton", "confidence") if name in ORDERED else ("auto",))
]
EVERY_ORDER = pytest.mark.parametrize(
    ("objective", "order"),
    ORDERS,
    ids=[f"{o.name}-{len(o.codebook)}-{order}" for o, order in ORDERS],
)


def create_batch(
    objective: Objective,
    prompt_of: Sequence[int],
    seeds: Sequence[int],
    *,
    negative_of: Sequence[int] | None = None,
    known: tuple[Tensor, Tensor] | None = None,
    examples: Examples | None = None,
    **changes: Any,
) -> GenerationBatch:
    """Makes a batch of one picture a seed; `known` is which positions and their codes."""
    negative_of = [0] * len(prompt_of) if negative_of is None else negative_of
    nothing = torch.zeros(len(seeds), N, len(objective.codebook), dtype=torch.int64)
    return GenerationBatch(
        text=TEXT,
        negative_text=NEGATIVE,
        prompt_of=torch.tensor(prompt_of),
        negative_of=torch.tensor(negative_of),
        seeds=seeds,
        settings=GenerationSettings().replace(**{"temperature": 1.0, "steps": 4, **changes}),
        known=nothing[..., 0].bool() if known is None else known[0],
        known_codes=nothing if known is None else known[1],
        examples=examples,
    )


def generate_codes(objective: Objective, batch: GenerationBatch) -> Tensor:
    """Codes (B, N, M)."""
    codes = objective.generate(batch).codes
    assert codes is not None
    return flatten_codes(codes)


def draw_codes(batch: int, books: int = 1) -> Tensor:
    """Codes (B, M, h, w)."""
    return torch.randint(K, (batch, books, *GRID), generator=torch.Generator().manual_seed(2))


def draw_known(batch: int, count: int, books: int = 1) -> tuple[Tensor, Tensor]:
    """Known positions, drawn for each picture, and their codes; -1 where nothing may look."""
    generator = torch.Generator().manual_seed(6)
    rank = torch.stack([torch.randperm(N, generator=generator) for _ in range(batch)])
    known = rank < count
    codes = flatten_codes(draw_codes(batch, books))
    return known, codes.masked_fill(~known[..., None], -1)


def draw_examples(books: int = 1) -> Examples:
    """Draws examples of the three prompts: three, one, two."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(K, (3, 3, N, books), generator=generator)
    tokens = torch.randint(1, 11, (3, 3, 4), generator=generator)
    codes[1, 1:] = -1
    codes[2, 2:] = -1
    return Examples(codes, tokens)
