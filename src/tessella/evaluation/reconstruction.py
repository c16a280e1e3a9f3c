"""How well an image tokenizer gives back what it was given.

Training looks at PSNR and the use of the codes after every so many images; a finished tokenizer
is also measured by SSIM, and by networks that were trained on other tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tessella.errors import ShapeError
from tessella.evaluation.distributions import MIN_PICTURES, compute_fid, compute_kid
from tessella.evaluation.features import FeatureExtractor
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.images import Pixels, to_float, to_uint8
from tessella.tokenizer import ImageTokenizer
from tessella.tokenizer.codebook_health import CodebookHealth, measure_codebook_health

PERCEPTUAL_LAYERS = ("conv1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9")
"""Of SqueezeNet; the ones that LPIPS compares too."""

_BATCH = 64
_NETWORK_BATCH = 16  # about 500 MB of features
_PEAK = 255.0


@dataclass(frozen=True)
class Metric:
    """A number, and how it was got."""

    value: float
    protocol: str  # on what, how many, with which settings


@dataclass(frozen=True)
class ReconstructionReport:
    """Reconstructions and how close they came."""

    pixels: Pixels  # (B, S, S, 3) the reconstructions
    codes: npt.NDArray[np.int64]  # (B, h, w)
    psnr: float  # dB, mean over images, on uint8 pixels
    health: CodebookHealth  # how the codebook is used

    def metrics(self) -> dict[str, float]:
        """Returns the numbers by name."""
        return {"psnr": self.psnr, **self.health.metrics()}


@torch.inference_mode()
def evaluate_reconstructions(
    tokenizer: ImageTokenizer, pixels: Pixels, device: torch.device
) -> ReconstructionReport:
    """Encodes and decodes pictures (B, S, S, 3) uint8, B >= 1, with a tokenizer in eval mode."""
    made, chosen = [], []
    for start in range(0, len(pixels), _BATCH):
        image = to_float(torch.from_numpy(pixels[start : start + _BATCH]).to(device))
        codes = tokenizer.encode(image)
        made.append(to_uint8(tokenizer.decode(codes)))
        chosen.append(codes.cpu().numpy())
    reconstructions, all_codes = np.concatenate(made), np.concatenate(chosen)
    return ReconstructionReport(
        pixels=reconstructions,
        codes=all_codes,
        psnr=compute_psnr(reconstructions, pixels),
        health=measure_codebook_health(tokenizer.quantizer, all_codes),
    )


def compute_psnr(reconstructions: Pixels, pixels: Pixels) -> float:
    """Computes the peak signal-to-noise ratio in dB: of each image, then the mean.

    Equal images count as an error of half a level of one channel of one pixel, not as infinity.
    """
    difference = reconstructions.astype(np.float64) - pixels
    error = np.square(difference).mean(axis=(1, 2, 3))
    least = 0.25 / pixels[0].size
    return float((10 * np.log10(_PEAK**2 / np.maximum(error, least))).mean())


def measure_reconstructions(
    originals: Pixels,
    reconstructions: Pixels,
    *,
    squeezenet: SqueezeNet | None = None,
    features: Sequence[FeatureExtractor] = (),
    description: str | None = None,
) -> dict[str, Metric]:
    """Compares pictures with what was made of them, in every way there is.

    Args:
        originals: (B, S, S, 3) uint8, B >= 1.
        reconstructions: the same shape, in the same order.
        squeezenet: adds the perceptual distance.
        features: each adds FID and KID, if there are at least four pictures.
        description: which pictures these are, for the protocol; else only their number is said.

    Returns:
        `psnr`, `ssim`, `perceptual_distance`, `fid_NAME` and `kid_NAME` for each of the features.

    Raises:
        ShapeError: the two sides differ in shape; says both.
    """
    if originals.shape != reconstructions.shape:
        raise ShapeError(
            f"Each picture needs its reconstruction of the same size: `{originals.shape}` and "
            f"`{reconstructions.shape}`."
        )
    mean = f"mean over {description or f'{len(originals)} images'}"
    metrics = {
        "psnr": Metric(compute_psnr(reconstructions, originals), f"dB, {mean}"),
        "ssim": Metric(
            compute_ssim(reconstructions, originals),
            f"11x11 Gaussian window, range 255, {mean}",
        ),
    }
    if squeezenet is not None:
        metrics["perceptual_distance"] = Metric(
            compute_perceptual_distance(squeezenet, reconstructions, originals),
            "SqueezeNet 1.1, unit-normalised, no linear heads, sum over "
            f"{', '.join(PERCEPTUAL_LAYERS)}, {mean}",
        )
    for extractor in features if len(originals) >= MIN_PICTURES else ():
        metrics |= _measure_distributions(originals, reconstructions, extractor, description)
    return metrics


def _measure_distributions(
    originals: Pixels,
    reconstructions: Pixels,
    extractor: FeatureExtractor,
    description: str | None,
) -> dict[str, Metric]:
    """Computes FID and KID on features of both sides."""
    expected, made = extractor.extract(originals), extractor.extract(reconstructions)
    kid = compute_kid(expected, made)
    which = f", {description}" if description else ""
    what = (
        f"{extractor.name} features ({extractor.num_features}, mean over places), {len(made)} "
        f"reconstructions against their {len(expected)} originals{which}"
    )
    subsets = f"{kid.subsets} random subsets of {kid.subset_size}, std {kid.std:.3g}"
    return {
        f"fid_{extractor.name}": Metric(compute_fid(expected, made), what),
        f"kid_{extractor.name}": Metric(kid.value, f"{what}; {subsets}"),
    }


def compute_ssim(reconstructions: Pixels, pixels: Pixels) -> float:
    """Computes the structural similarity, in [-1, 1]: of each image, then the mean.

    Args:
        reconstructions: (B, S, S, 3) uint8, S >= 6.
        pixels: the same shape.

    Source:
        Wang et al. 2004, doi:10.1109/TIP.2003.819861, on each colour, as torchmetrics computes it.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    each = []
    for start in range(0, len(pixels), _BATCH):
        # Black is 0 and white is 2, which gives the same as 0 and 255.
        made, expected = (
            to_float(p[start : start + _BATCH]) + 1 for p in (reconstructions, pixels)
        )
        values = structural_similarity_index_measure(
            made, expected, reduction="none", data_range=2.0
        )
        each.append(torch.as_tensor(values).reshape(-1))
    return float(torch.cat(each).double().mean())


@torch.inference_mode()
def compute_perceptual_distance(
    squeezenet: SqueezeNet, reconstructions: Pixels, pixels: Pixels
) -> float:
    """Computes how different pictures look to SqueezeNet: of each image, then the mean.

    At each place of a layer the feature vectors are scaled to length 1; their squared distance
    is averaged over the places and summed over `PERCEPTUAL_LAYERS`.

    Args:
        squeezenet: on any device.
        reconstructions: (B, H, W, 3) uint8.
        pixels: the same shape.

    Source:
        Equation 1 of arXiv:1801.03924 with all weights 1.
    """
    device = next(squeezenet.parameters()).device
    total = 0.0
    for start in range(0, len(pixels), _NETWORK_BATCH):
        made, expected = (
            squeezenet.features(
                to_float(p[start : start + _NETWORK_BATCH]).to(device), PERCEPTUAL_LAYERS
            )
            for p in (reconstructions, pixels)
        )
        for layer in PERCEPTUAL_LAYERS:
            # A vector of zeros stays one.
            difference = functional.normalize(made[layer]) - functional.normalize(expected[layer])
            total += float(difference.square().sum(1).mean((1, 2)).sum())
    return total / len(pixels)
