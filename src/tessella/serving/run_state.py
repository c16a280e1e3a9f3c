"""What the studio shows of a run that goes on: read again only when the run has written something.

    folder of a run ─▶ RunReader ─▶ RunState ─▶ JSON, and the pictures that may be asked for

A run is written while it is read, and may be damaged, begun again or gone: each of these is a
state with a sentence, never an error of the server.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tessella.errors import ConfigError
from tessella.files import is_locked
from tessella.runs.curves import Chart
from tessella.runs.facts import (
    CURVES,
    STAGE_TITLES,
    choose_numbers,
    create_charts,
    list_facts,
    list_metrics,
    list_pairs,
    name_validation,
    say_state,
)
from tessella.runs.record import (
    CODES_FOLDER,
    DATA_FOLDER,
    LOCK_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    NEAREST_FILE,
    NEAREST_PICTURE,
    RUN_FILE,
    STAGES,
    Points,
    RunReader,
    RunRecord,
    SkippedFiles,
    StageRecord,
    stamp_file,
)
from tessella.runs.report import REPORT_FILE

State = Literal["preparing", "tokenizer", "transformer", "finishing", "finished", "stopped", "none"]

PICTURES_URL = "/v1/run/pictures/"

_NOTES = 100
_STAMPED = (
    RUN_FILE,
    f"{DATA_FOLDER}/manifest.json",
    f"{DATA_FOLDER}/skipped.jsonl",
    f"{CODES_FOLDER}/train.npy",
    *(f"{stage}/{name}" for stage in STAGES for name in (METRICS_FILE, "samples", "codebook")),
    f"{MODEL_FOLDER}/metrics.json",
    f"{MODEL_FOLDER}/samples.png",
    NEAREST_FILE,
    NEAREST_PICTURE,
    REPORT_FILE,
)
"""What a run changes as it goes on, below its folder."""


@dataclass(frozen=True)
class CurveState:
    """One metric over images seen, with its axes."""

    title: str
    hint: str  # what it says, and which way is better
    description: str  # in words, for those who do not see it
    is_main: bool  # whether to look at it first
    train: Points
    validation: Points
    x_ticks: Sequence[tuple[float, str]]  # value, label
    y_ticks: Sequence[tuple[float, str]]
    limits: tuple[float, float]  # of the value axis; above 0 if is_log
    furthest: int  # images seen, where the other axis ends
    is_log: bool


@dataclass(frozen=True)
class PictureState:
    """A picture made at one moment of training."""

    images_seen: int
    url: str  # another one when the picture is made again


@dataclass(frozen=True)
class StageState:
    """How far a stage is, and what it has logged and drawn."""

    name: str  # tokenizer or transformer
    title: str
    said: str  # its state in words
    images: int  # that it is to see
    images_seen: int
    images_per_second: float | None  # of late
    seconds_left: float | None  # at that pace, evaluations left out; None: not known, or not going
    curves: Mapping[str, CurveState]
    pictures: Mapping[str, Sequence[PictureState]]  # samples, codebook → the first ones first


@dataclass(frozen=True)
class NoteState:
    """A sentence that training said."""

    stage: str
    images_seen: int
    text: str


@dataclass(frozen=True)
class RunState:
    """All that the studio shows of a run."""

    version: str  # changes with anything else in here
    name: str
    state: State  # none: the folder holds no run, or a damaged one
    said: str  # the state in words
    is_running: bool | None  # whether someone trains in it now; None: not to be found out
    last_news: float | None = None  # when it wrote last, in seconds since 1970
    numbers: Sequence[tuple[str, str, str]] = ()  # name, value, of what
    stages: Sequence[StageState] = ()
    notes: Sequence[NoteState] = ()
    unreadable_lines: int = 0  # of the logs; they are left out
    validation_name: str = "validation"  # or on what else was measured
    facts: Sequence[tuple[str, str]] = ()  # what was trained, on what, how
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of the first pictures
    skipped: Sequence[SkippedFiles] | None = None  # None: the data is not there
    metrics: Sequence[tuple[str, str, str]] | None = None  # name, value, protocol; None: no model
    samples: str | None = None  # the finished model's picture
    nearest: str | None = None  # painted pictures beside the nearest training pictures
    nearest_pairs: Sequence[tuple[str, str, str]] = ()  # prompt, training caption, distance
    report_available: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, as it is sent."""

    version: str
    body: bytes  # JSON
    pictures: Mapping[str, Path]  # what follows PICTURES_URL → the file; nothing else is sent


