"""Where a run stands: preparing, training, stopped or finished, and how long it still takes."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tessella.runs.facts import STAGE_TITLES, format_duration
from tessella.runs.record import RUN_FILE, RunRecord, StageRecord

State = Literal["preparing", "tokenizer", "transformer", "finishing", "finished", "stopped", "none"]

QUIET_SECONDS = 90.0
"""Training logs every ten seconds, except while it evaluates: a longer silence is mentioned."""

_TITLES = {"tokenizer": "Training", "transformer": "Training", "none": "No run"}


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    state: State  # none: the folder holds no run, or a damaged one
    text: str  # the state in a sentence
    is_running: bool | None  # whether a process is training in it; None: unknown
    news: str = ""  # when it last wrote something, in a sentence

    @property
    def title(self) -> str:
        """The state in a word."""
        return _TITLES.get(self.state, self.state.capitalize())

    def compute_seconds_left(self, stage: StageRecord) -> float | None:
        """Estimates the rest of a stage's training, evaluations excluded; None if unknown."""
        if self.is_running is False or self.state != stage.name or not stage.images_per_second:
            return None
        return (stage.images - stage.images_seen) / stage.images_per_second


def find_status(record: RunRecord, is_running: bool | None, now: float) -> RunStatus:
    """Finds where a run stands.

    Args:
        record: of the run.
        is_running: whether a process is training in it; None: unknown.
        now: in seconds since 1970.
    """
    state, text = _find_state(record, is_running)
    may_run = False if state == "finished" else is_running
    return RunStatus(state, text, is_running, _describe_news(record.last_news, may_run, now))


def describe_no_run(folder: Path, is_running: bool | None) -> RunStatus:
    """Says why there is no run to read in a folder."""
    state: State = "none"
    text = "The folder holds no run: it has not started, or it was removed."
    if (folder / RUN_FILE).exists():
        text = "The run’s files are damaged; tessella report says where."
    elif is_running:
        state, text = "preparing", "The data is being prepared; training starts after that."
    return RunStatus(state, text, is_running)


def describe_progress(
    stage: StageRecord, record: RunRecord, status: RunStatus | None = None
) -> str:
    """Says how far a stage has come; with a status, also how long the rest takes."""
    if stage.name == "tokenizer" and record.run.get("recipe.tokenizer.network") == "palette":
        return "A palette has fixed colours: nothing is trained."
    if not stage.images:
        return "Not trained in this run: it keeps its initial weights."
    if not stage.images_seen:
        return f"Nothing is logged yet; it will train on {stage.images:,} images."
    if stage.images_seen >= stage.images:
        return f"Finished after {stage.images_seen:,} images."
    fraction = stage.images_seen / stage.images
    text = f"{stage.images_seen:,} of {stage.images:,} images ({fraction:.0%}) so far."
    seconds_left = status.compute_seconds_left(stage) if status else None
    if seconds_left is None:
        return text
    speed = f"{stage.images_per_second:.3g} images/s"
    return f"{text} About {format_duration(seconds_left)} left at {speed}."


def _find_state(record: RunRecord, is_running: bool | None) -> tuple[State, str]:
    if record.metrics is not None:
        return "finished", "The model is in the run’s folder."
    unfinished = [stage for stage in record.stages if stage.images_seen < stage.images]
    if is_running is False:
        reached = "Both stages are trained, but the model is not saved yet."
        if unfinished:
            progress = describe_progress(unfinished[0], record)
            reached = f"{STAGE_TITLES[unfinished[0].name]}: {progress}"
        return "stopped", f"{reached} Run the same tessella fit command to resume."
    if not unfinished:
        return "finishing", "Both stages are trained; the model is being measured and saved."
    if unfinished[0].images_seen:
        state: State = "tokenizer" if unfinished[0].name == "tokenizer" else "transformer"
        return state, f"The {STAGE_TITLES[state].lower()} is training."
    if any(stage.images_seen for stage in record.stages):
        return "preparing", "The image tokenizer is trained; it is encoding the pictures now."
    return "preparing", "Training is starting; its first numbers arrive within seconds."


def _describe_news(last_news: float, is_running: bool | None, now: float) -> str:
    written, age = format_time(last_news), now - last_news
    if is_running is False or age < QUIET_SECONDS:
        return f"The run last wrote to its logs on {written}."
    reason = (
        "Its process is alive; it logs nothing while it evaluates."
        if is_running
        else "Whether its process is alive cannot be determined from here."
    )
    return f"Nothing new since {written}, {format_duration(age)} ago. {reason}"


def format_time(seconds: float) -> str:
    """Formats seconds since 1970 as local date and time."""
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
