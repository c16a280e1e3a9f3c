"""`tessella serve`: how its options are read, and what it refuses before it serves."""

import builtins
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tessella.cli import app
from tessella.cli.serving import require_serving
from tessella.cli.settings_options import create_settings_group
from tessella.errors import ConfigError
from tessella.serving import server
from tessella.serving.middleware import API_KEYS_VARIABLE
from tessella.serving.settings import ServeSettings

KEY = "k" * 32


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the server is asked for; it ends at once."""
    asked: list[dict[str, Any]] = []

    def serve(models: Sequence[str], settings: ServeSettings, **more: Any) -> None:
        more.pop("tell")("http://127.0.0.1:7")
        asked.append({"models": models, "settings": settings, **more})

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.delenv(API_KEYS_VARIABLE, raising=False)
    return asked


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def refuse(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    return str(result.stderr)


def test_without_options(served: list[dict[str, Any]]) -> None:
    result = run()
    assert result.exit_code == 0
    assert "Serving at http://127.0.0.1:7 (the page) and http://127.0.0.1:7/v1" in result.stdout
    [asked] = served
    assert asked["models"] == ["scenes"]
    assert asked["settings"] == ServeSettings()
    assert list(asked["keys"]) == []
    assert asked["device"] == "auto"
    assert asked["precision"] == "auto"


def test_every_option(served: list[dict[str, Any]], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    result = run(
        "scenes", "s=stickers", "--host", "0.0.0.0", "--port", 0, "--api-keys", keys,
        "--allow-origin", "https://a.example", "--allow-origin", "https://b.example",
        "--allowed-host", "a.example", "--public-url", "https://a.example/x", "--log-prompts",
        "--response-format", "url", "--any-model", "--root-path", "/paint/",
        "--set", "serve.max_queue=70", "--set", "serve.batch_size=3", "--device", "cpu",
        "--precision", "int8",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    [asked] = served
    assert asked["models"] == ["scenes", "s=stickers"]
    assert asked["settings"] == ServeSettings(
        host="0.0.0.0", port=0, allow_origins=("https://a.example", "https://b.example"),
        allowed_hosts=("a.example",), public_url="https://a.example/x", log_prompts=True,
        max_queue=70, batch_size=3, response_format="url", any_model=True, root_path="/paint",
    )  # fmt: skip
    assert list(asked["keys"]) == [KEY]
    assert asked["device"] == "cpu"
    assert asked["precision"] == "int8"
    assert KEY not in result.stdout + result.stderr


def test_options_go_before_words_and_words_before_the_file(
    served: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        '[serve]\nport = 1\nmax_queue = 2\nmax_steps = 3\nhost = "localhost"\n'
        "log_prompts = true\n[transformer]\nwidth = 8\n"
    )
    run("--config", file, "--set", "serve.max_queue=40", "--set", "serve.port=5", "--port", 6)
    [asked] = served
    assert asked["settings"] == ServeSettings(
        port=6, max_queue=40, max_steps=3, host="localhost", log_prompts=True
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "serve.max_queu=1"), "did you mean `max_queue`"),
        (("--set", "serve.max_queue=0"), "max_queue"),
        (("--set", "serve.max_queue=many"), "max_queue"),
        (("--set", "serve.batch_size=17"), "batch_size"),
        (("--set", "train.steps=1"), "This command takes settings of the section `serve` only"),
        (("--set", "serve=1"), "This command takes settings of the section `serve` only: `serve`"),
        (("--set", "max_queue=1"), "max_queue"),
        (("--config", "/nothing.toml"), "/nothing.toml"),
        (("--host", "0.0.0.0"), "Anyone who can reach this address could paint: `0.0.0.0`"),
        (("--host", "[here]"), "brackets hold an IPv6 address, such as [::1]: `[here]`"),
        (("--root-path", "paint"), "a path is like /paint, of letters, digits and ._~-: `paint`"),
        (("--root-path", "/v1"), "the server's own addresses begin like that: `/v1`"),
        (("--response-format", "png"), "response_format"),
        (("--api-keys", "/nothing"), "Cannot read the API keys: `/nothing`"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], said: str, served: list[dict[str, Any]]
) -> None:
    assert said in refuse(*arguments)
    assert served == []


@pytest.mark.parametrize("port", [-1, 65536, "http"])
def test_ports_that_are_none(port: object, served: list[dict[str, Any]]) -> None:
    assert run("--port", port).exit_code == 2
    assert served == []


def test_keys_of_the_environment(
    served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(API_KEYS_VARIABLE, f"{KEY}, {'e' * 16}")
    file = tmp_path / "keys"
    file.write_text("f" * 20)
    assert run("--host", "0.0.0.0", "--api-keys", file).exit_code == 0
    assert list(served[0]["keys"]) == [KEY, "e" * 16, "f" * 20]
    monkeypatch.setenv(API_KEYS_VARIABLE, "too-short")
    said = refuse()
    assert "API key 1 must have at least 16 characters" in said
    assert "too-short" not in said


def test_insecure_is_said_by_name(served: list[dict[str, Any]]) -> None:
    assert run("--host", "0.0.0.0", "--insecure").exit_code == 0
    assert list(served[0]["keys"]) == []


def test_an_address_in_use() -> None:
    """It is said before a model is loaded: the model here does not exist."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refuse("no-such-model", "--port", port)
    assert said.startswith(f"Error: Cannot listen on `127.0.0.1`, port {port}: ")
    assert "Try another --port, or 0 for a free one." in said
    assert "no-such-model" in refuse("no-such-model", "--port", 0)
    said = refuse("--host", "256.1.1.1", "--insecure")
    assert said.startswith("Error: Cannot listen on `256.1.1.1`, port 8000: ")


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_package_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == missing:
            raise ImportError(f"No module named '{name}'", name=name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf"`{missing}`.*pip install 'tessella\[serve\]'"):
        require_serving()


def test_sections(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"

    def read(text: str, *words: str) -> Mapping[str, Any]:
        file.write_text(text)
        options = create_settings_group("serve", ServeSettings, ("port",))()
        changes: Mapping[str, Any] = options.read_changes(file, words)
        return changes

    assert read("") == {}
    assert read("[other]\na = 1\n") == {}
    assert read("[serve]\nport = 1\n", "serve.port=2") == {"port": 2}
    for text, words in (("serve = 1\n", ()), ("", ("other.a=1",)), ("", ("serve=1",))):
        with pytest.raises(ConfigError, match="This command takes settings of the section `serve`"):
            read(text, *words)
