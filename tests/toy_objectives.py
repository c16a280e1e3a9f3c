"""Toy objectives: every one with a transformer of 12 positions and 7 codes, and what they paint."""

from collections.abc import Sequence
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
from tessella.transformer import Examples, TransformerSettings, TransformerShape

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
CODEBOOK = torch.randn(K, 2, generator=torch.Generator().manual_seed(5))


def create(name: str, codebook: Tensor = CODEBOOK) -> Objective:
    """An objective with a transformer whose every weight matters."""
    torch.manual_seed(0)
    size = TransformerSettings(width=16, depth=2, heads=2)
    transformer = create_transformer(SETTINGS[name], size, SHAPE).eval()
    torch.manual_seed(9)  # argmaxes that tell prompts apart: not every seed has them
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return create_objective(SETTINGS[name], transformer, codebook)


OBJECTIVES = {name: create(name).requires_grad_(False) for name in SETTINGS}
EVERY = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
SAMPLING = ["any_order", "autoregressive", "masked", "parallel"]
"""Those that draw codes; the others generate the same whatever the seed."""
SAMPLES = pytest.mark.parametrize("objective", [OBJECTIVES[n] for n in SAMPLING], ids=SAMPLING)
ORDERED = ["any_order", "masked"]
"""Those that may go in any order, in any number of steps."""
ORDERS = [
    (name, order) for name in ORDERED for order in ("auto", "random", "halton", "confidence")
] + [(name, "auto") for name in OBJECTIVES if name not in ORDERED]


def create_batch(
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
    return GenerationBatch(
        text=TEXT,
        negative_text=NEGATIVE,
        prompt_of=torch.tensor(prompt_of),
        negative_of=torch.tensor(negative_of),
        seeds=seeds,
        settings=GenerationSettings().replace(**{"temperature": 1.0, "steps": 4, **changes}),
        known=torch.zeros(len(seeds), N).bool() if known is None else known[0],
        known_codes=torch.zeros(len(seeds), N).long() if known is None else known[1],
        examples=examples,
    )


def generate_codes(objective: Objective, batch: GenerationBatch) -> Tensor:
    """Codes (B, N)."""
    codes = objective.generate(batch).codes
    assert codes is not None
    return codes.flatten(1)


def draw_codes(batch: int) -> Tensor:
    return torch.randint(K, (batch, *GRID), generator=torch.Generator().manual_seed(2))


def draw_known(batch: int, count: int) -> tuple[Tensor, Tensor]:
    """Known positions, drawn for each picture, and their codes; -1 where nothing may look."""
    generator = torch.Generator().manual_seed(6)
    rank = torch.stack([torch.randperm(N, generator=generator) for _ in range(batch)])
    known = rank < count
    return known, draw_codes(batch).flatten(1).masked_fill(~known, -1)


def draw_examples(seed: int = 0) -> Examples:
    """Draws examples of the three prompts: three, one, two."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(K, (3, 3, N), generator=generator)
    tokens = torch.randint(1, 11, (3, 3, 4), generator=generator)
    codes[1, 1:] = -1
    codes[2, 2:] = -1
    return Examples(codes, tokens)
