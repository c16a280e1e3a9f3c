"""What the page about a run says in words: what was trained, on what, with which results."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tessella.runs.curves import Curve, draw_curve
from tessella.runs.record import RunRecord, StageRecord

CURVES = {
    "loss": ("Loss", "lower is better"),
    "psnr": ("Reconstructions", "PSNR in dB, higher is better"),
    "accuracy": ("Codes predicted correctly", "fraction of all codes, higher is better"),
    "codes_used": ("Codes in use", "training: in one batch; validation: in all pictures"),
    "perplexity": ("Evenness of use", "perplexity, higher is more even"),
    "images_per_second": ("Training speed", "images per second"),
}
"""The curves to look at first: title and hint."""

STAGE_TITLES = {"tokenizer": "Image tokenizer", "transformer": "Transformer"}

_SKIPPED_EXAMPLES = 3


def draw_curves(stage: StageRecord, record: RunRecord) -> dict[str, Curve]:
    """Draws every metric that a stage has logged, the ones to look at first in front."""
    names = {"train": "training", "validation": name_validation(record)}
    order = [name for name in CURVES if name in stage.curves]
    return {
        name: draw_curve(
            *CURVES.get(name, (format_name(name).capitalize(), "")),
            stage.curves[name],
            names,
            from_zero=name == "images_per_second",
        )
        for name in dict.fromkeys([*order, *stage.curves])
    }


def name_validation(record: RunRecord) -> str:
    """Names what was validated on: without held-out pictures, the training pictures."""
    has_none = record.counts is not None and not record.counts["validation"]
    return "on training pictures" if has_none else "validation"


def choose_numbers(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Chooses the numbers for the top of the page: name, value, how it was measured."""
    curves = {stage.name: stage.curves for stage in record.stages}
    for stage, name, title, form in (
        ("tokenizer", "psnr", "Reconstructions", "{:.2f} dB"),
        ("tokenizer", "codes_used", "Codes in use", "{:.4g}"),
        ("transformer", "loss", "Transformer loss", "{:.4g}"),
        ("transformer", "accuracy", "Codes predicted correctly", "{:.1%}"),
    ):
        values = curves[stage].get(name, {}).get("validation")
        if values:
            images_seen, value = values[-1]
            measured = f"{name_validation(record)}, after {images_seen:,} images"
            yield title, form.format(value), measured
    for name, value, protocol in _list_values(record.metrics or {}):
        if name.startswith("all_correct"):
            yield format_name(name).capitalize(), f"{value:.1%}", protocol


