"""TextToImage: what a person asks of a model, and the folder that it is loaded from.

A request becomes canvases (what of each picture is known), `Painter` lays and decodes them, and
what was to stay of a picture is put back, pixel for pixel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tessella.canvas import (
    Canvas,
    KnownCodes,
    Mask,
    check_margins,
    find_grid,
    fit_images,
    fit_mask,
    half_mask,
)
from tessella.errors import ConfigError, GenerationError
from tessella.files import new_folder, write_json, write_tensors, write_text
from tessella.images import Pixels, save_png
from tessella.model_folder import (
    CAPTIONS_FILE,
    CARD_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    ModelConfig,
    TrainedTokenizer,
    choose_device,
    damaged_config,
    load_weights,
    read_config,
)
from tessella.objectives import StepCallback, create_transformer
from tessella.painting import PaintedPixels, Painter, Scores, check_prompts, list_seeds
from tessella.text import TEXT_FILE, TextEncoder, load_text
from tessella.text.known_words import CaptionSummary
from tessella.tokenizer import ImageTokenizer
from tessella.transformer import Transformer, TransformerShape

__all__ = [
    "METRICS_FILE",
    "TEXT_FILE",
    "KnownCodes",
    "ModelConfig",
    "PaintedPixels",
    "Scores",
    "TextToImage",
    "TrainedTokenizer",
    "choose_device",
    "half_mask",
]


class TextToImage(Painter):
    """A trained model: paints prompts, changes pictures, scores and reconstructs them.

    What paints takes the same words:

        count             pictures a prompt
        seed              where their random numbers start: picture i, counted from 0, has
                          seed + i · best_of. The same request gives the same pictures
        negative_prompt   what guidance moves away from, instead of from no prompt
        best_of           candidates a picture: those with its seed and the best_of - 1 next
                          ones. That which gains most likelihood by the prompt is kept
        on_step           called after each step of a batch with the codes so far;
                          `decode_codes` shows them
        **settings        those of `GenerationSettings` that differ from the model's own: steps,
                          temperature, top_k, top_p, guidance_scale, order, …

    and refuses the same: a `GenerationError` says that a prompt is blank or too long, that a
    number is out of range, that there is a negative prompt without guidance (or with an objective
    that has none), or `best_of` with one that has no likelihood; a `ConfigError` that a setting is
    unknown or out of range.
    """

    @classmethod
    def create(cls, config: ModelConfig, text_tokenizer: TextEncoder) -> "TextToImage":
        """Builds an untrained model.

        Raises:
            ConfigError: the image size does not suit the tokenizer's downsampling.
        """
        factor = config.tokenizer.downsampling
        if config.image_size % factor:
            low = max(factor, config.image_size // factor * factor)
            raise ConfigError(
                f"Image size must be a multiple of {factor} (the tokenizer's downsampling): "
                f"`{config.image_size}`. Try {low} or {low + factor}."
            )
        shape = TransformerShape(
            vocabulary_size=text_tokenizer.vocabulary_size,
            max_text_tokens=text_tokenizer.max_tokens,
            pad_id=text_tokenizer.pad_id,
            codebook_size=config.tokenizer.quantizer.codebook_size,
            grid=config.grid,
            code_width=config.tokenizer.quantizer.code_width,
            text_features=text_tokenizer.num_features,
        )
        return cls(
            config,
            text_tokenizer,
            ImageTokenizer(config.tokenizer),
            create_transformer(config.objective, config.transformer, shape),
        )

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto") -> "TextToImage":
        """Loads a model folder.

        Args:
            folder: as `fit` writes it.
            device: auto, cpu, cuda or mps.

        Raises:
            CheckpointError: a file is missing, damaged, foreign or of another format.
            ConfigError: the device is not there.
        """
        folder = Path(folder)
        config = read_config(folder)
        text_tokenizer = load_text(folder)
        with damaged_config(folder):
            model = cls.create(config, text_tokenizer)
        load_weights(model.tokenizer, folder / TOKENIZER_FILE)
        load_weights(model.transformer, folder / TRANSFORMER_FILE)
        model.tokenizer.eval().requires_grad_(False)
        model.transformer.eval().requires_grad_(False)
        return model.to(choose_device(device))

    def save(
        self,
        folder: Path,
        *,
        card: str,
        metrics: Mapping[str, Any],
        samples: Pixels,
        captions: CaptionSummary | None = None,
    ) -> None:
        """Writes a model folder, whole or not at all.

        Args:
            folder: replaced if it is there.
            card: the text of the model card.
            metrics: plain values with their protocol.
            samples: (H, W, 3) a sheet of pictures.
            captions: what it was trained to hear.

        Raises:
            CheckpointError: it cannot be written; what was there stays.
        """
        with new_folder(folder, what="the model") as building:
            write_json(building / CONFIG_FILE, self.config.model_dump(mode="json"))
            write_tensors(building / TOKENIZER_FILE, self.tokenizer.state_dict())
            write_tensors(building / TRANSFORMER_FILE, self.transformer.state_dict())
            self.text_tokenizer.save(building / TEXT_FILE)
            write_text(building / CARD_FILE, card)
            write_json(building / METRICS_FILE, metrics)
            save_png(building / SAMPLES_FILE, samples)
            if captions is not None:
                write_json(building / CAPTIONS_FILE, asdict(captions))

    def with_transformer(self, transformer: Transformer) -> "TextToImage":
        """Returns a model that shares all but the transformer."""
        return TextToImage(self.config, self.text_tokenizer, self.tokenizer, transformer)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        count: int = 1,
        seed: int = 0,
        negative_prompt: str = "",
        size: tuple[int, int] | None = None,
        best_of: int = 1,
        on_step: StepCallback | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Paints pictures.

        A picture larger than the model learned is laid by a window that slides over it, and
        decoded as a whole. Each window continues its neighbours and reads the prompt anew, so
        that it suits textures and scenery better than one large object. The decoder normalises
        over the whole picture, which it learned at the trained size alone.

        Args:
            prompts: one, or several.
            count: pictures a prompt.
            seed: of each prompt's first picture; see the class.
            negative_prompt: what guidance moves away from.
            size: (width, height) in pixels, multiples of the tokenizer's downsampling, at least
                the size that the model learned, which it is unless given, and at most 4096.
            best_of: candidates a picture.
            on_step: called after each step.
            **settings: that differ from the model's own.

        Returns:
            The pictures, prompt after prompt.

        Raises:
            GenerationError: the request cannot be met (see the class), or the size is wrong;
                a larger one needs an objective that lays codes.
            ConfigError: a setting is unknown or out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        check_prompts(prompts)
        seeds = list_seeds(count, seed, best_of)
        asked = _Asked(seeds, negative_prompt, best_of, on_step, settings)
        return self._paint_asked(prompts, [self.plan_picture(size)] * count, asked)

    def edit(
        self,
        image: Image.Image,
        prompt: str,
        mask: Image.Image | Mask,
        *,
        count: int = 1,
        seed: int = 0,
        negative_prompt: str = "",
        best_of: int = 1,
        on_step: StepCallback | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Paints a part of a picture anew (inpainting).

        Every code that the mask touches is laid anew. Pixels outside of the mask stay exactly the
        picture's own.

        Args:
            image: of any size; it and the mask are cropped to the square in the middle and resized
                to the model's size.
            prompt: what the whole picture shows.
            mask: of the picture's size, white (or anything but black, which is at most 31 of 255)
                where it is painted anew; or (H, W) bool. `half_mask` makes one that completes
                half a picture.
            count: pictures.
            seed: of the first one; see the class.
            negative_prompt: what guidance moves away from.
            best_of: candidates a picture.
            on_step: called after each step.
            **settings: that differ from the model's own.

        Returns:
            `count` pictures of the model's size.

        Raises:
            GenerationError: the request cannot be met (see the class), or the mask has another
                size than the picture or marks nothing.
            ConfigError: a setting is unknown or out of range.
        """
        check_prompts([prompt])
        seeds = list_seeds(count, seed, best_of)
        asked = _Asked(seeds, negative_prompt, best_of, on_step, settings)
        return self._paint_asked([prompt], [self.plan_edit(image, mask)] * count, asked)

    def outpaint(
        self,
        image: Image.Image,
        prompt: str,
        *,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        count: int = 1,
        seed: int = 0,
        negative_prompt: str = "",
        best_of: int = 1,
        on_step: StepCallback | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Paints on around a picture, from its middle outwards.

        The picture's own pixels stay exactly. What `generate` says of larger pictures holds here.

        Args:
            image: of any size; cropped to the square in the middle and resized to the model's
                size.
            prompt: what the whole picture shows.
            left: pixels to add there, a multiple of the tokenizer's downsampling.
            top: the same above.
            right: the same on the right.
            bottom: the same below.
            count: pictures.
            seed: of the first one; see the class.
            negative_prompt: what guidance moves away from.
            best_of: candidates a picture.
            on_step: called after each step.
            **settings: that differ from the model's own.

        Returns:
            `count` pictures, larger by what was added.

        Raises:
            GenerationError: the request cannot be met (see the class), nothing is added, or not
                by multiples of the downsampling, or too much; the objective lays no codes.
            ConfigError: a setting is unknown or out of range.
        """
        check_prompts([prompt])
        seeds = list_seeds(count, seed, best_of)
        canvas = self.plan_outpaint(image, left=left, top=top, right=right, bottom=bottom)
        asked = _Asked(seeds, negative_prompt, best_of, on_step, settings)
        return self._paint_asked([prompt], [canvas] * count, asked)

    def vary(
        self,
        image: Image.Image,
        prompt: str = "",
        *,
        strength: float = 0.5,
        count: int = 1,
        seed: int = 0,
        negative_prompt: str = "",
        best_of: int = 1,
        on_step: StepCallback | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Paints variations of a picture: some of its codes stay, at places drawn by the seed.

        Args:
            image: of any size; cropped to the square in the middle and resized to the model's
                size.
            prompt: what the picture shows; "" is no prompt.
            strength: share of the codes that are laid anew, in (0, 1]; at least one is.
            count: pictures.
            seed: of the first one; see the class.
            negative_prompt: what guidance moves away from.
            best_of: candidates a picture, which keep the same places.
            on_step: called after each step.
            **settings: that differ from the model's own.

        Returns:
            `count` pictures of the model's size.

        Raises:
            GenerationError: the request cannot be met (see the class), or the strength is out of
                range.
            ConfigError: a setting is unknown or out of range.
        """
        seeds = list_seeds(count, seed, best_of)
        canvases = self.plan_variations(image, seeds, strength=strength)
        asked = _Asked(seeds, negative_prompt, best_of, on_step, settings)
        return self._paint_asked([prompt], canvases, asked)

    def plan_picture(self, size: tuple[int, int] | None = None) -> Canvas:
        """Returns the canvas on which `generate` paints.

        Raises:
            GenerationError: the size is wrong.
        """
        grid = self.config.grid
        if size is not None:
            grid = find_grid(size, self.config.tokenizer.downsampling, self.config.image_size)
        return Canvas(KnownCodes.nothing(grid))

    def plan_edit(self, image: Image.Image, mask: Image.Image | Mask) -> Canvas:
        """Returns the canvas on which `edit` paints, which says what is taken and refused."""
        [own] = fit_images([image], self.config.image_size)
        anew = fit_mask(mask, image, self.config.image_size)
        (height, width), side = self.config.grid, self.config.tokenizer.downsampling
        touched = torch.from_numpy(anew).view(height, side, width, side).any(3).any(1)
        codes = self.encode_images(own[None]).cpu()
        return Canvas(KnownCodes(codes, ~touched[None]), own, anew)

    def plan_outpaint(
        self, image: Image.Image, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0
    ) -> Canvas:
        """Returns the canvas on which `outpaint` paints, which says what is taken and refused."""
        size, side = self.config.image_size, self.config.tokenizer.downsampling
        check_margins({"left": left, "top": top, "right": right, "bottom": bottom}, side)
        grid = find_grid((left + size + right, top + size + bottom), side, size)
        pixels = fit_images([image], size)
        codes = self.encode_images(pixels)
        known = KnownCodes.nothing(grid).with_codes(codes, top // side, left // side)
        around = ((top, bottom), (left, right))
        anew = np.pad(np.zeros((size, size), np.bool_), around, constant_values=True)
        return Canvas(known, np.pad(pixels[0], (*around, (0, 0))), anew)

    def plan_variations(
        self, image: Image.Image, seeds: Sequence[int], *, strength: float = 0.5
    ) -> list[Canvas]:
        """Returns the canvases on which `vary` paints, one a seed, which draws its known places.

        Raises:
            GenerationError: the strength is out of range.
        """
        if not 0 < strength <= 1:
            raise GenerationError(
                f"The strength is the share of a picture that is painted anew, above 0 and at most "
                f"1: `{strength}`. Try 0.5."
            )
        codes = self.encode_images(fit_images([image], self.config.image_size)).cpu()
        num_places = codes[0].numel()
        anew = max(1, round(strength * num_places))
        ranks = [np.random.default_rng(seed).permutation(num_places) for seed in seeds]
        known = [torch.from_numpy(rank >= anew).view(1, *self.config.grid) for rank in ranks]
        return [Canvas(KnownCodes(codes, places)) for places in known]

    def _paint_asked(
        self, prompts: Sequence[str], canvases: Sequence[Canvas], asked: "_Asked"
    ) -> list[Image.Image]:
        """Paints each prompt on all canvases, of which there is one a seed."""
        wanted = [
            (prompt, seed, canvas)
            for prompt in prompts
            for seed, canvas in zip(asked.seeds, canvases, strict=True)
        ]
        painted = self.paint(
            [prompt for prompt, _, _ in wanted],
            seeds=[seed for _, seed, _ in wanted],
            settings=self.generation_settings(**asked.settings),
            negative_prompts=[asked.negative_prompt] * len(wanted),
            known=KnownCodes.join([canvas.known for _, _, canvas in wanted]),
            best_of=asked.best_of,
            on_step=asked.on_step,
        )
        return [
            Image.fromarray(canvas.finish(pixels))
            for pixels, (_, _, canvas) in zip(painted.pixels, wanted, strict=True)
        ]

    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Encodes pictures into codes and decodes them: what the tokenizer keeps of them.

        Args:
            images: of any size; cropped to the square in the middle and resized.
        """
        return TrainedTokenizer(self.config, self.tokenizer).reconstruct(images)


@dataclass(frozen=True)
class _Asked:
    """What every request for pictures says beside the canvas."""

    seeds: Sequence[int]  # one a picture of a prompt
    negative_prompt: str
    best_of: int
    on_step: StepCallback | None
    settings: Mapping[str, Any]
