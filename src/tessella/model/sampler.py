"""requests → codes: encodes the prompts, decodes the canvases window by window, keeps the best.

It knows codes and likelihoods, no pixels; `pipeline.py` makes pictures of what it samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessella.errors import GenerationError
from tessella.generation import GenerationSettings
from tessella.model.canvas import KnownCodes, Window, derive_seed, plan_windows
from tessella.model.request import MAX_BEST_OF, ImageRequest, check_range, check_seeds
from tessella.objectives import (
    Generated,
    GenerationBatch,
    GenerationStep,
    Objective,
    StepCallback,
)
from tessella.text import TextEncoder
from tessella.tokenizer import Quantizer

# Of two cores; an accelerator has more to fill. Not measured there.
_BATCH_SIZES = {"cpu": 16}
_BATCH_SIZE_OF_ACCELERATORS = 64


@dataclass(frozen=True)
class Scores:
    """How well pictures and prompts go together, in nats."""

    log_likelihood: npt.NDArray[np.float64]  # (I, P) ln p(picture | prompt), or a lower bound
    pmi: npt.NDArray[np.float64]  # (I, P) how much more that is than without a prompt


class Sampler:
    """Samples codes with an objective, and scores them.

    Args:
        text_encoder: reads prompts.
        quantizer: looks codes up.
        objective: bound to the transformer and the quantizer's codebook.
    """

    def __init__(
        self, text_encoder: TextEncoder, quantizer: Quantizer, objective: Objective
    ) -> None:
        self._text_encoder = text_encoder
        self._quantizer = quantizer
        self._objective = objective
        self._grid = objective.transformer.shape.grid

    @property
    def device(self) -> torch.device:
        """Where codes are sampled."""
        return self._objective.codebook.device

    @property
    def batch_size(self) -> int:
        """Pictures, candidates included, that are sampled together."""
        return _BATCH_SIZES.get(self.device.type, _BATCH_SIZE_OF_ACCELERATORS)

    def check(
        self, requests: Sequence[ImageRequest], settings: GenerationSettings, best_of: int
    ) -> None:
        """Refuses what cannot be sampled, before the work.

        Raises:
            GenerationError: there is no request, a number is out of range, a negative prompt
                comes without guidance, or `best_of` without a prompt or a likelihood.
        """
        if not requests:
            raise GenerationError("There is no prompt. Give at least one.")
        check_range("The number of candidates, best_of,", best_of, MAX_BEST_OF)
        check_seeds([s for one in requests for s in (one.seed, one.seed + best_of - 1)])
        objective = self._objective
        if any(one.negative_prompt.strip() for one in requests):
            if not objective.is_guided:
                raise GenerationError(
                    "A negative prompt works by guidance, which the model's objective does not "
                    f"have: `{objective.name}`. Leave it out."
                )
            if settings.guidance_scale == 1:
                raise GenerationError(
                    "A negative prompt works by guidance, which is off: guidance_scale is "
                    f"`{settings.guidance_scale:g}`. Give one above 1, for example 3."
                )
        if best_of > 1:
            if not objective.has_likelihood:
                raise GenerationError(
                    "The best of several candidates is chosen by likelihood, and the model's "
                    f"objective has no likelihood: `{objective.name}`. Give best_of 1."
                )
            if not all(one.prompt.strip() for one in requests):
                raise GenerationError(
                    "The best of several candidates is chosen by the prompt, and there is none. "
                    "Give a prompt, or best_of 1."
                )

    def sample(
        self,
        requests: Sequence[ImageRequest],
        settings: GenerationSettings,
        best_of: int = 1,
        on_step: StepCallback | None = None,
    ) -> Generated:
        """Samples one batch of checked requests; equal prompts are encoded once.

        Args:
            requests: of one layout (`find_layout`).
            settings: for all of them.
            best_of: candidates a picture, with the seeds seed, seed + 1, …; the one with the
                highest pointwise mutual information is kept.
            on_step: called after each step.
        """
        candidates = [
            (request, request.seed + number) for request in requests for number in range(best_of)
        ]
        size = self.batch_size
        parts = [
            self._sample_canvases(candidates[start : start + size], settings, on_step)
            for start in range(0, len(candidates), size)
        ]
        if best_of == 1:
            return parts[0]
        return self._keep_best(parts, [request.prompt for request, _ in candidates], best_of)

    def score_pairs(
        self,
        codes: Tensor,
        text: Tensor,
        picture_of: Tensor,
        text_of: Tensor,
        num_orders: int,
        seed: int,
    ) -> Tensor:
        """Computes the log-likelihood (R,) float64 of pairs of codes and a text, by index."""
        size = self.batch_size
        log_likelihood = [
            self._objective.compute_log_likelihood(
                text[texts], codes[pictures], num_orders=num_orders, seed=seed
            )
            for pictures, texts in zip(picture_of.split(size), text_of.split(size), strict=True)
        ]
        return torch.cat(log_likelihood).cpu().double()

    def score_codes(
        self, codes: Tensor, prompts: Sequence[str], *, num_orders: int = 4, seed: int = 0
    ) -> Scores:
        """Scores codes, each picture's under its own prompt.

        Args:
            codes: (B, h, w) int64; of a larger picture the sum over its windows is taken, which
                overlap.
            prompts: one a picture.
            num_orders: orders to average over.
            seed: of the orders.

        Returns:
            (B,) each.

        Raises:
            GenerationError: a prompt is too long, or the model's objective has no likelihood.
        """
        text, prompt_of = self._encode_distinct(["", *prompts])
        rows = torch.arange(len(codes), device=self.device)
        picture_of = torch.cat([rows, rows])
        text_of = torch.cat([prompt_of[1:], torch.zeros_like(rows)])
        total = torch.zeros(2 * len(codes), dtype=torch.float64)
        nothing_known = torch.zeros(codes.shape[1:], dtype=torch.bool)
        for window in plan_windows(nothing_known, self._grid):
            part = codes[:, window[0], window[1]]
            total += self.score_pairs(part, text, picture_of, text_of, num_orders, seed)
        conditional, unconditional = total.view(2, -1).numpy()
        return Scores(conditional, conditional - unconditional)

    @torch.inference_mode()
    def _sample_canvases(
        self,
        candidates: Sequence[tuple[ImageRequest, int]],
        settings: GenerationSettings,
        on_step: StepCallback | None,
    ) -> Generated:
        """Samples requests, each with its seed, window by window."""
        grid, device = self._grid, self.device
        requests = [request for request, _ in candidates]
        text, prompt_of = self._encode_distinct([one.prompt for one in requests])
        negative_text, negative_of = self._encode_distinct(
            [one.negative_prompt for one in requests]
        )
        known = KnownCodes.join([one.known_codes(grid) for one in requests])
        codes, is_decoded = known.codes.to(device), known.known.to(device)
        windows = plan_windows(is_decoded[0], grid)
        is_own_size = is_decoded.shape[1:] == grid
        for number, window in enumerate(windows):
            rows, columns = window
            batch = GenerationBatch(
                text=text,
                negative_text=negative_text,
                prompt_of=prompt_of,
                negative_of=negative_of,
                seeds=[derive_seed(seed, number) for _, seed in candidates],
                settings=settings,
                known_codes=codes[:, rows, columns].flatten(1),
                known=is_decoded[:, rows, columns].flatten(1),
            )
            on_window_step = on_step
            if on_step is not None and not is_own_size:
                on_window_step = _WindowSteps(
                    on_step, codes, is_decoded, window, number, len(windows)
                )
            generated = self._objective.generate(batch, on_window_step)
            if is_own_size:
                return generated
            if generated.codes is None:
                raise GenerationError(
                    "Pictures larger than the model learned are generated code by code, which "
                    f"the model's objective does not do: `{self._objective.name}`. Leave the size "
                    "out."
                )
            codes[:, rows, columns] = generated.codes
            is_decoded[:, rows, columns] = True
        return Generated(self._quantizer.look_up(codes), codes)

    def _keep_best(
        self, parts: Sequence[Generated], prompts: Sequence[str], best_of: int
    ) -> Generated:
        """Keeps the one of each `best_of` candidates that gains most by its prompt."""
        # An objective with a likelihood generates codes.
        codes = torch.cat([part.codes for part in parts if part.codes is not None])
        latent = torch.cat([part.latent for part in parts])
        pmi = self.score_codes(codes, prompts).pmi.reshape(-1, best_of)
        best = torch.from_numpy(pmi.argmax(1) + np.arange(len(pmi)) * best_of).to(self.device)
        return Generated(latent[best], codes[best])

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Encodes prompts as the transformer reads them: tokens (P, T) or features (P, T, F).

        Raises:
            GenerationError: a prompt is too long, or this is one text instead of several.
        """
        return self._text_encoder.encode(prompts).to(self.device)

    def _encode_distinct(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encodes distinct prompts (P, T), and gives each picture (B,) its row of them."""
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        rows = torch.tensor([row_of[prompt] for prompt in prompts])
        return self.encode_text(list(row_of)), rows.to(self.device)


@dataclass(frozen=True, eq=False)
class _WindowSteps:
    """Reports the steps of one window of a larger canvas as steps of the whole."""

    on_step: StepCallback
    codes: Tensor  # (B, h', w') of the whole canvas, before the window
    is_decoded: Tensor  # (B, h', w')
    window: Window
    number: int  # of the window, from 0
    num_windows: int

    def __call__(self, step: GenerationStep) -> None:
        codes, is_decoded = self.codes.clone(), self.is_decoded.clone()
        inside = (slice(None), *self.window)
        codes[inside] = step.codes.view_as(codes[inside])
        is_decoded[inside] = step.is_decoded.view_as(is_decoded[inside])
        done, steps = self.number * step.steps + step.step, self.num_windows * step.steps
        self.on_step(GenerationStep(done, steps, codes, is_decoded))
