"""What every quantizer keeps to, alone and as one of several, and how settings name one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.config import build
from tessella.errors import ConfigError, ShapeError
from tessella.tokenizer import (
    Codebooks,
    FiniteScalarQuantizer,
    FiniteScalarSettings,
    Quantizer,
    TokenizerSettings,
    VectorQuantizer,
    VectorQuantizerSettings,
    VQAutoencoder,
    count_latent_channels,
)

AnySettings = VectorQuantizerSettings | FiniteScalarSettings
PLAIN = VectorQuantizerSettings(codebook_size=12, code_width=3, normalize=False)
ON_SPHERE = PLAIN.replace(normalize=True)
GRID = FiniteScalarSettings(levels=(3, 4, 5))
RESIDUAL = PLAIN.replace(codes_per_position=3, composition="residual")
QUANTIZERS: dict[str, AnySettings] = {
    "vq": PLAIN,
    "vq normalised": ON_SPHERE,
    "vq ema": PLAIN.replace(learning="ema", revive_after_images=1),
    "vq ema normalised": ON_SPHERE.replace(learning="ema"),
    "vq rotation": PLAIN.replace(gradient="rotation"),
    "fsq": GRID,
    "product": PLAIN.replace(codes_per_position=2),
    "product ema normalised": ON_SPHERE.replace(codes_per_position=3, learning="ema"),
    "product fsq": GRID.replace(codes_per_position=2),
    "residual": RESIDUAL,
    "residual ema": RESIDUAL.replace(learning="ema", revive_after_images=1),
    "residual normalised": RESIDUAL.replace(normalize=True),
    "residual rotation": RESIDUAL.replace(gradient="rotation"),
}


def draw_latent(settings: AnySettings, batch: int, height: int, width: int) -> Tensor:
    """A random latent (B, C, h, w) of as many channels as these codes make."""
    return torch.randn(batch, count_latent_channels(settings), height, width)


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: pytest.FixtureRequest) -> Codebooks:
    torch.manual_seed(0)
    settings = QUANTIZERS[request.param]
    made = Codebooks(settings).train()
    made(draw_latent(settings, 2, 8, 8))  # k-means starts from it
    return made


def test_shapes(quantizer: Codebooks) -> None:
    latent = draw_latent(quantizer.settings, 2, 4, 5)
    made = quantizer(latent)
    num_codes, size = quantizer.settings.codes_per_position, quantizer.settings.codebook_size
    assert quantizer.idle_images.shape == (num_codes, size)
    assert quantizer.codebook.shape == (num_codes, size, latent.shape[1])
    assert made.quantized.shape == latent.shape
    assert made.codes.shape == (2, num_codes, 4, 5)
    assert made.codes.dtype == quantizer.encode(latent).dtype == torch.int64
    assert 0 <= made.codes.min() <= made.codes.max() < size
    assert made.loss.shape == ()


def test_looking_changes_nothing(quantizer: Codebooks) -> None:
    quantizer.eval()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    latent = draw_latent(quantizer.settings, 2, 3, 3)
    for _ in range(3):
        made = quantizer(latent)
    assert torch.equal(made.codes, quantizer.encode(latent))
    torch.testing.assert_close(made.quantized, quantizer.look_up(made.codes))
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_gradient_reaches_the_latent(quantizer: Codebooks) -> None:
    latent = draw_latent(quantizer.settings, 2, 3, 3).requires_grad_()
    made = quantizer(latent)
    (made.quantized.sum() + made.loss).backward()
    assert latent.grad is not None
    assert latent.grad.isfinite().all()
    assert (latent.grad != 0).any(1).all()  # at every place


def test_it_counts_how_long_codes_are_idle(quantizer: Codebooks) -> None:
    for part in quantizer.parts:
        part.idle_images.zero_()
    codes = quantizer(draw_latent(quantizer.settings, 2, 1, 1)).codes
    for m, idle_images in enumerate(quantizer.idle_images):
        used = set(codes[:, m].flatten().tolist())
        assert idle_images.tolist() == [0 if k in used else 2 for k in range(len(idle_images))]


def test_its_state_is_all_there_is(quantizer: Codebooks) -> None:
    copy = Codebooks(quantizer.settings).eval()
    copy.load_state_dict(quantizer.state_dict())
    latent = draw_latent(quantizer.settings, 2, 4, 4)
    expected = quantizer.eval()(latent)
    assert torch.equal(copy(latent).codes, expected.codes)
    assert torch.equal(copy(latent).quantized, expected.quantized)
    assert torch.equal(copy.idle_images, quantizer.idle_images)


def test_it_refuses_another_latent(quantizer: Codebooks) -> None:
    width = count_latent_channels(quantizer.settings)
    for use in (quantizer, quantizer.encode):
        with pytest.raises(ShapeError, match=f"has 5 channels, the codebook {width}: they must be"):
            use(torch.zeros(1, 5, 2, 2))


@pytest.mark.parametrize(
    "value",
    [
        "vq",
        "fsq",
        {"codes_per_position": 2},
        {"codes_per_position": 2, "composition": "residual"},
        {"name": "fsq", "codes_per_position": 2},
    ],
)
def test_an_image_tokenizer_is_made_with_it(value: Any) -> None:
    values = {"patch": 4, "widths": [16], "quantizer": value}
    tokenizer = VQAutoencoder(build(TokenizerSettings, values)).train()
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    made = tokenizer(image)
    (made.image.square().mean() + made.quantized.loss).backward()
    assert all(p.grad is not None for p in tokenizer.encoder.parameters())
    assert tokenizer.eval().decode(tokenizer.encode(image)).shape == image.shape


# Names in files.


def name_state(settings: AnySettings) -> set[str]:
    """Names of what is saved of a position's only code; the model folder puts it in its place."""
    names = Codebooks(settings).state_dict().keys()
    assert all(name.startswith("parts.0.") for name in names)
    return {name.removeprefix("parts.0.") for name in names}


