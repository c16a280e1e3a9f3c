"""How well an image tokenizer gives pictures back.

Training looks at PSNR and the use of the codes at each of its evaluations; a finished tokenizer is
also measured by SSIM, and by networks that were trained on other tasks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from tessella.errors import ShapeError
from tessella.evaluation.distributions import MIN_PICTURES, measure_set_distances
from tessella.evaluation.features import NO_NETWORKS, ComparingNetwork, EvalNetworks
from tessella.evaluation.metric import Metric, Results
from tessella.images import Pixels, to_float
from tessella.model.codec import decode_latent, encode_pixels
from tessella.tokenizer import VQAutoencoder
from tessella.tokenizer.codebook_health import CodebookHealth, measure_codebook_health

_BATCH = 64
_NETWORK_BATCH = 16  # about 500 MB of features
_PEAK = 255.0
_SSIM_REACH = 5  # pixels from the middle of the window to its edge
_SSIM_SIGMA = 1.5
_SSIM_C1, _SSIM_C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of values in [0, 2]


@dataclass(frozen=True)
class ReconstructionReport:
    """Reconstructions, and how close they came."""

    pixels: Pixels  # (B, S, S, 3) the reconstructions
    psnr: float  # dB, mean over images, on uint8 pixels
    health: CodebookHealth  # how the codebook is used

    def metrics(self) -> dict[str, float]:
        """Returns the numbers by name."""
        return {"psnr": self.psnr, **self.health.metrics()}


@torch.inference_mode()
def evaluate_reconstructions(tokenizer: VQAutoencoder, pixels: Pixels) -> ReconstructionReport:
    """Encodes and decodes pictures (B, S, S, 3) uint8, B >= 1, with a tokenizer in eval mode."""
    codes = encode_pixels(tokenizer, pixels)
    latent = tokenizer.quantizer.look_up(codes)
    height, width = latent.shape[2:]
    reconstructions = decode_latent(tokenizer, latent, (height, width))
    return ReconstructionReport(
        pixels=reconstructions,
        psnr=compute_psnr(reconstructions, pixels),
        health=measure_codebook_health(tokenizer.quantizer, codes.cpu().numpy()),
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
    networks: EvalNetworks = NO_NETWORKS,
    *,
    description: str = "",
) -> Results:
    """Compares pictures with their reconstructions in every available way.

    Args:
        originals: (B, S, S, 3) uint8, B >= 1.
        reconstructions: the same shape, in the same order.
        networks: a network adds the perceptual distance; each of the features adds FID and KID,
            if there are at least four pictures.
        description: which pictures these are, for the protocol; by default, how many.

    Returns:
        `psnr`, `ssim`, `perceptual_distance`, `fid_NAME` and `kid_NAME` for each of the features,
        or the reasons why they are left out.

    Raises:
        ShapeError: the two sides differ in shape; says both.
    """
    if originals.shape != reconstructions.shape:
        raise ShapeError(
            f"Each picture needs its reconstruction of the same size: `{originals.shape}` and "
            f"`{reconstructions.shape}`."
        )
    count = len(originals)
    mean = f"mean over {description or f'{count} images'}"
    results: Results = {
        "psnr": Metric(compute_psnr(reconstructions, originals), f"dB, {mean}"),
        "ssim": Metric(
            compute_ssim(reconstructions, originals),
            f"11x11 Gaussian window, range 255, {mean}",
        ),
    }
    network = networks.network
    if network is None:
        results["perceptual_distance"] = networks.missing
    else:
        results["perceptual_distance"] = Metric(
            compute_perceptual_distance(network, reconstructions, originals),
            f"{network.name}, unit-normalised, no linear heads, sum over "
            f"{', '.join(network.perceptual_layers)}, {mean}",
        )
    for name, extractor in networks.features.items():
        if extractor is None or count < MIN_PICTURES:
            reason = f"It takes at least {MIN_PICTURES} images." if extractor else networks.missing
            results |= {f"{kind}_{name}": reason for kind in ("fid", "kid")}
            continue
        protocol = (
            f"{extractor.describe()}, {count} reconstructions against their {count} originals"
            f"{description and f', {description}'}"
        )
        sides = extractor.extract(originals), extractor.extract(reconstructions)
        for kind, metric in measure_set_distances(*sides, protocol).items():
            results[f"{kind}_{name}"] = metric
    return results


def compute_ssim(reconstructions: Pixels, pixels: Pixels) -> float:
    """Computes the structural similarity, in [-1, 1]: of each image, then the mean.

    Args:
        reconstructions: (B, S, S, 3) uint8, S >= 6.
        pixels: the same shape.

    Source:
        Equation 13 of doi:10.1109/TIP.2003.819861 (Wang et al. 2004) with an 11×11 Gaussian
        window, on each colour, bit for bit as torchmetrics computes it.
    """
    line = torch.arange(-_SSIM_REACH, _SSIM_REACH + 1.0)
    gaussian = torch.exp(-((line / _SSIM_SIGMA) ** 2) / 2)
    gaussian = gaussian / gaussian.sum()
    window = torch.outer(gaussian, gaussian).expand(3, 1, -1, -1)
    similarity = []
    for start in range(0, len(pixels), _BATCH):
        # In [0, 2], which with constants for that range gives the same as [0, 255].
        x, y = (
            functional.pad(to_float(side[start : start + _BATCH]) + 1, [_SSIM_REACH] * 4, "reflect")
            for side in (reconstructions, pixels)
        )
        filtered = functional.conv2d(torch.cat((x, y, x * x, y * y, x * y)), window, groups=3)
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = filtered.split(len(x))
        # Rounding may take a variance below 0.
        variance_x = (mean_xx - mean_x.square()).clamp(min=0)
        variance_y = (mean_yy - mean_y.square()).clamp(min=0)
        covariance = mean_xy - mean_x * mean_y
        above = (2 * mean_x * mean_y + _SSIM_C1) * (2 * covariance + _SSIM_C2)
        below = mean_x.square() + mean_y.square() + _SSIM_C1
        below = below * (variance_x + variance_y + _SSIM_C2)
        similarity.append((above / below).flatten(1).mean(1))
    return float(torch.cat(similarity).double().mean())


@torch.inference_mode()
def compute_perceptual_distance(
    network: ComparingNetwork, reconstructions: Pixels, pixels: Pixels
) -> float:
    """Computes how different pictures look to a network: of each image, then the mean.

    At each position of a layer the feature vectors are scaled to length 1; their squared distance
    is averaged over the positions and summed over the network's `perceptual_layers`.

    Args:
        network: on any device.
        reconstructions: (B, H, W, 3) uint8.
        pixels: the same shape.

    Source:
        Equation 1 of arXiv:1801.03924 with all weights 1.
    """
    layers, device = network.perceptual_layers, network.device
    total = 0.0
    for start in range(0, len(pixels), _NETWORK_BATCH):
        first, second = (
            network.features(to_float(side[start : start + _NETWORK_BATCH]).to(device), layers)
            for side in (reconstructions, pixels)
        )
        for layer in layers:
            # A vector of zeros stays one.
            difference = functional.normalize(first[layer]) - functional.normalize(second[layer])
            total += float(difference.square().sum(1).mean((1, 2)).sum())
    return total / len(pixels)
