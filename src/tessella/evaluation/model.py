"""What a finished model is worth: numbers with their protocol, and pictures to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tessella.data.prepare import PreparedData
from tessella.data.scenes import Scene, canonical_caption, parse_caption
from tessella.errors import DataError
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.evaluation.scenes import compute_scene_accuracy, sample_prompts
from tessella.images import Pixels, make_sheet
from tessella.pipeline import TextToImage

_MAX_IMAGES = 512
_SCENE_PROMPTS = 500
_SHEET_PROMPTS = 16
_SHEET_COLUMNS = 4


@dataclass(frozen=True)
class Metric:
    """A number, and how it was got."""

    value: float
    protocol: str  # on what, how many, with which settings


@dataclass(frozen=True)
class ModelEvaluation:
    """What was found."""

    metrics: Mapping[str, Metric]
    prompts: Sequence[str]  # of the sheet
    sheet: Pixels  # (height, width, 3) the prompts with their pictures


def count_pictures(data: PreparedData) -> int:
    """Returns how many pictures `evaluate_model` paints, for a plan of the time that it takes."""
    are_scenes = _parse_scenes(data.train.captions(0)[:1]) is not None
    return _SHEET_PROMPTS + (2 * _SCENE_PROMPTS if are_scenes else 0)


def evaluate_model(model: TextToImage, data: PreparedData) -> ModelEvaluation:
    """Measures a model on the images that were kept out; on scenes also reads its pictures."""
    side = "validation" if len(data.validation) else "train"
    images = data.sides[side]
    count = min(_MAX_IMAGES, len(images))
    pixels = images.pixels(np.arange(count))
    captions = [images.captions(index)[0] for index in range(count)]
    what = f"first {count} {side} images"
    made = evaluate_reconstructions(model.tokenizer, pixels, model.device)
    metrics = {
        "reconstruction_psnr": Metric(made.psnr, f"dB, mean over the {what}"),
        "codes_used": Metric(made.codes_used, f"of {len(model.tokenizer.codebook)}, {what}"),
        "code_perplexity": Metric(made.perplexity, what),
    }
    scenes = _parse_scenes(captions)
    if scenes is not None:
        accuracy = compute_scene_accuracy(made.pixels, scenes).all_correct
        metrics["reconstruction_all_correct"] = Metric(accuracy.accuracy, f"scenes, {what}")
        for name, only_held_out in (("seen", False), ("held_out", True)):
            metrics[f"all_correct_{name}_pairs"] = measure_scene_accuracy(
                model, _SCENE_PROMPTS, held_out=only_held_out
            )
    prompts = captions[:_SHEET_PROMPTS]
    painted = model.paint(prompts, seeds=range(len(prompts)))
    sheet = make_sheet(painted.pixels, columns=_SHEET_COLUMNS, labels=prompts, scale=2)
    return ModelEvaluation(metrics, prompts, sheet)


def measure_scene_accuracy(
    model: TextToImage, num_prompts: int, *, held_out: bool, seed: int = 0
) -> Metric:
    """Paints unseen scenes, one picture a canonical prompt, and counts the all-correct ones.

    Args:
        model: trained on scenes.
        num_prompts: how many.
        held_out: whether each has a (colour, shape) pair that is never in training.
        seed: of the prompts; picture i is painted with seed i.
    """
    scenes = sample_prompts(num_prompts, seed=seed, held_out=held_out)
    painted = model.paint([canonical_caption(s) for s in scenes], seeds=range(num_prompts))
    score = compute_scene_accuracy(painted.pixels, scenes).all_correct
    kind = "held-out" if held_out else "seen"
    return Metric(
        score.accuracy, f"{num_prompts} unseen scenes of {kind} pairs, first picture, seed {seed}"
    )


def _parse_scenes(captions: Sequence[str]) -> list[Scene] | None:
    """Returns the scenes that captions describe, or None if one describes none."""
    try:
        return [parse_caption(caption) for caption in captions]
    except DataError:
        return None
