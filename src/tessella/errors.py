"""Every error that tessella raises on purpose.

    TessellaError
    ├── ConfigError       a setting that is unknown, of the wrong type or out of range
    ├── DataError         images or captions that cannot be read, or too many bad ones
    ├── ShapeError        a tensor or picture of the wrong shape
    ├── CheckpointError   a run or model folder that is damaged, foreign or of another format
    ├── GenerationError   a request for a picture that cannot be met
    └── TrainingStopped   a callback stopped the run (`training/interrupt.py`)

A message says what is wrong, what it got, what it expected and what to do next; user values
stand in backticks after a colon.
"""

import contextlib
from collections.abc import Iterator


class TessellaError(Exception):
    """Base of all errors that tessella raises on purpose."""


class ConfigError(TessellaError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(TessellaError):
    """Images or captions cannot be read, or too many of them are bad."""


class ShapeError(TessellaError):
    """A tensor or a picture has the wrong shape."""


class CheckpointError(TessellaError):
    """A run or model folder is damaged, foreign or of another format."""


class GenerationError(TessellaError):
    """A request for a picture cannot be met."""


@contextlib.contextmanager
def needs_extra(
    extra: str, what: str, error_class: type[TessellaError] = ConfigError
) -> Iterator[None]:
    """Says which extra of tessella brings a package that its block cannot import.

    Args:
        extra: as in `pip install 'tessella[EXTRA]'`.
        what: needs the package.
        error_class: of the error.
    """
    try:
        yield
    except ImportError as error:
        raise error_class(
            f"{what} needs the package `{error.name}`: {error}. Install it with pip install "
            f"'tessella[{extra}]'."
        ) from None


def first_line(error: Exception) -> str:
    """Shortens a library's message, which may fill a page, to a line without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
