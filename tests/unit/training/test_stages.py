"""The two stages: which batches they read, how they are evaluated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from tessella.data.cache import CaptionedImages
from tessella.errors import ConfigError
from tessella.images import to_float, to_uint8
from tessella.model.pipeline import ModelConfig, TextToImage
from tessella.objectives import LatentMSE
from tessella.text import TextSettings, TextTokenizer
from tessella.tokenizer import (
    AdversarialLoss,
    AdversarialSettings,
    ImageTokenizer,
    ReconstructionLoss,
    ReconstructionLossSettings,
    TokenizerSettings,
)
from tessella.training import stages
from tessella.training.ema import create_average
from tessella.training.loop import create_accelerator, train
from tessella.training.stages import (
    Critic,
    TokenizerStage,
    TokenizerTrainingSettings,
    TransformerStage,
    TransformerTrainingSettings,
)

Data = Mapping[str, CaptionedImages]

CPU = torch.device("cpu")
TOKENIZER = TokenizerSettings.model_validate(
    {"patch": 2, "widths": (16, 32), "quantizer": {"codebook_size": 16, "code_width": 4}}
)


def tokenizer_stage(data: Data) -> TokenizerStage:
    torch.manual_seed(0)
    return TokenizerStage(ImageTokenizer(TOKENIZER), TokenizerTrainingSettings(), data, CPU)


def transformer_stage(data: Data, **changes: object) -> TransformerStage:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {
            "image_size": 16,
            "tokenizer": TOKENIZER,
            "transformer": {"width": 16, "depth": 2, "heads": 2},
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


INDICES = np.array([3, 0, 7, 3])


# The image tokenizer.


def test_a_tokenizer_batch_is_pixels(scenes: Data) -> None:
    (pixels,) = tokenizer_stage(scenes).load_batch(INDICES, np.random.default_rng(0))
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy(), scenes["train"].pixels(INDICES))


def test_a_tokenizer_step_tells_both_losses(scenes: Data) -> None:
    stage = tokenizer_stage(scenes)
    stage.network.train()
    pixels = torch.from_numpy(scenes["train"].pixels(np.arange(8)))
    result = stage.network(pixels)
    image = pixels.movedim(-1, 1).float() / 127.5 - 1
    made = stage.network.tokenizer.eval()(image)
    assert result.metrics["reconstruction_loss"].item() == pytest.approx(
        (made.image - image).square().mean().item(), rel=1e-4
    )
    assert result.loss > result.metrics["reconstruction_loss"]
    assert result.metrics["codes_used"] == made.quantized.codes.unique().numel()


@pytest.mark.parametrize("held_out", [True, False])
def test_reconstructions_are_measured(scenes: Data, held_out: bool) -> None:
    """On what was kept out of training; on training images if nothing was."""
    data = scenes if held_out else without_validation(scenes)
    stage = tokenizer_stage(data)
    average = create_average(stage.network)
    made = stage.evaluate(average, CPU, 0)
    images = data["validation" if held_out else "train"]
    pixels = images.pixels(np.arange(len(images)))
    image = torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1
    with torch.no_grad():
        again = to_uint8(average.tokenizer.decode(average.tokenizer.encode(image)))
    errors = np.square(again.astype(float) - pixels).mean((1, 2, 3))
    expected = (10 * np.log10(255**2 / errors)).mean()
    assert made.metrics["psnr"] == pytest.approx(expected, abs=0.05)
    assert made.pictures["samples"].dtype == np.uint8


def test_the_discriminator_begins_learns_and_counts_in_turn(scenes: Data) -> None:
    torch.manual_seed(0)
    settings = TokenizerTrainingSettings.model_validate(
        {
            "loss": {
                "adversarial": {
                    "weight": 0.5,
                    "start_images": 8,
                    "warmup_images": 8,
                    "width": 16,
                    "layers": 1,
                }
            }
        }
    )
    stage = TokenizerStage(ImageTokenizer(TOKENIZER), settings, scenes, CPU)
    critic = stage.companion
    assert critic is not None
    assert critic.counts_from_images == 16
    network = stage.network.train()
    assert not any("discriminator" in name for name in network.state_dict())
    (pixels,) = stage.load_batch(np.arange(8), np.random.default_rng(0))
    told = []
    for images_seen in (0, 8, 16):
        critic.begin_step(images_seen)
        result = network(pixels)
        told.append(set(result.metrics) | set(critic.finish_step()))
    assert "discriminator_loss" not in told[0]
    assert "discriminator_loss" in told[1] - told[0]
    assert {"adversarial_loss", "adaptive_weight"} <= told[2] - told[1]
    parts = result.metrics["reconstruction_loss"] + result.metrics["adversarial_loss"]
    quantizer = network.tokenizer(to_float(pixels)).quantized.loss
    assert result.loss.item() == pytest.approx((parts + quantizer).item(), rel=0.05)
    # In an evaluation it has no say.
    assert "adversarial_loss" not in network.eval()(pixels).metrics


def test_worse_reconstructions_count_the_discriminator_half(scenes: Data) -> None:
    settings = AdversarialSettings(
        weight=0.5, start_images=0, warmup_images=0, layers=1, width=16, error_tolerance=0.1
    )
    critic = Critic(AdversarialLoss(settings, 16, CPU))
    assert critic.note_validation({"psnr": 20.0}) is None
    image = torch.rand(2, 3, 16, 16)
    layer = torch.nn.Conv2d(3, 3, 1)
    critic.begin_step(8)
    made = layer(image)
    losses = ReconstructionLoss(ReconstructionLossSettings())(made, image)
    assert critic.judge(made, image, losses, layer.weight) is not None
    assert critic.note_validation({"psnr": 20.1}) is None
    assert critic.note_validation({"psnr": 19.8}) is None  # 7 % more error than at 20.1
    said = critic.note_validation({"psnr": 19.0})
    assert said is not None
    assert "(19.00 dB)" in said
    assert "is now 0.5 of" in said


def test_a_decoder_learns_alone(scenes: Data, tmp_path: Path) -> None:
    """Encoder and codebook stay bit for bit what they are: their codes are someone's data."""
    torch.manual_seed(0)
    settings = TokenizerTrainingSettings(learn="decoder", init_from=str(tmp_path), batch_size=8)
    stage = TokenizerStage(ImageTokenizer(TOKENIZER), settings, scenes, CPU)
    before = {n: t.clone() for n, t in stage.network.state_dict().items()}
    train(
        stage,
        settings.replace(images=16),
        tmp_path / "run",
        seed=0,
        accelerator=create_accelerator("cpu"),
        console=Console(quiet=True),
        fingerprint="",
    )
    changed = {
        n.split(".")[1] for n, t in stage.network.state_dict().items() if (t != before[n]).any()
    }
    assert changed == {"decoder"}


