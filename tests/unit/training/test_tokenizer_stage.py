"""Stage 1: which batches it reads, what it learns from, how it is evaluated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console

from tessella.data.cache import CaptionedImages
from tessella.errors import ConfigError
from tessella.images import to_float, to_uint8
from tessella.tokenizer import TokenizerSettings, VQAutoencoder
from tessella.training.ema import create_average
from tessella.training.loop import create_accelerator, train
from tessella.training.schedule import create_image_generators
from tessella.training.tokenizer_stage import TokenizerStage, TokenizerTrainingSettings

Data = Mapping[str, CaptionedImages]

CPU = torch.device("cpu")
TOKENIZER = TokenizerSettings.model_validate(
    {"patch": 2, "widths": (16, 32), "quantizer": {"codebook_size": 16, "code_width": 4}}
)
INDICES = np.array([3, 0, 7, 3])


def create(data: Data, **settings: Any) -> TokenizerStage:
    torch.manual_seed(0)
    training = TokenizerTrainingSettings.model_validate(settings)
    return TokenizerStage(VQAutoencoder(TOKENIZER), training, data, CPU)


def with_discriminator(data: Data, **changes: Any) -> TokenizerStage:
    """Its discriminator learns from 8 images on, and counts from 16 on."""
    small = {"weight": 0.5, "start_images": 8, "warmup_images": 8, "width": 16, "layers": 1}
    return create(data, loss={"adversarial": small | changes})


def step(stage: TokenizerStage, images_seen: int) -> dict[str, torch.Tensor]:
    """One step's losses, without a step of the tokenizer's optimizer."""
    (pixels,) = stage.load_batch(np.arange(8), create_image_generators(0, 0, 8))
    stage.before_step(images_seen)
    result = stage.loss_module.train()(pixels)
    return {"loss": result.loss, **result.metrics, **stage.after_step()}


def without_validation(data: Data) -> Data:
    class Nothing:
        def __len__(self) -> int:
            return 0

    return {"train": data["train"], "validation": Nothing()}  # type: ignore[dict-item]


def test_a_tokenizer_batch_is_pixels(scenes: Data) -> None:
    (pixels,) = create(scenes).load_batch(INDICES, create_image_generators(0, 0, 8))
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy(), scenes["train"].pixels(INDICES))


def test_a_tokenizer_step_tells_both_losses(scenes: Data) -> None:
    stage = create(scenes)
    stage.loss_module.train()
    pixels = torch.from_numpy(scenes["train"].pixels(np.arange(8)))
    result = stage.loss_module(pixels)
    image = pixels.movedim(-1, 1).float() / 127.5 - 1
    made = stage.network.eval()(image)
    assert result.metrics["reconstruction_loss"].item() == pytest.approx(
        (made.image - image).square().mean().item(), rel=1e-4
    )
    assert result.loss > result.metrics["reconstruction_loss"]
    assert result.metrics["codes_used"] == made.quantized.codes.unique().numel()


@pytest.mark.parametrize("composition", ["product", "residual"])
def test_the_used_codes_of_every_codebook_are_counted(composition: str, scenes: Data) -> None:
    """The same number in two codebooks is two codes."""
    changes = {"codes_per_position": 2, "composition": composition}
    tokenizer = TOKENIZER.replace(quantizer=TOKENIZER.quantizer.model_dump() | changes)
    torch.manual_seed(0)
    stage = TokenizerStage(VQAutoencoder(tokenizer), TokenizerTrainingSettings(), scenes, CPU)
    pixels = torch.from_numpy(scenes["train"].pixels(np.arange(8)))
    result = stage.loss_module.train()(pixels)
    codes = stage.network.eval()(to_float(pixels)).quantized.codes
    each = [codes[:, m].unique().numel() for m in (0, 1)]
    assert result.metrics["codes_used"] == sum(each) > codes.unique().numel()


@pytest.mark.parametrize("held_out", [True, False])
def test_reconstructions_are_measured(scenes: Data, held_out: bool) -> None:
    """On what was kept out of training; on training images if nothing was."""
    data = scenes if held_out else without_validation(scenes)
    stage = create(data)
    average = create_average(stage.network)
    made = stage.evaluate(average, CPU, 0)
    images = data["validation" if held_out else "train"]
    pixels = images.pixels(np.arange(len(images)))
    image = torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1
    with torch.no_grad():
        again = to_uint8(average.decode(average.encode(image)))
    errors = np.square(again.astype(float) - pixels).mean((1, 2, 3))
    expected = (10 * np.log10(255**2 / errors)).mean()
    assert made.metrics["psnr"] == pytest.approx(expected, abs=0.05)
    assert made.pictures["samples"].dtype == np.uint8


def test_the_discriminator_begins_learns_and_counts_in_turn(scenes: Data) -> None:
    stage = with_discriminator(scenes)
    assert stage.steady_from_images == 16
    names = [set(step(stage, images_seen)) for images_seen in (0, 8)]
    metrics = step(stage, 16)
    assert "discriminator_loss" not in names[0]
    assert "discriminator_loss" in names[1] - names[0]
    assert {"adversarial_loss", "adaptive_weight"} <= set(metrics) - names[1]
    (pixels,) = stage.load_batch(np.arange(8), create_image_generators(0, 0, 8))
    parts = metrics["reconstruction_loss"] + metrics["adversarial_loss"]
    quantizer = stage.network(to_float(pixels)).quantized.loss
    assert metrics["loss"].item() == pytest.approx((parts + quantizer).item(), rel=0.05)
    # In an evaluation it has no say.
    assert "adversarial_loss" not in stage.loss_module.eval()(pixels).metrics


def test_the_discriminator_is_no_part_of_what_is_trained_or_saved(scenes: Data) -> None:
    stage = with_discriminator(scenes)
    plain = create(scenes)
    assert stage.network.state_dict().keys() == plain.network.state_dict().keys()
    assert len(list(stage.loss_module.parameters())) == len(list(plain.loss_module.parameters()))
    assert plain.state_dict() == {}
    plain.load_state_dict({})


def test_worse_reconstructions_halve_the_discriminator_s_weight(scenes: Data) -> None:
    stage = with_discriminator(scenes, start_images=0, warmup_images=0, error_tolerance=0.1)
    assert stage.note_validation({"psnr": 20.0}) is None
    step(stage, 8)
    assert stage.note_validation({"psnr": 20.1}) is None
    assert stage.note_validation({"psnr": 19.8}) is None  # 7 % more error than at 20.1
    note = stage.note_validation({"psnr": 19.0})
    assert note is not None
    assert "(19.00 dB)" in note
    assert "is now 0.5 of" in note
    assert create(scenes).note_validation({"psnr": 1.0}) is None


def test_the_discriminator_is_resumed_bit_for_bit(scenes: Data) -> None:
    """4 steps = 2 + save + load + 2, through the file format that checkpoints have."""

    def train_discriminator(stage: TokenizerStage, steps: range) -> None:
        for number in steps:
            torch.manual_seed(number)
            step(stage, 100)
            stage.note_validation({"psnr": 20.0 - number})

    changes: dict[str, Any] = {"lecam_weight": 0.3, "augment": True}
    whole, first = with_discriminator(scenes, **changes), with_discriminator(scenes, **changes)
    for stage in (whole, first):
        stage.network.requires_grad_(True)
    train_discriminator(whole, range(4))
    train_discriminator(first, range(2))
    network = {name: tensor.clone() for name, tensor in first.network.state_dict().items()}
    saved = safetensors.torch.save({n: t.contiguous() for n, t in first.state_dict().items()})
    train_discriminator(first, range(2, 3))  # further training must not change what was saved
    resumed = with_discriminator(scenes, **changes)
    resumed.network.load_state_dict(network)
    step(resumed, 100)  # the optimizer's present state is dropped
    resumed.network.load_state_dict(network)
    resumed.load_state_dict(safetensors.torch.load(saved))
    train_discriminator(resumed, range(2, 4))
    expected, state = whole.state_dict(), resumed.state_dict()
    assert any(name.startswith("optimizer.") for name in expected)
    assert expected["scale"] == 1 / 8
    assert expected.keys() == state.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.dtype == state[name].dtype, name
        assert name in ("steps", "scale") or tensor.stride() == state[name].stride(), name


def test_a_fresh_discriminator_s_state_takes_everything_back(scenes: Data) -> None:
    stage = with_discriminator(scenes)
    fresh = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    step(stage, 8)
    stage.load_state_dict(fresh)
    assert stage.state_dict().keys() == fresh.keys()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in stage.state_dict().items())


def test_a_decoder_learns_alone(scenes: Data, tmp_path: Path) -> None:
    """Encoder and codebook stay bit for bit what they are: their codes are someone's data."""
    settings = TokenizerTrainingSettings(learn="decoder", init_from=str(tmp_path), batch_size=8)
    stage = create(scenes, **settings.model_dump())
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
        n.split(".")[0] for n, t in stage.network.state_dict().items() if (t != before[n]).any()
    }
    assert changed == {"decoder"}


