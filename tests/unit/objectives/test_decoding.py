"""The cache is exact: every step's logits against encoding everything again from scratch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.generation import GenerationSettings
from tessella.objectives import GenerationBatch, Objective
from tessella.objectives.any_order import AnyOrder
from tessella.objectives.autoregressive import Autoregressive
from tessella.transformer import KVCache, Transformer, TransformerSettings, TransformerShape

PAD, K, GRID = 0, 7, (4, 3)
N = GRID[0] * GRID[1]
CODEBOOK = torch.randn(K, 2, generator=torch.Generator().manual_seed(5))
NOTHING_KNOWN = {
    "known_codes": torch.zeros(1, N, dtype=torch.int64),
    "known": torch.zeros(1, N, dtype=torch.bool),
}


class RecordingTransformer(Transformer):
    """A transformer that records what it appends and predicts."""

    def __init__(self, text_features: int | None) -> None:
        shape = TransformerShape(11, 6, PAD, K, GRID, 2, text_features)
        super().__init__(TransformerSettings(width=16, depth=4, heads=2), shape)
        self.appended: list[tuple[Tensor, Tensor]] = []
        # How often it had appended, positions, logits.
        self.predicted: list[tuple[int, Tensor, Tensor]] = []

    def append_codes(self, cache: KVCache, codes: Tensor, positions: Tensor) -> None:
        self.appended.append((codes, positions))
        super().append_codes(cache, codes, positions)

    def predict(self, cache: KVCache, positions: Tensor, num_visible_codes: Tensor) -> Tensor:
        logits = super().predict(cache, positions, num_visible_codes)
        self.predicted.append((len(self.appended), positions, logits))
        return logits


def create(text_features: int | None = None) -> RecordingTransformer:
    torch.manual_seed(0)
    transformer = RecordingTransformer(text_features).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return transformer


TOKENS = torch.tensor([[1, 5, 2, PAD, PAD], [1, 6, 7, 8, 2]])
NEGATIVE_TOKENS = torch.tensor([[1, 2, PAD], [1, 10, 2]])


def to_features(tokens: Tensor) -> Tensor:
    drawn = torch.randn(11, 3, generator=torch.Generator().manual_seed(1))
    return drawn[tokens] * (tokens != PAD)[..., None]


@pytest.mark.parametrize("text", ["tokens", "features"])
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
    kind: type[Objective], order: Any, num_known: int, guidance_scale: float, text: str
) -> None:
    """Each row alone, its text without padding, all its codes appended at once, no capacity."""
    features = text == "features"
    transformer = create(3 if features else None)
    convert = to_features if features else Tensor.clone
    prompt_of, negative_of = torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1])
    known = torch.stack([torch.arange(N).roll(shift) < num_known for shift in range(3)])
    codes = torch.randint(K, (3, N), generator=torch.Generator().manual_seed(4))
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
    generated = kind(transformer, CODEBOOK).generate(batch)
    assert generated.codes is not None

    rows = list(TOKENS[prompt_of])
    if guidance_scale != 1:
        rows += list(NEGATIVE_TOKENS[negative_of])
    texts = [convert(row[row != PAD][None]) for row in rows]
    final = generated.codes.flatten(1).repeat(len(rows) // 3, 1)
    steps, fresh = transformer.predicted, create(3 if features else None)
    assert len(steps) == (4 if kind.name == "any_order" else N)
    for num_appended, positions, logits in steps:
        cached_codes = cached_positions = torch.empty(len(rows), 0, dtype=torch.int64)
        if num_appended:
            parts = zip(*transformer.appended[:num_appended], strict=True)
            cached_codes, cached_positions = (torch.cat(part, 1) for part in parts)
        # What is in the cache was decoded before.
        assert torch.equal(cached_codes, final.gather(1, cached_positions))
        for row in range(len(rows)):
            cache = fresh.encode_context(texts[row])
            fresh.append_codes(cache, cached_codes[row : row + 1], cached_positions[row : row + 1])
            visible = torch.full((positions.shape[1],), cached_codes.shape[1])
            expected = fresh.predict(cache, positions[row : row + 1], visible)
            torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-4, rtol=1e-4)


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
