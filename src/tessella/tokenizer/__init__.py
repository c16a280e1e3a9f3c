"""Stage 1: an image tokenizer turns a picture into codes and codes into a picture.

Here is what encoding and decoding need. What only training and evaluation need (losses,
discriminator, published weights) is imported from its own file.
"""

from tessella.tokenizer.image_tokenizer import ImageTokenizer, Reconstruction, TokenizerSettings
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
    "FiniteScalarQuantizer",
    "FiniteScalarSettings",
    "ImageTokenizer",
    "Quantized",
    "Quantizer",
    "QuantizerSettings",
    "Reconstruction",
    "TokenizerSettings",
    "VectorQuantizer",
    "VectorQuantizerSettings",
    "create_quantizer",
]
