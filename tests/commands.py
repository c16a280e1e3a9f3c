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


def succeeded(result: Any) -> str:
    """Returns the stdout of a command that had to succeed."""
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def failed(result: Any) -> str:
    """Returns the one line of a command that had to fail."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    return str(result.stderr)
