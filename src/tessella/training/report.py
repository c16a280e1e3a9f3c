"""The report of a run: one page with its curves, pictures and numbers, to open and look at.

The page needs nothing but itself: no other file, no other host, no script. It can be made at any
moment of a run and says what is not there yet. `report.html.jinja` lays out what this file gathers.
"""

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessella.errors import DataError
from tessella.files import write_text
from tessella.training.report_curves import HEIGHT, WIDTH, Curve, draw_curve
from tessella.training.report_pictures import EmbeddedPicture, choose_evenly, embed_picture
from tessella.training.run_record import Note, Points, RunRecord, StageRecord, read_run

REPORT_FILE = "report.html"

_TEMPLATE = "report.html.jinja"
_FRAMES = 8  # evaluations whose pictures are shown
# Two stages' frames, the codebook, the model's samples, neighbours: under 8 MB in base64.
_PICTURE_BYTES = 5_600_000 // (2 * _FRAMES + 3)

_CURVES = {
    "loss": ("Loss", "lower is better"),
    "psnr": ("Reconstructions", "PSNR in dB, higher is better"),
    "accuracy": ("Codes guessed right", "share of all places, higher is better"),
    "codes_used": ("Codes in use", "training: of one batch; validation: of all"),
    "perplexity": ("Evenness of use", "perplexity, higher is evener"),
    "images_per_second": ("Learning speed", "training images per second"),
}
_STAGE_TITLES = {"tokenizer": "Image tokenizer", "transformer": "Transformer"}


@dataclass(frozen=True)
class Report:
    """What was written."""

    path: Path
    size_bytes: int
    images_seen: Mapping[str, int]  # by stage
    warnings: int  # sentences that training said
    unreadable_lines: int  # of the logs; they are left out


@dataclass(frozen=True)
class Frame:
    """A picture made at one moment of training."""

    images_seen: int
    picture: EmbeddedPicture | None  # None: it cannot be read
    problem: str  # why


@dataclass(frozen=True)
class StagePage:
    """What the page shows of one stage."""

    name: str
    title: str
    state: str  # in words
    share: float  # of its training, in [0, 1]
    curves: Sequence[Curve]  # those to look at first
    more_curves: Sequence[Curve]
    columns: Sequence[str]  # names of the validation's metrics
    rows: Sequence[Sequence[str]]  # their values, an evaluation each
    samples: Sequence[Frame]
    codebook: Sequence[Frame]  # the last one


def write_report(folder: Path, out: Path | None = None) -> Report:
    """Writes the report of a run.

    Args:
        folder: the run's.
        out: where to; None: report.html in the run.

    Raises:
        ConfigError: it is no run's folder.
        CheckpointError: the page cannot be written.
    """
    record = read_run(folder)
    text = _render(record)
    path = folder / REPORT_FILE if out is None else out
    # A caption may hold half of a surrogate pair, which UTF-8 cannot.
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"), what="the report")
    return Report(
        path=path,
        size_bytes=path.stat().st_size,
        images_seen={stage.name: stage.images_seen for stage in record.stages},
        warnings=sum(len(stage.notes) for stage in record.stages),
        unreadable_lines=_count_unreadable(record),
    )


