"""What every quantizer keeps to, and how settings name one."""

from typing import Any

import pytest
import torch

from tessella.config import build
from tessella.errors import ConfigError, ShapeError
from tessella.tokenizer import (
    FiniteScalarQuantizer,
    FiniteScalarSettings,
    ImageTokenizer,
    Quantizer,
    TokenizerSettings,
    VectorQuantizer,
    VectorQuantizerSettings,
    create_quantizer,
)

QUANTIZERS: dict[str, VectorQuantizerSettings | FiniteScalarSettings] = {
    "vq": VectorQuantizerSettings(codebook_size=12, code_width=3, normalize=False),
    "vq normalised": VectorQuantizerSettings(codebook_size=12, code_width=3),
    "vq ema": VectorQuantizerSettings(
        codebook_size=12, code_width=3, normalize=False, learning="ema", revive_after_images=1
    ),
    "vq ema normalised": VectorQuantizerSettings(codebook_size=12, code_width=3, learning="ema"),
    "vq rotation": VectorQuantizerSettings(
        codebook_size=12, code_width=3, normalize=False, gradient="rotation"
    ),
    "fsq": FiniteScalarSettings(levels=(3, 4, 5)),
}


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(0)
    made = create_quantizer(QUANTIZERS[request.param]).train()
    made(torch.randn(2, 3, 8, 8))  # k-means starts from it
    return made


def test_shapes(quantizer: Quantizer) -> None:
    latent = torch.randn(2, 3, 4, 5)
    made = quantizer(latent)
    size = len(quantizer.idle_images)
    assert quantizer.codebook.shape == (size, 3)
    assert made.quantized.shape == latent.shape
    assert made.codes.shape == (2, 4, 5)
    assert made.codes.dtype == quantizer.encode(latent).dtype == torch.int64
    assert 0 <= made.codes.min() <= made.codes.max() < size
    assert made.loss.shape == ()


def test_looking_changes_nothing(quantizer: Quantizer) -> None:
    quantizer.eval()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    latent = torch.randn(2, 3, 3, 3)
    for _ in range(3):
        made = quantizer(latent)
    assert torch.equal(made.codes, quantizer.encode(latent))
    torch.testing.assert_close(made.quantized, quantizer.look_up(made.codes))
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_gradient_reaches_the_latent(quantizer: Quantizer) -> None:
    latent = torch.randn(2, 3, 3, 3, requires_grad=True)
    made = quantizer(latent)
    (made.quantized.sum() + made.loss).backward()
    assert latent.grad is not None
    assert latent.grad.isfinite().all()
    assert (latent.grad != 0).any(1).all()  # at every place


def test_it_counts_how_long_codes_are_idle(quantizer: Quantizer) -> None:
    quantizer.idle_images.zero_()
    codes = quantizer(torch.randn(2, 3, 1, 1)).codes
    used = torch.zeros(len(quantizer.idle_images), dtype=torch.bool)
    used[codes.flatten()] = True
    assert quantizer.idle_images.tolist() == [0 if is_used else 2 for is_used in used]


def test_its_state_is_all_there_is(quantizer: Quantizer) -> None:
    copy = create_quantizer(quantizer.settings).eval()
    copy.load_state_dict(quantizer.state_dict())
    latent = torch.randn(2, 3, 4, 4)
    expected = quantizer.eval()(latent)
    assert torch.equal(copy(latent).codes, expected.codes)
    assert torch.equal(copy(latent).quantized, expected.quantized)
    assert torch.equal(copy.idle_images, quantizer.idle_images)


def test_it_refuses_another_latent(quantizer: Quantizer) -> None:
    for use in (quantizer, quantizer.encode):
        with pytest.raises(ShapeError, match="has 5 channels, the codebook 3: they must be equal"):
            use(torch.zeros(1, 5, 2, 2))


@pytest.mark.parametrize("value", ["vq", "fsq"])
def test_an_image_tokenizer_is_made_with_it(value: str) -> None:
    values = {"patch": 4, "widths": [16], "quantizer": value}
    tokenizer = ImageTokenizer(build(TokenizerSettings, values)).train()
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    made = tokenizer(image)
    (made.image.square().mean() + made.quantized.loss).backward()
    assert all(p.grad is not None for p in tokenizer.encoder.parameters())
    assert tokenizer.eval().decode(tokenizer.encode(image)).shape == image.shape


# Names in files.


def test_files_from_before_there_was_a_choice_still_load() -> None:
    """Models were saved without a name: theirs is `vq`, and its weights keep their names."""
    old = {"codebook_size": 16, "code_width": 4, "normalize": True, "learning": "gradient"}
    tokenizer = build(TokenizerSettings, {"quantizer": old})
    assert tokenizer.quantizer == VectorQuantizerSettings(codebook_size=16, code_width=4)
    names = {"vectors", "idle_images", "started"}
    assert create_quantizer(tokenizer.quantizer).state_dict().keys() == names
    averaged = create_quantizer(VectorQuantizerSettings(learning="ema"))
    assert averaged.state_dict().keys() == names | {"cluster_size", "cluster_sum"}
    assert create_quantizer(FiniteScalarSettings()).state_dict().keys() == {"idle_images"}


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
    assert type(create_quantizer(tokenizer.quantizer)) is kind
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
