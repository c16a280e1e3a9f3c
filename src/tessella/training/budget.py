"""`--minutes M`: measures this machine, then chooses the size and length of training to fit."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from tessella.data.cache import CaptionedImages
from tessella.data.prepare import PreparedData
from tessella.errors import ConfigError
from tessella.evaluation.model import count_pictures
from tessella.model.codec import encode_pixels
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.precision import Precision
from tessella.retrieval import ExampleMemory, RetrievalSettings
from tessella.retrieval.examples import ExampleRow
from tessella.text import TextEncoder
from tessella.tokenizer import VQAutoencoder
from tessella.training.loop import Pace, measure_pace
from tessella.training.neighbors import ExampleReader, Neighbors
from tessella.training.precision import autocast
from tessella.training.recipe import DEFAULT_PRESET, PRESETS, Recipe
from tessella.training.stage import N, Stage, TrainingSettings
from tessella.training.text_features import CaptionReader
from tessella.training.tokenizer_stage import TokenizerStage
from tessella.training.transformer_stage import TransformerStage

# Of the training time. Good for scenes, not searched: docs/log.md, "twenty minutes from nothing".
_FRACTIONS = {"tokenizer": 0.4, "transformer": 0.6}
# Of a decoder that goes on behind codes that stay: the rest is worth more to the transformer.
_DECODER_FRACTION = 0.15
_EVALUATIONS = 6  # of each stage: enough to follow it
_MEASURE_SECONDS = 6.0
_BATCH = 16
_EXAMPLES, _LOOKUPS = 2_000, 64  # pictures that are looked up in, and prompts that are timed
_MAX_CAPTIONS = 1 << 20  # of a picture
# A larger preset is worth it if the tokenizer sees this many images in its part of the time.
_WORTH_IMAGES = 400_000
# Of each stage: by then scenes have shapes, and photographs their colours (docs/log.md).
_FIRST_IMAGES = 10_000
# What so many images of the transformer gave, of 8,000 emoji in five styles, beside three examples
# and without any: docs/log.md, "what do minutes give".
_EMOJI = {
    True: (
        (16_000, "colours and outlines"),
        (48_000, "the right subject in half of the pictures"),
        (math.inf, "the right subject in two pictures of three"),
    ),
    False: (
        (80_000, "colours and outlines"),
        (240_000, "the right subject in one picture of six"),
        (math.inf, "the right subject in one picture of three"),
    ),
}
_SIZES = ("tiny", "small", "base", "large")


@dataclass(frozen=True)
class TrainingBudget:
    """How a run spends its minutes."""

    recipe: Recipe  # with the lengths of training set
    seconds: Mapping[str, float]  # of each stage that trains, evaluations included
    other_seconds: float  # encoding the images, evaluating the finished model

    def describe(self) -> str:
        """Describes the budget in one line."""
        images = {name: getattr(self.recipe, f"{name}_training").images for name in self.seconds}
        parts = [
            f"{name} {images[name]:,} images ({seconds / 60:.1f} min)"
            for name, seconds in self.seconds.items()
        ]
        line = ", ".join([*parts, f"codes and evaluation {self.other_seconds / 60:.1f} min."])
        growth = {name: _FIRST_IMAGES / images[name] for name in self.seconds}
        if max(growth.values(), default=0.0) <= 1:
            given = self._compare()
            return f"{line} {given}" if given else line
        enough = sum(self.seconds[name] * max(1.0, growth[name]) for name in growth)
        minutes = math.ceil((enough + self.other_seconds) / 60)
        return f"{line} Pictures will be blurry at best; allow about {minutes} minutes."

    def _compare(self) -> str:
        """Says what a transformer that trained for as long has painted."""
        images = self.recipe.transformer_training.images
        if not images:
            return ""
        steps = _EMOJI[bool(self.recipe.retrieval.neighbors)]
        given = next(words for limit, words in steps if images < limit)
        return (
            f"Of emoji so many images gave {given}; simpler pictures take fewer, photographs more."
        )


def choose_preset(minutes: float, accelerator: Accelerator, precision: Precision) -> str:
    """Chooses the largest preset that fits the device and is worth it.

    Args:
        minutes: how long the run may take.
        accelerator: from `create_accelerator`.
        precision: that the run will train in.
    """
    preset = DEFAULT_PRESET
    for name in _SIZES[_SIZES.index(preset) + 1 :]:
        recipe = Recipe.model_validate(PRESETS[name])
        try:
            seconds = _measure_tokenizer(recipe, accelerator, precision)
        except torch.OutOfMemoryError:
            break
        batch = recipe.tokenizer_training.batch_size  # which the processes share
        if 60 * minutes * _FRACTIONS["tokenizer"] * batch / seconds < _WORTH_IMAGES:
            break
        preset = name
    return preset


def compute_budget(
    recipe: Recipe,
    seconds_left: float,
    data: PreparedData,
    text_encoder: TextEncoder,
    captions: CaptionReader,
    accelerator: Accelerator,
) -> TrainingBudget:
    """Sets the length of both stages so that the rest of the run fits into the time left.

    Args:
        recipe: everything but the two lengths is kept; its precision is decided.
        seconds_left: until the model should be finished.
        data: of the run.
        text_encoder: of the run.
        captions: reads the captions of the data.
        accelerator: from `create_accelerator`.

    Raises:
        ConfigError: the time is too short to train at all.
    """
    began = time.monotonic()
    model = TextToImage.create(recipe.describe_model(), text_encoder).to(accelerator.device)
    neighbors = model.config.neighbors
    memory = _create_memory(model, data.train) if neighbors else None
    paces = _measure_stages(recipe, model, data, captions, memory, accelerator)
    num_images = len(data.train) + len(data.validation)
    other = _measure_encoding(model.tokenizer, data.train) * num_images
    looks_up = memory is not None
    other += _measure_painting(model) * count_pictures(data, looks_up=looks_up)
    if memory is not None:
        # Each picture once for each of its captions; near copies are left out, which takes as long.
        captions_each = len(memory.example_of) / len(memory)
        other += 2 * _measure_lookup(memory, neighbors) * captions_each * num_images
    seconds_left -= time.monotonic() - began

    evaluations = _EVALUATIONS * sum(pace.evaluation_seconds for pace in paces.values())
    training = seconds_left - other - evaluations
    fractions = _share_out(paces, recipe)
    needed = max(5 * pace.step_seconds / fractions[name] for name, pace in paces.items())
    if training < needed:
        missing = math.ceil((needed - training) / 60)
        raise ConfigError(
            f"The time is too short to train anything: {max(seconds_left, 0):.0f} seconds are left "
            "after measuring this machine (is it busy?), and "
            f"encoding, evaluation and pictures alone take {other + evaluations:.0f}. Give at "
            f"least {missing} more --minutes, or fewer images."
        )
    changes, seconds = {}, {}
    for name, pace in paces.items():
        settings = getattr(recipe, f"{name}_training")
        stage_seconds = training * fractions[name]
        images = int(stage_seconds / pace.step_seconds) * settings.batch_size
        changes[f"{name}_training"] = settings.replace(
            images=images, evaluate_every_images=-(-images // _EVALUATIONS)
        )
        seconds[name] = stage_seconds + _EVALUATIONS * pace.evaluation_seconds
    return TrainingBudget(recipe.replace(**changes), seconds, other)


def _share_out(stages: Iterable[str], recipe: Recipe) -> dict[str, float]:
    """Returns each stage's fraction of the training time; together they are 1."""
    weights = dict(_FRACTIONS)
    if recipe.tokenizer_training.learn == "decoder":
        weights["tokenizer"] = _DECODER_FRACTION
    whole = sum(weights[name] for name in stages)
    return {name: weights[name] / whole for name in stages}