class RunWatch:
    """Watches a run; for many threads. While nothing is new a look costs a few file stamps."""

    def __init__(self, folder: Path) -> None:
        """Remembers where the run is; nothing is read yet.

        Args:
            folder: `--out` of a `tessella fit`.
        """
        self._folder = folder
        self._reader = RunReader(folder)
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None

    def look(self) -> Snapshot:
        """Returns the run as it is now."""
        with self._lock:
            # Before it is read: what changes meanwhile is found by the next look.
            stamps = [stamp_file(self._folder / name) for name in _STAMPED]
            is_running = _is_running(self._folder)
            version = hashlib.sha256(repr((stamps, is_running)).encode()).hexdigest()[:16]
            if self._snapshot is None or self._snapshot.version != version:
                self._snapshot = self._read(version, is_running)
            return self._snapshot

    def _read(self, version: str, is_running: bool | None) -> Snapshot:
        """Reads the run; what is no run, or a damaged one, is a state too."""
        name = self._folder.resolve().name
        pictures: dict[str, Path] = {}
        try:
            record = self._reader.read()
            state = _describe(record, version, is_running, pictures)
        except (
            ConfigError,
            OSError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
        ):
            # Its files were changed by hand, into anything; `tessella report` says into what.
            self._reader = RunReader(self._folder)
            pictures = {}
            found: State = "none"
            if (self._folder / RUN_FILE).exists():
                said = "The run’s files are damaged. tessella report says where."
            elif is_running:
                found = "preparing"
                said = "The data is being prepared; the run begins after that."
            else:
                said = "The folder holds no run: it has not begun, or was removed."
            state = RunState(version, name, found, said, is_running)
        # In ASCII: a caption may hold half of a surrogate pair, which UTF-8 cannot.
        body = json.dumps(state, default=vars, allow_nan=False, separators=(",", ":"))
        return Snapshot(version, body.encode("ascii"), pictures)


def _is_running(folder: Path) -> bool | None:
    """Finds out whether someone trains in a run, which is locked for as long as that lives."""
    return is_locked(folder / LOCK_FILE)


def _describe(
    record: RunRecord, version: str, is_running: bool | None, pictures: dict[str, Path]
) -> RunState:
    """Gathers what is shown; notes each picture's file in `pictures`."""
    state, said = _find_state(record, is_running)
    notes = [NoteState(**vars(note)) for stage in record.stages for note in stage.notes[-_NOTES:]]
    logs_unreadable = sum(stage.unreadable_lines for stage in record.stages)

    def offer(name: str, path: Path | None) -> str | None:
        stamp = None if path is None else stamp_file(path)
        if path is None or stamp is None:
            return None
        pictures[name] = path
        return f"{PICTURES_URL}{name}?{stamp[2]:x}"

    stages = []
    for stage in record.stages:
        found = {
            name: [
                PictureState(at, url)
                for at, path in made
                if (url := offer(f"{stage.name}/{name}/{at}.png", path))
            ]
            for name, made in stage.pictures.items()
        }
        is_going = is_running is not False and state == stage.name
        stages.append(_describe_stage(stage, record, found, is_going))
    return RunState(
        version=version,
        name=record.folder.resolve().name,
        state=state,
        said=said,
        is_running=is_running,
        last_news=record.last_news,
        numbers=list(choose_numbers(record)),
        stages=stages,
        notes=notes,
        unreadable_lines=record.unreadable_lines + logs_unreadable,
        validation_name=name_validation(record),
        facts=list(list_facts(record)),
        captions=record.captions,
        skipped=record.skipped if record.counts else None,
        metrics=None if record.metrics is None else list(list_metrics(record.metrics)),
        samples=offer("samples.png", record.samples),
        nearest=offer("nearest.png", record.nearest_picture),
        nearest_pairs=list(list_pairs(record.nearest or {})),
        report_available=(record.folder / REPORT_FILE).is_file(),
    )


def _find_state(record: RunRecord, is_running: bool | None) -> tuple[State, str]:
    """Finds where a run stands, and says it."""
    if record.metrics is not None:
        return "finished", "The model is in the run’s folder."
    begun = [stage for stage in record.stages if stage.images_seen]
    unfinished = [stage for stage in record.stages if stage.images_seen < stage.images]
    if is_running is False:
        what = (
            f"{STAGE_TITLES[unfinished[0].name]}: {say_state(unfinished[0], record)}"
            if unfinished
            else "Both stages have seen their images, but the model is not saved yet."
        )
        return "stopped", f"{what} The same tessella fit command goes on from there."
    if not unfinished:
        return "finishing", "Both stages are trained; the model is being measured and saved."
    now = unfinished[0]
    if now.images_seen:
        state: State = "tokenizer" if now.name == "tokenizer" else "transformer"
        return state, f"The {STAGE_TITLES[now.name].lower()} learns."
    if begun:
        return "preparing", "The image tokenizer is trained. The pictures are turned into codes."
    return "preparing", "The first line of the log comes some seconds after the start."


def _describe_stage(
    stage: StageRecord,
    record: RunRecord,
    pictures: Mapping[str, Sequence[PictureState]],
    is_going: bool,
) -> StageState:
    pace = stage.images_per_second
    left = (stage.images - stage.images_seen) / pace if pace and is_going else None
    return StageState(
        name=stage.name,
        title=STAGE_TITLES[stage.name],
        said=say_state(stage, record),
        images=stage.images,
        images_seen=stage.images_seen,
        images_per_second=pace,
        seconds_left=left,
        curves={
            name: _describe_curve(name, chart)
            for name, chart in create_charts(stage, record).items()
        },
        pictures=pictures,
    )


def _describe_curve(name: str, chart: Chart) -> CurveState:
    points = {
        kind: [(at, float(f"{value:.6g}")) for at, value in found]
        for kind, found in chart.points.items()
    }
    return CurveState(
        title=chart.title,
        hint=chart.hint,
        description=chart.description,
        is_main=name in CURVES,
        train=points.get("train", ()),
        validation=points.get("validation", ()),
        x_ticks=[(tick.value, tick.label) for tick in chart.x_ticks],
        y_ticks=[(tick.value, tick.label) for tick in chart.y_ticks],
        limits=chart.limits,
        furthest=chart.furthest,
        is_log=chart.is_log,
    )
