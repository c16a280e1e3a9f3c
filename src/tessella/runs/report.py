"""The page about a run: its curves, pictures and numbers, for a file or for the studio.

`write_report` writes a file that needs nothing but itself: no other file, no other host, no script.
The studio shows the same body (`render_body`), with links to the pictures, while the run trains.
Both can be made at any moment of a run and say what is not there yet. `run.html.jinja` lays out
what this file gathers.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tessella.errors import DataError
from tessella.files import remove_leftovers, write_text
from tessella.runs import curves, facts
from tessella.runs.pictures import Picture, choose_evenly, embed_picture
from tessella.runs.record import RunRecord, StageRecord, is_running, read_run
from tessella.runs.status import RunStatus, describe_progress, find_status, format_time

REPORT_FILE = "report.html"
STYLES = ("base.css", "run.css")
"""The page's styles, beside this file."""

_FRAMES = 8  # evaluations whose pictures are in a report
_LIVE_FRAMES = 24
# Two stages' frames, the codebook, the model's samples, neighbours: under 8 MB in base64.
_PICTURE_BYTES = 5_600_000 // (2 * _FRAMES + 3)


@dataclass(frozen=True)
class Report:
    """What was written."""

    path: Path
    record: RunRecord  # what it shows


def write_report(folder: Path, out: Path | None = None) -> Report:
    """Writes the report of a run.

    Args:
        folder: the run's.
        out: the file; None: report.html in the run.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: the file cannot be written.
    """
    record = read_run(folder)
    now = time.time()
    is_live = is_running(folder)
    if out is None and is_live is False:  # a living run tidies up itself
        remove_leftovers(folder)
    status = find_status(record, is_live, now)
    pictures: list[Picture] = []

    def embed(path: Path) -> Picture:
        pictures.append(embed_picture(path, _PICTURE_BYTES))
        return pictures[-1]

    body = render_body(folder, status, record, embed, made=format_time(now))
    is_reduced = not all(picture.is_exact for picture in pictures)
    title = folder.resolve().name
    text = _render("report.html.jinja", body=body, title=title, is_reduced=is_reduced)
    path = folder / REPORT_FILE if out is None else out
    # A caption may hold half of a surrogate pair, which UTF-8 cannot.
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"), what="the report")
    return Report(path, record)


def render_body(
    folder: Path,
    status: RunStatus,
    record: RunRecord | None,
    show_picture: Callable[[Path], Picture],
    *,
    made: str = "",
) -> str:
    """Lays out the body of the page.

    Args:
        folder: the run's.
        status: where the run stands.
        record: of the run; None: there is no run to read.
        show_picture: embeds or links a picture; raises a DataError if it cannot be read.
        made: date and time, for a page that stays as it is; empty for a live one.

    Returns:
        HTML, with every value escaped.
    """

    def show(path: Path) -> Picture:
        try:
            return show_picture(path)
        except DataError as error:
            return Picture("", 0, 0, problem=f"{path.name}: {error}")

    def choose_frames(stage: StageRecord, name: str) -> list[tuple[int, Path]]:
        if not made:
            return choose_evenly(stage.pictures[name], _LIVE_FRAMES)
        # In a file each picture costs some hundred kilobytes.
        frames = stage.pictures[name]
        return choose_evenly(frames, _FRAMES) if name == "samples" else frames[-1:]

    return _render(
        "run.html.jinja",
        name=folder.resolve().name,
        status=status,
        record=record,
        made=made,
        show_picture=show,
        choose_frames=choose_frames,
        describe_progress=describe_progress,
        facts=facts,
        drawing=curves,
    )


def _render(template: str, **values: Any) -> str:
    return _templates().get_template(template).render(values)


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions, file names and settings may hold anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