def _measure_stages(
    recipe: Recipe,
    model: TextToImage,
    data: PreparedData,
    captions: CaptionReader,
    memory: ExampleMemory | None,
    accelerator: Accelerator,
) -> dict[str, Pace]:
    """Measures the pace of each stage that trains, on random codes and examples.

    The model is moved to the device, and measured by copies of its networks: training spoils them.
    """
    model.to(accelerator.device)
    grid = model.config.grid
    rng = np.random.default_rng(0)
    num_codes, size, _ = model.tokenizer.codebook.shape
    one = rng.integers(size, size=(1, 1, num_codes, *grid)).astype(np.uint16)
    codes = {
        side: np.broadcast_to(one, (1, len(images), num_codes, *grid))
        for side, images in data.sides.items()
    }
    paces: dict[str, Pace] = {}

    def measure(stage: Stage[N], settings: TrainingSettings) -> None:
        paces[stage.name] = measure_pace(
            stage, settings, accelerator, _MEASURE_SECONDS, recipe.precision
        )

    transformer, tokenizer = recipe.transformer_training, recipe.tokenizer_training
    if transformer.images:
        examples = None
        if memory is not None:
            examples = _create_examples(memory, model.config.neighbors, data.train, captions)
        copied = model.with_parts(transformer=copy.deepcopy(model.transformer))
        stage = TransformerStage(copied, transformer, data.sides, codes, captions, examples)
        measure(stage, transformer)
    if tokenizer.images and recipe.tokenizer.network != "palette":
        device = accelerator.device
        network = copy.deepcopy(model.tokenizer)
        measure(TokenizerStage(network, tokenizer, data.sides, device), tokenizer)
    return dict(sorted(paces.items()))