def list_facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Says what was trained, on what, how and for how long."""
    run, counts = record.run, record.counts
    # Names only: reports are passed on, and the owner's folders are private.
    yield "Data", ", ".join(Path(str(source)).name for source in run.get("sources", ()))
    if counts is None:
        yield "Pictures", "The run’s pictures are missing."
    else:
        yield (
            "Pictures",
            f"{counts['images']:,} with {counts['captions']:,} captions: {counts['train']:,} for "
            f"training, {counts['validation']:,} for validation; files skipped: "
            f"{sum(counts['skipped'].values()):,}",
        )
    licence = run.get("recipe.data.licence") or "not stated (data.licence)"
    yield "Licence of the data", str(licence)
    size = run.get("recipe.data.image_size")
    yield "Each picture", f"{size}×{size} pixels become {_describe_codes(record)}"
    for stage in record.stages:
        yield STAGE_TITLES[stage.name], "; ".join(_describe_recipe(stage, run))
    if examples := "; ".join(_describe_examples(record)):
        yield "Examples", examples
    if precision := run.get("recipe.precision"):  # not in older runs
        why = run.get("reasons.precision")
        yield "Precision", f"{precision}; {why}" if why else str(precision)
    minutes, seed = run.get("asked.minutes"), run.get("asked.seed")
    length = "as in the settings" if minutes is None else f"chosen to fit {minutes:g} minutes"
    yield "Length", f"{length}; seed {seed}"
    yield "tessella", str(run.get("version", "unknown version"))


def _describe_recipe(stage: StageRecord, run: Mapping[str, Any]) -> Iterator[str]:
    """Says how a stage is built, what it minimises, and how long it trained."""
    if stage.name == "tokenizer":
        network = run.get("recipe.tokenizer.network")
        yield f"network {network}, quantizer {run.get('recipe.tokenizer.quantizer.name')}"
        loss = "recipe.tokenizer_training.loss."
        layers = [
            name.removeprefix(loss) for name in run if name.startswith(f"{loss}perceptual.layers.")
        ]
        is_resnet = run.get(f"{loss}perceptual.network", "resnet18") == "resnet18"
        network_name = "ResNet-18" if is_resnet else "EfficientNet-Lite0"
        labels = {
            "mse": "pixel MSE",
            "l1": "L1",
            "lpips": "LPIPS",
            **{name: f"{network_name} {name.rpartition('.')[2]}" for name in layers},
            "adversarial.weight": "discriminator",
        }
        weights = {label: run.get(loss + name) for name, label in labels.items()}
        terms = [
            f"{w:g} {label}" for label, w in weights.items() if isinstance(w, int | float) and w
        ]
        if network != "palette" and terms:
            yield f"loss {' + '.join(terms)}"
    else:
        yield f"objective {run.get('recipe.objective.name')}"
        width, depth = run.get("recipe.transformer.width"), run.get("recipe.transformer.depth")
        yield f"width {width}, depth {depth}"
    training = f"recipe.{stage.name}_training"
    # `start_from` is what older runs call it.
    if start := run.get(f"{training}.init_from") or run.get(f"{training}.start_from"):
        yield f"started from {Path(str(start)).name}"
    if stage.images:
        yield f"{stage.images_seen:,} of {stage.images:,} images seen"
    if stage.seconds:
        yield f"{format_duration(stage.seconds)} of training, evaluations excluded"


def _describe_examples(record: RunRecord) -> Iterator[str]:
    """Says how many pictures the model looks up, beside a prompt too, and why so many."""
    choice = record.choice or {}
    asked = record.run.get("recipe.retrieval.neighbors")
    neighbors = asked if isinstance(asked, int) else choice.get("neighbors")
    if record.num_examples is not None:
        beside = f", {neighbors} at most beside a prompt" if isinstance(neighbors, int) else ""
        yield f"{record.num_examples:,} pictures to look up{beside}"
    elif neighbors == 0:
        yield "none"
    why = choice.get("why")
    if isinstance(why, str) and why:
        yield why


def _describe_codes(record: RunRecord) -> str:
    """Says how many codes a picture becomes, at how many positions, and of how many."""
    grid = f"{record.grid[0]}×{record.grid[1]}" if record.grid else ""
    many = record.run.get("recipe.tokenizer.quantizer.codes_per_position", 1)  # not in older runs
    if many == 1:
        what = f"{grid} codes".strip()
    else:
        what = f"{many} codes at each of {grid} positions" if grid else f"{many} codes a position"
    return f"{what}, each one of {_count_codes(record.run)}"


def _count_codes(run: Mapping[str, Any]) -> str:
    levels = run.get("recipe.tokenizer.quantizer.levels")
    size = math.prod(levels) if levels else run.get("recipe.tokenizer.quantizer.codebook_size")
    return "an unknown number" if size is None else f"{size:,}"


def list_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Lists name, value and protocol in words."""
    for name, value, protocol in _list_values(metrics):
        yield format_name(name), format_value(value), protocol


def _list_values(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Lists name, value and protocol, skipping entries that were edited into something else."""
    for name, entry in metrics.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("value"), int | float):
            yield name, entry["value"], str(entry.get("protocol", ""))


def list_settings(record: RunRecord) -> Iterator[tuple[str, Any]]:
    """Lists all settings; of a private folder only its name."""
    for name, value in record.run.items():
        if name.startswith("recipe."):
            is_private = isinstance(value, str) and Path(value).is_absolute()
            yield name.removeprefix("recipe."), Path(value).name if is_private else value


def tabulate_evaluations(stage: StageRecord) -> tuple[list[str], list[list[str]]]:
    """Returns the heads and the rows of a table of all validation metrics."""
    series = {name: dict(kinds.get("validation", ())) for name, kinds in stage.curves.items()}
    metrics = {name: values for name, values in series.items() if values}
    moments = sorted({images_seen for values in metrics.values() for images_seen in values})
    return ["images seen", *map(format_name, metrics)], [
        [f"{at:,}", *(format_value(values.get(at)) for values in metrics.values())]
        for at in moments
    ]


def list_skipped(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Lists kind of reason, number of files, and examples of the skipped files, most first."""
    for kind, files in sorted(record.skipped.items(), key=lambda item: -len(item[1])):
        yield kind, f"{len(files):,}", "; ".join(map(": ".join, files[:_SKIPPED_EXAMPLES]))


def list_pairs(nearest: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Lists prompt, caption of the nearest picture, what this is, distance, and where copies begin.

    It is a training picture, or an example that was looked at.
    """
    pairs = nearest.get("pairs")
    for pair in pairs if isinstance(pairs, list) else ():
        if isinstance(pair, Mapping):
            values = (pair.get(name) for name in ("distance", "limit"))
            numbers = (value if isinstance(value, int | float) else None for value in values)
            kind = "training picture" if pair.get("example") is None else "example"
            texts = str(pair.get("prompt", "")), str(pair.get("caption", "")), kind
            yield (*texts, *map(format_value, numbers))


def format_name(name: str) -> str:
    """Formats the name of a setting or metric as words."""
    return name.replace("_", " ")


def format_value(value: float | None) -> str:
    """Formats a number for a table; empty for None."""
    return "" if value is None else f"{value:.4g}"


def format_duration(seconds: float) -> str:
    """Formats a duration: 40 s, 12 min, 2.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
