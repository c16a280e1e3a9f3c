"""What a finished model is worth: numbers with their protocol, and pictures to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessella.data.prepare import PreparedData
from tessella.data.scenes import Scene, canonical_caption, parse_caption
from tessella.errors import CheckpointError, ConfigError, DataError
from tessella.evaluation.eval_images import ChosenImages, can_read, read_images
from tessella.evaluation.features import FeatureExtractor, create_extractor
from tessella.evaluation.generation import PaintedEvaluation, PaintingChecks, evaluate_painted
from tessella.evaluation.reconstruction import (
    Metric,
    evaluate_reconstructions,
    measure_reconstructions,
)
from tessella.evaluation.scenes import compute_scene_accuracy, sample_prompts
from tessella.evaluation.squeezenet import SQUEEZENET, SqueezeNet
from tessella.images import Pixels
from tessella.model.folder import TrainedTokenizer
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.sheets import make_sheet
from tessella.tokenizer.weights import find_weights

_MAX_IMAGES = 512
_SCENE_PROMPTS = 500
_PAINTED = 64
_SHEET_PROMPTS = 16
_SHEET_COLUMNS = 4
_MAX_TRAINING = 512  # about ten seconds of SqueezeNet on two cores


@dataclass(frozen=True)
class ImagesEvaluation:
    """What was found on some images."""

    metrics: Mapping[str, Metric]
    reconstructions: Pixels  # (B, S, S, 3)
    painted: PaintedEvaluation | None  # None where no pictures were asked for, or can be painted


@dataclass(frozen=True)
class ModelEvaluation:
    """What was found."""

    metrics: Mapping[str, Metric]
    prompts: Sequence[str]  # of the sheet; the empty one where no caption can be read whole
    sheet: Pixels  # (height, width, 3) the prompts with their pictures
    painted: PaintedEvaluation  # the sheet's pictures first, if there are any


def count_pictures(data: PreparedData) -> int:
    """Returns how long `evaluate_model` takes, for a plan: as long as painting so many pictures.

    A picture that SqueezeNet looks at counts as one more; painting one does not take less.
    """
    held_out = data.validation if len(data.validation) else data.train
    count = min(_PAINTED, len(held_out))
    if _has_judge():
        looked_at = min(_MAX_TRAINING, len(data.train)) if len(data.validation) else 0
        count = 3 * count + looked_at
    are_scenes = _parse_scenes(data.train.captions(0)[:1]) is not None
    return count + (2 * _SCENE_PROMPTS if are_scenes else 0)


def evaluate_model(model: TextToImage, data: PreparedData) -> ModelEvaluation:
    """Measures a model on the images that were kept out, and paints their captions.

    What takes SqueezeNet is measured where its weights are there, on few pictures: it must not
    hold up the end of a training.
    """
    side = "validation" if len(data.validation) else "train"
    count = min(_MAX_IMAGES, len(data.sides[side]))
    images = read_images(data.sides[side], range(count), f"the first {count} {side} images")
    judge, no_judge = None, ""
    try:
        judge = create_extractor(device=model.device)
    except (ConfigError, CheckpointError) as error:
        no_judge = str(error)
    checks = PaintingChecks(
        pictures=_PAINTED,
        features=[judge] if judge else [],
        judge=judge,
        no_judge=no_judge,
        training=data.train if len(data.validation) else None,
        no_training="No images were kept out of training.",
        max_training=_MAX_TRAINING,
    )
    found = evaluate_images(model, images)
    painted = evaluate_painted(model, images, checks)
    prompts = painted.prompts[:_SHEET_PROMPTS]
    pictures = painted.pixels[:_SHEET_PROMPTS]
    if not prompts:
        prompts = [""]
        pictures = model.generate_images(enumerate_requests(prompts)).pixels
    sheet = make_sheet(pictures, columns=_SHEET_COLUMNS, labels=prompts, scale=2)
    return ModelEvaluation({**found.metrics, **painted.metrics}, prompts, sheet, painted)


def evaluate_images(
    model: TextToImage | TrainedTokenizer,
    images: ChosenImages,
    *,
    squeezenet: SqueezeNet | None = None,
    features: Sequence[FeatureExtractor] = (),
    checks: PaintingChecks | None = None,
) -> ImagesEvaluation:
    """Measures a model's reconstructions of images and what it paints of their captions.

    Of scenes it also paints others, and reads them, if it can read what is asked.

    Args:
        model: what is measured; a tokenizer alone paints nothing.
        images: of the model's size.
        squeezenet: adds the perceptual distance of the reconstructions.
        features: each adds FID and KID of the reconstructions.
        checks: what is measured on painted pictures; None paints none of the captions.
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
            if _can_read_scenes(model, held_out=only_held_out):
                metrics[f"all_correct_{name}_pairs"] = measure_scene_accuracy(
                    model, _SCENE_PROMPTS, held_out=only_held_out
                )
    painted = None
    if checks is not None and not isinstance(model, TrainedTokenizer):
        painted = evaluate_painted(model, images, checks)
        metrics |= painted.metrics
    return ImagesEvaluation(metrics, made.pixels, painted)


def measure_scene_accuracy(
    model: TextToImage, num_prompts: int, *, held_out: bool, seed: int = 0
) -> Metric:
    """Paints unseen scenes, one picture a canonical prompt, and counts the all-correct ones.

    Args:
        model: trained on scenes.
        num_prompts: how many.
        held_out: whether each has a (colour, shape) pair that is never in training.
        seed: of the prompts; picture i is painted with seed i.

    Raises:
        GenerationError: a prompt is too long for the model.
    """
    scenes = sample_prompts(num_prompts, seed=seed, held_out=held_out)
    prompts = [canonical_caption(scene) for scene in scenes]
    painted = model.generate_images(enumerate_requests(prompts))
    score = compute_scene_accuracy(painted.pixels, scenes).all_correct
    kind = "held-out" if held_out else "seen"
    return Metric(
        score.accuracy, f"{num_prompts} unseen scenes of {kind} pairs, first picture, seed {seed}"
    )


def _can_read_scenes(model: TextToImage, *, held_out: bool) -> bool:
    """Whether no prompt of the scenes that are painted is too long for a model."""
    scenes = sample_prompts(_SCENE_PROMPTS, seed=0, held_out=held_out)
    return all(can_read(model, canonical_caption(scene)) for scene in scenes)


def _has_judge() -> bool:
    """Whether the weights of SqueezeNet are there."""
    try:
        find_weights(SQUEEZENET)
    except ConfigError:
        return False
    return True


def _parse_scenes(captions: Sequence[str]) -> list[Scene] | None:
    """Returns the scenes that captions describe, or None if one describes none."""
    try:
        return [parse_caption(caption) for caption in captions]
    except DataError:
        return None