def test_a_decoder_alone_learns_to_paint_from_the_first_codes_too(scenes: Data) -> None:
    """It saw whole pictures only, and forgot what the first of its residual codes look like."""
    torch.manual_seed(0)
    quantizer = TOKENIZER.quantizer.replace(
        codes_per_position=3, composition="residual", tail_dropout=1.0
    )
    tokenizer = VQAutoencoder(TOKENIZER.replace(quantizer=quantizer)).train()
    (pixels,) = create(scenes).load_batch(np.arange(8), create_image_generators(0, 0, 8))
    tokenizer(to_float(pixels))  # its codebooks begin
    settings = TokenizerTrainingSettings(learn="decoder", init_from="model")
    stage = TokenizerStage(tokenizer, settings, scenes, CPU)
    before = {n: t.clone() for n, t in tokenizer.quantizer.state_dict().items()}
    decoded: list[torch.Tensor] = []
    tokenizer.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0]))
    step(stage, 8)
    with torch.no_grad():
        stage.loss_module.eval()(pixels)
    codes = tokenizer.encode(to_float(pixels))
    prefixes = [tokenizer.quantizer.look_up(codes[:, :m]) for m in (1, 2, 3)]
    one, two, three = ((decoded[0] == prefix).flatten(1).all(1) for prefix in prefixes)
    assert (one | two).all()
    assert one.any()
    assert two.any()
    assert not three.any()
    assert torch.equal(decoded[1], prefixes[2])
    assert all(torch.equal(t, before[n]) for n, t in tokenizer.quantizer.state_dict().items())


