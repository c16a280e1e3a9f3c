"""`tessella report`: a run in, one page about it out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tessella.cli.command import get_group
from tessella.cli.pictures import check_output_file
from tessella.cli.reporting import Result


@dataclass(frozen=True)
class ReportOptions:
    """Which run, and where the page goes."""

    run: Annotated[Path, typer.Argument(metavar="RUN")]
    """A run's folder, finished or not."""
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", show_default="RUN/report.html")
    ] = None
    """Where to write the page; an older one is replaced."""


def report(context: typer.Context) -> Result:
    """Write a page about a run: curves, pictures, numbers.

    The page is a single file that opens in any browser. Write it any time, even during the run.
    """
    from tessella.runs.report import write_report

    options = get_group(context, ReportOptions)
    check_output_file(options.out, [".html"], force=True)
    written = write_report(options.run, options.out)
    record, size_bytes = written.record, written.path.stat().st_size
    lines = [f"The report is in {written.path} ({size_bytes / 1e6:.1f} MB)."]
    if record.unreadable_lines:
        lines.append(f"Unreadable lines in the logs, left out: {record.unreadable_lines:,}.")
    values = {
        "run": str(options.run),
        "report": str(written.path),
        "size_bytes": size_bytes,
        "images_seen": {stage.name: stage.images_seen for stage in record.stages},
        "warnings": sum(len(stage.notes) for stage in record.stages),
        "unreadable_lines": record.unreadable_lines,
    }
    return Result(values, lines)
