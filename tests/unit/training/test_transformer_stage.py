"""Stage 2: which batches it reads, how it is evaluated."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tessella.data.cache import CaptionedImages
from tessella.model.folder import ModelConfig
from tessella.model.pipeline import TextToImage
from tessella.text import TextSettings, TextTokenizer
from tessella.training import transformer_stage
from tessella.training.ema import create_average
from tessella.training.transformer_stage import TransformerStage, TransformerTrainingSettings

Data = Mapping[str, CaptionedImages]

CPU = torch.device("cpu")
INDICES = np.array([3, 0, 7, 3])


def create(data: Data, objective: str = "any_order", **changes: object) -> TransformerStage:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {
            "image_size": 16,
            "tokenizer": {
                "patch": 2,
                "widths": (16, 32),
                "quantizer": {"codebook_size": 16, "code_width": 4},
            },
            "transformer": {"width": 16, "depth": 2, "heads": 2},
            "objective": {"name": objective},
            "generation": {"steps": 2},
        }
    )
    text = TextTokenizer.train(data["train"].all_captions(), TextSettings())
    rng = np.random.default_rng(0)
    codes = {
        side: rng.integers(16, size=(3, len(images), *config.grid)).astype(np.uint16)
        for side, images in data.items()
    }
    settings = TransformerTrainingSettings().replace(**changes)
    return TransformerStage(TextToImage.create(config, text), settings, data, codes)


def without_validation(data: Data) -> Data:
    class Nothing:
        def __len__(self) -> int:
            return 0

    return {"train": data["train"], "validation": Nothing()}  # type: ignore[dict-item]


def test_a_transformer_batch_is_a_caption_and_the_codes_of_each_image(scenes: Data) -> None:
    stage = create(scenes, caption_dropout=0.0)
    tokens, codes = stage.load_batch(INDICES, np.random.default_rng(0))
    assert codes.dtype == torch.int64
    every = stage._codes["train"][:, INDICES]  # (passes, B, h, w)
    from_pass = (every == codes.numpy()).all((2, 3))
    assert from_pass.any(0).all()
    text = stage._model.text_tokenizer
    for caption, index in zip(text.decode(tokens), INDICES, strict=True):
        assert caption in scenes["train"].captions(int(index))


def test_every_caption_has_its_turn(scenes: Data) -> None:
    stage = create(scenes, caption_dropout=0.0)
    choices = set(scenes["train"].captions(0))
    assert len(choices) > 2
    rng = np.random.default_rng(0)
    tokens, _ = stage.load_batch(np.zeros(200, dtype=np.int64), rng)
    assert set(stage._model.text_tokenizer.decode(tokens)) == choices


@pytest.mark.parametrize(
    ("fraction", "low", "high"), [(0.0, 0, 0), (0.25, 60, 140), (1.0, 400, 400)]
)
def test_some_captions_are_dropped(scenes: Data, fraction: float, low: int, high: int) -> None:
    stage = create(scenes, caption_dropout=fraction)
    tokens, _ = stage.load_batch(np.arange(400) % 20, np.random.default_rng(0))
    dropped = stage._model.text_tokenizer.decode(tokens).count("")
    assert low <= dropped <= high


def test_a_batch_follows_from_its_random_numbers(scenes: Data) -> None:
    stage = create(scenes, caption_dropout=0.5)
    first, again, other = (
        stage.load_batch(INDICES, np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_a_score_does_not_depend_on_chance_or_portions(
    scenes: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders are drawn in scoring: the same ones each time, else two scores could not be compared.

    With `latent_mse`, which draws nothing, also the portions that it is scored in do not matter.
    """
    stage = create(scenes)
    average = create_average(stage.network)
    torch.manual_seed(5)
    first = stage.evaluate(average, CPU, 0)
    again = stage.evaluate(average, CPU, 0)
    assert first.metrics == again.metrics
    assert np.array_equal(first.pictures["samples"], again.pictures["samples"])

    for name in ("loss", "accuracy"):
        assert name in first.metrics
    stage = create(scenes, "latent_mse")
    average = create_average(stage.network)
    whole = stage.evaluate(average, CPU, 0).metrics
    monkeypatch.setattr(transformer_stage, "_VALIDATION_BATCH", 3)
    assert len(scenes["validation"]) % 3
    assert stage.evaluate(average, CPU, 0).metrics == pytest.approx(whole, rel=1e-4)


def test_the_average_is_scored_and_painted_with_not_the_network(scenes: Data) -> None:
    stage = create(scenes)
    average = create_average(stage.network)
    before = stage.evaluate(average, CPU, 0)
    with torch.no_grad():
        for parameter in stage.network.parameters():
            parameter.zero_()
    after = stage.evaluate(average, CPU, 0)
    assert after.metrics == before.metrics
    assert np.array_equal(after.pictures["samples"], before.pictures["samples"])


# Training cuts captions that are too long; painting refuses them. An evaluation painted the whole
# ones, so that a run with long captions died there, each time it was called again.
@pytest.mark.parametrize("some_are_short", [True, False])
def test_captions_that_are_too_long_are_scored_but_not_painted(
    scenes: Data, some_are_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = create(scenes)
    text = stage._model.text_tokenizer
    captions = [scenes["validation"].captions(i)[0] for i in range(len(scenes["validation"]))]
    lengths = [len(text.tokens(caption)) for caption in captions]  # type: ignore[attr-defined]
    text.max_tokens = min(lengths) if some_are_short else 4
    readable = [c for c, length in zip(captions, lengths, strict=True) if length == min(lengths)]
    assert 0 < len(readable) < len(captions)
    painted = []
    generate = TextToImage.generate_images

    def watch(self: TextToImage, requests: list[Any], **options: Any) -> Any:
        painted.extend(request.prompt for request in requests)
        return generate(self, requests, **options)

    monkeypatch.setattr(TextToImage, "generate_images", watch)
    made = stage.evaluate(create_average(stage.network), CPU, 0)
    assert painted == (readable if some_are_short else [""])
    assert made.metrics["loss"] > 0
    assert made.pictures["samples"].ndim == 3


def test_without_validation_the_training_images_are_scored(scenes: Data) -> None:
    stage = create(without_validation(scenes), "latent_mse")
    average = create_average(stage.network)
    count = len(scenes["train"])
    captions = [scenes["train"].captions(index)[0] for index in range(count)]
    text = stage._model.text_tokenizer.encode(captions)
    codes = torch.from_numpy(stage._codes["train"][0].astype(np.int64))
    expected = stage.loss_module.eval()(text, codes).loss.item()
    assert stage.evaluate(average, CPU, 0).metrics["loss"] == pytest.approx(expected, rel=1e-4)


def test_what_is_compiled(scenes: Data) -> None:
    stage = create(scenes, compile=True)
    assert stage.compiled == [*stage.network.self_decoder, *stage.network.cross_decoder]
    assert not create(scenes).compiled


def test_it_learns_in_mixed_precision(scenes: Data) -> None:
    """As on CUDA: what autocast hands from layer to layer in bfloat16 must fit together."""
    stage = create(scenes)
    loss_module = stage.loss_module.train()
    batch = stage.load_batch(INDICES, np.random.default_rng(0))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss_module(*batch)
    assert result.loss.dtype == torch.float32
    torch.manual_seed(0)
    exact = loss_module(*batch)
    assert result.loss.item() == pytest.approx(exact.loss.item(), rel=0.1)
    result.loss.backward()
    learning = [p for p in stage.network.parameters() if p.requires_grad]
    assert all(p.grad is None or p.grad.isfinite().all() for p in learning)
    assert sum(p.grad is not None for p in learning) > len(learning) / 2
