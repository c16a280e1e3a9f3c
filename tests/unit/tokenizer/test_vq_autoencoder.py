"""Encoder, quantizer and decoder together; a tiny one learns eight pictures by heart."""

import hashlib

import numpy as np
import pytest
import torch

from tessella.errors import ConfigError, ShapeError
from tessella.images import to_float, to_uint8
from tessella.tokenizer import TokenizerSettings, VectorQuantizerSettings, VQAutoencoder
from tessella.tokenizer.losses import ReconstructionLoss, ReconstructionLossSettings
from tessella.training.optimizer import MuonAdamW, OptimizerSettings

TINY = TokenizerSettings(
    patch=2, widths=(16, 32), quantizer=VectorQuantizerSettings(codebook_size=64, code_width=4)
)
REPORT = TokenizerSettings(
    network="report2021",
    nhid=16,
    quantizer=VectorQuantizerSettings(codebook_size=32, code_width=16, normalize=False),
)
TAMING = TokenizerSettings(
    network="taming",
    widths=(32, 64),
    quantizer=VectorQuantizerSettings(codebook_size=32, code_width=16, normalize=False),
)
PALETTE = TokenizerSettings(
    network="palette",
    quantizer=VectorQuantizerSettings(
        codebook_size=8, code_width=3, normalize=False, learning="ema"
    ),
)
ROUNDED = TINY.replace(quantizer={"name": "fsq", "levels": (5, 4, 3)})
GROUPS = TINY.replace(quantizer=TINY.quantizer.replace(codes_per_position=3))
RESIDUALS = GROUPS.replace(quantizer=GROUPS.quantizer.replace(composition="residual"))
LARGER = TINY.replace(upsampling=2)
LARGER_REPORT = REPORT.replace(upsampling=1)
LARGER_TAMING = TAMING.replace(upsampling=1)
ALL = {
    "residual": TINY,
    "report2021": REPORT,
    "taming": TAMING,
    "palette": PALETTE,
    "fsq": ROUNDED,
    "product": GROUPS,
    "residual codes": RESIDUALS,
    "larger": LARGER,
    "larger report2021": LARGER_REPORT,
    "larger taming": LARGER_TAMING,
}
every_kind = pytest.mark.parametrize("settings", ALL.values(), ids=ALL)


@every_kind
def test_pixels_to_codes_to_pixels(settings: TokenizerSettings) -> None:
    tokenizer = VQAutoencoder(settings).eval()
    factor = settings.downsampling
    image = torch.rand(2, 3, 2 * factor, 3 * factor) * 2 - 1
    codes = tokenizer.encode(image)
    num_codes, size, _ = tokenizer.codebook.shape
    assert num_codes == settings.quantizer.codes_per_position
    assert codes.shape == (2, num_codes, 2, 3)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < size
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
    assert TAMING.downsampling == 2
    assert PALETTE.downsampling == 1
    # In the picture that is painted.
    assert LARGER.downsampling == 4 * TINY.downsampling
    assert LARGER_REPORT.downsampling == 16


@pytest.mark.parametrize(
    ("height", "width", "said"),
    [
        (33, 32, r"multiple of 4 \(the tokenizer's downsampling\): `33`\. Try 32 or 36\."),
        (32, 2, r"`2`\. Try 4 or 8\."),
        (0, 4, r"`0`\. Try 4 or 8\."),
    ],
)
def test_sides_that_do_not_divide(height: int, width: int, said: str) -> None:
    tokenizer = VQAutoencoder(TINY)
    for use in (tokenizer.encode, tokenizer):
        with pytest.raises(ShapeError, match=said):
            use(torch.zeros(1, 3, height, width))


def test_the_codes_meaning_has_a_hash_that_older_examples_know() -> None:
    """Examples are bound to it: of one codebook it is the hash of when there was no other."""
    tokenizer = VQAutoencoder(TINY)
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.encoder.state_dict(prefix="encoder.").items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    [quantizer] = tokenizer.quantizer.parts
    vectors = quantizer.vectors.detach().numpy()
    assert vectors.shape == (64, 4)
    digest.update(b"quantizer.vectors" + vectors.tobytes())
    assert tokenizer.hash_encoder() == digest.hexdigest()


@pytest.mark.parametrize("settings", [GROUPS, RESIDUALS])
def test_every_codebook_counts_for_the_hash(settings: TokenizerSettings) -> None:
    tokenizer = VQAutoencoder(settings)
    found = [tokenizer.hash_encoder()]
    for part in tokenizer.quantizer.parts:
        with torch.no_grad():
            part.vectors[0, 0] += 1
        found.append(tokenizer.hash_encoder())
    assert len(set(found)) == 4
    with torch.no_grad():
        tokenizer.decoder.last.weight.add_(1)
    assert tokenizer.hash_encoder() == found[-1]


