"""`tessella studio`: a run in, a page out that shows how it goes on."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from tessella.cli.options import Debug, Device
from tessella.cli.reporting import told_errors
from tessella.cli.serving_options import (
    AllowedHost,
    ApiKeysFile,
    Host,
    Insecure,
    Port,
    read_keys,
    read_serving,
)
from tessella.errors import CheckpointError

_WAIT_SECONDS = 30


def studio(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder: finished or not.", show_default=False),
    ],
    host: Host = None,
    port: Port = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
    api_keys: ApiKeysFile = None,
    insecure: Insecure = False,
    allowed_host: AllowedHost = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Show a training run as it goes on: curves, samples, time left.

    The page is the one of `tessella serve`. If the run has a finished model when this begins, it
    can be painted with there too. Ctrl-C ends it; the training does not notice.
    """
    with told_errors(debug, if_interrupted="Nothing was being shown yet."):
        settings = read_serving(None, (), host=host, port=port, allowed_hosts=allowed_host)
        keys = read_keys(api_keys, settings, insecure=insecure)

        from tessella.runs.record import LOCK_FILE, MODEL_FOLDER, read_run

        _wait_for_files(run)
        # A run that is still preparing its data has no more than its lock.
        if not (run / LOCK_FILE).exists():
            read_run(run)

        from tessella.serving.server import serve

        def tell(address: str) -> None:
            typer.echo(f"The run is shown at {address}/#run. Ctrl-C ends it.")
            if open_page:
                import webbrowser

                webbrowser.open(f"{address}/#run")

        models = [f"{_name_model(run)}={run}"] if (run / MODEL_FOLDER).is_dir() else []
        try:
            serve(models, settings, keys=keys, run=run, device=device, tell=tell)
        except CheckpointError as error:
            # Curves and samples can be looked at all the same.
            typer.echo(f"The run's model cannot be painted with. {error}", err=True)
            serve([], settings, keys=keys, run=run, device=device, tell=tell)


def _wait_for_files(run: Path) -> None:
    """Waits for a run that has just been begun: its first file comes after some seconds."""
    for second in range(_WAIT_SECONDS):
        if run.is_dir() and any(run.iterdir()):
            return
        if second == 0:
            typer.echo(f"Waiting up to {_WAIT_SECONDS} s for the run to begin.", err=True)
        time.sleep(1)


def _name_model(run: Path) -> str:
    """Makes a name for the API of a folder's, which may hold anything."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", run.resolve().name).strip("-._")[:100] or "run"
