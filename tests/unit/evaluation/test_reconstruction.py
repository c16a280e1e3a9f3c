"""How close reconstructions come, by hand."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import ShapeError
from tessella.evaluation import reconstruction
from tessella.evaluation import squeezenet as squeezenet_module
from tessella.evaluation.features import EvalNetworks, FeatureExtractor
from tessella.evaluation.reconstruction import (
    compute_perceptual_distance,
    compute_psnr,
    compute_ssim,
    evaluate_reconstructions,
    measure_reconstructions,
)
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.images import Pixels, to_float
from tessella.tokenizer import TokenizerSettings, VQAutoencoder


def draw(count: int, seed: int, side: int = 16) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _small_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """SqueezeNet on 63×63 pixels: a twelfth of the time."""
    monkeypatch.setattr(squeezenet_module, "INPUT_SIZE_PX", 63)


@pytest.fixture(scope="module")
def squeezenet() -> SqueezeNet:
    torch.manual_seed(0)
    return SqueezeNet().eval().requires_grad_(False)


def test_psnr_by_hand() -> None:
    """Every pixel wrong by 255 is 0 dB; by 25.5, 20 dB; the mean is of the dB, not the errors."""
    black = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    made = black.copy()
    made[0] = 255
    assert compute_psnr(made[:1], black[:1]) == pytest.approx(0.0)
    made[1] = 51  # a fifth: 20 · log10(5)
    assert compute_psnr(made[1:], black[1:]) == pytest.approx(13.9794, abs=1e-4)
    assert compute_psnr(made, black) == pytest.approx(13.9794 / 2, abs=1e-4)
    # Darker by as much is as wrong: uint8 does not wrap around.
    assert compute_psnr(black, made) == compute_psnr(made, black)


def test_one_wrong_level_counts_less_than_none_at_all() -> None:
    image = np.full((1, 8, 8, 3), 100, dtype=np.uint8)
    nearly = image.copy()
    nearly[0, 0, 0, 0] = 101
    # 1 / 192 is the mean square of the one, a quarter of it stands for none.
    assert compute_psnr(nearly, image) == pytest.approx(10 * np.log10(255**2 * 192))
    assert compute_psnr(image, image) == pytest.approx(10 * np.log10(255**2 * 192 * 4))


class Stripes(VQAutoencoder):
    """A tokenizer that is told, not trained: the code of a patch is its first pixel.

    Codes of other codebooks are 0.
    """

    def __init__(self, codes_per_position: int = 1) -> None:
        quantizer = {"codebook_size": 8, "code_width": 2, "codes_per_position": codes_per_position}
        super().__init__(
            TokenizerSettings.model_validate({"patch": 4, "widths": (16,), "quantizer": quantizer})
        )
        self.quantizer.look_up = lambda codes: codes.float()  # type: ignore[method-assign]

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        first = ((image[:, :1, ::4, ::4] + 1) * 127.5).round().long() % 8
        others = torch.zeros_like(first).repeat(1, len(self.codebook) - 1, 1, 1)
        return torch.cat([first, others], 1)

    def decode_latent(self, latent: torch.Tensor) -> torch.Tensor:
        grey = latent[:, :1] / 127.5 - 1
        return grey.repeat(1, 3, 4, 4)


def test_a_report_by_hand() -> None:
    """Five pictures, codes 1, 1, 1, 1 and 3: entropy of (0.8, 0.2) is 0.50040."""
    pixels = np.empty((5, 4, 4, 3), dtype=np.uint8)
    pixels[:] = np.array([1, 1, 1, 1, 3])[:, None, None, None]
    made = evaluate_reconstructions(Stripes().eval(), pixels)
    assert np.array_equal(made.pixels, pixels)
    assert made.health.codes_used == 2
    assert made.health.perplexity == pytest.approx(np.exp(0.50040), abs=1e-4)
    assert made.psnr == pytest.approx(compute_psnr(pixels, pixels))
    assert made.metrics() == {"psnr": made.psnr, **made.health.metrics()}


def test_a_report_of_two_codebooks_by_hand() -> None:
    """Half of the codes are the second codebook's first: ln 2 + 0.50040 / 2 is 0.94335."""
    pixels = np.empty((5, 4, 4, 3), dtype=np.uint8)
    pixels[:] = np.array([1, 1, 1, 1, 3])[:, None, None, None]
    made = evaluate_reconstructions(Stripes(codes_per_position=2).eval(), pixels)
    assert made.health.use.tolist() == [0, 4, 0, 1, 0, 0, 0, 0, 5, *[0] * 7]
    assert made.health.codes_used == 3
    assert made.health.perplexity == pytest.approx(np.exp(0.94335), abs=1e-4)


def test_every_code_alike_is_the_whole_codebook() -> None:
    pixels = np.empty((8, 4, 4, 3), dtype=np.uint8)
    pixels[:] = np.arange(8)[:, None, None, None]
    made = evaluate_reconstructions(Stripes().eval(), pixels)
    assert made.health.perplexity == pytest.approx(8.0)


