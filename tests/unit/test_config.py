"""Settings: what is wrong with them is said with the setting's name and the nearest known one."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from tessella import config
from tessella.config import (
    Settings,
    build,
    changed_settings,
    merge,
    parse_assignments,
    read_config,
    setting_names,
)
from tessella.errors import ConfigError


class Inner(Settings):
    depth: int = Field(4, ge=1)
    """How deep."""
    widths: tuple[Annotated[int, Field(ge=16)], ...] = Field((16,), min_length=1)
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _even(self) -> "Inner":
        if self.depth % 2:
            raise ValueError(f"The depth must be even, not {self.depth}")
        return self


class Cat(Settings):
    name: Literal["cat"] = "cat"
    lives: int = 9


class Dog(Settings):
    name: Literal["dog"] = "dog"
    bark: float = 1.0


class Outer(Settings):
    network: Inner = Inner()
    animal: Annotated[Cat | Dog, Field(discriminator="name")] = Cat()
    seed: int = 0


def refusal(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        build(Outer, values)
    return str(caught.value)


def test_settings_are_frozen_and_described() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().depth = 6  # type: ignore[misc]
    assert Inner.model_fields["depth"].description == "How deep."


def test_all_names() -> None:
    assert setting_names(Outer) == [
        "network.depth",
        "network.widths",
        "network.workers",
        "animal.name",
        "animal.lives",
        "animal.bark",
        "seed",
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"sead": 1}, "Unknown setting `sead`; did you mean `seed`?"),
        ({"netwerk": {"depth": 2}}, "Unknown setting `netwerk`; did you mean `network`?"),
        ({"lives": 7}, "Unknown setting `lives`; did you mean `animal.lives`?"),
        # A misspelt setting in a section that exists once lost its name:
        # "Unknown setting `network`; did you mean `network.depth`?"
        (
            {"network": {"depht": 8}},
            "Unknown setting `network.depht`; did you mean `network.depth`?",
        ),
        (
            {"network": {"dep": 8}},  # a beginning of a known name
            "Unknown setting `network.dep`; did you mean `network.depth`?",
        ),
        (
            {"animal": {"name": "dog", "barc": 2}},
            "Unknown setting `animal.barc`; did you mean `animal.bark`?",
        ),
        (
            {"zzzzzzzz": 1},
            "Unknown setting `zzzzzzzz`. Known settings: network.depth, network.widths, "
            "network.workers, animal.name, animal.lives, animal.bark, seed.",
        ),
        (
            {"network": {"depth": 0}},
            "Setting `network.depth`: got: `0`; input should be greater than or equal to 1.",
        ),
        (
            # One wrong item made pydantic say also that the list is too short.
            {"network": {"widths": [15]}},
            "Setting `network.widths.0`: got: `15`; input should be greater than or equal to 16.",
        ),
        (
            {"network": {"depth": 3}},
            "Setting `network`: the depth must be even, not 3.",
        ),
        (
            {"animal": {"name": "dog", "bark": "loud"}},
            "Setting `animal.bark`: got: `loud`; input should be a valid number, unable to parse "
            "string as a number.",
        ),
        (
            {"network": {"workers": 0}},
            "Setting `network.workers`: got: `0`; input should be greater than or equal to 1.\n"
            "Setting `network.workers`: got: `0`; input should be 'auto'.",
        ),
    ],
)
def test_refusals(values: dict[str, object], expected: str) -> None:
    assert refusal(**values) == expected


def test_an_unknown_choice_names_the_known_ones() -> None:
    message = refusal(animal={"name": "cow"})
    assert message.startswith("Setting `animal`: got: `{'name': 'cow'}`;")
    assert "'cat', 'dog'" in message


def test_an_old_name_is_read_and_its_new_one_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(config, "_NEW_NAMES", {"size": "depth", "bark": "lives"})
    config._warn_of_old_name.cache_clear()
    for _ in range(2):
        assert build(Outer, {"network": {"size": 8}}).network.depth == 8
    assert caplog.messages == ["Setting `size` is now called `depth`."]
    # With both names nobody can say which one counts; and a name that is in use is not an old one.
    assert "Unknown setting `network.size`" in refusal(network={"size": 8, "depth": 8})
    assert build(Outer, {"animal": {"name": "dog", "bark": 2}}).animal.bark == 2


def test_changed_settings_are_named_with_both_values() -> None:
    before = {"seed": 1, "network": {"depth": 2, "widths": [16]}, "old": 3}
    after = {"seed": 1, "network": {"depth": 4, "widths": [16]}, "new": {"a": 0}}
    assert changed_settings(before, after) == {
        "network.depth": (2, 4),
        "old": (3, None),
        "new.a": (None, 0),
    }


def test_every_mistake_is_told() -> None:
    assert len(refusal(sead=1, network={"depth": 0}).splitlines()) == 2


def test_replace_checks_what_it_changes() -> None:
    assert Inner(widths=(32, 64)).replace(depth=6) == Inner(depth=6, widths=(32, 64))
    with pytest.raises(ConfigError, match="`depth`: got: `-2`"):
        Inner().replace(depth=-2)
    with pytest.raises(ConfigError, match="Unknown setting `depht`; did you mean `depth`"):
        Inner().replace(depht=2)


# `section.key=value`.


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("network.depth=8", {"network": {"depth": 8}}),
        ("a.b.c=1.5", {"a": {"b": {"c": 1.5}}}),
        ("a=true", {"a": True}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ('a="x = y"', {"a": "x = y"}),
        ("a=latent_mse", {"a": "latent_mse"}),
        ("a=x=y", {"a": "x=y"}),
        (" a.b = 3", {"a": {"b": 3}}),
        ("a=", {"a": ""}),
    ],
)
def test_assignments(word: str, expected: dict[str, object]) -> None:
    assert parse_assignments([word]) == expected


def test_assignments_are_joined_and_the_later_wins() -> None:
    words = ["a.b=1", "a.c=2", "a.b=3"]
    assert parse_assignments(words) == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize("word", ["network.depth", "=8", "  =8", ""])
def test_a_word_that_is_no_assignment(word: str) -> None:
    with pytest.raises(ConfigError, match=r"written section\.key=value: `.*--set transformer"):
        parse_assignments([word])


# Tables over tables.

TABLES = st.recursive(
    st.integers(0, 9),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict))


@given(TABLES, TABLES)
def test_what_is_laid_over_wins_and_the_rest_stays(base: dict, over: dict) -> None:
    def leaves(table: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
        found = {}
        for key, value in table.items():
            inner = leaves(value, (*path, key)) if isinstance(value, dict) else None
            found |= inner if inner is not None else {(*path, key): value}
        return found

    before = repr(base)
    merged = leaves(merge(base, over))
    assert repr(base) == before
    assert leaves(over).items() <= merged.items()
    for path, value in leaves(base).items():
        hidden = any(
            path[: len(other)] == other or other[: len(path)] == path for other in leaves(over)
        )
        if not hidden and not _replaced_by_empty(over, path):
            assert merged[path] == value


def _replaced_by_empty(over: dict, path: tuple[str, ...]) -> bool:
    """An empty table over a value takes its place without a leaf of its own."""
    for place, key in enumerate(path):
        if key not in over:
            return False
        over = over[key]
        if not isinstance(over, dict):
            return True
        if place == len(path) - 1:
            return True
    return False


# Files.


def test_toml_and_json(tmp_path: Path) -> None:
    toml, json = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text("seed = 3\n[network]\ndepth = 8\n")
    json.write_text('{"seed": 3, "network": {"depth": 8}}')
    assert read_config(toml) == read_config(json) == {"seed": 3, "network": {"depth": 8}}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", b"seed = = 3", "Cannot read the configuration: `.*a.toml`"),
        ("a.json", b"{", "Cannot read the configuration: `.*a.json`"),
        ("a.toml", b"\xff\xfe", "Cannot read the configuration: `.*a.toml`"),
        ("a.json", b"[1]", "must be a table of settings: `.*a.json`"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_config(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`.*nowhere.toml`\. .*No such file"):
        read_config(tmp_path / "nowhere.toml")


def test_another_kind_leaves_the_old_one_s_settings_behind() -> None:
    old = {"part": {"name": "a", "size": 3}}
    assert merge(old, {"part": {"name": "b"}}) == {"part": {"name": "b"}}
    assert merge(old, {"part": {"name": "a", "depth": 1}}) == {
        "part": {"name": "a", "size": 3, "depth": 1}
    }
    assert merge(old, {"part": {"size": 4}}) == {"part": {"name": "a", "size": 4}}
    # A name may stand for the part, before or after its settings.
    assert merge(old, {"part": "b"}) == {"part": {"name": "b"}}
    assert merge({"part": "b"}, {"part": {"depth": 1}}) == {"part": {"name": "b", "depth": 1}}
    assert merge({"part": {"depth": 1}}, {"part": "b"}) == {"part": {"name": "b", "depth": 1}}
