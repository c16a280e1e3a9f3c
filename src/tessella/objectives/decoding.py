"""Decoding codes set by set: what the objectives share when they generate.

A `DecodingState` holds the codes decoded so far, each picture's random numbers, the callback and
the cache. `encode_prompts` encodes the texts of both guidance branches; `decode_in_order` appends
every code once and predicts every position once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tessella.objectives import sampling
from tessella.objectives.base import GenerationBatch, GenerationStep, OnStep
from tessella.transformer import KVCache, Transformer


class DecodingState:
    """The codes of a batch while they are being decoded.

    Args:
        transformer: predicts the codes.
        batch: what to generate; its known codes count as decoded.
        steps: how many there will be.
        on_step: called after each.
    """

    cache: KVCache  # after `encode_prompts`

    def __init__(
        self, transformer: Transformer, batch: GenerationBatch, steps: int, on_step: OnStep | None
    ) -> None:
        self._transformer, self._batch = transformer, batch
        self.batch_size, self.device = len(batch.seeds), batch.known.device
        self.codes = batch.known_codes.masked_fill(~batch.known[..., None], 0)  # (B, N, M)
        self.is_decoded = batch.known  # (B, N)
        self.settings = batch.settings
        self.is_guided = batch.settings.guidance_scale != 1
        self._steps, self._step, self._on_step = steps, 0, on_step
        # Random numbers come from the CPU: a seed means the same picture on every device.
        self._generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]

    def decoded_positions(self) -> Tensor:
        """Lists the positions (B, N - U) that have a code, in raster order."""
        return self.is_decoded.nonzero()[:, 1].view(self.batch_size, -1)

    def open_positions(self) -> Tensor:
        """Lists the positions (B, U) without a code, in raster order."""
        return (~self.is_decoded).nonzero()[:, 1].view(self.batch_size, -1)

    def order_open_positions(self, order: str) -> Tensor:
        """Lists the positions (B, U) without a code: in Halton's order, or else randomly."""
        num_positions = self.is_decoded.shape[1]
        if order == "halton":
            positions = (
                sampling.halton_order(*self._transformer.shape.grid)
                .expand(self.batch_size, -1)
                .to(self.device)
            )
        else:
            positions = sampling.random_orders(num_positions, self._generators).to(self.device)
        is_open = ~self.is_decoded.gather(1, positions)
        return positions[is_open].view(self.batch_size, -1)

    def sample(self, hidden: Tensor) -> Tensor:
        """Samples codes (B, Q, M) of hidden rows (B, Q, D), or (2 B, Q, D) with guidance."""
        return self._transformer.choose_codes(
            hidden, lambda logits: self._sample(self.guide(logits))
        )

    def sample_confident(self, hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Samples codes as `sample` does, and keeps the surest.

        Returns:
            Their indices (B, count) among the Q, and codes (B, count, M).
        """
        log_probabilities = []

        def choose(logits: Tensor) -> Tensor:
            logits = self.guide(logits)
            codes = self._sample(logits)
            log_probabilities.append(sampling.gather_log_probability(logits, codes))
            return codes

        codes = self._transformer.choose_codes(hidden, choose)
        fading = 1 - (self._step + 1) / self._steps
        surest = sampling.choose_confident(
            torch.stack(log_probabilities).sum(0),
            self._draw(codes.shape[1:2]),
            count,
            self.settings.confidence_temperature * fading,
        )
        return surest, gather_positions(codes, surest)

    def update(self, positions: Tensor, codes: Tensor) -> None:
        """Puts codes (B, Q, M) at positions (B, Q) and ends the step."""
        rows = positions[..., None].expand_as(codes)
        self.codes = self.codes.scatter(1, rows, codes)
        self.is_decoded = self.is_decoded.scatter(1, positions, True)
        self._step += 1
        if self._on_step is not None:
            self._on_step(GenerationStep(self._step, self._steps, self.codes.mT, self.is_decoded))

    def fill(self, codes: Tensor) -> None:
        """Decodes all open positions in one step, from codes (B, N, M)."""
        positions = self.open_positions()
        self.update(positions, gather_positions(codes, positions))

    def encode_prompts(self, *, capacity: int = 0) -> KVCache:
        """Encodes each distinct prompt once, and with guidance each negative prompt.

        Args:
            capacity: positions that will be appended.

        Returns:
            The cache of B pictures; with guidance of 2 B, the negative branch last, in the same
            order.
        """
        batch, text, rows = self._batch, self._batch.text, self._batch.prompt_of
        examples = batch.examples
        if self.is_guided:
            length = max(text.shape[1], batch.negative_text.shape[1])
            pad_id = self._transformer.shape.pad_id
            text = torch.cat([_pad(t, length, pad_id) for t in (text, batch.negative_text)])
            rows = torch.cat([rows, len(batch.text) + batch.negative_of])
            if examples is not None:
                # Guidance moves away from no examples, as well as from no prompt.
                examples = examples.add_empty(len(batch.negative_text))
        cache = self._transformer.encode_context(text, examples)
        self.cache = cache.select(rows, capacity=capacity)
        return self.cache

    def append(self, positions: Tensor) -> None:
        """Appends the codes at positions (B, Q) to the cache."""
        codes = gather_positions(self.codes, positions)
        self._transformer.append_codes(self.cache, self.double(codes), self.double(positions))

    def predict(self, positions: Tensor) -> Tensor:
        """Predicts positions (B, Q), each of which sees the whole cache, as hidden rows."""
        return predict_all(self._transformer, self.cache, self.double(positions))

    def decode_in_order(self, sets: Sequence[Tensor]) -> None:
        """Predicts each set of positions (B, S) at once, samples, and appends it for the next.

        Known positions among them keep their codes.
        """
        for index, positions in enumerate(sets):
            codes = self.sample(self.predict(positions))
            is_known = self.is_decoded.gather(1, positions)[..., None]
            self.update(positions, gather_positions(self.codes, positions).where(is_known, codes))
            if index + 1 < len(sets):
                self.append(positions)

    def double(self, rows: Tensor) -> Tensor:
        """Repeats rows (B, …) for guidance's other branch, if there is one."""
        return torch.cat([rows, rows]) if self.is_guided else rows

    def guide(self, logits: Tensor) -> Tensor:
        """Joins both branches' logits (2 B, Q, K) into (B, Q, K); without guidance keeps them."""
        logits = logits.float()
        if not self.is_guided:
            return logits
        scale = sampling.scale_guidance(self.settings, self._step + 1, self._steps)
        return sampling.guide(logits[: self.batch_size], logits[self.batch_size :], scale)

    def _sample(self, logits: Tensor) -> Tensor:
        # Drawing takes longer than an argmax: at temperature 0 nothing is drawn.
        noise = self._draw(logits.shape[1:]) if self.settings.temperature else None
        return sampling.sample_codes(logits, noise, self.settings)

    def _draw(self, shape: Sequence[int]) -> Tensor:
        uniform = torch.empty(self.batch_size, *shape)
        for row, generator in zip(uniform, self._generators, strict=True):
            torch.rand(row.shape, generator=generator, out=row)
        return uniform.to(self.device)


def _pad(text: Tensor, length: int, pad_id: int) -> Tensor:
    """Lengthens tokens (P, T) by padding, features (P, T, F) by zeros."""
    missing = length - text.shape[1]
    if text.ndim == 3:
        return functional.pad(text, (0, 0, 0, missing))
    return functional.pad(text, (0, missing), value=pad_id)


def gather_positions(rows: Tensor, positions: Tensor) -> Tensor:
    """Takes rows (B, N, X) at positions (B, Q): (B, Q, X)."""
    return rows.gather(1, positions[..., None].expand(-1, -1, rows.shape[-1]))


def predict_all(transformer: Transformer, cache: KVCache, positions: Tensor) -> Tensor:
    """Predicts positions (B, Q), each of which sees the whole cache: (B, Q, D) hidden rows."""
    visible = torch.full((positions.shape[1],), cache.num_codes, device=positions.device)
    return transformer.predict(cache, positions, visible)