def compute_ssim_by_windows(first: Pixels, second: Pixels) -> float:
    """The definition: at each pixel of each colour a Gaussian window, mirrored at the edges."""
    steps = np.arange(-5, 6)
    line = np.exp(-(steps**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for a, b in zip(first, second, strict=True):
        for colour in range(3):
            x, y = (
                np.lib.stride_tricks.sliding_window_view(
                    np.pad(side[..., colour].astype(np.float64), 5, mode="reflect"), (11, 11)
                )
                for side in (a, b)
            )
            mx, my = ((w * weights).sum((-2, -1)) for w in (x, y))
            dx, dy = x - mx[..., None, None], y - my[..., None, None]
            vx, vy, vxy = ((d * weights).sum((-2, -1)) for d in (dx**2, dy**2, dx * dy))
            top = (2 * mx * my + c1) * (2 * vxy + c2)
            values.append((top / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    return float(np.mean(values))


def test_ssim_by_hand() -> None:
    """Flat 100 against flat 150: (2·100·150 + 6.5025) / (100² + 150² + 6.5025)."""
    flat = np.full((1, 12, 12, 3), 100, dtype=np.uint8)
    assert compute_ssim(flat, flat) == pytest.approx(1.0)
    assert compute_ssim(flat, flat + 50) == pytest.approx(30006.5025 / 32506.5025, rel=1e-3)


@pytest.mark.parametrize("batch", [64, 2])
def test_ssim_is_its_definition(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "_BATCH", batch)
    pixels = draw(3, 1)
    made = (pixels // 2 + draw(3, 2) // 3).astype(np.uint8)
    expected = compute_ssim_by_windows(made, pixels)
    assert 0.1 < expected < 0.95
    assert compute_ssim(made, pixels) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow  # importing torchmetrics takes seconds
def test_ssim_is_that_of_torchmetrics_bit_for_bit() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    pixels = draw(3, 1, side=33)
    made = (pixels // 2 + draw(3, 2, side=33) // 3).astype(np.uint8)
    expected = structural_similarity_index_measure(
        to_float(made) + 1, to_float(pixels) + 1, reduction="none", data_range=2.0
    )
    assert compute_ssim(made, pixels) == float(expected.double().mean())


@pytest.mark.parametrize("batch", [16, 2])
def test_the_perceptual_distance_is_its_formula(
    squeezenet: SqueezeNet, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit vectors: their squared distance is 2 - 2 cos, without any normalisation."""
    monkeypatch.setattr(reconstruction, "_NETWORK_BATCH", batch)
    pixels, made = draw(3, 1), draw(3, 2)
    both = [
        squeezenet.features(to_float(side), SqueezeNet.perceptual_layers) for side in (made, pixels)
    ]
    expected = sum(
        float((2 - 2 * torch.cosine_similarity(both[0][name], both[1][name], dim=1)).mean())
        for name in SqueezeNet.perceptual_layers
    )
    assert expected > 0.01
    found = compute_perceptual_distance(squeezenet, made, pixels)
    assert found == pytest.approx(expected, rel=1e-3)
    assert compute_perceptual_distance(squeezenet, pixels, pixels) == 0


def test_vectors_of_zeros_are_equal(squeezenet: SqueezeNet) -> None:
    """A layer may see nothing at a place: that is no division by 0."""

    class Blind(SqueezeNet):
        def features(self, image: torch.Tensor, layers: Iterable[str]) -> dict[str, torch.Tensor]:
            return {name: torch.zeros(len(image), 4, 2, 2) for name in layers}

    assert compute_perceptual_distance(Blind(), draw(2, 1), draw(2, 2)) == 0


def test_every_number_has_its_protocol(squeezenet: SqueezeNet) -> None:
    pixels, made = draw(6, 1), draw(6, 2)
    extractor = FeatureExtractor("squeezenet-fire2", squeezenet, "fire2")
    networks = EvalNetworks(squeezenet, features={extractor.name: extractor})
    found: Any = measure_reconstructions(pixels, made, networks)
    assert found["psnr"].value == compute_psnr(made, pixels)
    assert found["ssim"].value == compute_ssim(made, pixels)
    assert found["fid_squeezenet-fire2"].value > 0
    assert {name: metric.protocol.split(", std")[0] for name, metric in found.items()} == {
        "psnr": "dB, mean over 6 images",
        "ssim": "11x11 Gaussian window, range 255, mean over 6 images",
        "perceptual_distance": "SqueezeNet 1.1, unit-normalised, no linear heads, sum over "
        "conv1, fire3, fire5, fire6, fire7, fire8, fire9, mean over 6 images",
        "fid_squeezenet-fire2": "squeezenet-fire2 features (128, mean over places), "
        "6 reconstructions against their 6 originals",
        "kid_squeezenet-fire2": "squeezenet-fire2 features (128, mean over places), "
        "6 reconstructions against their 6 originals; 100 random subsets of 3",
    }
    named: Any = measure_reconstructions(pixels, made, networks, description="six of mine")
    assert named["psnr"].protocol == "dB, mean over six of mine"
    assert named["fid_squeezenet-fire2"].protocol.endswith("their 6 originals, six of mine")


def test_networks_and_numbers_are_needed_for_what_they_measure(squeezenet: SqueezeNet) -> None:
    extractor = FeatureExtractor("squeezenet-conv1", squeezenet, "conv1")
    pixels = draw(3, 1)
    none = measure_reconstructions(pixels, pixels, EvalNetworks(missing="No weights."))
    assert none.pop("perceptual_distance") == "No weights."
    assert set(none) == {"psnr", "ssim"}
    networks = EvalNetworks(squeezenet, features={extractor.name: extractor})
    found = measure_reconstructions(pixels, pixels, networks)
    for kind in ("fid", "kid"):
        assert found.pop(f"{kind}_squeezenet-conv1") == "It takes at least 4 images."
    assert set(found) == {"psnr", "ssim", "perceptual_distance"}


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"`\(3, 16, 16, 3\)` and `\(2, 16, 16, 3\)`"):
        measure_reconstructions(draw(3, 1), draw(2, 1))
