"""The cache is exact: every step's predictions against encoding everything again from scratch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.generation import GenerationSettings
from tessella.objectives import GenerationBatch, Objective
from tessella.objectives.any_order import AnyOrder
from tessella.objectives.autoregressive import Autoregressive
from tessella.objectives.decoding import DecodingState
from tessella.objectives.masked import Masked
from tessella.objectives.parallel import Parallel
from tessella.objectives.sampling import guide, to_gumbel
from tessella.transformer import KVCache, Transformer, TransformerSettings, TransformerShape

PAD, K, GRID = 0, 7, (4, 3)
N = GRID[0] * GRID[1]
CODEBOOK = torch.randn(1, K, 2, generator=torch.Generator().manual_seed(5))
NOTHING_KNOWN = {
    "known_codes": torch.zeros(1, N, 1, dtype=torch.int64),
    "known": torch.zeros(1, N, dtype=torch.bool),
}


class RecordingTransformer(Transformer):
    """A transformer that records what it appends and predicts."""

    def __init__(self, text_features: int | None, books: int) -> None:
        shape = TransformerShape(11, 6, PAD, K, GRID, 2, text_features, codes_per_position=books)
        super().__init__(TransformerSettings(width=16, depth=4, heads=2), shape)
        self.appended: list[tuple[Tensor, Tensor]] = []
        # How often it had appended, positions, hidden rows.
        self.predicted: list[tuple[int, Tensor, Tensor]] = []

    def append_codes(self, cache: KVCache, codes: Tensor, positions: Tensor) -> None:
        self.appended.append((codes, positions))
        super().append_codes(cache, codes, positions)

    def predict(self, cache: KVCache, positions: Tensor, num_visible_codes: Tensor) -> Tensor:
        hidden = super().predict(cache, positions, num_visible_codes)
        self.predicted.append((len(self.appended), positions, hidden))
        return hidden


def create(text_features: int | None = None, books: int = 1) -> RecordingTransformer:
    torch.manual_seed(0)
    transformer = RecordingTransformer(text_features, books).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return transformer


TOKENS = torch.tensor([[1, 5, 2, PAD, PAD], [1, 6, 7, 8, 2]])
NEGATIVE_TOKENS = torch.tensor([[1, 2, PAD], [1, 10, 2]])


def to_features(tokens: Tensor) -> Tensor:
    drawn = torch.randn(11, 3, generator=torch.Generator().manual_seed(1))
    return drawn[tokens] * (tokens != PAD)[..., None]


@pytest.mark.parametrize(
    ("text", "books"),
    [("tokens", 1), ("features", 1), ("tokens", 2)],
    ids=["tokens", "features", "pairs"],
)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("num_known", [0, 5])
@pytest.mark.parametrize(
    ("kind", "order"),
    [
        (AnyOrder, "random"),
        (AnyOrder, "halton"),
        (AnyOrder, "confidence"),
        (Autoregressive, "auto"),
    ],
    ids=["random", "halton", "confidence", "raster"],
)
def test_cached_is_recomputed(
    kind: type[Objective], order: Any, num_known: int, guidance_scale: float, text: str, books: int
) -> None:
    """Each row alone, its text without padding, all its codes appended at once, no capacity."""
    features = text == "features"
    transformer = create(3 if features else None, books)
    convert = to_features if features else Tensor.clone
    prompt_of, negative_of = torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1])
    known = torch.stack([torch.arange(N).roll(shift) < num_known for shift in range(3)])
    codes = torch.randint(K, (3, N, books), generator=torch.Generator().manual_seed(4))
    batch = GenerationBatch(
        text=convert(TOKENS),
        negative_text=convert(NEGATIVE_TOKENS),
        prompt_of=prompt_of,
        negative_of=negative_of,
        seeds=[1, 2, 3],
        settings=GenerationSettings(
            steps=4, temperature=1.0, order=order, guidance_scale=guidance_scale
        ),
        known=known,
        known_codes=codes,
    )
    generated = kind(transformer, CODEBOOK.expand(books, -1, -1)).generate(batch)
    assert generated.codes is not None

    rows = list(TOKENS[prompt_of])
    if guidance_scale != 1:
        rows += list(NEGATIVE_TOKENS[negative_of])
    texts = [convert(row[row != PAD][None]) for row in rows]
    final = generated.codes.flatten(2).mT.repeat(len(rows) // 3, 1, 1)
    steps, fresh = transformer.predicted, create(3 if features else None, books)
    assert len(steps) == (4 if kind.name == "any_order" else N)
    for num_appended, positions, hidden in steps:
        cached_codes = torch.empty(len(rows), 0, books, dtype=torch.int64)
        cached_positions = cached_codes[..., 0]
        if num_appended:
            parts = zip(*transformer.appended[:num_appended], strict=True)
            cached_codes, cached_positions = (torch.cat(part, 1) for part in parts)
        # What is in the cache was decoded before.
        by_row = torch.arange(len(rows))[:, None]
        assert torch.equal(cached_codes, final[by_row, cached_positions])
        for row in range(len(rows)):
            cache = fresh.encode_context(texts[row])
            fresh.append_codes(cache, cached_codes[row : row + 1], cached_positions[row : row + 1])
            visible = torch.full((positions.shape[1],), cached_codes.shape[1])
            expected = fresh.predict(cache, positions[row : row + 1], visible)
            torch.testing.assert_close(hidden[row : row + 1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_without_chance_no_noise_is_drawn(order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number for every position and code was once drawn in vain: slower than the argmax."""
    text, rows = TOKENS[:1], torch.zeros(1, dtype=torch.int64)
    drawn: list[tuple[int, ...]] = []
    rand = torch.rand

    def record(shape: tuple[int, ...], **options: Any) -> Tensor:
        drawn.append(shape)
        return rand(shape, **options)

    monkeypatch.setattr(torch, "rand", record)
    for temperature, has_noise in ((0.0, False), (1.0, True)):
        drawn.clear()
        settings = GenerationSettings(steps=3, temperature=temperature, order=order)
        batch = GenerationBatch(text, text, rows, rows, [1], settings, **NOTHING_KNOWN)
        AnyOrder(create(), CODEBOOK).generate(batch)
        assert any(shape[-1] == K and len(shape) == 2 for shape in drawn) is has_noise


