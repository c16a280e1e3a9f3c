"""Stage 2's network: text tokens and known codes → logits at the places that are asked."""

from tessella.transformer.layers import Layer
from tessella.transformer.memory import Memory
from tessella.transformer.network import Transformer, TransformerSettings, TransformerShape

__all__ = ["Layer", "Memory", "Transformer", "TransformerSettings", "TransformerShape"]
