"""Settings: typed, frozen, validated; from TOML files and `--set section.key=value`.

Each part of tessella keeps its `Settings` beside the class that they configure;
`training/recipe.py` joins them. The docstring under a setting is its help and its reference.
"""

import difflib
import functools
import logging
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tessella.errors import ConfigError
from tessella.untrusted import parse_json

S = TypeVar("S", bound="Settings")

_NEW_NAMES = {"start_from": "init_from"}
"""Settings that were renamed: old name → new name. The old one is still read."""


class Settings(BaseModel):
    """Base of every group of settings: frozen, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, values: Any) -> Any:
        is_table = isinstance(values, Mapping)
        return _with_new_names(values, cls.model_fields) if is_table else values

    def replace(self, **changes: Any) -> Self:
        """Returns a validated copy with some settings changed."""
        return build(type(self), self.model_dump() | changes)


def _with_new_names(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Renames settings that have an old name, if the new one is known and not there too."""
    renamed = dict(values)
    for old, new in _NEW_NAMES.items():
        if old in renamed and new in known and new not in renamed:
            _warn_of_old_name(old, new)
            renamed[new] = renamed.pop(old)
    return renamed


@functools.cache
def _warn_of_old_name(old: str, new: str) -> None:
    """Says once that a setting has another name now."""
    logging.getLogger("tessella").warning("Setting `%s` is now called `%s`.", old, new)


def build(kind: type[S], values: Mapping[str, Any]) -> S:
    """Validates plain values into settings.

    Args:
        kind: the settings class.
        values: nested plain values, as TOML gives them.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range; the message names
            it, or the nearest known one.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        errors = error.errors()
        # For a wrong item pydantic also calls its whole list too short.
        wholes = {e["loc"][:depth] for e in errors for depth in range(len(e["loc"]))}
        parts = [e for e in errors if e["loc"] not in wholes]
        raise ConfigError("\n".join(_explain(kind, e) for e in parts)) from None


def _explain(kind: type[Settings], error: Any) -> str:
    """Puts a pydantic error into tessella's words."""
    names = setting_names(kind)
    # A member of a union adds its tag to the path, which is not the name of a setting.
    path: list[str] = []
    for depth, part in enumerate(error["loc"], start=1):
        known = any(n.startswith(".".join([*path, str(part)])) for n in names)
        unknown = error["type"] == "extra_forbidden" and depth == len(error["loc"])
        if not path or known or unknown or isinstance(part, int):
            path.append(str(part))
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        if name in names:
            part = name.rpartition(".")[0]
            return (
                f"Setting `{name}` belongs to another kind of `{part}`. "
                f"Leave it out, or choose that kind by `{part}.name`."
            )
        near = _nearest(name, names)
        hint = f"; did you mean `{near}`?" if near else f". Known settings: {', '.join(names)}."
        return f"Unknown setting `{name}`{hint}"
    what = f"Setting `{name}`" if name else "Settings"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    # For a whole section the message says what matters; listing its settings would bury it.
    is_section = not name or any(n.startswith(f"{name}.") for n in names)
    got = f" got: `{error['input']}`;"
    if error["type"] == "missing" or (is_section and error["type"] == "value_error"):
        got = ""
    return f"{what}:{got} {message}."


def _nearest(name: str, names: list[str]) -> str | None:
    """Finds the setting that an unknown name means: one without its section, or misspelt."""
    same_depth = [".".join(n.split(".")[: name.count(".") + 1]) for n in names]
    near = [n for n in names if n.endswith(f".{name}")]
    near = near or difflib.get_close_matches(name, same_depth, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return near[0] if near else None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested values into flat ones, named by their path: `a.b.c`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def changed_settings(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Compares nested values: the dotted name of each that differs, with both values.

    A value that one side lacks is None.
    """
    old, new = flatten(before), flatten(after)
    pairs = {name: (old.get(name), new.get(name)) for name in old | new}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def setting_names(kind: type[Settings], prefix: str = "") -> list[str]:
    """Lists the dotted names of all settings of a class, including those of nested sections."""
    names: list[str] = []
    for name, field in kind.model_fields.items():
        sections = _sections(field.annotation)
        inner = [n for section in sections for n in setting_names(section, f"{prefix}{name}.")]
        names += inner or [prefix + name]
    return list(dict.fromkeys(names))


def _sections(annotation: Any) -> Iterator[type[Settings]]:
    """Yields the settings classes in an annotation (a union has several)."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def read_config(path: Path) -> dict[str, Any]:
    """Reads a TOML or JSON file into plain nested values.

    Raises:
        ConfigError: the file is missing, or not of the format that its suffix says.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = parse_json(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"Cannot read the configuration: `{path}`. {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"The configuration must be a table of settings: `{path}`.")
    return values


def parse_assignments(assignments: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Turns single settings into nested values.

    Args:
        assignments: `section.key=value` words, each value read as TOML or else as text; or values
            by `section.key`, or already nested, as Python has them.

    Raises:
        ConfigError: a word has no `=` or no name.
    """
    pairs: Iterable[tuple[str, Any]] = map(_parse_assignment, assignments)
    if isinstance(assignments, Mapping):
        pairs = assignments.items()
    values: dict[str, Any] = {}
    for name, value in pairs:
        for part in reversed(str(name).split(".")):
            value = {part: value}
        values = merge(values, value)
    return values


def _parse_assignment(assignment: str) -> tuple[str, Any]:
    name, equals, text = assignment.partition("=")
    if not equals or not name.strip():
        raise ConfigError(
            f"A setting is written section.key=value: `{assignment}`. "
            "For example --set transformer.depth=8"
        )
    try:
        return name.strip(), tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # TOML's own error, or a number of 5,000 digits
        return name.strip(), text.strip()


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lays one nested table over another; where both have a value, `over` wins.

    A section that comes in several kinds has a `name` that says which, or is that name alone. If
    `over` names another kind, the settings of the old kind are dropped.
    """
    new_names = _NEW_NAMES.values()
    merged = _with_new_names(base, new_names)
    for key, value in _with_new_names(over, new_names).items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping):
            old = {"name": old} if isinstance(old, str) else old
            is_other_kind = (
                isinstance(old, Mapping)
                and {"name"} <= old.keys() & value.keys()
                and old["name"] != value["name"]
            )
            if isinstance(old, Mapping) and not is_other_kind:
                value = merge(old, value)
        merged[key] = value
    return merged
