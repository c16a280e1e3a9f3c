"""`tessella report`: a run in, one page about it out."""

from pathlib import Path
from typing import Annotated

import typer

from tessella.cli.options import Debug, Json
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.errors import ConfigError


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder, finished or not."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Where to write the page; an older one is replaced.",
            show_default="RUN/report.html",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a page about a run: curves, pictures, numbers.

    The page is a single file that opens in any browser. Write it any time, even during the run.
    """
    with told_errors(debug, if_interrupted="Nothing was written."):
        from tessella.runs.report import write_report

        if out is not None and (out.suffix.lower() != ".html" or out.is_dir()):
            raise ConfigError(f"The page is written to a file NAME.html: `{out}`. Change --out.")
        written = write_report(run, out)
        record, size_bytes = written.record, written.path.stat().st_size
        if as_json:
            print_json(
                {
                    "run": str(run),
                    "report": str(written.path),
                    "size_bytes": size_bytes,
                    "images_seen": {stage.name: stage.images_seen for stage in record.stages},
                    "warnings": sum(len(stage.notes) for stage in record.stages),
                    "unreadable_lines": record.unreadable_lines,
                }
            )
            return
        console = create_console(as_json)
        console.print(f"The report is in {written.path} ({size_bytes / 1e6:.1f} MB).")
        if record.unreadable_lines:
            console.print(f"Unreadable lines in the logs, left out: {record.unreadable_lines:,}.")
