"""Every file in configs/ is a valid recipe and says what it is for."""

import re
import shlex
from pathlib import Path

import pytest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FACTS = ("command", "hardware", "time", "score")


def config_files() -> list[Path]:
    return sorted(CONFIGS.rglob("*.toml"))


def header_facts(text: str) -> dict[str, str]:
    """Reads the `# name: value` lines of the comment that a file opens with.

    A line that is no new fact goes on with the one before it.
    """
    facts: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        words = line.removeprefix("#").strip()
        name, colon, value = words.partition(":")
        if colon and name.lower() in FACTS:
            current = name.lower()
            facts[current] = value.strip()
        elif current and words:
            facts[current] = f"{facts[current].removesuffix(chr(92)).strip()} {words}".strip()
        else:
            current = ""
    return facts


def test_there_are_configs() -> None:
    assert config_files()


@pytest.mark.parametrize("path", config_files(), ids=lambda p: p.stem)
def test_it_is_a_valid_recipe(path: Path) -> None:
    from tessella.training.recipe import Recipe, resolve_recipe

    assert isinstance(resolve_recipe(config_file=path), Recipe)


@pytest.mark.parametrize("path", config_files(), ids=lambda p: p.stem)
def test_it_opens_with_command_hardware_time_score(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "the first line says what the file is for"
    facts = header_facts(text)
    assert facts.keys() == set(FACTS)
    for name, value in facts.items():
        assert value, f"`{name}` is empty"
        assert not re.search(r"\b(todo|tbd|fixme|xxx)\b|\?\?", value, re.IGNORECASE)
    words = shlex.split(facts["command"])
    assert "tessella" in [Path(word).name for word in words], facts["command"]
    assert any(Path(word).name == path.name for word in words), "the command names this file"
    assert re.search(r"\d", facts["time"]), "the time is a number with its unit"


def test_a_header_is_read() -> None:
    text = (
        "# A model of scenes.\n"
        "#\n"
        "# Command: tessella fit scenes:1000 \\\n"
        "#     --config configs/a.toml\n"
        "# Hardware: 2 cores\n"
        "# Time: 9 minutes\n"
        "# Score: 90 %, see results\n"
        "\n"
        "# Time: not the header any more\n"
        "seed = 1\n"
    )
    assert header_facts(text) == {
        "command": "tessella fit scenes:1000 --config configs/a.toml",
        "hardware": "2 cores",
        "time": "9 minutes",
        "score": "90 %, see results",
    }
