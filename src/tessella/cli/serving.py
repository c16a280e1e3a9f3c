"""`tessella serve` and `tessella studio`: models or a run in, an HTTP API and a page out."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.command import Command, DebugOptions, get_group
from tessella.cli.llm_options import LlmOptions
from tessella.cli.options import DEFAULT_MODEL, Config, Device, Precision, Set
from tessella.cli.reporting import ProcessEnd
from tessella.cli.settings_options import create_settings_group
from tessella.errors import CheckpointError, needs_extra
from tessella.untrusted import to_printable

if TYPE_CHECKING:
    from tessella.serving.settings import ServeSettings

_WAIT_SECONDS = 30


@dataclass(frozen=True)
class KeyOptions:
    """Who may ask."""

    api_keys: Annotated[Path | None, typer.Option(metavar="FILE")] = None
    """API keys, one per line, besides those in the environment variable TESSELLA_API_KEYS, which
    are separated by commas."""
    insecure: Annotated[bool, typer.Option("--insecure")] = False
    """Let others connect without API keys."""


@dataclass(frozen=True)
class ServeOptions:
    """What to serve, and where to run it."""

    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", show_default=DEFAULT_MODEL)
    ] = None
    """Model folders, run folders, names of bundled models or hf:USER/NAME, each as MODEL or
    NAME=MODEL. The first is the API's default."""
    config: Config = None
    set_: Set = None
    device: Device = "auto"
    precision: Precision = "auto"


@dataclass(frozen=True)
class StudioOptions:
    """Which run to show."""

    run: Annotated[Path, typer.Argument(metavar="RUN")]
    """A run's folder, finished or not."""
    open_page: Annotated[bool, typer.Option("--open")] = False
    """Open the page in the browser."""
    device: Device = "auto"


def server_options() -> Any:
    """Creates the group of a server's most used settings."""
    from tessella.serving.settings import ServeSettings

    names = (
        *("host", "port", "allow_origins", "allowed_hosts", "public_url", "root_path"),
        *("response_format", "any_model", "log_prompts"),
    )
    return create_settings_group("serve", ServeSettings, names)


class ServerCommand(Command):
    """A command that serves; the process ends with it."""

    def invoke(self, ctx: Any) -> None:
        """Runs the command and ends the process.

        Raises:
            ProcessEnd: with the command's status.
        """
        try:
            super().invoke(ctx)
        except typer.Exit as ended:
            raise ProcessEnd(ended.exit_code) from None
        raise ProcessEnd(0)


class StudioCommand(ServerCommand):
    """A command with the options of a server; it has no result to print."""

    groups = (StudioOptions, server_options, KeyOptions, DebugOptions)
    if_interrupted = "Nothing was being shown yet."


class ServeCommand(ServerCommand):
    """A command with the options of a server and of a language model."""

    groups = (ServeOptions, server_options, KeyOptions, LlmOptions, DebugOptions)
    if_interrupted = "Nothing was being served yet."


def serve(context: typer.Context) -> None:
    """Serve models: OpenAI's image API at /v1, and the studio page at /.

    Any OpenAI client works with http://HOST:PORT/v1 as its base URL. POST /v1/posts writes its
    texts with a language model (--llm), else from templates. Ctrl-C or SIGTERM finishes the
    pictures that are being painted and refuses the rest.
    """
    options = get_group(context, ServeOptions)
    settings, keys = _read_serving(context, options.config, options.set_)

    from tessella.serving.server import serve as serve_models

    llm = get_group(context, LlmOptions)
    serve_models(
        options.models or [DEFAULT_MODEL],
        settings,
        keys=keys,
        language_model=llm.open() if llm.llm else None,
        device=options.device,
        precision=options.precision,
        tell=lambda address: typer.echo(
            f"Serving at {address} (the page) and {address}/v1 (the API). Ctrl-C stops it."
        ),
    )


def studio(context: typer.Context) -> None:
    """Watch a training run: curves, samples, time left.

    The page is the one of `tessella serve`. If the run already has a finished model, the page
    paints with it too. Ctrl-C stops the page, not the training.
    """
    settings, keys = _read_serving(context)
    options = get_group(context, StudioOptions)
    run, device = options.run, options.device

    from tessella.runs.record import LOCK_FILE, MODEL_FOLDER, read_run

    _wait_for_files(run)
    # A run that is still preparing its data has nothing but its lock.
    if not (run / LOCK_FILE).exists():
        read_run(run)

    from tessella.serving.server import serve as serve_models

    def announce(address: str) -> None:
        typer.echo(f"The run is shown at {address}/#run. Ctrl-C stops it.")
        if options.open_page:
            import webbrowser

            webbrowser.open(f"{address}/#run")

    models = [f"{_name_model(run)}={run}"] if (run / MODEL_FOLDER).is_dir() else []
    try:
        serve_models(models, settings, keys=keys, run=run, device=device, tell=announce)
    except CheckpointError as error:
        # Its curves and samples can still be shown.
        typer.echo(to_printable(f"The run's model cannot be loaded. {error}"), err=True)
        serve_models([], settings, keys=keys, run=run, device=device, tell=announce)


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


def _read_serving(
    context: typer.Context,
    config_file: Path | None = None,
    assignments: Sequence[str] | None = None,
) -> tuple["ServeSettings", list[str]]:
    """Reads the server's settings and the API keys.

    Raises:
        ConfigError: `tessella[serve]` is not installed; a setting is unknown or out of range; a key
            is too short; the keys' file cannot be read; others could connect without a key.
    """
    require_serving()
    from tessella.config import build
    from tessella.serving import middleware
    from tessella.serving.settings import ServeSettings

    changes = get_group(context, server_options).read_changes(config_file, assignments)
    settings = build(ServeSettings, changes)
    options = get_group(context, KeyOptions)
    variable = os.environ.get(middleware.API_KEYS_VARIABLE)
    keys = middleware.read_api_keys(variable, options.api_keys)
    middleware.check_exposure(settings, middleware.ApiKeys(keys), insecure=options.insecure)
    return settings, keys


def require_serving() -> None:
    """Refuses to continue without the packages that serving needs.

    Raises:
        ConfigError: `tessella[serve]` is not installed.
    """
    with needs_extra("serve", "Serving"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
