"""Painter: what the parts of a model do together, prompts and codes to pictures and scores.

prompt ─ text ─▶ text tokens ─ transformer + objective ─▶ codes ─ tokenizer ─▶ picture
                                   codes + text tokens ─▶ log-likelihood
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tessella.canvas import KnownCodes, Window, derive_seed, fit_images, plan_windows
from tessella.errors import GenerationError
from tessella.images import Pixels, to_float, to_uint8
from tessella.model_folder import ModelConfig
from tessella.objectives import (
    GenerationRequest,
    GenerationSettings,
    GenerationStep,
    Objective,
    Painted,
    StepCallback,
    create_objective,
)
from tessella.text import TextEncoder
from tessella.text.base import check_is_list
from tessella.tokenizer import ImageTokenizer
from tessella.transformer import Transformer

MAX_COUNT = 10_000
MAX_BEST_OF = 64
MAX_ORDERS = 1000
MAX_SEED = 2**63 - 1
_BATCH = 16
_DECODED_TOGETHER = 4  # 64 pixels, 2 cores: a lone picture takes 1.5 ms longer so, sixteen 1.4 ms


@dataclass(frozen=True)
class PaintedPixels:
    """Pictures as pixels, with the codes that they are made of."""

    pixels: Pixels  # (B, H, W, 3) uint8
    codes: Tensor | None  # (B, h, w) int64; None where the objective lays no codes


@dataclass(frozen=True)
class Scores:
    """How well pictures and prompts go together, in nats."""

    log_likelihood: npt.NDArray[np.float64]  # (I, P) ln p(picture | prompt), or a lower bound
    pmi: npt.NDArray[np.float64]  # (I, P) how much more that is than without a prompt


class Painter:
    """The parts of a trained model, and what they do together."""

    def __init__(
        self,
        config: ModelConfig,
        text_tokenizer: TextEncoder,
        tokenizer: ImageTokenizer,
        transformer: Transformer,
    ) -> None:
        """Joins parts that belong together; `TextToImage.load` does it from a folder."""
        self.config = config
        self.text_tokenizer = text_tokenizer
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.objective: Objective = create_objective(config.objective)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.tokenizer.codebook.device

    def to(self, device: torch.device) -> Self:
        """Moves the model and returns it."""
        self.tokenizer.to(device)
        self.transformer.to(device)
        return self

    def generation_settings(self, **changes: Any) -> GenerationSettings:
        """Returns the model's settings with some changed; None leaves one as it is.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        return self.config.generation.replace(
            **{name: value for name, value in changes.items() if value is not None}
        )

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Encodes prompts as the transformer reads them: tokens (P, T) or features (P, T, F).

        Raises:
            GenerationError: a prompt is too long, or this is one text instead of several.
        """
        return self.text_tokenizer.encode(prompts).to(self.device)

    @torch.inference_mode()
    def encode_images(self, pixels: Pixels) -> Tensor:
        """Encodes pictures (B, S, S, 3) of the model's size into codes (B, h, w)."""
        codes = [
            self.tokenizer.encode(to_float(pixels[start : start + _BATCH]).to(self.device))
            for start in range(0, len(pixels), _BATCH)
        ]
        return torch.cat(codes)

    def decode_codes(self, codes: Tensor, laid: Tensor | None = None) -> Pixels:
        """Decodes codes into pictures, also those of a step, which are not all laid yet.

        Args:
            codes: (B, h, w) int64, or (B, N) of the model's own grid, as a step has them.
            laid: bool of the same shape: the places that have a code, all unless given. The others
                are shown as the mean of the codebook, which is near to gray.

        Returns:
            (B, H, W, 3) uint8.
        """
        if codes.ndim == 2:
            codes = codes.unflatten(1, self.config.grid)
        latent = self.tokenizer.quantizer.look_up(codes.to(self.device))
        if laid is not None:
            blank = self.tokenizer.codebook.mean(0).view(-1, 1, 1)
            known = laid.view_as(codes)[:, None].to(self.device)
            latent = latent.where(known, blank)
        return self._decode(latent)

    def paint(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        settings: GenerationSettings | None = None,
        negative_prompts: Sequence[str] | None = None,
        known: KnownCodes | None = None,
        best_of: int = 1,
        on_step: StepCallback | None = None,
    ) -> PaintedPixels:
        """Paints one picture a prompt and seed; equal prompts are read once a batch.

        A canvas larger than the model's grid is laid by windows and decoded as a whole.

        Args:
            prompts: one a picture; "" is no prompt.
            seeds: one a picture.
            settings: instead of the model's own.
            negative_prompts: one a picture: what guidance moves away from; "" is no prompt.
            known: the canvases, one a picture or one for all, with the places that keep their
                codes; nothing on the model's own grid unless given.
            best_of: candidates a picture, with the seeds seed, seed + 1, …; that with the highest
                pointwise mutual information is kept.
            on_step: called after each step of a batch; `decode_codes` shows it.

        Raises:
            GenerationError: there is no prompt, one is too long, there are more or fewer seeds
                or negative prompts, a seed or `best_of` is out of range; a negative prompt
                without guidance; `best_of` without a prompt or with an objective without
                likelihood; a larger canvas with one that lays no codes.
        """
        settings = settings or self.config.generation
        negative_prompts = negative_prompts or [""] * len(prompts)
        self._check(prompts, negative_prompts, seeds, settings, best_of)
        known = known or KnownCodes.nothing(self.config.grid)
        pixels, codes = [], []
        together = max(1, _BATCH // best_of)
        for start in range(0, len(prompts), together):
            pictures = range(start, min(start + together, len(prompts)))
            rows = [picture for picture in pictures for _ in range(best_of)]
            own_seeds = [seeds[picture] + n for picture in pictures for n in range(best_of)]
            parts = [
                self._lay(
                    [prompts[row] for row in rows[part]],
                    [negative_prompts[row] for row in rows[part]],
                    own_seeds[part],
                    settings,
                    known.select(rows[part]),
                    on_step,
                )
                for part in (slice(first, first + _BATCH) for first in range(0, len(rows), _BATCH))
            ]
            painted = parts[0]
            if best_of > 1:
                painted = self._keep_best(parts, [prompts[row] for row in rows], best_of)
            pixels.append(self._decode(painted.latent))
            if painted.codes is not None:
                codes.append(painted.codes)
        return PaintedPixels(np.concatenate(pixels), torch.cat(codes) if codes else None)

    def score(
        self,
        images: Sequence[Image.Image] | Pixels,
        prompts: str | Sequence[str],
        *,
        num_orders: int = 4,
        seed: int = 0,
    ) -> Scores:
        """Scores every picture under every prompt, by the model's own likelihood.

        The pointwise mutual information ranks prompts for a picture and pictures for a prompt: a
        picture that is likely anyway gains nothing by it.

        Args:
            images: I pictures of any size, or pixels (I, H, W, 3); cropped to the square in the
                middle and resized.
            prompts: P of them.
            num_orders: orders that the likelihood is the mean over; more are steadier.
            seed: of the orders.

        Returns:
            Log-likelihood and pointwise mutual information, (I, P) each, in nats. The same
            arguments give the same scores.

        Raises:
            GenerationError: there is no picture or no prompt, a prompt is blank or too long, a
                number is out of range, or the model's objective has no likelihood.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        check_prompts(prompts)
        check_count("The number of orders", num_orders, MAX_ORDERS)
        check_seeds([seed])
        codes = self.encode_images(fit_images(images, self.config.image_size))
        text = self.encode_text(["", *prompts])
        pairs = torch.arange(len(codes) * len(text), device=self.device)
        picture_of, text_of = pairs // len(text), pairs % len(text)
        found = self._score_pairs(codes, text, picture_of, text_of, num_orders, seed)
        table = found.view(len(codes), len(text)).numpy()
        return Scores(table[:, 1:], table[:, 1:] - table[:, :1])

    def score_codes(
        self, codes: Tensor, prompts: Sequence[str], *, num_orders: int = 4, seed: int = 0
    ) -> Scores:
        """Scores mosaics, each under its own prompt.

        Args:
            codes: (B, h, w) int64; of a larger mosaic the sum over its windows is taken, which
                overlap.
            prompts: one a mosaic.
            num_orders: as in `score`.
            seed: as in `score`.

        Returns:
            As `score`, but (B,) each.

        Raises:
            GenerationError: a prompt is too long, or the model's objective has no likelihood.
        """
        text, prompt_of = self._encode_each_once(["", *prompts])
        rows = torch.arange(len(codes), device=self.device)
        picture_of = torch.cat([rows, rows])
        text_of = torch.cat([prompt_of[1:], torch.zeros_like(rows)])
        found = torch.zeros(2 * len(codes), dtype=torch.float64)
        nothing = torch.zeros(codes.shape[1:], dtype=torch.bool)
        for window in plan_windows(nothing, self.config.grid):
            part = codes[:, window[0], window[1]]
            found += self._score_pairs(part, text, picture_of, text_of, num_orders, seed)
        own, without = found.view(2, -1).numpy()
        return Scores(own, own - without)

    def _check(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        seeds: Sequence[int],
        settings: GenerationSettings,
        best_of: int,
    ) -> None:
        """Refuses what cannot be painted, before the work."""
        check_is_list(prompts)
        if not prompts:
            raise GenerationError("There is no prompt. Give at least one.")
        if not len(prompts) == len(seeds) == len(negative_prompts):
            raise GenerationError(
                "Each picture has a prompt, a seed and a negative prompt: "
                f"`{len(prompts)}`, `{len(seeds)}` and `{len(negative_prompts)}` of them. Give "
                "equally many."
            )
        check_count("The number of candidates, best_of,", best_of, MAX_BEST_OF)
        check_seeds([seed for first in seeds for seed in (first, first + best_of - 1)])
        if any(prompt.strip() for prompt in negative_prompts):
            if not self.objective.is_guided:
                raise GenerationError(
                    "A negative prompt works by guidance, which the model's objective does not "
                    f"have: `{self.objective.name}`. Leave it out."
                )
            if settings.guidance_scale == 1:
                raise GenerationError(
                    "A negative prompt works by guidance, which is off: guidance_scale is "
                    f"`{settings.guidance_scale:g}`. Give one above 1, for example 3."
                )
        if best_of > 1:
            if not self.objective.has_likelihood:
                raise GenerationError(
                    "The best of several candidates is chosen by likelihood, and the model's "
                    f"objective has no likelihood: `{self.objective.name}`. Give best_of 1."
                )
            if not all(prompt.strip() for prompt in prompts):
                raise GenerationError(
                    "The best of several candidates is chosen by the prompt, and there is none. "
                    "Give a prompt, or best_of 1."
                )

    @torch.inference_mode()
    def _lay(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        seeds: Sequence[int],
        settings: GenerationSettings,
        known: KnownCodes,
        on_step: StepCallback | None,
    ) -> Painted:
        """Lays canvases, one a prompt, window by window."""
        text, prompt_of = self._encode_each_once(prompts)
        negative_text, negative_of = self._encode_each_once(negative_prompts)
        codes, laid = known.codes.to(self.device), known.known.to(self.device)
        grid = self.config.grid
        windows = plan_windows(laid[0], grid)
        for number, (rows, columns) in enumerate(windows):
            request = GenerationRequest(
                text=text,
                negative_text=negative_text,
                prompt_of=prompt_of,
                negative_of=negative_of,
                seeds=[derive_seed(seed, number) for seed in seeds],
                settings=settings,
                known_codes=codes[:, rows, columns].flatten(1),
                known=laid[:, rows, columns].flatten(1),
            )
            watch = on_step
            if on_step is not None and laid.shape[1:] != grid:
                watch = _WindowWatch(on_step, codes, laid, (rows, columns), number, len(windows))
            painted = self.objective.generate(
                self.transformer, self.tokenizer.codebook, grid, request, watch
            )
            if laid.shape[1:] == grid:
                return painted
            if painted.codes is None:
                raise GenerationError(
                    "Pictures larger than the model learned are laid code by code, which the "
                    f"model's objective does not do: `{self.objective.name}`. Leave the size out."
                )
            codes[:, rows, columns] = painted.codes
            laid[:, rows, columns] = True
        return Painted(self.tokenizer.quantizer.look_up(codes), codes)

    def _keep_best(self, parts: Sequence[Painted], prompts: Sequence[str], best_of: int) -> Painted:
        """Keeps that one of each `best_of` candidates, laid in parts, that gains most."""
        # An objective with a likelihood lays codes.
        codes = torch.cat([part.codes for part in parts if part.codes is not None])
        latent = torch.cat([part.latent for part in parts])
        pmi = self.score_codes(codes, prompts).pmi.reshape(-1, best_of)
        best = torch.from_numpy(pmi.argmax(1) + np.arange(len(pmi)) * best_of).to(self.device)
        return Painted(latent[best], codes[best])

    @torch.inference_mode()
    def _decode(self, latent: Tensor) -> Pixels:
        """Paints latents (B, C, h, w) some at a time, always equally many.

        How a convolution rounds depends on how many pictures it sees. So the last part is filled
        up, and a picture's pixels do not depend on what it is decoded with.
        """
        height, width = self.config.grid
        together = max(1, _DECODED_TOGETHER * height * width // latent[0, 0].numel())
        pixels = []
        for part in latent.split(together):
            missing = together - len(part)
            whole = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            pixels.append(to_uint8(self.tokenizer.decode_latent(whole))[: len(part)])
        return np.concatenate(pixels)

    def _score_pairs(
        self,
        codes: Tensor,
        text: Tensor,
        picture_of: Tensor,
        text_of: Tensor,
        num_orders: int,
        seed: int,
    ) -> Tensor:
        """Computes the log-likelihood (R,) float64 of pairs of a mosaic and a text, by index."""
        found = [
            self.objective.compute_log_likelihood(
                self.transformer, text[texts], codes[pictures], num_orders=num_orders, seed=seed
            )
            for pictures, texts in zip(picture_of.split(_BATCH), text_of.split(_BATCH), strict=True)
        ]
        return torch.cat(found).cpu().double()

    def _encode_each_once(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encodes different prompts (P, T), and says for each picture (B,) which is its own."""
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        rows = torch.tensor([unique[prompt] for prompt in prompts])
        return self.encode_text(list(unique)), rows.to(self.device)


@dataclass(frozen=True, eq=False)
class _WindowWatch:
    """Shows the steps of one window of a larger canvas as steps of the whole."""

    on_step: StepCallback
    codes: Tensor  # (B, h', w') of the whole canvas, before the window
    laid: Tensor  # (B, h', w')
    window: Window
    number: int  # of the window, from 0
    num_windows: int

    def __call__(self, step: GenerationStep) -> None:
        codes, laid = self.codes.clone(), self.laid.clone()
        here = (slice(None), *self.window)
        codes[here], laid[here] = step.codes.view_as(codes[here]), step.laid.view_as(laid[here])
        done, steps = self.number * step.steps + step.step, self.num_windows * step.steps
        self.on_step(GenerationStep(done, steps, codes, laid))


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses no prompt and blank ones.

    Any word can be read: one that no caption had is read by its letters, and what the model
    makes of it is chance.

    Raises:
        GenerationError: there is none, or one is blank.
    """
    if not prompts:
        raise GenerationError("There is no prompt. Give at least one.")
    for prompt in prompts:
        if not prompt.strip():
            raise GenerationError(
                f"A prompt must say something: `{prompt}`. Describe the picture as the captions do."
            )


def check_count(what: str, count: int, most: int) -> None:
    """Refuses a number outside of [1, most].

    Raises:
        GenerationError: says what it is a number of.
    """
    if not 1 <= count <= most:
        raise GenerationError(f"{what} must be between 1 and {most}: `{count}`.")


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses seeds that are out of range.

    Raises:
        GenerationError: names the first.
    """
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise GenerationError(f"A seed must be between 0 and {MAX_SEED}: `{seed}`.")


def list_seeds(count: int, seed: int, best_of: int) -> list[int]:
    """Lists the seed of each picture of a prompt: of its first candidate, so that none is shared.

    Raises:
        GenerationError: a number is out of range.
    """
    check_count("The count of pictures", count, MAX_COUNT)
    check_count("The number of candidates, best_of,", best_of, MAX_BEST_OF)
    seeds = [seed + number * best_of for number in range(count)]
    check_seeds(seeds)
    return seeds
