"""The report of a run: one page with its curves, pictures and numbers, to open and look at.

The page needs nothing but itself: no other file, no other host, no script. It can be made at any
moment of a run and says what is not there yet. `report.html.jinja` lays out what this file gathers.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessella.config import flatten
from tessella.errors import DataError
from tessella.files import write_text
from tessella.runs.curves import HEIGHT, WIDTH, Curve, draw_curve
from tessella.runs.facts import (
    CURVES,
    STAGE_TITLES,
    choose_numbers,
    create_charts,
    list_facts,
    list_metrics,
    list_pairs,
    say_name,
    say_state,
    say_value,
)
from tessella.runs.pictures import EmbeddedPicture, choose_evenly, embed_picture
from tessella.runs.record import Note, RunRecord, StageRecord, read_run

REPORT_FILE = "report.html"

_TEMPLATE = "report.html.jinja"
_FRAMES = 8  # evaluations whose pictures are shown
# Two stages' frames, the codebook, the model's samples, neighbours: under 8 MB in base64.
_PICTURE_BYTES = 5_600_000 // (2 * _FRAMES + 3)


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
        last_news=_say_time(datetime.datetime.fromtimestamp(record.last_news)),
        tiles=list(choose_numbers(record)),
        notes=_sort_notes(record),
        unreadable_lines=_count_unreadable(record),
        facts=list(list_facts(record)),
        captions=record.captions,
        stages=stages,
        metrics=None if record.metrics is None else list(list_metrics(record.metrics)),
        samples=samples,
        nearest=nearest,
        nearest_protocol=str((record.nearest or {}).get("protocol", "")),
        pairs=list(list_pairs(record.nearest or {})),
        counts=record.counts,
        skipped=record.skipped,
        settings=flatten(record.run["recipe"]),
        is_reduced=any(frame.picture and not frame.picture.is_exact for frame in frames),
        width=WIDTH,
        height=HEIGHT,
    )


def _describe_stage(stage: StageRecord, record: RunRecord) -> StagePage:
    """Gathers what the page shows of one stage."""
    drawn = {name: draw_curve(chart) for name, chart in create_charts(stage, record).items()}
    validation = {
        name: dict(found["validation"])
        for name, found in stage.curves.items()
        if "validation" in found
    }
    moments = sorted({at for values in validation.values() for at in values})
    last_codebook = stage.pictures["codebook"][-1:]
    return StagePage(
        name=stage.name,
        title=STAGE_TITLES[stage.name],
        state=say_state(stage, record),
        share=min(1.0, stage.images_seen / stage.images) if stage.images else 0.0,
        curves=[curve for name, curve in drawn.items() if name in CURVES],
        more_curves=[curve for name, curve in drawn.items() if name not in CURVES],
        columns=["images seen", *(say_name(name) for name in validation)],
        rows=[
            [f"{at:,}", *(say_value(values.get(at)) for values in validation.values())]
            for at in moments
        ],
        samples=[_frame(*made) for made in choose_evenly(stage.pictures["samples"], _FRAMES)],
        codebook=[_frame(*made) for made in last_codebook],
    )


def _frame(images_seen: int, path: Path) -> Frame:
    try:
        return Frame(images_seen, embed_picture(path, _PICTURE_BYTES), "")
    except DataError as error:
        return Frame(images_seen, None, f"{path.name}: {error}")


def _sort_notes(record: RunRecord) -> list[tuple[str, Note]]:
    """Lists what training said, with the stage's title, in the order it was said."""
    return [(STAGE_TITLES[stage.name], note) for stage in record.stages for note in stage.notes]


def _count_unreadable(record: RunRecord) -> int:
    return record.unreadable_lines + sum(stage.unreadable_lines for stage in record.stages)


def _say_time(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")
