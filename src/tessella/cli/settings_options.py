"""Settings on the command line: an option for each, `--set` and `--config`.

Name, type, choices, limits and help of an option are those of the settings class. pydantic refuses
a value when all settings are known, unless the group leaves whole numbers to typer.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_origin

import typer

from tessella.errors import ConfigError

if TYPE_CHECKING:
    from tessella.config import Settings

_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclasses.dataclass(frozen=True)
class SettingsGroup:
    """The options of a section of settings; one that is left out has the value None."""

    section: ClassVar[str]

    def read_changes(
        self, config_file: Path | None, assignments: Sequence[str] | None
    ) -> dict[str, Any]:
        """Reads the settings that differ from the default: options, else `--set`, else `--config`.

        Args:
            config_file: the value of `--config`; other sections of the file are ignored.
            assignments: the values of `--set`, which may name no other section.

        Raises:
            ConfigError: the file is unreadable, or an assignment sets something else.
        """
        from tessella.config import merge, parse_assignments, read_config

        section = self.section
        from_file = read_config(config_file).get(section, {}) if config_file else {}
        assigned = parse_assignments(assignments or ())
        foreign = [name for name in assigned if name != section]
        changes = assigned.get(section, {})
        if foreign or not isinstance(changes, Mapping) or not isinstance(from_file, Mapping):
            got = foreign[0] if foreign else section
            raise ConfigError(
                f"This command takes settings of the section `{section}` only: `{got}`. For "
                f"example --set {section}.{dataclasses.fields(self)[0].name}=VALUE"
            )
        values = dataclasses.asdict(self)
        given = {name: value for name, value in values.items() if value is not None}
        return merge(from_file, changes) | given


@functools.cache
def create_settings_group(
    section: str, kind: type["Settings"], names: tuple[str, ...], *, default: str | None = None
) -> Any:
    """Creates a `SettingsGroup` with an option for each setting.

    Args:
        section: the name of the settings' section.
        kind: the settings class.
        names: those with an option.
        default: what applies to an option that is left out, in words. Unless given it is the
            class's own default, and typer refuses a whole number out of range as wrong usage.
    """
    options = [
        (name, _declare_option(name, kind.model_fields[name], default), None) for name in names
    ]
    return dataclasses.make_dataclass(
        f"{kind.__name__}Options",
        options,
        bases=(SettingsGroup,),
        namespace={"section": section},
        frozen=True,
    )


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
    word = name.replace("_", "-")
    is_open = kind is bool and field.default is None  # neither on nor off unless given
    option = typer.Option(
        f"--{word}/--no-{word}" if is_open else f"--{word}",
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
