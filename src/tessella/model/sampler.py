"""requests → codes: encodes the prompts, decodes the canvases window by window, keeps the best.

It knows codes and likelihoods but no pixels; `pipeline.py` turns its codes into pictures.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tessella.errors import GenerationError
from tessella.generation import GenerationSettings
from tessella.model.canvas import derive_seed, find_layout, plan_windows
from tessella.model.request import (
    MAX_BEST_OF,
    MAX_ORDERS,
    ImageRequest,
    check_range,
    check_seeds,
)
from tessella.objectives import Generated, GenerationBatch, GenerationStep, Objective, OnStep
from tessella.retrieval import Example
from tessella.text import TextEncoder
from tessella.transformer import Examples, flatten_codes

H = TypeVar("H", bound=Hashable)

# For two cores; an accelerator has more to fill, and its number is not measured.
_BATCH_SIZES = {"cpu": 16, "accelerator": 64}


@dataclass(frozen=True)
class Scores:
    """How well pictures and prompts go together, in nats."""

    log_likelihood: npt.NDArray[np.float64]  # (I, P) ln p(picture | prompt), or a lower bound
    pmi: npt.NDArray[np.float64]  # (I, P) how much more that is than without a prompt


class Sampler:
    """Samples codes with an objective, and scores them.

    Args:
        text_encoder: reads prompts.
        objective: bound to the transformer and the codebook.
    """

    def __init__(self, text_encoder: TextEncoder, objective: Objective) -> None:
        self._text_encoder = text_encoder
        self._objective = objective
        self._grid = objective.transformer.shape.grid

    @property
    def device(self) -> torch.device:
        """Where codes are sampled."""
        return self._objective.codebook.device

    @property
    def batch_size(self) -> int:
        """Pictures, candidates included, that are sampled together."""
        return _BATCH_SIZES.get(self.device.type, _BATCH_SIZES["accelerator"])

    def check(
        self, requests: Sequence[ImageRequest], settings: GenerationSettings, best_of: int
    ) -> None:
        """Refuses requests that cannot be met, before any work.

        Raises:
            GenerationError: there is no request, a number is out of range, a prompt is too long,
                canvases differ in layout, a negative prompt comes without guidance, or `best_of`
                without a prompt or a likelihood.
        """
        if not requests:
            raise GenerationError("There is no prompt. Give at least one.")
        check_range("The number of candidates, best_of,", best_of, MAX_BEST_OF)
        check_seeds([s for one in requests for s in (one.seed, one.seed + best_of - 1)])
        self._text_encoder.check_lengths(
            [text for one in requests for text in (one.prompt, one.negative_prompt)]
        )
        layouts = {find_layout(one.canvas_on(self._grid).known, self._grid) for one in requests}
        if len(layouts) > 1:
            raise GenerationError(
                f"All canvases must have one layout (size and known positions): `{len(layouts)}` "
                "different ones. Generate them one after the other."
            )
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
        on_step: OnStep | None = None,
    ) -> Generated:
        """Samples checked requests of one layout (`find_layout`).

        Args:
            requests: at most `batch_size`; with several candidates a picture, any number.
            settings: for all of them.
            best_of: candidates a picture, with the seeds seed, seed + 1, …; the one with the
                highest pointwise mutual information is kept.
            on_step: called after each step of a batch.
        """
        if best_of == 1:
            return self._sample_batch(requests, [one.seed for one in requests], settings, on_step)
        candidates = [one for one in requests for _ in range(best_of)]
        seeds = [one.seed + number for one in requests for number in range(best_of)]
        size, parts = self.batch_size, list[Tensor]()
        for start in range(0, len(seeds), size):
            rows = slice(start, start + size)
            part = self._sample_batch(candidates[rows], seeds[rows], settings, on_step)
            if part.codes is not None:  # of an objective with a likelihood it never is
                parts.append(part.codes)
        codes = torch.cat(parts)
        pmi = self.score_codes(codes, [one.prompt for one in candidates]).pmi.reshape(-1, best_of)
        best = torch.from_numpy(pmi.argmax(1) + np.arange(len(pmi)) * best_of)
        return self._objective.look_up(codes[best.to(self.device)])

    @torch.inference_mode()
    def _sample_batch(
        self,
        requests: Sequence[ImageRequest],
        seeds: Sequence[int],
        settings: GenerationSettings,
        on_step: OnStep | None,
    ) -> Generated:
        """Samples one picture a request and seed, window by window."""
        grid, device = self._grid, self.device
        contexts, prompt_of = _find_distinct([(one.prompt, one.examples or ()) for one in requests])
        text = self.encode_text([prompt for prompt, _ in contexts])
        examples = self.encode_examples([examples for _, examples in contexts])
        negative_text, negative_of = self._encode_distinct(
            [one.negative_prompt for one in requests]
        )
        canvases = [one.canvas_on(grid) for one in requests]
        num_codes = len(self._objective.codebook)
        # Of an empty canvas there is one for all.
        codes = torch.stack([one.codes.expand(num_codes, -1, -1) for one in canvases]).to(device)
        is_decoded = torch.stack([canvas.known for canvas in canvases]).to(device)
        is_own_size = is_decoded.shape[1:] == grid
        windows = plan_windows(is_decoded[0], grid)
        for number, window in enumerate(windows):
            inside = (..., *window)
            batch = GenerationBatch(
                text=text,
                negative_text=negative_text,
                prompt_of=prompt_of.to(device),
                examples=examples,
                negative_of=negative_of,
                seeds=[derive_seed(seed, number) for seed in seeds],
                settings=settings,
                known_codes=flatten_codes(codes[inside]),
                known=is_decoded[inside].flatten(1),
            )
            if is_own_size:
                return self._objective.generate(batch, on_step)

            def report(step: GenerationStep, number: int = number, inside: Any = inside) -> None:
                """Reports a step of one window as a step of the whole canvas."""
                whole = codes.clone(), is_decoded.clone()
                for of_whole, of_window in zip(whole, (step.codes, step.is_decoded), strict=True):
                    of_whole[inside] = of_window.view_as(of_whole[inside])
                if on_step is not None:
                    done, steps = number * step.steps + step.step, len(windows) * step.steps
                    on_step(GenerationStep(done, steps, *whole))

            generated = self._objective.generate(batch, report if on_step else None)
            if generated.codes is None:
                raise GenerationError(
                    "Pictures larger than the model learned are generated code by code, which "
                    f"the model's objective does not do: `{self._objective.name}`. Leave the size "
                    "out."
                )
            codes[inside] = generated.codes
            is_decoded[inside] = True
        return self._objective.look_up(codes)

    def score_table(
        self, codes: Tensor, prompts: Sequence[str], *, num_orders: int = 4, seed: int = 0
    ) -> Scores:
        """Scores the codes (I, M, h, w) of each picture under each of P prompts: (I, P).

        Arguments and errors are those of `score_codes`.
        """
        check_range("The number of orders", num_orders, MAX_ORDERS)
        check_seeds([seed])
        text = self.encode_text(["", *prompts])
        rows = (torch.arange(len(part), device=self.device) for part in (codes, text))
        log_likelihood = self._score_pairs(
            codes, text, torch.cartesian_prod(*rows), num_orders, seed
        )
        table = log_likelihood.view(len(codes), len(text)).numpy()
        return Scores(table[:, 1:], table[:, 1:] - table[:, :1])

    def score_codes(
        self, codes: Tensor, prompts: Sequence[str], *, num_orders: int = 4, seed: int = 0
    ) -> Scores:
        """Scores codes, each picture's under its own prompt.

        Args:
            codes: (B, M, h, w) int64; for a larger picture the scores of its overlapping windows
                add up.
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
        text_of = torch.cat([prompt_of[1:], torch.zeros_like(rows)])
        pairs = torch.stack([torch.cat([rows, rows]), text_of], 1)
        total = torch.zeros(2 * len(codes), dtype=torch.float64)
        nothing_known = torch.zeros(codes.shape[2:], dtype=torch.bool)
        for window in plan_windows(nothing_known, self._grid):
            part = codes[..., window[0], window[1]]
            total += self._score_pairs(part, text, pairs, num_orders, seed)
        conditional, unconditional = total.view(2, -1).numpy()
        return Scores(conditional, conditional - unconditional)

    def _score_pairs(
        self, codes: Tensor, text: Tensor, pairs: Tensor, num_orders: int, seed: int
    ) -> Tensor:
        """Computes the log-likelihood (R,) float64 of pairs (R, 2): rows of codes and of text."""
        log_likelihood = [
            self._objective.compute_log_likelihood(
                text[part[:, 1]], codes[part[:, 0]], num_orders=num_orders, seed=seed
            )
            for part in pairs.split(self.batch_size)
        ]
        return torch.cat(log_likelihood).cpu().double()

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Encodes prompts for the transformer: tokens (P, T) or features (P, T, F).

        Raises:
            GenerationError: a prompt is too long, or this is one text instead of several.
        """
        return self._text_encoder.encode(prompts).to(self.device)

    def encode_examples(self, looked_at: Sequence[tuple[Example, ...]]) -> Examples | None:
        """Encodes the examples of each prompt; None if no prompt has any."""
        count = max(map(len, looked_at))
        if not count:
            return None
        num_positions = self._grid[0] * self._grid[1]
        num_codes = len(self._objective.codebook)
        codes = torch.full((len(looked_at), count, num_positions, num_codes), -1)
        captions = [["" for _ in range(count)] for _ in looked_at]
        for row, examples in enumerate(looked_at):
            for place, example in enumerate(examples):
                of_example = torch.from_numpy(example.codes.astype(np.int64))
                codes[row, place] = of_example.flatten(1).mT
                captions[row][place] = example.caption
        text = self._text_encoder.encode_training([c for row in captions for c in row]).text_tokens
        text = text.view(len(looked_at), count, *text.shape[1:])
        return Examples(codes.to(self.device), text.to(self.device))

    def _encode_distinct(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encodes distinct prompts (P, T), and gives each picture (B,) its row of them."""
        distinct, rows = _find_distinct(prompts)
        return self.encode_text(distinct), rows.to(self.device)


def _find_distinct(items: Sequence[H]) -> tuple[list[H], Tensor]:
    """Lists distinct items (P), and gives each item (B,) its row of them."""
    row_of = {item: row for row, item in enumerate(dict.fromkeys(items))}
    return list(row_of), torch.tensor([row_of[item] for item in items])
