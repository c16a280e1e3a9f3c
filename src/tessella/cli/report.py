"""`tessella report`: a run in, a page to look at out."""

from pathlib import Path
from typing import Annotated

import typer

from tessella.cli.options import Debug, Json
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.errors import ConfigError


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder: finished or not.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.html",
            help="Where the page is written; an older one is replaced.",
            show_default="RUN/report.html",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a page about a run: curves, pictures, numbers.

    One file that opens in any browser and needs nothing else. It can be made at any moment, also
    while the run goes on.
    """
    with told_errors(debug, if_interrupted="Nothing was written."):
        from tessella.runs.report import write_report

        if out is not None and (out.suffix.lower() != ".html" or out.is_dir()):
            raise ConfigError(f"The page is a file NAME.html: `{out}`. Name such a file.")
        written = write_report(run, out)
        if as_json:
            print_json(
                {
                    "run": str(run),
                    "report": str(written.path),
                    "size_bytes": written.size_bytes,
                    "images_seen": dict(written.images_seen),
                    "warnings": written.warnings,
                    "unreadable_lines": written.unreadable_lines,
                }
            )
            return
        console = create_console(as_json)
        console.print(f"The report is in {written.path} ({written.size_bytes / 1e6:.1f} MB).")
        if written.unreadable_lines:
            console.print(f"Unreadable lines in the logs, left out: {written.unreadable_lines:,}.")
