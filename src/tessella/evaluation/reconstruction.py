"""How well an image tokenizer gives back what it was given."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tessella.images import Pixels, to_float, to_uint8
from tessella.tokenizer import ImageTokenizer

_BATCH = 64
_PEAK = 255.0


@dataclass(frozen=True)
class ReconstructionReport:
    """Reconstructions and how close they came."""

    pixels: Pixels  # (B, S, S, 3) the reconstructions
    codes: npt.NDArray[np.int64]  # (B, h, w)
    psnr: float  # dB, mean over images, on uint8 pixels
    codes_used: int  # different codes in all images together
    perplexity: float  # exp of the entropy of the codes' use, in [1, K]

    def metrics(self) -> dict[str, float]:
        """Returns the numbers by name."""
        return {
            "psnr": self.psnr,
            "codes_used": float(self.codes_used),
            "perplexity": self.perplexity,
        }


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
    counts = np.bincount(all_codes.ravel(), minlength=len(tokenizer.codebook))
    share = counts[counts > 0] / counts.sum()
    return ReconstructionReport(
        pixels=reconstructions,
        codes=all_codes,
        psnr=compute_psnr(reconstructions, pixels),
        codes_used=int((counts > 0).sum()),
        perplexity=float(np.exp(-(share * np.log(share)).sum())),
    )


def compute_psnr(reconstructions: Pixels, pixels: Pixels) -> float:
    """Computes the peak signal-to-noise ratio in dB: of each image, then the mean.

    Equal images count as an error of half a level of one channel of one pixel, not as infinity.
    """
    difference = reconstructions.astype(np.float64) - pixels
    error = np.square(difference).mean(axis=(1, 2, 3))
    least = 0.25 / pixels[0].size
    return float((10 * np.log10(_PEAK**2 / np.maximum(error, least))).mean())
