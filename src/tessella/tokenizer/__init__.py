"""Stage 1: an image tokenizer turns a picture into codes and codes into a picture."""

from tessella.tokenizer.adversarial import AdversarialLoss, AdversarialSettings, GeneratorLoss
from tessella.tokenizer.image_tokenizer import ImageTokenizer, Reconstruction, TokenizerSettings
from tessella.tokenizer.losses import (
    ReconstructionLoss,
    ReconstructionLosses,
    ReconstructionLossSettings,
)
from tessella.tokenizer.quantizer import (
    FiniteScalarQuantizer,
    FiniteScalarSettings,
    Quantized,
    Quantizer,
    QuantizerSettings,
    VectorQuantizer,
    VectorQuantizerSettings,
    create_quantizer,
)

__all__ = [
    "AdversarialLoss",
    "AdversarialSettings",
    "FiniteScalarQuantizer",
    "FiniteScalarSettings",
    "GeneratorLoss",
    "ImageTokenizer",
    "Quantized",
    "Quantizer",
    "QuantizerSettings",
    "Reconstruction",
    "ReconstructionLoss",
    "ReconstructionLossSettings",
    "ReconstructionLosses",
    "TokenizerSettings",
    "VectorQuantizer",
    "VectorQuantizerSettings",
    "create_quantizer",
]