def test_the_report_s_codes_are_as_wide_as_its_encoder() -> None:
    with pytest.raises(ConfigError, match=r"as wide as `nhid`: 32, not 16\. Set tokenizer\.quant"):
        REPORT.replace(nhid=32)
    codes = REPORT.quantizer.replace(code_width=8, codes_per_position=2)
    assert REPORT.replace(quantizer=codes)
    for composition, width in (("product", 4), ("residual", 8)):
        narrow = codes.replace(composition=composition, code_width=width)
        right = 2 * width
        with pytest.raises(ConfigError, match=rf"`nhid`: 16, not 8\. Set .*code_width={right} too"):
            REPORT.replace(quantizer=narrow)


def test_a_larger_picture_has_the_codes_of_the_mean_of_its_blocks() -> None:
    """What an encoder learned at one size stays true for a decoder that paints four times it."""
    small, large = VQAutoencoder(TINY).eval(), VQAutoencoder(LARGER).eval()
    large.encoder.load_state_dict(small.encoder.state_dict())
    large.quantizer.load_state_dict(small.quantizer.state_dict())
    image = torch.rand(2, 3, 32, 48) * 2 - 1
    blocks = image.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    assert blocks.shape == (2, 3, 8, 12)
    assert torch.equal(large.encode(image), small.encode(blocks))


def test_a_report_that_cannot_halve_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`nhid` halves .* multiple of 32, not 16"):
        REPORT.replace(upsampling=2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantizer": {"name": "fsq", "levels": (8, 8, 8)}}, r"codes are colours"),
        ({"quantizer": {"code_width": 8, "normalize": False}}, r"codes are colours.*code_width=3"),
        ({"quantizer": {"code_width": 3}}, r"codes are colours.*normalize=false"),
        (
            {"quantizer": {"code_width": 3, "normalize": False, "codes_per_position": 2}},
            r"codes are colours, one a pixel.*codes_per_position=1",
        ),
        ({"upsampling": 1}, r"no decoder that could upsample.*upsampling=0"),
    ],
)
def test_a_palette_that_is_none_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PALETTE.replace(**changes)


def test_a_palette_of_all_colours_loses_nothing() -> None:
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0], [255, 255, 255]], dtype=np.uint8)
    pixels = colours[np.random.default_rng(0).integers(4, size=(5, 6, 6))]
    tokenizer = VQAutoencoder(PALETTE)
    tokenizer.learn_palette(pixels, seed=0)
    made = to_uint8(tokenizer.eval().decode(tokenizer.encode(to_float(pixels))))
    assert np.array_equal(made, pixels)


@pytest.mark.parametrize("settings", [TINY, TAMING, ROUNDED, RESIDUALS, LARGER, LARGER_TAMING])
def test_memory_can_be_saved(settings: TokenizerSettings) -> None:
    """Computing again what was not kept changes no gradient, whatever the network."""
    factor = settings.downsampling
    image = torch.rand(2, 3, 2 * factor, 2 * factor) * 2 - 1
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        tokenizer = VQAutoencoder(settings).train()
        tokenizer.set_recompute(recompute)
        tokenizer(image).image.square().mean().backward()
        found.append([p.grad for p in tokenizer.parameters() if p.grad is not None])
    kept, again = found
    assert len(kept) == len(again) > 10
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other)


def test_batch_normalization_cannot_be_computed_again() -> None:
    """Its running statistics would move twice a step: another network in the end."""
    with pytest.raises(ConfigError, match=r"`report2021` cannot .*recompute=false"):
        VQAutoencoder(REPORT).set_recompute(True)
    VQAutoencoder(REPORT).set_recompute(False)


@pytest.mark.parametrize("settings", [TINY, REPORT, TAMING])
def test_muon_gets_the_convolutions_inside(settings: TokenizerSettings) -> None:
    tokenizer = VQAutoencoder(settings)
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
    tokenizer = VQAutoencoder(TINY).train()
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
    tokenizer = VQAutoencoder(TINY).train()
    hidden = tokenizer.hidden_matrices()
    inside = {id(p) for p in hidden}
    rest = [p for p in tokenizer.parameters() if id(p) not in inside]
    optimizer = MuonAdamW(
        [{"params": hidden, "muon": True}, {"params": rest, "muon": False}], OptimizerSettings()
    )
    compare = ReconstructionLoss(ReconstructionLossSettings())
    for step in range(60):
        optimizer.set_learning_rate(1 - step / 60)
        made = tokenizer(image)
        loss = compare(made.image, image).total
        (loss + made.quantized.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    tokenizer.eval()
    error = (tokenizer.decode(tokenizer.encode(image)) - image).square().mean()
    spread = (image - image.mean(0)).square().mean()
    assert error < spread / 20


def test_where_weights_come_from_is_one_printable_line() -> None:
    """It goes into terminals, cards and YAML; what is kept can be read again."""
    settings = TokenizerSettings(origin="a\nb\u2028c\x1b[0m", licence=" mit\r\n")
    assert (settings.origin, settings.licence) == ("a b c\\x1b[0m", "mit")
    assert TokenizerSettings.model_validate(settings.model_dump()) == settings
    with pytest.raises(ValueError, match="at most 1000"):
        TokenizerSettings(origin="\x1b" * 300)