def _create_memory(model: TextToImage, images: CaptionedImages) -> ExampleMemory:
    """Creates a memory of some pictures' captions and random codes: looking up takes as long."""
    rows = [ExampleRow("", images.captions(index)) for index in range(min(len(images), _EXAMPLES))]
    num_codes, size, _ = model.tokenizer.codebook.shape
    shape = (len(rows), num_codes, *model.config.grid)
    codes = np.random.default_rng(0).integers(size, size=shape)
    return ExampleMemory.build(codes.astype(np.uint16), rows, "")


def _create_examples(
    memory: ExampleMemory, count: int, images: CaptionedImages, captions: CaptionReader
) -> ExampleReader:
    """Creates examples that are the same for every picture: training takes as long."""
    found = np.arange(count, dtype=np.int32)[:, None] % len(memory.example_of)
    neighbors = Neighbors(
        np.broadcast_to(found, (_MAX_CAPTIONS, count, 1)), np.zeros(len(images), np.int64)
    )
    sides = {"train": neighbors, "validation": neighbors}
    return ExampleReader(memory, sides, memory.codes[None], RetrievalSettings(), captions)


def _measure_lookup(memory: ExampleMemory, count: int) -> float:
    """Returns the seconds that it takes to find the neighbours of a caption."""
    prompts = [row.captions[0] for row in memory.rows[:_LOOKUPS]]
    candidates = RetrievalSettings().candidates

    def look_up() -> None:
        for prompt in prompts:
            memory.look_up(prompt, count, alternatives=candidates)

    return _time_second_call(look_up, torch.device("cpu")) / len(prompts)


def _measure_tokenizer(recipe: Recipe, accelerator: Accelerator, precision: Precision) -> float:
    """Returns the seconds of an image tokenizer's training step on one process's images.

    Raises:
        torch.OutOfMemoryError: the device is too small for it.
    """
    tokenizer = VQAutoencoder(recipe.tokenizer).to(accelerator.device)
    # Learning its codebook would wait for the other processes, which may try another size.
    tokenizer.quantizer.eval()
    size = recipe.data.image_size
    batch = max(1, recipe.tokenizer_training.batch_size // accelerator.num_processes)
    image = torch.zeros(batch, 3, size, size, device=accelerator.device)

    def step() -> None:
        with autocast(accelerator.device, precision):
            reconstruction = tokenizer(image)
        reconstruction.image.float().square().mean().backward()

    return _time_second_call(step, accelerator.device)


def _measure_encoding(tokenizer: VQAutoencoder, images: CaptionedImages) -> float:
    """Returns the seconds that it takes to encode an image."""
    pixels = images.pixels(np.arange(_BATCH) % len(images))
    device = tokenizer.codebook.device
    return _time_second_call(lambda: encode_pixels(tokenizer, pixels).cpu(), device) / _BATCH


def _measure_painting(model: TextToImage) -> float:
    """Returns the seconds that it takes to generate a picture."""
    requests = enumerate_requests([""] * _BATCH)  # short enough for any model
    return _time_second_call(lambda: model.generate_images(requests), model.device) / _BATCH


def _time_second_call(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of a second call: the first one warms up."""
    seconds = 0.0
    for _ in range(2):
        began = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
    return seconds
