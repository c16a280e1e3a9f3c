"""The options of commands that serve, and how they are read."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.sections import read_section
from tessella.errors import ConfigError

if TYPE_CHECKING:
    from tessella.serving.settings import ServeSettings

Host = Annotated[
    str | None,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        help="Where to listen. Any other address than this machine's own needs API keys.",
        show_default="127.0.0.1",
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        metavar="NUMBER",
        help="Where to listen; 0 takes a free one.",
        min=0,
        max=65535,
        show_default="8000",
    ),
]
ApiKeysFile = Annotated[
    Path | None,
    typer.Option(
        "--api-keys",
        metavar="FILE",
        help="API keys, one a line; also those of the environment variable TESSELLA_API_KEYS, "
        "with commas between.",
        show_default=False,
    ),
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="A host name that requests may be addressed to. May be repeated.",
        show_default="this machine's own, and addresses in numbers; with API keys any",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Listen without API keys where others can reach it."),
]


def read_serving(
    config_file: Path | None, assignments: Sequence[str], **changes: Any
) -> "ServeSettings":
    """Reads the server's settings; what has an option of its own wins.

    Raises:
        ConfigError: `tessella[serve]` is not installed, or a setting is unknown or out of range.
    """
    require_serving()
    from tessella.config import build
    from tessella.serving.settings import ServeSettings

    said = read_section(
        "serve", config_file, assignments, what="Serving", example="serve.max_queue=64"
    )
    given = {name: value for name, value in changes.items() if value is not None}
    return build(ServeSettings, {**said, **given})


def require_serving() -> None:
    """Refuses to go on without what serving needs.

    Raises:
        ConfigError: `tessella[serve]` is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"Serving needs a package that is missing: `{error.name}`. Install them all: "
            "pip install 'tessella[serve]'"
        ) from None


def read_keys(file: Path | None, settings: "ServeSettings", *, insecure: bool) -> list[str]:
    """Reads the API keys.

    Raises:
        ConfigError: a key is too short, the file cannot be read, or others could reach the
            address without one.
    """
    from tessella.serving.middleware import (
        API_KEYS_VARIABLE,
        ApiKeys,
        check_exposure,
        read_api_keys,
    )

    keys = read_api_keys(os.environ.get(API_KEYS_VARIABLE), file)
    check_exposure(settings, ApiKeys(keys), insecure=insecure)
    return keys