def test_files_from_before_there_was_a_choice_still_load() -> None:
    """Models were saved without a name: theirs is `vq`, and its weights keep their names."""
    old = {"codebook_size": 16, "code_width": 4, "normalize": True, "learning": "gradient"}
    tokenizer = build(TokenizerSettings, {"quantizer": old})
    assert tokenizer.quantizer == VectorQuantizerSettings(codebook_size=16, code_width=4)
    names = {"vectors", "idle_images", "started"}
    assert name_state(tokenizer.quantizer) == names
    averages = {"cluster_size", "cluster_sum"}
    assert name_state(VectorQuantizerSettings(learning="ema")) == names | averages
    assert name_state(FiniteScalarSettings()) == {"idle_images"}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({}, VectorQuantizer),
        ({"codebook_size": 8}, VectorQuantizer),
        ("vq", VectorQuantizer),
        ({"name": "vq"}, VectorQuantizer),
        ("fsq", FiniteScalarQuantizer),
        ({"name": "fsq", "levels": [8, 6, 5]}, FiniteScalarQuantizer),
    ],
)
def test_settings_name_the_quantizer(value: Any, kind: type[Quantizer]) -> None:
    tokenizer = build(TokenizerSettings, {"quantizer": value})
    [quantizer] = Codebooks(tokenizer.quantizer).parts
    assert type(quantizer) is kind
    assert build(TokenizerSettings, tokenizer.model_dump()) == tokenizer
    assert TokenizerSettings.model_validate_json(tokenizer.model_dump_json()) == tokenizer


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rvq", "Setting `quantizer`: .* 'rvq' .* does not match any of the expected tags"),
        (3, "Setting `quantizer`: got: `3`; input should be a valid dictionary"),
        ({"codebook_size": 1}, "Setting `quantizer.codebook_size`: got: `1`"),
        (
            {"name": "fsq", "level": [8]},
            "Unknown setting `quantizer.level`; did you mean `quantizer.levels`",
        ),
    ],
)
def test_settings_that_name_none(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(TokenizerSettings, {"quantizer": value})
