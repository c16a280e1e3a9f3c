"""The command line, run in this process."""

from typing import Any

from typer.testing import CliRunner

from tessella.cli import app


def invoke(*words: object) -> Any:
    """Runs a command; what is no exit is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
