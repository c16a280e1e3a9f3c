"""One section of settings, from a file and from `--set`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tessella.errors import ConfigError


def read_section(
    section: str, config_file: Path | None, assignments: Sequence[str], *, what: str, example: str
) -> dict[str, Any]:
    """Reads the settings of a section of a file, and single ones of it, which win.

    Args:
        section: its name.
        config_file: a TOML file; its other sections are not looked at.
        assignments: SECTION.KEY=VALUE, of this section alone.
        what: who takes them, for a message.
        example: of an assignment, for a message.

    Raises:
        ConfigError: the file is unreadable, or a word sets something else.
    """
    from tessella.config import merge, parse_assignments, read_config

    from_file = read_config(config_file).get(section, {}) if config_file else {}
    from_words = parse_assignments(assignments)
    foreign = [name for name in from_words if name != section]
    own = from_words.get(section, {})
    if foreign or not isinstance(own, Mapping) or not isinstance(from_file, Mapping):
        got = foreign[0] if foreign else section
        raise ConfigError(
            f"{what} takes settings of the section `{section}` alone: `{got}`. For example "
            f"--set {example}"
        )
    return merge(from_file, own)