def _render(record: RunRecord) -> str:
    """Lays out the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions, file names and settings may hold anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    stages = [_describe_stage(stage, record) for stage in record.stages]
    samples = _frame(0, record.samples) if record.samples else None
    nearest = _frame(0, record.nearest_picture) if record.nearest_picture else None
    frames = [frame for stage in stages for frame in (*stage.samples, *stage.codebook)]
    frames += [frame for frame in (samples, nearest) if frame]
    return environment.get_template(_TEMPLATE).render(
        title=record.folder.resolve().name,
        made=_say_time(datetime.datetime.now()),
        last_news=_find_last_news(record),
        tiles=list(_choose_numbers(record)),
        notes=_sort_notes(record),
        unreadable_lines=_count_unreadable(record),
        facts=list(_list_facts(record)),
        captions=record.captions,
        stages=stages,
        metrics=None if record.metrics is None else list(_list_metrics(record.metrics)),
        samples=samples,
        nearest=nearest,
        nearest_protocol=str((record.nearest or {}).get("protocol", "")),
        pairs=list(_list_pairs(record.nearest or {})),
        counts=record.counts,
        skipped=record.skipped,
        settings=_flatten(record.run["recipe"]),
        is_reduced=any(frame.picture and not frame.picture.is_exact for frame in frames),
        width=WIDTH,
        height=HEIGHT,
    )


def _describe_stage(stage: StageRecord, record: RunRecord) -> StagePage:
    """Gathers what the page shows of one stage."""
    drawn = {name: _draw(name, found, record) for name, found in stage.curves.items()}
    validation = {
        name: dict(found["validation"])
        for name, found in stage.curves.items()
        if "validation" in found
    }
    moments = sorted({at for values in validation.values() for at in values})
    last_codebook = stage.pictures["codebook"][-1:]
    return StagePage(
        name=stage.name,
        title=_STAGE_TITLES[stage.name],
        state=_say_state(stage, record),
        share=min(1.0, stage.images_seen / stage.images) if stage.images else 0.0,
        curves=[drawn[name] for name in _CURVES if name in drawn],
        more_curves=[curve for name, curve in drawn.items() if name not in _CURVES],
        columns=["images seen", *(_say_name(name) for name in validation)],
        rows=[
            [f"{at:,}", *(_say_value(values.get(at)) for values in validation.values())]
            for at in moments
        ],
        samples=[_frame(*made) for made in choose_evenly(stage.pictures["samples"], _FRAMES)],
        codebook=[_frame(*made) for made in last_codebook],
    )


def _draw(name: str, found: Mapping[str, Points], record: RunRecord) -> Curve:
    title, hint = _CURVES.get(name, (_say_name(name).capitalize(), ""))
    names = {"train": "training", "validation": _name_validation(record)}
    return draw_curve(title, hint, found, names, from_zero=name == "images_per_second")


def _name_validation(record: RunRecord) -> str:
    """Says what was measured on: without pictures kept out, training measures on its own."""
    kept_none = record.counts is not None and not record.counts["validation"]
    return "on training pictures" if kept_none else "validation"


def _say_state(stage: StageRecord, record: RunRecord) -> str:
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


def _frame(images_seen: int, path: Path) -> Frame:
    try:
        return Frame(images_seen, embed_picture(path, _PICTURE_BYTES), "")
    except DataError as error:
        return Frame(images_seen, None, f"{path.name}: {error}")


def _choose_numbers(record: RunRecord) -> Iterator[tuple[str, str, str]]:
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
            where = f"{_name_validation(record)}, after {at:,} images"
            yield title, said.get(name, _say_value(value)), where
    for name, found, protocol in _list_values(record.metrics or {}):
        if name.startswith("all_correct"):
            yield _say_name(name).capitalize(), f"{found:.1%}", protocol


def _sort_notes(record: RunRecord) -> list[tuple[str, Note]]:
    """Lists what training said, with the stage's title, in the order it was said."""
    return [(_STAGE_TITLES[stage.name], note) for stage in record.stages for note in stage.notes]


def _list_facts(record: RunRecord) -> Iterator[tuple[str, str]]:
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
        yield _STAGE_TITLES[stage.name], "; ".join(_describe_recipe(stage, recipe))
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
        loss = _flatten(_get(recipe, "tokenizer_training.loss") or {})
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
    start = _get(recipe, f"{stage.name}_training.start_from")
    if start:
        yield f"started from {start}"
    if stage.images:
        yield f"{stage.images_seen:,} of {stage.images:,} images seen"
    if stage.seconds:
        yield f"{_say_duration(stage.seconds)} of training steps, evaluations not counted"


def _count_codes(quantizer: Mapping[str, Any]) -> str:
    levels = quantizer.get("levels")
    size = math.prod(levels) if levels else quantizer.get("codebook_size")
    return "an unknown number" if size is None else f"{size:,}"


def _list_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Lists name, value and protocol in words."""
    for name, value, protocol in _list_values(metrics):
        yield _say_name(name), _say_value(value), protocol


def _list_values(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Lists name, value and protocol, without what someone has changed into something else."""
    for name, entry in metrics.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("value"), int | float):
            yield name, entry["value"], str(entry.get("protocol", ""))


def _list_pairs(nearest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Lists prompt, caption of the nearest training picture, and distance."""
    pairs = nearest.get("pairs")
    for pair in pairs if isinstance(pairs, list) else ():
        if isinstance(pair, Mapping):
            distance = pair.get("distance")
            number = distance if isinstance(distance, int | float) else None
            yield str(pair.get("prompt", "")), str(pair.get("caption", "")), _say_value(number)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _get(values: Mapping[str, Any], path: str) -> Any:
    """Finds a nested value by its dotted name; None where another version had none."""
    found: Any = values
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _count_unreadable(record: RunRecord) -> int:
    return record.unreadable_lines + sum(stage.unreadable_lines for stage in record.stages)


def _find_last_news(record: RunRecord) -> str:
    """Says when the run wrote last; a run that is going on has done so a moment ago."""
    files = [record.folder / "run.json", *record.folder.glob("*/metrics.json*")]
    newest = max(path.stat().st_mtime for path in files)
    return _say_time(datetime.datetime.fromtimestamp(newest))


def _say_name(name: str) -> str:
    return name.replace("_", " ")


def _say_value(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _say_time(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")


def _say_duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
