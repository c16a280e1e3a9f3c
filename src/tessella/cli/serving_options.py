"""The options of commands that serve, and how they are read."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessella.cli.option_groups import GroupedCommand, get_group
from tessella.cli.settings_options import create_settings_group, read_changes
from tessella.errors import ConfigError

if TYPE_CHECKING:
    from tessella.serving.settings import ServeSettings


@dataclasses.dataclass(frozen=True)
class KeyOptions:
    """Who may ask."""

    api_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="API keys, one per line, besides those in the environment variable "
            "TESSELLA_API_KEYS, which are separated by commas.",
        ),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let others connect without API keys.")
    ] = False


class ServingCommand(GroupedCommand):
    """A command with the options of a server."""

    @property
    def groups(self) -> Sequence[type]:
        """Settings and keys."""
        return _create_settings_group(), KeyOptions


def _create_settings_group() -> type:
    from tessella.serving.settings import ServeSettings

    names = "host", "port", "allow_origins", "allowed_hosts", "public_url", "log_prompts"
    return create_settings_group(ServeSettings, names)


def read_serving(
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
    from tessella.serving.middleware import (
        API_KEYS_VARIABLE,
        ApiKeys,
        check_exposure,
        read_api_keys,
    )
    from tessella.serving.settings import ServeSettings

    changes = read_changes(
        "serve",
        config_file,
        assignments,
        get_group(context, _create_settings_group()),
        activity="Serving",
        example="serve.max_queue=64",
    )
    settings = build(ServeSettings, changes)
    options = get_group(context, KeyOptions)
    keys = read_api_keys(os.environ.get(API_KEYS_VARIABLE), options.api_keys)
    check_exposure(settings, ApiKeys(keys), insecure=options.insecure)
    return settings, keys


def require_serving() -> None:
    """Refuses to continue without the packages that serving needs.

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
