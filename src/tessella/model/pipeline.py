"""TextToImage: what a person asks of a model, and the folder that it is loaded from.

prompts ─ requests ─▶ sampler ─▶ codes ─ image tokenizer ─▶ pictures
                 pictures ─ image tokenizer ─▶ codes + prompts ─▶ scores

Every picture is an `ImageRequest`: a new one has an empty canvas, an edited one a canvas that keeps
codes. What a canvas was to keep of a picture is put back, pixel for pixel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tessella.errors import ConfigError, GenerationError
from tessella.files import new_folder, write_json, write_tensors, write_text
from tessella.generation import GenerationSettings
from tessella.images import Pixels, save_png
from tessella.model.canvas import (
    Canvas,
    KnownCodes,
    Mask,
    check_margins,
    find_grid,
    fit_images,
    fit_mask,
)
from tessella.model.codec import decode_latent, encode_pixels
from tessella.model.folder import (
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
    load_transformer_weights,
    load_weights,
    read_model_config,
)
from tessella.model.request import (
    ImageRequest,
    check_prompts,
    check_range,
    check_seeds,
    list_requests,
)
from tessella.model.sampler import Sampler, Scores
from tessella.objectives import Objective, StepCallback, create_objective, create_transformer
from tessella.text import TEXT_FILE, TextEncoder, load_text
from tessella.text.vocabulary import CaptionSummary
from tessella.tokenizer import ImageTokenizer
from tessella.transformer import Transformer, TransformerShape

MAX_ORDERS = 1000


@dataclass(frozen=True)
class GeneratedImages:
    """Pictures as pixels, with the codes that they are made of."""

    pixels: Pixels  # (B, H, W, 3) uint8
    codes: Tensor | None  # (B, h, w) int64; None where the objective generates no codes


class GenerationOptions(TypedDict, total=False):
    """What `generate`, `edit`, `outpaint` and `vary` take by name; all of it may be left out.

    The settings below `on_step` are those of `GenerationSettings`; the model's own count unless
    given. All four methods refuse the same: a `GenerationError` says that a prompt is blank or
    too long, that a number is out of range, that there is a negative prompt without guidance (or
    with an objective that has none), or `best_of` with one that has no likelihood; a
    `ConfigError` that a setting is unknown or out of range.
    """

    count: int  # pictures a prompt; 1
    seed: int  # picture i, counted from 0, has seed + i · best_of; 0
    negative_prompt: str  # what guidance moves away from, instead of from no prompt
    best_of: int  # candidates a picture; the one that gains most likelihood by the prompt stays
    on_step: StepCallback | None  # called after each step of a batch; `decode_codes` shows it
    steps: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    guidance_scale: float | None
    guidance_schedule: Literal["constant", "linear"] | None
    order: Literal["auto", "random", "halton", "confidence"] | None
    confidence_temperature: float | None
    step_schedule: Literal["cosine", "arccos"] | None


class TextToImage:
    """A trained model: generates pictures, changes them, scores and reconstructs them.

    Args:
        config: settings of all its parts.
        text_tokenizer: reads prompts.
        tokenizer: the image tokenizer.
        transformer: trained on the image tokenizer's codes.
    """

    def __init__(
        self,
        config: ModelConfig,
        text_tokenizer: TextEncoder,
        tokenizer: ImageTokenizer,
        transformer: Transformer,
    ) -> None:
        self.config = config
        self.text_tokenizer = text_tokenizer
        self.tokenizer = tokenizer
        self.objective: Objective = create_objective(
            config.objective, transformer, tokenizer.codebook
        )
        self.sampler = Sampler(text_tokenizer, tokenizer.quantizer, self.objective)

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
        tokenizer = ImageTokenizer(config.tokenizer)
        transformer = create_transformer(config.objective, config.transformer, shape)
        return cls(config, text_tokenizer, tokenizer, transformer)

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
        config = read_model_config(folder)
        text_tokenizer = load_text(folder)
        with damaged_config(folder):
            model = cls.create(config, text_tokenizer)
        load_weights(model.tokenizer, folder / TOKENIZER_FILE)
        load_transformer_weights(model.transformer, folder / TRANSFORMER_FILE)
        model.tokenizer.eval().requires_grad_(False)
        model.transformer.eval().requires_grad_(False)
        # Bound anew: a codebook may be computed from the weights.
        return model.with_parts().to(choose_device(device))

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

    def with_parts(
        self, *, tokenizer: ImageTokenizer | None = None, transformer: Transformer | None = None
    ) -> "TextToImage":
        """Returns a model with other networks; what is not given is shared."""
        return TextToImage(
            self.config,
            self.text_tokenizer,
            tokenizer or self.tokenizer,
            transformer or self.transformer,
        )

    @property
    def transformer(self) -> Transformer:
        """The network of stage 2."""
        return self.objective.transformer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.sampler.device

    def to(self, device: torch.device) -> "TextToImage":
        """Moves the model and returns it."""
        self.tokenizer.to(device)
        self.objective.to(device)
        return self

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Image.Image]:
        """Generates pictures from prompts.

        A picture larger than the model learned is sampled by a window that slides over it, and
        decoded as a whole. Each window continues its neighbours and reads the prompt anew, which
        suits textures and scenery better than one large object. The decoder normalises over the
        whole picture, which it learned at the trained size alone.

        Args:
            prompts: one, or several.
            size: (width, height) in pixels: multiples of the tokenizer's downsampling, at least
                the size that the model learned (the default), at most 4096.
            **options: see `GenerationOptions`.

        Returns:
            The pictures, prompt after prompt.

        Raises:
            GenerationError: the request cannot be met (see `GenerationOptions`), or the size is
                wrong; a larger one needs an objective that generates codes.
            ConfigError: a setting is unknown or out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        check_prompts(prompts)
        canvas = self.plan_picture(size)
        return self._generate(prompts, lambda seeds: [canvas] * len(seeds), options)

    def edit(
        self,
        image: Image.Image,
        prompt: str,
        mask: Image.Image | Mask,
        **options: Unpack[GenerationOptions],
    ) -> list[Image.Image]:
        """Repaints a part of a picture (inpainting).

        Every code that the mask touches is sampled anew. Pixels outside the mask stay exactly the
        picture's own.

        Args:
            image: of any size; it and the mask are cropped to the square in the middle and resized
                to the model's size.
            prompt: what the whole picture shows.
            mask: of the picture's size, white (or anything but black, which is at most 31 of 255)
                where it is repainted; or (H, W) bool. `half_mask` makes one that completes half a
                picture.
            **options: see `GenerationOptions`.

        Returns:
            `count` pictures of the model's size.

        Raises:
            GenerationError: the request cannot be met (see `GenerationOptions`), or the mask has
                another size than the picture or marks nothing.
            ConfigError: a setting is unknown or out of range.
        """
        check_prompts([prompt])
        canvas = self.plan_edit(image, mask)
        return self._generate([prompt], lambda seeds: [canvas] * len(seeds), options)

    def outpaint(
        self,
        image: Image.Image,
        prompt: str,
        *,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        **options: Unpack[GenerationOptions],
    ) -> list[Image.Image]:
        """Continues a picture beyond its edges, from its middle outwards.

        The picture's own pixels stay exactly. What `generate` says of larger pictures holds here.

        Args:
            image: of any size; cropped to the square in the middle and resized to the model's
                size.
            prompt: what the whole picture shows.
            left: pixels to add there, a multiple of the tokenizer's downsampling.
            top: the same above.
            right: the same on the right.
            bottom: the same below.
            **options: see `GenerationOptions`.

        Returns:
            `count` pictures, larger by what was added.

        Raises:
            GenerationError: the request cannot be met (see `GenerationOptions`), nothing is added,
                or not by multiples of the downsampling, or too much; the objective generates no
                codes.
            ConfigError: a setting is unknown or out of range.
        """
        check_prompts([prompt])
        canvas = self.plan_outpaint(image, left=left, top=top, right=right, bottom=bottom)
        return self._generate([prompt], lambda seeds: [canvas] * len(seeds), options)

    def vary(
        self,
        image: Image.Image,
        prompt: str = "",
        *,
        strength: float = 0.5,
        **options: Unpack[GenerationOptions],
    ) -> list[Image.Image]:
        """Generates variations of a picture: some of its codes stay, at positions drawn by seed.

        Args:
            image: of any size; cropped to the square in the middle and resized to the model's
                size.
            prompt: what the picture shows; "" is no prompt.
            strength: fraction of the codes that are sampled anew, in (0, 1]; at least one is.
            **options: see `GenerationOptions`. All candidates of a picture keep the same codes.

        Returns:
            `count` pictures of the model's size.

        Raises:
            GenerationError: the request cannot be met (see `GenerationOptions`), or the strength
                is out of range.
            ConfigError: a setting is unknown or out of range.
        """
        return self._generate(
            [prompt],
            lambda seeds: self.plan_variations(image, seeds, strength=strength),
            options,
        )

    def generate_images(
        self,
        requests: Sequence[ImageRequest],
        settings: GenerationSettings | None = None,
        *,
        best_of: int = 1,
        on_step: StepCallback | None = None,
    ) -> GeneratedImages:
        """Generates one picture a request.

        A canvas larger than the model's grid is sampled by windows and decoded as a whole.

        Args:
            requests: with canvases of one layout (`find_layout`).
            settings: the model's own unless given.
            best_of: candidates a picture, with the seeds seed, seed + 1, …; the one with the
                highest pointwise mutual information is kept.
            on_step: called after each step of a batch; `decode_codes` shows it.

        Raises:
            GenerationError: there is no request, a prompt is too long, a number is out of range,
                a negative prompt comes without guidance, `best_of` without a prompt or a
                likelihood, a larger canvas with an objective that generates no codes.
        """
        settings = settings or self.config.generation
        self.sampler.check(requests, settings, best_of)
        pixels: list[Pixels] = []
        codes: list[Tensor] = []
        together = max(1, self.sampler.batch_size // best_of)
        for start in range(0, len(requests), together):
            batch = requests[start : start + together]
            sampled = self.sampler.sample(batch, settings, best_of, on_step)
            decoded = decode_latent(self.tokenizer, sampled.latent, self.config.grid)
            pixels += [one.finish(image) for one, image in zip(batch, decoded, strict=True)]
            if sampled.codes is not None:
                codes.append(sampled.codes)
        return GeneratedImages(np.stack(pixels), torch.cat(codes) if codes else None)

    def _generate(
        self,
        prompts: Sequence[str],
        plan: Callable[[Sequence[int]], Sequence[Canvas]],
        options: GenerationOptions,
    ) -> list[Image.Image]:
        """Generates each prompt on the canvases that are planned for its seeds."""
        settings: dict[str, Any] = dict(options)
        best_of = settings.pop("best_of", 1)
        on_step = settings.pop("on_step", None)
        requests = list_requests(
            prompts,
            count=settings.pop("count", 1),
            seed=settings.pop("seed", 0),
            best_of=best_of,
            negative_prompt=settings.pop("negative_prompt", ""),
            plan=plan,
        )
        generated = self.generate_images(
            requests, self.generation_settings(**settings), best_of=best_of, on_step=on_step
        )
        return [Image.fromarray(image) for image in generated.pixels]

    def generation_settings(self, **changes: Any) -> GenerationSettings:
        """Returns the model's settings with some changed; None leaves one as it is.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        return self.config.generation.replace(
            **{name: value for name, value in changes.items() if value is not None}
        )

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
        num_positions = codes[0].numel()
        anew = max(1, round(strength * num_positions))
        ranks = [np.random.default_rng(seed).permutation(num_positions) for seed in seeds]
        known = [torch.from_numpy(rank >= anew).view(1, *self.config.grid) for rank in ranks]
        return [Canvas(KnownCodes(codes, places)) for places in known]

    def encode_images(self, pixels: Pixels) -> Tensor:
        """Encodes pictures (B, S, S, 3) of the model's size into codes (B, h, w)."""
        return encode_pixels(self.tokenizer, pixels)

    def decode_codes(self, codes: Tensor, is_decoded: Tensor | None = None) -> Pixels:
        """Decodes codes into pictures, also those of a step, which are not all there yet.

        Args:
            codes: (B, h, w) int64, or (B, N) of the model's own grid, as a step has them.
            is_decoded: bool of the same shape: the positions that have a code, all unless given.
                The others show the mean of the codebook, which is close to gray.

        Returns:
            (B, H, W, 3) uint8.
        """
        if codes.ndim == 2:
            codes = codes.unflatten(1, self.config.grid)
        latent = self.tokenizer.quantizer.look_up(codes.to(self.device))
        if is_decoded is not None:
            blank = self.tokenizer.codebook.mean(0).view(-1, 1, 1)
            latent = latent.where(is_decoded.view_as(codes)[:, None].to(self.device), blank)
        return decode_latent(self.tokenizer, latent, self.config.grid)

    def reconstruct(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Encodes pictures into codes and decodes them: what the tokenizer keeps of them.

        Args:
            images: of any size; cropped to the square in the middle and resized.
        """
        return TrainedTokenizer(self.config, self.tokenizer).reconstruct(images)

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
            num_orders: orders that the likelihood is averaged over; more are steadier.
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
        check_range("The number of orders", num_orders, MAX_ORDERS)
        check_seeds([seed])
        codes = self.encode_images(fit_images(images, self.config.image_size))
        text = self.sampler.encode_text(["", *prompts])
        pairs = torch.arange(len(codes) * len(text), device=self.device)
        log_likelihood = self.sampler.score_pairs(
            codes, text, pairs // len(text), pairs % len(text), num_orders, seed
        )
        table = log_likelihood.view(len(codes), len(text)).numpy()
        return Scores(table[:, 1:], table[:, 1:] - table[:, :1])
