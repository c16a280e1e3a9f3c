"""What a finished model is worth: numbers with their protocol, and pictures to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tessella.data.cache import CaptionedImages
from tessella.data.prepare import PreparedData
from tessella.data.scenes import Scene, canonical_caption, parse_caption
from tessella.errors import DataError
from tessella.evaluation.features import FeatureExtractor
from tessella.evaluation.reconstruction import (
    Metric,
    evaluate_reconstructions,
    measure_reconstructions,
)
from tessella.evaluation.scenes import compute_scene_accuracy, sample_prompts
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.images import Pixels, make_sheet
from tessella.pipeline import TextToImage, TrainedTokenizer

_MAX_IMAGES = 512
_SCENE_PROMPTS = 500
_SHEET_PROMPTS = 16
_SHEET_COLUMNS = 4


@dataclass(frozen=True)
class ChosenImages:
    """Captioned images that a model is measured on."""

    pixels: Pixels  # (B, S, S, 3), B >= 1
    captions: Sequence[str]  # the first of each
    description: str  # which ones they are, for the protocol


@dataclass(frozen=True)
class ImagesEvaluation:
    """What was found on some images."""

    metrics: Mapping[str, Metric]
    reconstructions: Pixels  # (B, S, S, 3)


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
    """Measures a model on the images that were kept out, and paints their captions."""
    side = "validation" if len(data.validation) else "train"
    count = min(_MAX_IMAGES, len(data.sides[side]))
    images = read_images(data.sides[side], range(count), f"the first {count} {side} images")
    found = evaluate_images(model, images)
    prompts = images.captions[:_SHEET_PROMPTS]
    painted = model.paint(prompts, seeds=range(len(prompts)))
    sheet = make_sheet(painted.pixels, columns=_SHEET_COLUMNS, labels=prompts, scale=2)
    return ModelEvaluation(found.metrics, prompts, sheet)


def read_images(images: CaptionedImages, indices: Sequence[int], description: str) -> ChosenImages:
    """Reads some images with the first caption of each."""
    captions = [images.captions(index)[0] for index in indices]
    return ChosenImages(images.pixels(np.asarray(indices)), captions, description)


def evaluate_images(
    model: TextToImage | TrainedTokenizer,
    images: ChosenImages,
    *,
    squeezenet: SqueezeNet | None = None,
    features: Sequence[FeatureExtractor] = (),
) -> ImagesEvaluation:
    """Measures a model's reconstructions of images; of scenes it also paints and reads some.

    Args:
        model: what is measured; a tokenizer alone paints nothing.
        images: of the model's size.
        squeezenet: adds the perceptual distance of the reconstructions.
        features: each adds FID and KID of the reconstructions.
    """
    what = images.description
    made = evaluate_reconstructions(model.tokenizer, images.pixels, model.device)
    compared = measure_reconstructions(
        images.pixels, made.pixels, squeezenet=squeezenet, features=features, description=what
    )
    metrics = {f"reconstruction_{name}": metric for name, metric in compared.items()}
    metrics["codes_used"] = Metric(
        made.health.codes_used, f"of {len(model.tokenizer.codebook)}, {what}"
    )
    metrics["code_perplexity"] = Metric(made.health.perplexity, what)
    scenes = _parse_scenes(images.captions)
    if scenes is not None:
        accuracy = compute_scene_accuracy(made.pixels, scenes).all_correct
        metrics["reconstruction_all_correct"] = Metric(accuracy.accuracy, f"scenes, {what}")
    if scenes is not None and not isinstance(model, TrainedTokenizer):
        for name, only_held_out in (("seen", False), ("held_out", True)):
            metrics[f"all_correct_{name}_pairs"] = measure_scene_accuracy(
                model, _SCENE_PROMPTS, held_out=only_held_out
            )
    return ImagesEvaluation(metrics, made.pixels)


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