def test_every_code_is_appended_once_and_every_position_predicted_once() -> None:
    """That is what makes many steps cheap; the last set need not be appended."""
    text, rows = TOKENS[:1], torch.zeros(1, dtype=torch.int64)
    for kind in (AnyOrder, Autoregressive):
        transformer = create()
        settings = GenerationSettings(steps=5)
        batch = GenerationBatch(text, text, rows, rows, [1], settings, **NOTHING_KNOWN)
        kind(transformer, CODEBOOK).generate(batch)
        positions = torch.cat([positions for _, positions, _ in transformer.predicted], 1)
        assert sorted(positions[0].tolist()) == list(range(N))
        appended = torch.cat([positions for _, positions in transformer.appended], 1)
        assert torch.equal(appended, positions[:, : appended.shape[1]])
        assert appended.shape[1] == N - transformer.predicted[-1][1].shape[1]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", [AnyOrder, Autoregressive, Masked, Parallel])
def test_codes_are_drawn_one_after_the_other_by_both_branches_together(
    kind: type[Objective], guidance_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each code has its own noise, and the logits that the codes drawn before it give.

    With guidance the prompt's branch and the other go on from the same codes.
    """
    transformer, rows = create(books=3), torch.tensor([0, 1])
    seen: list[tuple[Tensor, Tensor, list[Tensor], list[Tensor]]] = []
    choose_codes, draw = transformer.choose_codes, DecodingState._draw
    noises: list[Tensor] = []

    def watch(hidden: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        logits: list[Tensor] = []
        first = len(noises)

        def remember(now: Tensor) -> Tensor:
            logits.append(now)
            return choose(now)

        codes = choose_codes(hidden, remember)
        seen.append((hidden, codes, logits, noises[first : first + 3]))
        return codes

    def record(state: DecodingState, shape: tuple[int, ...]) -> Tensor:
        noises.append(draw(state, shape))
        return noises[-1]

    monkeypatch.setattr(transformer, "choose_codes", watch)
    monkeypatch.setattr(DecodingState, "_draw", record)
    nothing = torch.zeros(2, N, 3, dtype=torch.int64)
    settings = GenerationSettings(steps=3, temperature=0.8, guidance_scale=guidance_scale)
    batch = GenerationBatch(
        TOKENS, NEGATIVE_TOKENS, rows, rows, [1, 2], settings, nothing, nothing[..., 0].bool()
    )
    kind(transformer, CODEBOOK.expand(3, -1, -1)).generate(batch)
    assert seen
    branches = 1 if guidance_scale == 1 else 2
    for hidden, codes, logits, noise in seen:
        forced = transformer.compute_logits(hidden, codes.repeat(branches, 1, 1))
        assert torch.equal(torch.stack(logits, 2), forced)
        for m in range(3):
            joined = forced[:2, :, m]
            if branches == 2:
                joined = guide(joined, forced[2:, :, m], guidance_scale)
            drawn = (joined / 0.8 + to_gumbel(noise[m])).argmax(-1)
            assert torch.equal(drawn, codes[:, :, m])
        assert not torch.equal(noise[0], noise[1])
