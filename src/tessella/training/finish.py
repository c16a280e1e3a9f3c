"""The end of a run: the model is measured, and its folder written with its card."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from tessella.data.prepare import PreparedData
from tessella.errors import TessellaError
from tessella.evaluation.memorisation import make_pairs_sheet
from tessella.evaluation.model import ModelEvaluation, evaluate_model
from tessella.files import hash_tensors, write_json
from tessella.images import save_png
from tessella.model.pipeline import TextToImage
from tessella.runs import record
from tessella.text.vocabulary import summarize_captions
from tessella.training.model_card import write_card
from tessella.training.recipe import Recipe
from tessella.training.request import FitRequest

_CARD_CAPTIONS = 8


def finish_run(
    model: TextToImage, request: FitRequest, recipe: Recipe, data: PreparedData, console: Console
) -> dict[str, float] | None:
    """Measures the finished model and writes its folder, unless that is there already.

    Args:
        model: with both parts trained.
        request: what was asked for.
        recipe: what the run followed.
        data: that it was trained on.
        console: where the metrics are shown.

    Returns:
        The metrics by name; None if the folder was there.

    Raises:
        CheckpointError: a file cannot be written.
    """
    folder = request.out / record.MODEL_FOLDER
    if _is_saved(model, folder):
        return None
    evaluation = evaluate_model(model, data)
    for name, metric in evaluation.metrics.items():
        console.print(f"{name}: {metric.value:.4g} ({metric.protocol})")
    metrics = {name: asdict(metric) for name, metric in evaluation.metrics.items()}
    networks = {"tokenizer": model.tokenizer, "transformer": model.transformer}
    sample_captions = list(dict.fromkeys(evaluation.prompts))[:_CARD_CAPTIONS]
    facts = {
        "sources": request.sources,
        "counts": data.manifest["counts"],
        "sample_captions": sample_captions,
        "metrics": metrics,
        "parameters": {
            name: sum(parameter.numel() for parameter in network.parameters())
            for name, network in networks.items()
        },
        "seed": request.seed,
        "examples": 0 if model.memory is None else len(model.memory),
    }
    _save_nearest(evaluation, request.out)
    captions = summarize_captions(data.train.all_captions(), model.text_tokenizer, sample_captions)
    # Last: a model folder means that the run is finished.
    model.save(
        folder,
        card=write_card(recipe, facts),
        metrics=metrics,
        samples=evaluation.sheet,
        captions=captions,
    )
    return {name: metric.value for name, metric in evaluation.metrics.items()}


def _save_nearest(evaluation: ModelEvaluation, out: Path) -> None:
    """Writes the nearest pictures, if measured: into the run, which stays private."""
    pairs = evaluation.generation.pairs
    if not pairs:
        return
    save_png(out / record.NEAREST_PICTURE, make_pairs_sheet(pairs))
    write_json(out / record.NEAREST_FILE, evaluation.generation.describe_pairs())


def _is_saved(model: TextToImage, folder: Path) -> bool:
    """Returns whether a folder holds this very model."""
    try:
        saved = TextToImage.load(folder, "cpu")
    except TessellaError:
        return False
    (old, new) = (
        [hash_tensors(part.state_dict()) for part in (one.tokenizer, one.transformer)]
        for one in (saved, model)
    )
    return saved.config == model.config and old == new
