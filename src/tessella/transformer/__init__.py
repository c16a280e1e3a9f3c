"""Stage 2's network: text tokens, examples and known codes → logits at the queried positions."""

from tessella.transformer.examples import Examples
from tessella.transformer.head import flatten_codes
from tessella.transformer.kv_cache import KVCache
from tessella.transformer.layers import Layer
from tessella.transformer.low_precision import has_int8, lower_precision
from tessella.transformer.network import Transformer, TransformerSettings, TransformerShape

__all__ = [
    "Examples",
    "KVCache",
    "Layer",
    "Transformer",
    "TransformerSettings",
    "TransformerShape",
    "flatten_codes",
    "has_int8",
    "lower_precision",
]
