"""The files that a command is told to write, checked before the work."""

from collections.abc import Sequence
from pathlib import Path

from tessella.errors import ConfigError


def check_output_file(path: Path | None, suffixes: Sequence[str], *, force: bool) -> None:
    """Refuses a file of another kind, or one that would be replaced without `--force`.

    Args:
        path: None is never refused.
        suffixes: the ones that suit, in lower case, the commonest first.
        force: whether a file may be replaced.

    Raises:
        ConfigError: says what is wrong with the name.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes or path.is_dir():
        names = " or ".join(f"NAME{suffix}" for suffix in suffixes)
        raise ConfigError(f"This is written to a file {names}: `{path}`. Name such a file.")
    if path.exists() and not force:
        raise ConfigError(
            f"The file is there already: `{path}`. Choose another name, or replace it with --force."
        )
