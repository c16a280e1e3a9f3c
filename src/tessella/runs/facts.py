"""What the pages about a run say of it in words: its state, what was trained, its numbers."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tessella.config import flatten
from tessella.runs.curves import Chart, create_chart
from tessella.runs.record import Points, RunRecord, StageRecord

CURVES = {
    "loss": ("Loss", "lower is better"),
    "psnr": ("Reconstructions", "PSNR in dB, higher is better"),
    "accuracy": ("Codes guessed right", "share of all places, higher is better"),
    "codes_used": ("Codes in use", "training: of one batch; validation: of all"),
    "perplexity": ("Evenness of use", "perplexity, higher is evener"),
    "images_per_second": ("Learning speed", "training images per second"),
}
STAGE_TITLES = {"tokenizer": "Image tokenizer", "transformer": "Transformer"}


def create_charts(stage: StageRecord, record: RunRecord) -> dict[str, Chart]:
    """Lays out what a stage has logged; the metrics to look at first stand first."""
    order = [*CURVES, *stage.curves]
    return {
        name: _create_chart(name, stage.curves[name], record)
        for name in dict.fromkeys(order)
        if name in stage.curves
    }


def _create_chart(name: str, found: Mapping[str, Points], record: RunRecord) -> Chart:
    title, hint = CURVES.get(name, (say_name(name).capitalize(), ""))
    names = {"train": "training", "validation": name_validation(record)}
    return create_chart(title, hint, found, names, from_zero=name == "images_per_second")


def name_validation(record: RunRecord) -> str:
    """Says what was measured on: without pictures kept out, training measures on its own."""
    kept_none = record.counts is not None and not record.counts["validation"]
    return "on training pictures" if kept_none else "validation"


def say_state(stage: StageRecord, record: RunRecord) -> str:
    """Says how far a stage is."""
    if stage.name == "tokenizer" and _get(record.run, "recipe.tokenizer.network") == "palette":
        return "A palette: its colours are chosen, nothing is trained."
    if not stage.images:
        return "Not trained here: it keeps the weights that it started from."
    if not stage.images_seen:
        return f"Nothing is logged yet: it is to see {stage.images:,} images."
    if stage.images_seen < stage.images:
        share = stage.images_seen / stage.images
        return f"{stage.images_seen:,} of {stage.images:,} images ({share:.0%}) so far."
    return f"Finished: {stage.images_seen:,} images seen."


def choose_numbers(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Chooses the numbers at the top: name, value, of what."""
    curves = {stage.name: stage.curves for stage in record.stages}
    for stage, name, title in (
        ("tokenizer", "psnr", "Reconstructions"),
        ("tokenizer", "codes_used", "Codes in use"),
        ("transformer", "loss", "Transformer’s loss"),
        ("transformer", "accuracy", "Codes guessed right"),
    ):
        values = curves[stage].get(name, {}).get("validation")
        if values:
            at, value = values[-1]
            said = {"psnr": f"{value:.2f} dB", "accuracy": f"{value:.1%}"}
            where = f"{name_validation(record)}, after {at:,} images"
            yield title, said.get(name, say_value(value)), where
    for name, found, protocol in list_values(record.metrics or {}):
        if name.startswith("all_correct"):
            yield say_name(name).capitalize(), f"{found:.1%}", protocol


def list_facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Says what was trained, on what, how and how long."""
    run, counts = record.run, record.counts
    recipe = run["recipe"]
    # Their names alone: a page is passed on, the owner's folders are nobody's business.
    yield "Data", ", ".join(Path(str(source)).name for source in run.get("sources", ()))
    if counts is None:
        yield "Pictures", "The run has no images any more."
    else:
        yield (
            "Pictures",
            f"{counts['images']:,} with {counts['captions']:,} captions; {counts['train']:,} to "
            f"train on, {counts['validation']:,} kept out, {sum(counts['skipped'].values()):,} "
            "skipped",
        )
    yield "Licence of the data", str(_get(recipe, "data.licence") or "not given (data.licence)")
    size = _get(recipe, "data.image_size")
    codes = _count_codes(_get(recipe, "tokenizer.quantizer") or {})
    grid = f"{record.grid[0]}×{record.grid[1]} codes" if record.grid else "codes"
    yield "A picture", f"{size}×{size} pixels become {grid}, each out of {codes}"
    for stage in record.stages:
        yield STAGE_TITLES[stage.name], "; ".join(_describe_recipe(stage, recipe))
    minutes, seed = _get(run, "asked.minutes"), _get(run, "asked.seed")
    asked = "as the settings say" if minutes is None else f"chosen to fit {minutes:g} minutes"
    yield "Plan", f"lengths {asked}; seed {seed}"
    yield "tessella", str(run.get("version", "not said"))


def _describe_recipe(stage: StageRecord, recipe: Mapping[str, Any]) -> Iterator[str]:
    """Says how a stage is built, what it learns by, and how long it took."""
    section = recipe.get(stage.name, {})
    if stage.name == "tokenizer":
        network, quantizer = section.get("network"), _get(section, "quantizer.name")
        yield f"network {network}, quantizer {quantizer}"
        loss = flatten(_get(recipe, "tokenizer_training.loss") or {})
        parts = [
            f"{loss[name]:g} {label}"
            for name, label in {
                "mse": "pixel MSE",
                "l1": "L1",
                "lpips": "LPIPS",
                **{n: f"ResNet-18 {n.rpartition('.')[2]}" for n in loss if ".layers." in n},
                "adversarial.weight": "discriminator",
            }.items()
            if isinstance(loss.get(name), int | float) and loss[name]
        ]
        if network != "palette" and parts:
            yield f"loss {' + '.join(parts)}"
    else:
        yield f"objective {_get(recipe, 'objective.name')}"
        yield f"width {section.get('width')}, depth {section.get('depth')}"
    start = _get(recipe, f"{stage.name}_training.init_from")
    if start:
        yield f"started from {Path(str(start)).name}"
    if stage.images:
        yield f"{stage.images_seen:,} of {stage.images:,} images seen"
    if stage.seconds:
        yield f"{_say_duration(stage.seconds)} of training steps, evaluations not counted"


def _count_codes(quantizer: Mapping[str, Any]) -> str:
    levels = quantizer.get("levels")
    size = math.prod(levels) if levels else quantizer.get("codebook_size")
    return "an unknown number" if size is None else f"{size:,}"


def list_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Lists name, value and protocol in words."""
    for name, value, protocol in list_values(metrics):
        yield say_name(name), say_value(value), protocol


def list_values(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Lists name, value and protocol, without what someone has changed into something else."""
    for name, entry in metrics.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("value"), int | float):
            yield name, entry["value"], str(entry.get("protocol", ""))


def list_pairs(nearest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Lists prompt, caption of the nearest training picture, and distance."""
    pairs = nearest.get("pairs")
    for pair in pairs if isinstance(pairs, list) else ():
        if isinstance(pair, Mapping):
            distance = pair.get("distance")
            number = distance if isinstance(distance, int | float) else None
            yield str(pair.get("prompt", "")), str(pair.get("caption", "")), say_value(number)


def _get(values: Mapping[str, Any], path: str) -> Any:
    """Finds a nested value by its dotted name; None where another version had none."""
    found: Any = values
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def say_name(name: str) -> str:
    """Says a setting's or metric's name in words."""
    return name.replace("_", " ")


def say_value(value: float | None) -> str:
    """Says a number as short as a table needs it; nothing where there is none."""
    return "" if value is None else f"{value:.4g}"


def _say_duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
