"""Stage 1: an image tokenizer turns a picture into codes and codes into a picture.

Here is what encoding and decoding need. What only training and evaluation need (losses,
discriminator, published weights) is imported from its own file.
"""

from tessella.tokenizer.finite_scalar import FiniteScalarQuantizer, FiniteScalarSettings
from tessella.tokenizer.quantizer import (
    Codebooks,
    QuantizerSettings,
    count_latent_channels,
    look_up_codes,
    number_codes,
)
from tessella.tokenizer.quantizer_base import Quantized, Quantizer
from tessella.tokenizer.vector_quantizer import VectorQuantizer, VectorQuantizerSettings
from tessella.tokenizer.vq_autoencoder import Reconstruction, TokenizerSettings, VQAutoencoder

__all__ = [
    "Codebooks",
    "FiniteScalarQuantizer",
    "FiniteScalarSettings",
    "Quantized",
    "Quantizer",
    "QuantizerSettings",
    "Reconstruction",
    "TokenizerSettings",
    "VQAutoencoder",
    "VectorQuantizer",
    "VectorQuantizerSettings",
    "count_latent_channels",
    "look_up_codes",
    "number_codes",
]