def test_a_discriminator_that_would_never_count_is_refused() -> None:
    settings = TokenizerTrainingSettings(loss={"adversarial": {"weight": 0.5}})
    with pytest.raises(
        ConfigError,
        match=r"^Settings: .* from 110,000 images on, .* ends at 110,000.* 55000 and 5500",
    ):
        settings.replace(images=110_000)
    assert settings.replace(images=110_032).images == 110_032


def test_a_decoder_alone_needs_something_to_decode() -> None:
    with pytest.raises(ConfigError, match=r"decoder alone needs a trained encoder.*init_from"):
        TokenizerTrainingSettings().replace(learn="decoder")


def test_what_is_compiled_and_computed_again(scenes: Data) -> None:
    stage = create(scenes, compile=True, recompute=True)
    encoder, decoder = stage.network.encoder.body, stage.network.decoder.body
    assert stage.compiled == [encoder, decoder]
    assert encoder.recompute
    assert decoder.recompute
    assert not create(scenes).compiled


def test_it_learns_in_mixed_precision(scenes: Data) -> None:
    """As on CUDA: what autocast hands from layer to layer in bfloat16 must fit together."""
    stage = create(scenes)
    loss_module = stage.loss_module.train()
    batch = stage.load_batch(INDICES, create_image_generators(0, 0, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss_module(*batch)
    assert result.loss.dtype == torch.float32
    exact = loss_module(*batch)
    assert result.loss.item() == pytest.approx(exact.loss.item(), rel=0.1)
    result.loss.backward()
    learning = [p for p in stage.network.parameters() if p.requires_grad]
    assert all(p.grad is None or p.grad.isfinite().all() for p in learning)
    assert sum(p.grad is not None for p in learning) > len(learning) / 2
