"""A model of the objective `any_order` as three graphs, from tokens to pixels.

    text, examples ─ text encoder ─▶ cache ─ decoding step, again and again ─▶ codes
                                              codes ─ image decoder ─▶ pixels

Each is a module around the model's own parts, so that their rules stay where they are. Who runs
the graphs draws the random numbers and gives them as `noise`: the same seed means the same codes
everywhere. R counts the rows of the cache: B pictures, and with guidance B more, for the branch
without a prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tessella.generation import GenerationSettings
from tessella.images import round_to_bytes
from tessella.objectives.decoding import predict_all
from tessella.objectives.sampling import guide, sample_codes
from tessella.tokenizer import VQAutoencoder, look_up_codes
from tessella.transformer import Examples, KVCache, Transformer


class TextEncoderGraph(nn.Module):
    """Encodes texts, and the examples beside them."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, text: Tensor, example_codes: Tensor | None = None, example_text: Tensor | None = None
    ) -> list[Tensor]:
        """Encodes tokens (R, T), and examples (R, k, N, M) with their captions (R, k, T').

        Returns:
            What the cache holds: (R, S) bool, which rows of the context are visible; keys and
            values of each layer (R, heads, S, D / heads); and with examples what they show at each
            position (R, N, D).
        """
        examples = None
        if example_codes is not None and example_text is not None:
            examples = Examples(example_codes, example_text)
        cache = self.transformer.encode_context(text, examples)
        aligned = [] if cache.aligned is None else [cache.aligned]
        return [cache.context_visible, *cache.keys, *cache.values, *aligned]


class DecodingStepGraph(nn.Module):
    """Samples the codes of a set of positions, and appends them to the cache.

    Args:
        transformer: predicts them.
        settings: temperature, top_k and top_p become a part of the graph. The guidance scale is an
            input, since it may change with the step.
    """

    def __init__(self, transformer: Transformer, settings: GenerationSettings) -> None:
        super().__init__()
        self.transformer, self.settings = transformer, settings

    def forward(
        self,
        visible: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        positions: Tensor,
        noise: Tensor | None = None,
        guidance_scale: Tensor | None = None,
        aligned: Tensor | None = None,
    ) -> list[Tensor]:
        """Runs a step.

        Args:
            visible: (R, S) bool, as the text encoder returns it.
            keys: at first as the text encoder returns them, then as the step before did.
            values: the same.
            positions: (B, Q) that have no codes yet.
            noise: (B, M, Q, K) uniform in [0, 1); None at temperature 0.
            guidance_scale: () of this step; None without guidance.
            aligned: (R, N, D), as the text encoder returns it, if the model looks at examples.

        Returns:
            The sampled codes (B, Q, M), then keys and values of each layer with these codes.
        """
        cache = KVCache(visible, list(keys), list(values), keys[0].shape[2], aligned)
        branches = 1 if guidance_scale is None else 2
        hidden = predict_all(self.transformer, cache, torch.cat([positions] * branches))
        uniform = iter(() if noise is None else noise.unbind(1))

        def choose(logits: Tensor) -> Tensor:
            if guidance_scale is not None:
                conditional, unconditional = logits.chunk(2)
                logits = guide(conditional, unconditional, guidance_scale)
            return sample_codes(logits, next(uniform, None), self.settings)

        codes = self.transformer.choose_codes(hidden, choose)
        appended = torch.cat([codes] * branches), torch.cat([positions] * branches)
        self.transformer.append_codes(cache, *appended)
        return [codes, *cache.keys, *cache.values]


class ImageDecoderGraph(nn.Module):
    """Decodes codes into pixels."""

    def __init__(self, tokenizer: VQAutoencoder) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        """Decodes codes (B, M, h, w) into pixels (B, H, W, 3) uint8."""
        image = self.tokenizer.decode_latent(look_up_codes(self.tokenizer.codebook, codes))
        return round_to_bytes(image).permute(0, 2, 3, 1)
