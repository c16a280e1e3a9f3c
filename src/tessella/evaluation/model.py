"""What a finished model is worth: metrics with their protocol, and pictures to look at."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessella.data.prepare import PreparedData
from tessella.data.scenes.sets import SCENE_SETS
from tessella.errors import CheckpointError, ConfigError, DataError
from tessella.evaluation.eval_images import EvalImages, can_read, read_images
from tessella.evaluation.features import NO_NETWORKS, EvalNetworks, choose_features
from tessella.evaluation.generation import (
    GenerationChecks,
    GenerationEvaluation,
    evaluate_generation,
)
from tessella.evaluation.metric import Evaluation, Metric, Results
from tessella.evaluation.progress import Tell, paint, tell_nobody
from tessella.evaluation.reconstruction import evaluate_reconstructions, measure_reconstructions
from tessella.evaluation.scenes import (
    READERS,
    compute_scene_accuracy,
    count_demands,
    sample_prompts,
)
from tessella.images import Pixels
from tessella.model.folder import TrainedTokenizer
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.sheets import make_sheet

_MAX_IMAGES = 512
_SCENE_PROMPTS = 500
_GENERATED = 64
_SHEET_PROMPTS = 16
_SHEET_COLUMNS = 4
_MAX_TRAINING = 512  # about ten seconds of a network on two cores


@dataclass(frozen=True)
class ImagesEvaluation(Evaluation):
    """What was measured on some images."""

    reconstructions: Pixels  # (B, S, S, 3)
    generation: GenerationEvaluation | None  # None: no pictures were asked for, or can be painted


@dataclass(frozen=True)
class ModelEvaluation:
    """What was measured on a finished model."""

    metrics: Mapping[str, Metric]
    prompts: Sequence[str]  # of the sheet; the empty one where no caption can be read whole
    sheet: Pixels  # (height, width, 3) the prompts with their pictures
    generation: GenerationEvaluation  # the sheet's pictures first, if there are any


def count_pictures(data: PreparedData, *, looks_up: bool = False) -> int:
    """Returns how long `evaluate_model` takes, for a plan: as long as painting this many pictures.

    A picture that a network looks at counts as one more; painting one does not take less.

    Args:
        data: of the run.
        looks_up: the model has examples: what a network looks at is painted without them too.
    """
    held_out = data.validation if len(data.validation) else data.train
    count = min(_GENERATED, len(held_out))
    if choose_features() is not None:
        searched = min(_MAX_TRAINING, len(data.train)) if len(data.validation) else 0
        count = (5 if looks_up else 3) * count + searched
    are_scenes = _parse_scenes(data.train.captions(0)[:1]) is not None
    return count + (2 * _SCENE_PROMPTS if are_scenes else 0)


def evaluate_model(model: TextToImage, data: PreparedData) -> ModelEvaluation:
    """Measures a model on the images that were kept out, and paints their captions.

    Networks look at only a few pictures, and only where their weights are installed: they must not
    hold up the end of a training.
    """
    side = "validation" if len(data.validation) else "train"
    count = min(_MAX_IMAGES, len(data.sides[side]))
    images = read_images(data.sides[side], range(count), f"the first {count} {side} images")
    try:
        networks = EvalNetworks.load(device=model.device)
    except (CheckpointError, ConfigError) as error:
        networks = EvalNetworks(missing=str(error))
    checks = GenerationChecks(
        pictures=_GENERATED,
        training=data.train if len(data.validation) else None,
        missing_training="No images were kept out of training.",
        max_training=_MAX_TRAINING,
    )
    evaluation = evaluate_images(model, images)
    generation = evaluate_generation(model, images, networks, checks)
    prompts = generation.prompts[:_SHEET_PROMPTS]
    pictures = generation.pixels[:_SHEET_PROMPTS]
    if not prompts:
        prompts = [""]
        pictures = model.generate_images(enumerate_requests(prompts)).pixels
    sheet = make_sheet(pictures, columns=_SHEET_COLUMNS, labels=prompts, scale=2)
    metrics = {**evaluation.metrics, **generation.metrics}
    return ModelEvaluation(metrics, prompts, sheet, generation)


def evaluate_images(
    model: TextToImage | TrainedTokenizer,
    images: EvalImages,
    networks: EvalNetworks = NO_NETWORKS,
    checks: GenerationChecks | None = None,
    tell: Tell = tell_nobody,
) -> ImagesEvaluation:
    """Measures a model's reconstructions of images and what it paints of their captions.

    If the images are scenes, it also paints other scenes and classifies them, as long as the model
    can read their prompts.

    Args:
        model: to measure; a tokenizer alone paints nothing.
        images: of the model's size; one at least.
        networks: what compares pictures; by default, pixels alone.
        checks: what is measured on painted captions; None paints none.
        tell: is told how far it is.
    """
    what = images.description
    tell(f"Reconstructing {len(images.pixels):,} pictures", "")
    report = evaluate_reconstructions(model.tokenizer, images.pixels)
    compared = measure_reconstructions(images.pixels, report.pixels, networks, description=what)
    results: Results = {f"reconstruction_{name}": result for name, result in compared.items()}
    num_codebooks, size, _ = model.tokenizer.codebook.shape
    of_all = f"of {size}" if num_codebooks == 1 else f"of {num_codebooks}×{size}"
    results["codes_used"] = Metric(report.health.codes_used, f"{of_all}, {what}")
    results["code_perplexity"] = Metric(report.health.perplexity, f"{of_all}, {what}")
    found = _parse_scenes(images.captions)
    if found is not None:
        accuracy = compute_scene_accuracy(report.pixels, found[1], found[0])
        results["reconstruction_all_correct"] = Metric(accuracy, f"scenes, {what}")
    if isinstance(model, TrainedTokenizer):
        return ImagesEvaluation(results, report.pixels, None)
    if found is not None:
        results |= _measure_new_scenes(model, found[0], tell)
    generation = None
    if checks is not None:
        generation = evaluate_generation(model, images, networks, checks, tell)
        results |= generation.results
    return ImagesEvaluation(results, report.pixels, generation)


def _measure_new_scenes(model: TextToImage, set_name: str, tell: Tell) -> Results:
    """Measures scenes with seen and with held-out combinations, if the model can read them."""
    results: Results = {}
    for name, held_out in (("seen", False), ("held_out", True)):
        if _can_read_scenes(model, set_name, held_out=held_out):
            made = measure_scenes(
                model, _SCENE_PROMPTS, held_out=held_out, set_name=set_name, tell=tell
            )
            results[f"all_correct_{name}_pairs"] = made.pop("all_correct")
            results |= {f"right_{demand}_{name}_pairs": metric for demand, metric in made.items()}
    return results


def measure_scenes(
    model: TextToImage,
    num_prompts: int,
    *,
    held_out: bool,
    seed: int = 0,
    set_name: str = "scenes",
    tell: Tell = tell_nobody,
) -> dict[str, Metric]:
    """Paints unseen scenes, one picture a canonical prompt, and counts what is right.

    Args:
        model: trained on scenes.
        num_prompts: how many.
        held_out: whether each has a combination that is never in training.
        seed: of the prompts; picture i is painted with seed i.
        set_name: of SCENE_SETS.
        tell: is told how many pictures are painted.

    Returns:
        `all_correct`, the fraction of pictures that meet every demand of their prompts; then the
        fraction of demands that are met, by their kind: `background`, `shape`, …

    Raises:
        GenerationError: a prompt is too long for the model.
    """
    scenes = sample_prompts(num_prompts, seed, held_out, set_name)
    prompts = [SCENE_SETS[set_name].caption(scene) for scene in scenes]
    kind = "held-out" if held_out else "seen"
    what = f"Painting {num_prompts:,} scenes of {kind} pairs"
    pixels = paint(model, enumerate_requests(prompts), what, tell).pixels
    protocol = f"{num_prompts} unseen scenes of {kind} pairs, first picture, seed {seed}"
    classified = READERS[set_name](pixels, scenes)
    all_correct = sum(one.all_correct for one in classified) / len(classified)
    return {"all_correct": Metric(all_correct, protocol)} | {
        demand: Metric(count.met / count.all, f"of {count.all} in {protocol}")
        for demand, count in count_demands(classified).items()
    }


def _can_read_scenes(model: TextToImage, set_name: str, *, held_out: bool) -> bool:
    """Whether every prompt of the scenes that are painted is short enough for a model."""
    scenes = sample_prompts(_SCENE_PROMPTS, 0, held_out, set_name)
    return all(can_read(model, SCENE_SETS[set_name].caption(scene)) for scene in scenes)


def _parse_scenes(captions: Sequence[str]) -> tuple[str, list[Any]] | None:
    """Returns the set and the scenes that captions describe, or None if one describes none."""
    for name, scenes in SCENE_SETS.items():
        with contextlib.suppress(DataError):
            return name, [scenes.parse(caption) for caption in captions]
    return None
