"""TextToImage: a trained model, loaded from its folder.

prompts ─ requests ─▶ sampler ─▶ codes ─ image tokenizer ─▶ pictures
                 pictures ─ image tokenizer ─▶ codes + prompts ─▶ scores

Every picture is an `ImageRequest`: a new one has an empty canvas, an edited one a canvas that keeps
codes. The pixels that a canvas keeps are put back exactly.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tessella.checksums import write_sums
from tessella.files import new_folder
from tessella.generation import GenerationSettings
from tessella.images import Pixels
from tessella.model import folder as model_folder
from tessella.model.canvas import fit_images
from tessella.model.canvas_maker import CanvasMaker
from tessella.model.codec import blank_out, decode_latent, encode_pixels
from tessella.model.examples import ExampleFinder, encode_references
from tessella.model.folder import ModelConfig, TrainedTokenizer
from tessella.model.mask import Mask
from tessella.model.notebook import describe_model, show_model
from tessella.model.painting_precision import AS_TRAINED, check_painting_precision, paint_in
from tessella.model.pictures import Pictures, paint_pictures
from tessella.model.request import (
    GeneratedImages,
    GenerationOptions,
    ImageRequest,
    check_prompts,
)
from tessella.model.sampler import Sampler, Scores
from tessella.model.size import CanvasShape
from tessella.objectives import OnStep, create_objective
from tessella.precision import PaintingPrecision
from tessella.retrieval import Example, ExampleMemory
from tessella.text import TextEncoder, load_text
from tessella.text.vocabulary import CaptionSummary, Vocabulary
from tessella.tokenizer import VQAutoencoder
from tessella.transformer import Transformer


class TextToImage:
    """A trained model: generates pictures, changes them, scores and reconstructs them.

    Args:
        config: settings of all its parts.
        text_tokenizer: reads prompts.
        tokenizer: the image tokenizer.
        transformer: trained on the image tokenizer's codes.
        memory: the examples that prompts are looked up in; None if it has none.
        captions: summary of the training captions, which says which words it knows.

    It takes the image tokenizer's codebook when it is built: after a change of the weights, take
    `with_parts()`.
    """

    def __init__(
        self,
        config: ModelConfig,
        text_tokenizer: TextEncoder,
        tokenizer: VQAutoencoder,
        transformer: Transformer,
        memory: ExampleMemory | None = None,
        captions: CaptionSummary | None = None,
    ) -> None:
        self.captions = captions
        self.samples: Path | None = None  # a sheet of its pictures, in the folder it is loaded from
        self.config, self.text_tokenizer, self.tokenizer = config, text_tokenizer, tokenizer
        self.canvases = CanvasMaker(config, tokenizer)
        self.examples = ExampleFinder(memory, config.neighbors)
        self.objective = create_objective(config.objective, transformer, tokenizer.codebook)
        self.sampler = Sampler(text_tokenizer, self.objective)
        self.precision = AS_TRAINED  # what the transformer computes in, and why

    def __repr__(self) -> str:
        return f"<TextToImage: {describe_model(self)}>"

    def _repr_html_(self) -> str:
        return show_model(self, self.samples)

    @classmethod
    def create(cls, config: ModelConfig, text_tokenizer: TextEncoder) -> "TextToImage":
        """Builds an untrained model.

        Raises:
            ConfigError: the image size does not suit the tokenizer's downsampling, or the
                objective cannot learn from such texts.
        """
        tokenizer = config.create_tokenizer()
        return cls(config, text_tokenizer, tokenizer, config.create_transformer(text_tokenizer))

    @classmethod
    def load(
        cls, folder: Path | str, device: str = "auto", precision: PaintingPrecision = "fp32"
    ) -> "TextToImage":
        """Loads a model folder.

        Args:
            folder: as `fit` writes it.
            device: auto, cpu, cuda or mps.
            precision: see `tessella.load`; models are measured, and train on, in fp32.

        Raises:
            CheckpointError: a file is missing, damaged, foreign or of another format.
            ConfigError: the device is not there, or does not paint in this precision.
        """
        folder = Path(folder)
        config = model_folder.read_model_config(folder)
        text_tokenizer = load_text(folder)
        tokenizer = TrainedTokenizer.load(folder, device).tokenizer
        transformer = model_folder.load_transformer(folder, config, text_tokenizer)
        transformer.to(tokenizer.codebook.device)
        memory = model_folder.load_memory(folder, config, tokenizer)
        captions = model_folder.read_captions(folder)
        model = cls(config, text_tokenizer, tokenizer, transformer, memory, captions)
        model = paint_in(precision, model)
        model.samples = folder / model_folder.SAMPLES_FILE
        return model

    def save(
        self,
        folder: Path,
        *,
        card: str,
        metrics: Mapping[str, Any],
        samples: Pixels,
        captions: CaptionSummary | None = None,
    ) -> None:
        """Writes a model folder, whole or not at all, with notes for people.

        Args:
            folder: replaced if it is there.
            card: the text of the model card.
            metrics: plain values with their protocol.
            samples: (H, W, 3) a sheet of pictures.
            captions: summary of the training captions.

        Raises:
            CheckpointError: it cannot be written; what was there stays.
        """
        with new_folder(folder, what="the model") as building:
            TrainedTokenizer(self.config, self.tokenizer).write(building)
            model_folder.write_transformer(building, self.text_tokenizer, self.transformer)
            model_folder.write_notes(building, card, metrics, samples, captions)
            if self.memory is not None:
                self.memory.write(building)
            write_sums(building)

    def with_parts(
        self,
        *,
        tokenizer: VQAutoencoder | None = None,
        transformer: Transformer | None = None,
        memory: ExampleMemory | None = None,
    ) -> "TextToImage":
        """Returns a model with other parts; what is not given is shared."""
        model = TextToImage(
            self.config,
            self.text_tokenizer,
            tokenizer or self.tokenizer,
            transformer or self.transformer,
            self.memory if memory is None else memory,  # an empty one counts
            self.captions,
        )
        model.precision = AS_TRAINED if transformer else self.precision
        return model

    @functools.cached_property
    def words(self) -> Vocabulary:
        """The words that it knows."""
        return Vocabulary(self.text_tokenizer, self.captions)

    @property
    def memory(self) -> ExampleMemory | None:
        """The examples that prompts are looked up in."""
        return self.examples.memory

    @property
    def transformer(self) -> Transformer:
        """The network of stage 2."""
        return self.objective.transformer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.sampler.device

    def to(self, device: torch.device) -> "TextToImage":
        """Moves the model and returns it, unless it paints in what only a CPU does."""
        check_painting_precision(self.precision.name, device.type)
        self.tokenizer.to(device)
        self.objective.to(device)
        return self

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        canvas: CanvasShape | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Pictures:
        """Generates pictures from prompts.

        Args:
            prompts: one, or several.
            size: (width, height) in pixels, each 16 to 4096; the model's own unless given. The
                picture is painted at the model's own size and resized. One of another shape is
                padded where its edges are mostly of one colour, and cropped elsewhere.
            canvas: paints a larger picture, window by window: `wide` has the shape of the size,
                `2x1` is two of the model's own pictures wide. Each window continues its neighbours
                and reads the prompt anew, which suits textures and scenery better than one large
                object.
            **options: see `GenerationOptions`.

        Returns:
            A list of pictures, prompt after prompt. Its `warnings` say what had no effect.

        Raises:
            GenerationError: see `GenerationOptions`; or the size or canvas is wrong, or the canvas
                is larger than the model's own and the objective generates no codes.
            ConfigError: a setting is unknown or out of range.
        """
        planned = self.canvases.plan_size(size, canvas)
        empty = self.canvases.new(planned.painted)
        return paint_pictures(self, check_prompts(prompts), empty, options, size=planned)

    def edit(
        self,
        image: Image.Image,
        prompt: str,
        mask: Image.Image | Mask | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Pictures:
        """Repaints a part of a picture (inpainting).

        Every code that the mask touches is sampled anew. Pixels outside the mask stay exactly as
        they are.

        Args:
            image: of any size; it and the mask are cropped to the square in the middle and resized
                to the model's size.
            prompt: what the whole picture shows.
            mask: of the picture's size. One with transparency is repainted where it is less than
                half opaque, an opaque one from half of white on; or (H, W) bool, or `half_mask`.
                None takes the picture's own transparency.
            **options: see `GenerationOptions`.

        Returns:
            `count` pictures of the model's size. `mask` says how it was read, `warnings` what had
            no effect.

        Raises:
            GenerationError: see `GenerationOptions`; or the mask has another size than the picture,
                or marks nothing.
            ConfigError: a setting is unknown or out of range.
        """
        marking = self.canvases.mark(image, mask)
        canvas = self.canvases.edit(image, marking)
        return paint_pictures(self, check_prompts(prompt), canvas, options, marking=marking)

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
    ) -> Pictures:
        """Continues a picture beyond its edges, from its middle outwards.

        The picture's own pixels stay exactly. `generate` describes how larger pictures are sampled.

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
            GenerationError: see `GenerationOptions`; or nothing is added, or too much, or not by
                multiples of the downsampling; or the objective generates no codes.
            ConfigError: a setting is unknown or out of range.
        """
        prompts = check_prompts(prompt)
        canvas = self.canvases.outpaint(image, left=left, top=top, right=right, bottom=bottom)
        return paint_pictures(self, prompts, canvas, options)

    def vary(
        self,
        image: Image.Image,
        prompt: str = "",
        *,
        strength: float = 0.5,
        **options: Unpack[GenerationOptions],
    ) -> Pictures:
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
            GenerationError: see `GenerationOptions`; or the strength is out of range.
            ConfigError: a setting is unknown or out of range.
        """
        plan = functools.partial(self.canvases.variations, image, strength=strength)
        return paint_pictures(self, [prompt], plan, options)

    def generate_images(
        self,
        requests: Sequence[ImageRequest],
        settings: GenerationSettings | None = None,
        *,
        best_of: int = 1,
        on_step: OnStep | None = None,
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
        requests = self.examples.complete(requests, settings.neighbors)
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
        return GeneratedImages(
            np.stack(pixels),
            torch.cat(codes) if codes else None,
            [one.examples or () for one in requests],
        )

    def generation_settings(self, **changes: Any) -> GenerationSettings:
        """Returns the model's settings with some changed; None leaves one as it is.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        return self.config.generation.replace(
            **{name: value for name, value in changes.items() if value is not None}
        )

    def encode_references(self, images: Sequence[Image.Image]) -> list[Example]:
        """Encodes your own pictures, to be looked at like examples of the memory."""
        return encode_references(images, self.tokenizer, self.config.image_size)

    def encode_images(self, pixels: Pixels) -> Tensor:
        """Encodes pictures (B, S, S, 3) of the model's size into codes (B, M, h, w)."""
        return encode_pixels(self.tokenizer, pixels)

    def decode_codes(self, codes: Tensor, is_decoded: Tensor | None = None) -> Pixels:
        """Decodes codes into pictures, those of an unfinished step included.

        Args:
            codes: (B, M, h, w) int64, or (B, M, N) of the model's own grid, as a step has them.
            is_decoded: (B, h, w) or (B, N) bool: the positions that have codes, all unless given.
                The others show the mean of the codebook, which is close to gray.

        Returns:
            (B, H, W, 3) uint8.
        """
        latent = self.objective.look_up(codes.to(self.device)).latent
        if is_decoded is not None:
            latent = blank_out(latent, is_decoded, self.objective.codebook)
        return decode_latent(self.tokenizer, latent, self.config.grid)

    def reconstruct(self, images: Sequence[Image.Image]) -> Pictures:
        """Encodes pictures and decodes them again, to show what the codes keep.

        Args:
            images: of any size; cropped to the square in the middle and resized.
        """
        return Pictures(TrainedTokenizer(self.config, self.tokenizer).reconstruct(images))

    def score(
        self,
        images: Sequence[Image.Image] | Pixels,
        prompts: str | Sequence[str],
        *,
        num_orders: int = 4,
        seed: int = 0,
    ) -> Scores:
        """Scores every picture under every prompt, by the model's own likelihood.

        The pointwise mutual information ranks prompts for a picture and pictures for a prompt: it
        discounts a picture that is likely under any prompt.

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
        prompts = check_prompts(prompts)
        codes = self.encode_images(fit_images(images, self.config.image_size))
        return self.sampler.score_table(codes, prompts, num_orders=num_orders, seed=seed)
