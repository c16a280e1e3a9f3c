"""Laying codes set by set: what `any_order`, `autoregressive` and `masked` share.

A `Mosaic` holds the codes that are laid so far, the random numbers of each picture, and tells who
watches. `lay_in_order` fills it by a transformer that reads every code once and asks every place
once; `read_prompts` reads the texts of both guidance branches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tessella.objectives.base import GenerationRequest, GenerationStep, StepCallback
from tessella.objectives.sampling import (
    choose_confident,
    guide,
    halton_order,
    random_orders,
    sample_codes,
    scale_guidance,
)
from tessella.transformer import Memory, Transformer


class Mosaic:
    """The codes of a request's pictures while they are laid."""

    def __init__(
        self,
        request: GenerationRequest,
        grid: tuple[int, int],
        steps: int,
        watch: StepCallback | None,
    ) -> None:
        """Starts with what is known, which may be nothing."""
        device = request.prompt_of.device
        self.batch, self.grid, self.device = len(request.seeds), grid, device
        self.codes = torch.zeros(self.batch, grid[0] * grid[1], dtype=torch.int64, device=device)
        self.laid = torch.zeros_like(self.codes, dtype=torch.bool)
        if request.known is not None and request.known_codes is not None:
            self.laid = request.known.clone()
            self.codes = request.known_codes.masked_fill(~request.known, 0)
        self.settings = request.settings
        self.guided = request.settings.guidance_scale != 1
        self._steps, self._step, self._watch = steps, 0, watch
        # Random numbers come from the CPU: a seed means the same picture on every device.
        self._generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]

    def open_places(self) -> Tensor:
        """Lists the places (B, U) that have no code yet, in raster order."""
        return (~self.laid).nonzero()[:, 1].view(self.batch, -1)

    def order_open_places(self, order: str) -> Tensor:
        """Lists the places (B, U) that have no code yet, in random order or Halton's."""
        num_places = self.laid.shape[1]
        if order == "halton":
            places = halton_order(*self.grid).expand(self.batch, -1).to(self.device)
        else:
            places = random_orders(num_places, self._generators).to(self.device)
        still_open = ~self.laid.gather(1, places)
        return places[still_open].view(self.batch, -1)

    def sample(self, logits: Tensor) -> Tensor:
        """Draws codes (B, Q) from logits (B, Q, K), or (2 B, Q, K) with guidance's other branch."""
        return self._choose(self.guide(logits))

    def sample_confident(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Draws codes from logits as `sample`, and keeps those that are surest.

        Returns:
            Their positions (B, count) among the Q, and codes (B, count).
        """
        logits = self.guide(logits)
        codes = self._choose(logits)
        fading = 1 - (self._step + 1) / self._steps
        kept = choose_confident(
            logits,
            codes,
            self._draw(codes.shape[1:]),
            count,
            self.settings.confidence_temperature * fading,
        )
        return kept, codes.gather(1, kept)

    def lay(self, places: Tensor, codes: Tensor) -> None:
        """Lays codes (B, Q) at places (B, Q) and ends the step."""
        self.codes = self.codes.scatter(1, places, codes)
        self.laid = self.laid.scatter(1, places, True)
        self._step += 1
        if self._watch is not None:
            step = GenerationStep(self._step, self._steps, self.codes, self.laid)
            self._watch(step)

    def double(self, rows: Tensor) -> Tensor:
        """Repeats rows (B, …) for guidance's other branch, if there is one."""
        return torch.cat([rows, rows]) if self.guided else rows

    def guide(self, logits: Tensor) -> Tensor:
        """Joins both branches' logits (2 B, Q, K) into (B, Q, K); one branch stays as it is."""
        logits = logits.float()
        if not self.guided:
            return logits
        scale = scale_guidance(self.settings, self._step + 1, self._steps)
        return guide(logits[: self.batch], logits[self.batch :], scale)

    def _choose(self, logits: Tensor) -> Tensor:
        # Without chance nothing is drawn, which is slower than to choose.
        noise = self._draw(logits.shape[1:]) if self.settings.temperature else None
        return sample_codes(logits, noise, self.settings)

    def _draw(self, shape: Sequence[int]) -> Tensor:
        drawn = [torch.rand(tuple(shape), generator=g) for g in self._generators]
        return torch.stack(drawn).to(self.device)


def read_prompts(
    transformer: Transformer, request: GenerationRequest, mosaic: Mosaic, *, room: int = 0
) -> Memory:
    """Reads each prompt once, and what guidance moves away from.

    Args:
        transformer: that reads.
        request: whose texts.
        mosaic: says whether there is guidance.
        room: codes that will be read.

    Returns:
        The memory of B pictures; guided, of 2 B: the other branch follows in the same order.
    """
    text, rows = request.text, request.prompt_of
    if mosaic.guided:
        length = max(text.shape[1], request.negative_text.shape[1])
        text = torch.cat(
            [_pad(t, length, transformer.shape.pad_id) for t in (text, request.negative_text)]
        )
        rows = torch.cat([rows, len(request.text) + request.negative_of])
    return transformer.read_text(text).select(rows, room=room)


def _pad(text: Tensor, length: int, pad_id: int) -> Tensor:
    """Lengthens tokens (P, T) by padding, features (P, T, F) by zeros."""
    missing = length - text.shape[1]
    if text.ndim == 3:
        return functional.pad(text, (0, 0, 0, missing))
    return functional.pad(text, (0, missing), value=pad_id)


def lay_in_order(
    transformer: Transformer, memory: Memory, mosaic: Mosaic, sets: Sequence[Tensor]
) -> None:
    """Asks each set of places (B, S) at once, lays what is sampled, and reads it for the next.

    Known places among them keep their codes.
    """
    for index, places in enumerate(sets):
        asked = mosaic.double(places)
        logits = ask_all(transformer, memory, asked)
        here = mosaic.laid.gather(1, places)
        sampled = mosaic.sample(logits).where(~here, mosaic.codes.gather(1, places))
        mosaic.lay(places, sampled)
        if index + 1 < len(sets):
            memory = transformer.read_codes(memory, mosaic.double(sampled), asked)


def ask_all(transformer: Transformer, memory: Memory, places: Tensor) -> Tensor:
    """Asks places (B, Q), each of which sees all that was read: (B, Q, K) logits."""
    visible = torch.full((places.shape[1],), memory.num_codes, device=places.device)
    return transformer.ask(memory, places, visible)
