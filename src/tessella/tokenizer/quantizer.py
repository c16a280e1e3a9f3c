"""latent (B, C, h, w) → codes (B, h, w): the quantizers to choose from, and their settings."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator

from tessella.tokenizer.finite_scalar import FiniteScalarQuantizer, FiniteScalarSettings
from tessella.tokenizer.quantizer_base import Quantizer
from tessella.tokenizer.vector_quantizer import VectorQuantizer, VectorQuantizerSettings


def _with_name(value: Any) -> Any:
    """Reads a bare name as settings, and takes settings without a name for a `vq`'s."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "vq", **value} if isinstance(value, Mapping) else value


QuantizerSettings = Annotated[
    VectorQuantizerSettings | FiniteScalarSettings,
    Discriminator("name"),
    BeforeValidator(_with_name),
]


def create_quantizer(settings: VectorQuantizerSettings | FiniteScalarSettings) -> Quantizer:
    """Creates the quantizer that its settings name."""
    if isinstance(settings, FiniteScalarSettings):
        return FiniteScalarQuantizer(settings)
    return VectorQuantizer(settings)
