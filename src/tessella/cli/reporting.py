"""How every command reports and ends: console, JSON, TOML, errors, exit status.

The exit status is 0 when done; 1 when failed, with one line on stderr: `Error: what, got,
expected, what next`; 2 for wrong usage, which typer reports; 130 when interrupted.
"""

import contextlib
import errno
import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from tessella.errors import TessellaError
from tessella.signals import handling
from tessella.untrusted import to_printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_ADVICE = {
    errno.ENOSPC: "Free some space and run the same command again.",
    errno.ENOENT: "It was moved or removed: put it back and run the same command again.",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "Make it readable and writable and run the same command again.",
    ),
}
"""What to do about an error of the system."""

# torch's, whose class is a RuntimeError's.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Cannot allocate memory")

FAILED = 1
INTERRUPTED = 130


@dataclass(frozen=True)
class Result:
    """What a command reports when it is done."""

    values: Mapping[str, Any]  # plain values, for `--json`
    lines: Iterable["RenderableType"]  # text and tables, without `--json`
    exit_status: int = 0


class ProcessEnd(SystemExit):
    """Ends the process at once, whatever its threads are doing; has the exit status.

    Python ends threads in the middle of PyTorch by aborting the process, and waits for ever for
    others that hang.
    """

    def leave(self) -> NoReturn:
        """Ends the process, without what Python does in the end."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # none, or closed
                stream.flush()
        os._exit(self.code if isinstance(self.code, int) else FAILED)


def create_console(*, stderr: bool) -> "Console":
    """Creates a console on stdout or stderr.

    Of several processes that train together, only the first prints.
    """
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        """Prints what others wrote, captions and names of files, without obeying it."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(to_printable(text), **options)

    # Without markup: a folder may be called `[red]`. Soft-wrapped: logs keep their lines.
    return PlainConsole(
        stderr=stderr,
        quiet=not is_first_process(),
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
    )


def is_first_process() -> bool:
    """Whether this is the only process, or the first of those that train together."""
    return os.environ.get("RANK", "0") == "0"


def print_result(result: Result, as_json: bool) -> None:
    """Prints a result as one JSON object or as text, and ends with its status.

    Raises:
        typer.Exit: the status is not 0.
    """
    if as_json and is_first_process():
        typer.echo(json.dumps(result.values, indent=2, allow_nan=False))
    elif not as_json:
        console = create_console(stderr=False)
        for line in result.lines:
            console.print(line)
    if result.exit_status:
        raise typer.Exit(result.exit_status)


@contextlib.contextmanager
def report_errors(debug: bool, *, if_interrupted: str) -> Iterator[None]:
    """Turns an error in its block into one line on stderr and the exit status.

    SIGTERM and a closed terminal count as Ctrl-C: half-written files are removed.

    Args:
        debug: lets errors through, with their traceback.
        if_interrupted: what Ctrl-C leaves behind, unless the interrupt itself says so.
    """
    try:
        with _signals_interrupt():
            yield
    except KeyboardInterrupt as interrupt:
        _print_error(f"Interrupted. {str(interrupt) or if_interrupted}")
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.BadParameter, BrokenPipeError):
        raise  # typer reports wrong usage, and ends quietly when the reader of a pipe is gone
    except Exception as error:
        if debug:
            raise
        _print_error(f"Error: {_explain(error)}")
        raise typer.Exit(FAILED) from None


def _explain(error: Exception) -> str:
    if isinstance(error, TessellaError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": `{error.filename}`" if error.filename is not None else ""
        advice = _ADVICE.get(error.errno or 0, "Run the same command again.")
        return f"The system refused{where}. {error.strerror}. {advice} --debug says where it was."
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return (
            "There is not enough memory. Close other programs and run the same command again; a "
            "new run with lower …_training.batch_size and data.workers needs less. --debug says "
            "where it was."
        )
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {text} Run again with --debug for the traceback."


def _print_error(line: str) -> None:
    # Not through a console, which may be the very thing that failed.
    typer.echo(to_printable(line), err=True)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handling(("SIGTERM", "SIGHUP"), interrupt):
        yield


def to_toml(values: Mapping[str, Any], section: str = "") -> str:
    """Writes nested plain values as TOML, which `--config` reads back; None is left out."""
    plain = {k: v for k, v in values.items() if not isinstance(v, Mapping) and v is not None}
    tables = {k: v for k, v in values.items() if isinstance(v, Mapping)}
    names = {name: json.dumps(name) if "." in name else name for name in plain}
    lines = [f"{names[k]} = {json.dumps(value, ensure_ascii=False)}" for k, value in plain.items()]
    if section and lines:
        lines.insert(0, f"[{section}]")
    parts = ["\n".join(lines)] if lines else []
    parts += [to_toml(v, f"{section}.{k}" if section else k) for k, v in tables.items()]
    return "\n\n".join(part for part in parts if part)
