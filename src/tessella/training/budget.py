"""`--minutes M`: measures this machine, then chooses size and length of training to fit."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from tessella.data.cache import CaptionedImages
from tessella.data.prepare import PreparedData
from tessella.errors import ConfigError
from tessella.evaluation.model import count_pictures
from tessella.images import to_float
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.text import TextEncoder
from tessella.tokenizer import ImageTokenizer
from tessella.training.loop import Pace, measure_pace
from tessella.training.recipe import DEFAULT_PRESET, PRESETS, Recipe
from tessella.training.text_features import CaptionReader
from tessella.training.tokenizer_stage import TokenizerStage, TokenizerTrainingSettings
from tessella.training.transformer_stage import TransformerStage, TransformerTrainingSettings

# Of the training time. It suits scenes; not searched: docs/log.md, "twenty minutes from nothing".
_SHARES = {"tokenizer": 0.4, "transformer": 0.6}
_EVALUATIONS = 6  # a stage: enough to see where it goes
_MEASURE_SECONDS = 6.0
_BATCH = 16
# A larger preset is worth it from so many images in the tokenizer's share of the time.
_WORTH_IMAGES = 400_000
# Of each stage: scenes have shapes by then, photographs their colours (docs/log.md).
_FIRST_IMAGES = 10_000
_SIZES = ("tiny", "small", "base", "large")


@dataclass(frozen=True)
class Plan:
    """What fits into the minutes, and how long each part should take."""

    recipe: Recipe  # with the lengths of training set
    seconds: Mapping[str, float]  # of each part that trains, evaluations included
    other_seconds: float  # codes, evaluation of the finished model

    def describe(self) -> str:
        """Says the plan in one line."""
        settings = {
            "tokenizer": self.recipe.tokenizer_training,
            "transformer": self.recipe.transformer_training,
        }
        parts = [
            f"{name} {settings[name].images:,} images ({self.seconds[name] / 60:.1f} min)"
            for name in settings
            if name in self.seconds
        ]
        line = ", ".join([*parts, f"codes and evaluation {self.other_seconds / 60:.1f} min."])
        growth = {name: _FIRST_IMAGES / settings[name].images for name in self.seconds}
        if max(growth.values(), default=0.0) <= 1:
            return line
        enough = sum(self.seconds[name] * max(1.0, growth[name]) for name in growth)
        minutes = math.ceil((enough + self.other_seconds) / 60)
        return f"{line} Pictures will be blurs at best: give about {minutes} minutes."


def choose_preset(minutes: float, accelerator: Accelerator) -> str:
    """Chooses the largest preset that fits and whose tokenizer sees enough images in its time."""
    chosen = DEFAULT_PRESET
    for name in _SIZES[_SIZES.index(chosen) + 1 :]:
        recipe = Recipe.model_validate(PRESETS[name])
        try:
            seconds = _measure_tokenizer(recipe, accelerator)
        except torch.OutOfMemoryError:
            break
        batch = recipe.tokenizer_training.batch_size
        if 60 * minutes * _SHARES["tokenizer"] * batch / seconds < _WORTH_IMAGES:
            break
        chosen = name
    return chosen


def _measure_tokenizer(recipe: Recipe, accelerator: Accelerator) -> float:
    """Returns the seconds that a step of an image tokenizer takes.

    Raises:
        torch.OutOfMemoryError: the device is too small for it.
    """
    tokenizer = ImageTokenizer(recipe.tokenizer).to(accelerator.device)
    # Learning its codebook would wait for the other processes, which may try another size.
    tokenizer.quantizer.eval()
    size, batch = recipe.data.image_size, recipe.tokenizer_training.batch_size
    image = torch.zeros(batch, 3, size, size, device=accelerator.device)
    seconds = 0.0
    for _ in range(2):  # the first pass warms up
        began = time.monotonic()
        with accelerator.autocast():
            made = tokenizer(image)
        made.image.float().square().mean().backward()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
    return seconds


def plan_training(
    recipe: Recipe,
    seconds_left: float,
    data: PreparedData,
    text_tokenizer: TextEncoder,
    captions: CaptionReader,
    accelerator: Accelerator,
) -> Plan:
    """Sets both lengths of training so that everything left to do fits into the time left.

    Args:
        recipe: all but the two lengths is kept.
        seconds_left: until the model should be there.
        data: of the run.
        text_tokenizer: of the run.
        captions: reads the captions of the data.
        accelerator: from `create_accelerator`.

    Raises:
        ConfigError: the time is too short to train at all.
    """
    began = time.monotonic()
    device = accelerator.device
    model = TextToImage.create(recipe.describe_model(), text_tokenizer).to(device)
    side = model.config.grid
    rng = np.random.default_rng(0)
    one = rng.integers(len(model.tokenizer.codebook), size=(1, 1, *side)).astype(np.uint16)
    codes = {
        name: np.broadcast_to(one, (1, len(images), *side)) for name, images in data.sides.items()
    }
    settings: dict[str, TokenizerTrainingSettings | TransformerTrainingSettings] = {
        "tokenizer": recipe.tokenizer_training,
        "transformer": recipe.transformer_training,
    }
    paces: dict[str, Pace] = {}
    # The transformer's first: measuring the tokenizer's spoils what it reads.
    if recipe.transformer_training.images:
        transformer = TransformerStage(
            model, recipe.transformer_training, data.sides, codes, captions
        )
        paces["transformer"] = measure_pace(
            transformer, recipe.transformer_training, accelerator, _MEASURE_SECONDS
        )
    if recipe.tokenizer_training.images and recipe.tokenizer.network != "palette":
        tokenizer = TokenizerStage(model.tokenizer, recipe.tokenizer_training, data.sides, device)
        paces["tokenizer"] = measure_pace(
            tokenizer, recipe.tokenizer_training, accelerator, _MEASURE_SECONDS
        )
    num_images = len(data.train) + len(data.validation)
    encode = _measure_encoding(model.tokenizer, data.train, device) * num_images
    paint = _measure_painting(model) * count_pictures(data)

    seconds_left -= time.monotonic() - began
    evaluations = _EVALUATIONS * sum(pace.evaluation_seconds for pace in paces.values())
    other = encode + paint
    training = seconds_left - other - evaluations
    shares = {name: _SHARES[name] for name in paces}
    shares = {name: share / sum(shares.values()) for name, share in shares.items()}
    seconds = {name: training * share for name, share in shares.items()}
    needed = max(5 * pace.step_seconds / shares[name] for name, pace in paces.items())
    if training < needed:
        missing = math.ceil((needed - training) / 60)
        raise ConfigError(
            f"The time is too short to train anything: {seconds_left:.0f} seconds are left and "
            f"encoding, evaluation and pictures alone take {other + evaluations:.0f}. Give at "
            f"least {missing} more --minutes, or fewer images."
        )
    changes = {}
    for name, pace in paces.items():
        images = int(seconds[name] / pace.step_seconds) * settings[name].batch_size
        changes[f"{name}_training"] = settings[name].replace(
            images=images, evaluate_every_images=-(-images // _EVALUATIONS)
        )
        seconds[name] += _EVALUATIONS * pace.evaluation_seconds
    return Plan(recipe.replace(**changes), seconds, other)


@torch.inference_mode()
def _measure_encoding(
    tokenizer: ImageTokenizer, images: CaptionedImages, device: torch.device
) -> float:
    """Returns the seconds that encoding one image takes."""
    pixels = images.pixels(np.arange(_BATCH) % len(images))
    seconds = 0.0
    for _ in range(2):  # the first pass warms up
        began = time.monotonic()
        tokenizer.encode(to_float(torch.from_numpy(pixels).to(device))).cpu()
        seconds = time.monotonic() - began
    return seconds / _BATCH


def _measure_painting(model: TextToImage) -> float:
    """Returns the seconds that painting one picture takes."""
    seconds = 0.0
    for _ in range(2):
        began = time.monotonic()
        model.generate_images(enumerate_requests([""] * _BATCH))  # short enough for any model
        seconds = time.monotonic() - began
    return seconds / _BATCH
