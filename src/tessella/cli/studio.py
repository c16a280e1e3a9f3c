"""`tessella studio`: a run in, a page that follows it out."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from tessella.cli.options import Debug, Device
from tessella.cli.reporting import told_errors
from tessella.cli.serving_options import read_serving
from tessella.errors import CheckpointError

_WAIT_SECONDS = 30


def studio(
    context: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder, finished or not."),
    ],
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Watch a training run: curves, samples, time left.

    The page is the one of `tessella serve`. If the run already has a finished model, the page
    paints with it too. Ctrl-C stops the page, not the training.
    """
    with told_errors(debug, if_interrupted="Nothing was being shown yet."):
        settings, keys = read_serving(context)

        from tessella.runs.record import LOCK_FILE, MODEL_FOLDER, read_run

        _wait_for_files(run)
        # A run that is still preparing its data has nothing but its lock.
        if not (run / LOCK_FILE).exists():
            read_run(run)

        from tessella.serving.server import serve

        def tell(address: str) -> None:
            typer.echo(f"The run is shown at {address}/#run. Ctrl-C stops it.")
            if open_page:
                import webbrowser

                webbrowser.open(f"{address}/#run")

        models = [f"{_name_model(run)}={run}"] if (run / MODEL_FOLDER).is_dir() else []
        try:
            serve(models, settings, keys=keys, run=run, device=device, tell=tell)
        except CheckpointError as error:
            # Its curves and samples can still be shown.
            typer.echo(f"The run's model cannot be loaded. {error}", err=True)
            serve([], settings, keys=keys, run=run, device=device, tell=tell)


def _wait_for_files(run: Path) -> None:
    """Waits for a run that has just been started: its first file takes a few seconds."""
    for second in range(_WAIT_SECONDS):
        if run.is_dir() and any(run.iterdir()):
            return
        if second == 0:
            typer.echo(f"Waiting up to {_WAIT_SECONDS} s for the run to start.", err=True)
        time.sleep(1)


def _name_model(run: Path) -> str:
    """Makes a name for the API from the folder's, which may contain anything."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", run.resolve().name).strip("-._")[:100] or "run"