def test_a_discriminator_that_would_never_count_is_refused() -> None:
    settings = TokenizerTrainingSettings(loss={"adversarial": {"weight": 0.5}})
    with pytest.raises(
        ConfigError,
        match=r"^Settings: .* from 110,000 images on, .* ends at 110,000.* 55000 and 5500",
    ):
        settings.replace(images=110_000)
    assert settings.replace(images=110_032).images == 110_032


def test_a_decoder_alone_needs_something_to_decode() -> None:
    with pytest.raises(ConfigError, match=r"decoder alone needs an encoder.*init_from"):
        TokenizerTrainingSettings().replace(learn="decoder")


def test_what_is_compiled_and_computed_again(scenes: Data) -> None:
    settings = TokenizerTrainingSettings(compile=True, recompute=True)
    stage = TokenizerStage(ImageTokenizer(TOKENIZER), settings, scenes, CPU)
    tokenizer = stage.network.tokenizer
    assert stage.compiled == [tokenizer.encoder.body, tokenizer.decoder.body]
    assert tokenizer.encoder.body.recompute
    assert tokenizer.decoder.body.recompute
    assert not tokenizer_stage(scenes).compiled
    learner = transformer_stage(scenes, compile=True)
    layers = [*learner.network.transformer.self_decoder, *learner.network.transformer.cross_decoder]
    assert learner.compiled == layers
    assert not transformer_stage(scenes).compiled


# The transformer.


def test_a_transformer_batch_is_a_caption_and_the_codes_of_each_image(scenes: Data) -> None:
    stage = transformer_stage(scenes, caption_dropout=0.0)
    tokens, codes = stage.load_batch(INDICES, np.random.default_rng(0))
    assert codes.dtype == torch.int64
    every = stage._codes["train"][:, INDICES]  # (passes, B, h, w)
    from_pass = (every == codes.numpy()).all((2, 3))
    assert from_pass.any(0).all()
    text = stage._model.text_tokenizer
    for caption, index in zip(text.decode(tokens), INDICES, strict=True):
        assert caption in scenes["train"].captions(int(index))


