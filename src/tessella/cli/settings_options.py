"""Settings on the command line: an option for each, `--set` and `--config`.

Name, type, choices, limits and help of an option are those of the settings class. pydantic refuses
a value when all settings are known, unless the group leaves whole numbers to typer.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from tessella.errors import ConfigError

if TYPE_CHECKING:
    from tessella.config import Settings

_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@functools.cache
def create_settings_group(
    kind: type["Settings"], names: tuple[str, ...], *, default: str | None = None
) -> type:
    """Creates a group with an option for each setting; one that is left out has the value None.

    Args:
        kind: the settings class.
        names: those with an option.
        default: what applies to an option that is left out, in words. Unless given it is the
            class's own default, and typer refuses a whole number out of range as wrong usage.
    """
    options = [
        (name, _declare_option(name, kind.model_fields[name], default), None) for name in names
    ]
    return dataclasses.make_dataclass(f"{kind.__name__}Options", options)


def _declare_option(name: str, field: Any, default: str | None) -> Any:
    """Declares the option of a setting."""
    kind, metavar = _read_type(name, field.annotation)
    limits = {
        key: getattr(limit, key)
        for limit in field.metadata
        for key in _LIMITS
        if hasattr(limit, key)
    }
    typer_checks = kind is int and default is None  # and shows the range
    sentences = field.description.split()
    if limits and not typer_checks:
        words = ", ".join(f"{_LIMITS[key]} {value:g}" for key, value in limits.items())
        sentences.append(f"{words.capitalize()}.")
    if kind == list[str]:
        name = name.removesuffix("s")
        sentences.append("Can be repeated.")
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=metavar,
        help=" ".join(sentences),
        show_default=default or (str(field.default) if field.default else False),
        min=limits.get("ge") if typer_checks else None,
        max=limits.get("le") if typer_checks else None,
    )
    return Annotated[kind | None, option]


def _read_type(name: str, annotation: Any) -> tuple[Any, str | None]:
    """Returns the type that typer parses, and what the help calls a value."""
    noun = name.rpartition("_")[2].upper()
    if get_origin(annotation) is Literal:
        return str, "|".join(get_args(annotation))
    if get_origin(annotation) is tuple:
        return list[str], noun.removesuffix("S")
    # `int | None` is an int that may be left out, as every option may.
    kind = next(kind for kind in (*get_args(annotation), annotation) if kind is not NoneType)
    return kind, {bool: None, int: "NUMBER", float: "NUMBER"}.get(kind, noun)


def read_changes(
    section: str,
    config_file: Path | None,
    assignments: Sequence[str] | None,
    options: Any,
    *,
    activity: str,
    example: str,
) -> dict[str, Any]:
    """Reads the settings that differ from the default: options, else `--set`, else `--config`.

    Args:
        section: the only section that the assignments may name; others of the file are ignored.
        config_file: the value of `--config`.
        assignments: the values of `--set`.
        options: the values of a settings group.
        activity: what the settings configure, for the message.
        example: an assignment, for the message.

    Raises:
        ConfigError: the file is unreadable, or an assignment sets something else.
    """
    from tessella.config import merge, parse_assignments, read_config

    from_file = read_config(config_file).get(section, {}) if config_file else {}
    assigned = parse_assignments(assignments or ())
    foreign = [name for name in assigned if name != section]
    changes = assigned.get(section, {})
    if foreign or not isinstance(changes, Mapping) or not isinstance(from_file, Mapping):
        got = foreign[0] if foreign else section
        raise ConfigError(
            f"{activity} takes settings of the section `{section}` only: `{got}`. For example "
            f"--set {example}"
        )
    values = dataclasses.asdict(options)
    given = {name: value for name, value in values.items() if value is not None}
    return merge(from_file, changes) | given
