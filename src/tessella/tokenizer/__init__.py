"""Stage 1: an image tokenizer turns a picture into codes and codes into a picture."""

from tessella.tokenizer.image_tokenizer import ImageTokenizer, TokenizerSettings
from tessella.tokenizer.losses import ReconstructionLossSettings, compute_reconstruction_loss
from tessella.tokenizer.quantizer import Quantized, QuantizerSettings, VectorQuantizer

__all__ = [
    "ImageTokenizer",
    "Quantized",
    "QuantizerSettings",
    "ReconstructionLossSettings",
    "TokenizerSettings",
    "VectorQuantizer",
    "compute_reconstruction_loss",
]