def test_every_caption_has_its_turn(scenes: Data) -> None:
    stage = transformer_stage(scenes, caption_dropout=0.0)
    choices = set(scenes["train"].captions(0))
    assert len(choices) > 2
    rng = np.random.default_rng(0)
    tokens, _ = stage.load_batch(np.zeros(200, dtype=np.int64), rng)
    assert set(stage._model.text_tokenizer.decode(tokens)) == choices


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.25, 60, 140), (1.0, 400, 400)])
def test_some_captions_are_dropped(scenes: Data, share: float, low: int, high: int) -> None:
    stage = transformer_stage(scenes, caption_dropout=share)
    tokens, _ = stage.load_batch(np.arange(400) % 20, np.random.default_rng(0))
    dropped = stage._model.text_tokenizer.decode(tokens).count("")
    assert low <= dropped <= high


def test_a_batch_follows_from_its_random_numbers(scenes: Data) -> None:
    stage = transformer_stage(scenes, caption_dropout=0.5)
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
    stage = transformer_stage(scenes)
    average = create_average(stage.network)
    torch.manual_seed(5)
    first = stage.evaluate(average, CPU, 0)
    again = stage.evaluate(average, CPU, 0)
    assert first.metrics == again.metrics
    assert np.array_equal(first.pictures["samples"], again.pictures["samples"])

    for name in ("loss", "accuracy"):
        assert name in first.metrics
    average._objective = LatentMSE()
    whole = stage.evaluate(average, CPU, 0).metrics
    monkeypatch.setattr(stages, "_VALIDATION_BATCH", 3)
    assert len(scenes["validation"]) % 3
    assert stage.evaluate(average, CPU, 0).metrics == pytest.approx(whole, rel=1e-4)


# Training cuts captions that are too long; painting refuses them. An evaluation painted the whole
# ones, so that a run with long captions died there, each time it was called again.
@pytest.mark.parametrize("some_are_short", [True, False])
def test_captions_that_are_too_long_are_scored_but_not_painted(
    scenes: Data, some_are_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = transformer_stage(scenes)
    text = stage._model.text_tokenizer
    captions = [scenes["validation"].captions(i)[0] for i in range(len(scenes["validation"]))]
    lengths = [len(text.tokens(caption)) for caption in captions]  # type: ignore[attr-defined]
    text.max_tokens = min(lengths) if some_are_short else 4
    readable = [c for c, length in zip(captions, lengths, strict=True) if length == min(lengths)]
    assert 0 < len(readable) < len(captions)
    asked = []
    paint = TextToImage.paint

    def watch(self: TextToImage, prompts: list[str], **words: Any) -> Any:
        asked.extend(prompts)
        return paint(self, prompts, **words)

    monkeypatch.setattr(TextToImage, "paint", watch)
    made = stage.evaluate(create_average(stage.network), CPU, 0)
    assert asked == (readable if some_are_short else [""])
    assert made.metrics["loss"] > 0
    assert made.pictures["samples"].ndim == 3


def test_without_validation_the_training_images_are_scored(scenes: Data) -> None:
    stage = transformer_stage(without_validation(scenes))
    average = create_average(stage.network)
    average._objective = LatentMSE()
    count = len(scenes["train"])
    captions = [scenes["train"].captions(index)[0] for index in range(count)]
    text = stage._model.text_tokenizer.encode(captions)
    codes = torch.from_numpy(stage._codes["train"][0].astype(np.int64))
    expected = average(text, codes).loss.item()
    assert stage.evaluate(average, CPU, 0).metrics["loss"] == pytest.approx(expected, rel=1e-4)


# On a GPU.


@pytest.mark.parametrize("name", ["tokenizer", "transformer"])
def test_both_learn_in_mixed_precision(scenes: Data, name: str) -> None:
    """As on CUDA: what autocast hands from layer to layer in bfloat16 must fit together."""
    stage = {"tokenizer": tokenizer_stage, "transformer": transformer_stage}[name](scenes)
    network = stage.network.train()
    batch = stage.load_batch(INDICES, np.random.default_rng(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(*batch)
    assert result.loss.dtype == torch.float32
    exact = network(*batch)
    assert result.loss.item() == pytest.approx(exact.loss.item(), rel=0.1)
    result.loss.backward()
    learning = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is None or p.grad.isfinite().all() for p in learning)
    assert sum(p.grad is not None for p in learning) > len(learning) / 2
