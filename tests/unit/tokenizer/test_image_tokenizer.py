"""Encoder, quantizer and decoder together; a tiny one learns eight pictures by heart."""

import pytest
import torch

from tessella.errors import ConfigError, ShapeError
from tessella.tokenizer import (
    ImageTokenizer,
    QuantizerSettings,
    ReconstructionLossSettings,
    TokenizerSettings,
    compute_reconstruction_loss,
)
from tessella.training.optimizer import MuonAdamW, OptimizerSettings

TINY = TokenizerSettings(
    patch=2, widths=(16, 32), quantizer=QuantizerSettings(codebook_size=64, code_width=4)
)
REPORT = TokenizerSettings(
    network="report2021",
    nhid=16,
    quantizer=QuantizerSettings(codebook_size=32, code_width=16, normalize=False),
)


@pytest.mark.parametrize("settings", [TINY, REPORT])
def test_pixels_to_codes_to_pixels(settings: TokenizerSettings) -> None:
    tokenizer = ImageTokenizer(settings).eval()
    factor = settings.downsampling
    image = torch.rand(2, 3, 2 * factor, 3 * factor) * 2 - 1
    codes = tokenizer.encode(image)
    assert codes.shape == (2, 2, 3)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < len(tokenizer.codebook)
    made = tokenizer.decode(codes)
    assert made.shape == image.shape
    assert -1 <= made.min() <= made.max() <= 1
    # What training sees is the same picture, before it is clamped.
    seen = tokenizer(image)
    assert torch.equal(seen.quantized.codes, codes)
    torch.testing.assert_close(seen.image.clamp(-1, 1), made)


def test_downsampling() -> None:
    assert TINY.downsampling == 4
    assert TokenizerSettings(patch=4, widths=(16, 16, 16)).downsampling == 16
    assert REPORT.downsampling == 8


@pytest.mark.parametrize(
    ("height", "width", "said"),
    [
        (33, 32, r"multiple of 4 \(the tokenizer's downsampling\): `33`\. Try 32 or 36\."),
        (32, 2, r"`2`\. Try 4 or 8\."),
        (0, 4, r"`0`\. Try 4 or 8\."),
    ],
)
def test_sides_that_do_not_divide(height: int, width: int, said: str) -> None:
    tokenizer = ImageTokenizer(TINY)
    for use in (tokenizer.encode, tokenizer):
        with pytest.raises(ShapeError, match=said):
            use(torch.zeros(1, 3, height, width))


def test_the_report_s_codes_are_as_wide_as_its_encoder() -> None:
    with pytest.raises(ConfigError, match=r"as wide as `nhid`: 32, not 16\. Set tokenizer\.quant"):
        REPORT.replace(nhid=32)


@pytest.mark.parametrize("settings", [TINY, REPORT])
def test_muon_gets_the_convolutions_inside(settings: TokenizerSettings) -> None:
    tokenizer = ImageTokenizer(settings)
    names = {id(p): name for name, p in tokenizer.named_parameters()}
    hidden = {names[id(p)] for p in tokenizer.hidden_matrices()}
    expected = {
        name
        for name, p in tokenizer.named_parameters()
        if p.ndim == 4 and name.split(".")[1] == "body"
    }
    assert hidden == expected
    assert len(hidden) > 4
    assert not any("first" in name or "last" in name for name in hidden)


def test_the_encoder_learns_through_the_codes() -> None:
    tokenizer = ImageTokenizer(TINY).train()
    image = torch.rand(4, 3, 16, 16) * 2 - 1
    tokenizer(image).image.square().mean().backward()  # no loss of the quantizer's
    assert tokenizer.encoder.first.weight.grad.abs().sum() > 0
    assert tokenizer.decoder.last.weight.grad.abs().sum() > 0


def test_eight_pictures_are_learned_by_heart() -> None:
    """Colours and edges, 16 codes a picture: the error falls to a twentieth of the spread."""
    torch.manual_seed(0)
    image = torch.rand(8, 3, 1, 1).expand(-1, -1, 16, 16) * 2 - 1
    image = image.clone()
    for index in range(8):
        image[index, :, : 2 + index, 8:] *= -1
    tokenizer = ImageTokenizer(TINY).train()
    hidden = tokenizer.hidden_matrices()
    inside = {id(p) for p in hidden}
    rest = [p for p in tokenizer.parameters() if id(p) not in inside]
    optimizer = MuonAdamW(
        [{"params": hidden, "muon": True}, {"params": rest, "muon": False}], OptimizerSettings()
    )
    for step in range(60):
        optimizer.set_learning_rate(1 - step / 60)
        made = tokenizer(image)
        loss = compute_reconstruction_loss(made.image, image, ReconstructionLossSettings())
        (loss + made.quantized.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    tokenizer.eval()
    error = (tokenizer.decode(tokenizer.encode(image)) - image).square().mean()
    spread = (image - image.mean(0)).square().mean()
    assert error < spread / 20
