"""What the pages say is true: code runs, commands parse, links lead somewhere, references fit."""

import configparser
import importlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
import yaml
from PIL import Image
from pydantic import Field
from typer.testing import CliRunner

from tessella.config import Settings

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
SHELLS = ("sh", "bash", "shell", "console")


def pages() -> list[Path]:
    """All pages that people write; generated references and results are checked elsewhere."""
    found = [
        *REPOSITORY.glob("*.md"),
        *DOCS.rglob("*.md"),
        *(REPOSITORY / "examples").rglob("*.md"),
        *(REPOSITORY / "configs").rglob("*.md"),
        REPOSITORY / "benchmarks" / "README.md",
    ]
    return sorted(page for page in found if DOCS / "reference" not in page.parents)


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def load_build_reference() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("build_reference", DOCS / "build_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    # As when it is run: it imports a file beside it.
    sys.path.insert(0, str(DOCS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DOCS))
    return module


# --- reading pages --------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str  # the first word after the fence, "" for none
    text: str  # its lines, without the fence and its indentation
    line: int  # where it begins, for messages


def blocks(text: str) -> list[Block]:
    """Finds the fenced blocks of a page."""
    found = []
    pattern = r"^( *)```([^\n`]*)\n(.*?)^\1```[ \t]*$"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        indent, info, body = match.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        language = (info.split() or [""])[0]
        found.append(Block(language, "\n".join(lines), text[: match.start()].count("\n") + 1))
    return found


def without_blocks(text: str) -> str:
    """A page without its fenced blocks: prose."""
    return re.sub(r"^( *)```.*?^\1```[ \t]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def shell_commands(block: Block) -> Iterator[list[str]]:
    """The commands of a shell block, one list of words each."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        line = line.strip()
        if block.language == "console":
            if not line.startswith("$ "):
                continue  # what a command printed
            line = line.removeprefix("$ ")
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("|&;<>"):
                yield words
                words = []
            else:
                words.append(word)
        yield words


def tessella_arguments(words: list[str]) -> list[str] | None:
    """What a command passes to tessella, or None when it runs something else.

    `tessella …`, `.venv/bin/tessella …`, `python -m tessella …`, and the same under torchrun,
    accelerate, time or an environment variable.
    """
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return None
    for at, word in enumerate(words):
        by_module = at > 0 and words[at - 1] == "-m" and word == "tessella"
        by_name = Path(word).name == "tessella" and (at == 0 or words[0] in ("time", "nice"))
        if by_module or by_name:
            return words[at + 1 :]
    return None


def commands_of(page: Path) -> list[tuple[str, list[str]]]:
    """The tessella commands of a page's shell blocks: for the message, and as words."""
    found = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language in SHELLS:
            for words in shell_commands(block):
                arguments = tessella_arguments(words)
                if arguments is not None:
                    found.append((f"{name_of(page)}:{block.line}: {shlex.join(words)}", arguments))
    return found


def mentions_of(page: Path) -> list[tuple[str, list[str]]]:
    """The tessella commands that a page's prose mentions in backticks; they may be partial."""
    found = []
    prose = without_blocks(page.read_text(encoding="utf-8"))
    for span in re.findall(r"`(tessella [^`]+)`", prose):
        words = span.replace("…", " ").replace("[", " ").replace("]", " ").split()[1:]
        found.append((f"{name_of(page)}: {span}", words))
    return found


# --- the command line -----------------------------------------------------------------------


def command_faults(arguments: list[str], *, whole: bool) -> list[str]:
    """Says what the command line would refuse in some words.

    Args:
        arguments: the words after `tessella`.
        whole: a command that can be run as it stands: its required values are there too.
    """
    build_reference = load_build_reference()
    app = build_reference.find_app(importlib.import_module("tessella.cli"))
    return parse_faults(typer.main.get_command(app), arguments, whole=whole)


def parse_faults(command: Any, arguments: list[str], *, whole: bool) -> list[str]:
    """The same for any command; values are not looked at, so that no file has to exist."""
    context = typer.Context(command, info_name="tessella")
    inner = getattr(command, "commands", None)
    if inner is not None:
        own = [word for word in arguments[:1] if word.startswith("-")]
        if own or not arguments:
            known = {name for param in command.get_params(context) for name in param.opts}
            return [f"no such option: {word}" for word in own if word.split("=")[0] not in known]
        if arguments[0] not in inner:
            return [f"no such command: {arguments[0]}"]
        return parse_faults(inner[arguments[0]], arguments[1:], whole=whole)
    params = command.get_params(context)
    if not whole:
        known = {name for param in params for name in [*param.opts, *param.secondary_opts]}
        words = [word.split("=")[0] for word in arguments if re.match(r"--?[a-z]", word)]
        return [f"no such option: {word}" for word in words if word not in known]
    try:
        values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    except Exception as error:  # noqa: BLE001 — the question is whether the parser refuses it
        return [getattr(error, "message", str(error))]
    if {"--help"} & set(arguments):
        return []
    faults = [f"unexpected: {word}" for word in rest]
    for param in params:
        if param.required and not values.get(param.name):
            faults.append(f"missing: {param.name}")
    return faults


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_command_of_a_page_parses(page: Path) -> None:
    faults = [
        f"{where}: {fault}"
        for whole, found in ((True, commands_of(page)), (False, mentions_of(page)))
        for where, arguments in found
        for fault in command_faults(arguments, whole=whole)
    ]
    assert not faults


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_make_target_of_a_page_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = [
        line
        for block in blocks(text)
        if block.language in SHELLS
        for line in block.text.split("\n")
    ]
    lines += re.findall(r"`(make [^`]+)`", without_blocks(text))
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for line in lines:
        found = re.match(r"(?:\$ )?make ([a-z-]+)\b", line)
        if found:
            assert found.group(1) in targets, line


def stand_in() -> typer.Typer:
    app = typer.Typer(help="A stand-in.")

    @app.command()
    def generate(prompt: list[str], seed: int = 0, json: bool = False) -> None:
        """Paints."""

    @app.command()
    def doctor(data: str) -> None:
        """Looks."""

    return app


@pytest.mark.parametrize(
    ("line", "whole", "refused"),
    [
        ("generate 'a red circle' --seed 7", True, False),
        ("generate 'a red circle' --json --seed=7", True, False),
        ("generate --help", True, False),
        ("--help", True, False),
        ("generate a --sead 7", True, True),
        ("generate --seed 7", True, True),
        ("generate a --seed", True, True),
        ("doctor a b", True, True),
        ("paint a", True, True),
        ("--versoin", True, True),
        ("generate --seed", False, False),
        ("generate --json --sead", False, True),
    ],
)
def test_the_parser_refuses_what_the_command_line_refuses(
    line: str, whole: bool, refused: bool
) -> None:
    command = typer.main.get_command(stand_in())
    assert bool(parse_faults(command, shlex.split(line), whole=whole)) is refused


def test_commands_are_found_in_shell_blocks() -> None:
    text = (
        "```sh\n"
        "make demo  # paints\n"
        "tessella fit data \\\n"
        "    --out run && tessella serve run/model\n"
        "OMP_NUM_THREADS=2 python -m tessella doctor data | head\n"
        "torchrun --nproc-per-node 2 -m tessella fit data\n"
        "cd src/tessella\n"
        "```\n"
        "```console\n"
        "$ tessella --help\n"
        "Usage: tessella [OPTIONS]\n"
        "```\n"
    )
    found = [
        arguments
        for block in blocks(text)
        for words in shell_commands(block)
        if (arguments := tessella_arguments(words)) is not None
    ]
    assert found == [
        ["fit", "data", "--out", "run"],
        ["serve", "run/model"],
        ["doctor", "data"],
        ["fit", "data"],
        ["--help"],
    ]


# --- code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_python_block_compiles(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            compile(block.text, f"{name_of(page)}:{block.line}", "exec")


# What the README trains in twenty minutes, in seconds.
README_DATA = ("scenes:20000", "scenes:300")
README_LENGTH = ["--minutes", "20"]
SHORT_LENGTH = [
    word
    for setting in (
        "data.workers=1",
        "tokenizer.widths=[16,16]",
        "tokenizer_training.images=320",
        "transformer.width=32",
        "transformer.depth=2",
        "transformer_training.images=320",
    )
    for word in ("--set", setting)
]


def shorten_training(arguments: list[str]) -> list[str]:
    """Replaces the README's data and minutes by few pictures and a small model."""
    words = [README_DATA[1] if word == README_DATA[0] else word for word in arguments]
    if README_LENGTH[0] in words:
        start = words.index(README_LENGTH[0])
        assert words[start : start + 2] == README_LENGTH
        words[start : start + 2] = SHORT_LENGTH
    return words


def test_the_readme_runs_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its order, so that no line reads a file that no line before it has written."""
    from tessella.cli import app

    monkeypatch.setattr("tessella.evaluation.model._SCENE_PROMPTS", 8)  # instead of 500
    monkeypatch.chdir(tmp_path)
    readme = blocks((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    [shell] = [b for b in readme if b.language == "sh" and "tessella fit" in b.text]
    commands = [tessella_arguments(words) for words in shell_commands(shell)]
    assert [words[0] for words in commands if words] == [
        *("doctor", "fit", "generate", "edit", "vary", "score", "reconstruct", "evaluate"),
        "report",
    ]
    for arguments in commands:
        assert arguments, "every line of the block is a command of tessella"
        words = shorten_training(arguments)
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, (words, result.stderr)
        if "--out" in words:
            out = Path(words[words.index("--out") + 1])
            assert out.is_dir() if words[0] == "fit" else size_of(out) >= (64, 64), words
    assert Path("runs/mine/report.html").stat().st_size > 100_000

    [python] = [b for b in readme if b.language == "python"]
    assert len([line for line in python.text.splitlines() if line.strip()]) <= 5
    for model in ("tessella.load()", 'tessella.load("runs/mine")'):
        Path("picture.png").unlink(missing_ok=True)
        run_python(python.text.replace("tessella.load()", model))
        assert size_of(Path("picture.png")) == (64, 64)

    # The other page that loads this run, and watches it paint; and asks for a size.
    paint = blocks((DOCS / "how-to" / "paint.md").read_text(encoding="utf-8"))
    watched, sized = (b.text for b in paint if b.language == "python")
    run_python(watched)
    assert size_of(Path("step-16-of-16.png")) == (64, 64)
    run_python(sized)
    assert size_of(Path("star.png")) == (1792, 1024)


def run_python(text: str) -> None:
    """Runs a block in this process, which has imported what it needs."""
    Path("block.py").write_text(text, encoding="utf-8")
    runpy.run_path("block.py")


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


# --- serving --------------------------------------------------------------------------------

SERVE_PAGE = DOCS / "how-to" / "serve.md"
DEPLOY_PAGE = DOCS / "how-to" / "deploy.md"
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server of the page's first command, on a free port; SIGTERM is a success for it."""
    _, arguments = commands_of(SERVE_PAGE)[0]
    assert arguments == ["serve", "scenes", "stickers"]
    with (tmp_path_factory.mktemp("serve") / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tessella", *arguments, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with server:
            assert server.stdout is not None
            try:
                shown = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
                assert shown
                yield shown.group()
            finally:
                server.terminate()
    assert server.returncode == 0


def run_page(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a block of the page: `python3` is this one, and curl fails when the server refuses."""
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n", encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CURL_HOME": str(folder)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def here(block: Block, address: str) -> str:
    return block.text.replace(ADDRESS, address)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_serve_page_runs(address: str, tmp_path: Path) -> None:
    found = blocks(SERVE_PAGE.read_text(encoding="utf-8"))
    curls = [b for b in found if b.language in SHELLS and ADDRESS in b.text]
    python = [b for b in found if b.language == "python"]
    assert len(curls) == 3
    assert len(python) == 4
    for block in curls:
        if block.language == "console":
            line, printed = here(block, address).split("\n", 1)
            done = run_page(["bash", "-c", line.removeprefix("$ ")], tmp_path)
            assert done.stdout == printed
            continue
        done = run_page(["bash", "-euo", "pipefail", "-c", here(block, address)], tmp_path)
        assert done.returncode == 0, (block.line, done.stdout, done.stderr)
    # As one program: later blocks use what earlier ones define.
    code = "\n".join(here(block, address) for block in python)
    done = run_page(["python3", "-W", "error", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    pictures = {path.name for path in tmp_path.glob("*.png")}
    partials = {f"star-{number}.png" for number in range(3)}
    assert pictures >= {"star.png", "star-7.png", "star-11.png", "edited.png", "variation-2.png"}
    assert pictures >= partials


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_serve_pages_javascript_runs(address: str, tmp_path: Path) -> None:
    found = blocks(SERVE_PAGE.read_text(encoding="utf-8"))
    [block] = [block for block in found if block.language == "js"]
    code = here(block, address) + "\nconsole.log(address.slice(0, 30));\n"
    done = run_page(["node", "--input-type=module", "--eval", code], tmp_path)
    assert done.stdout == "data:image/png;base64,iVBORw0K\n", done.stderr


def deploy_blocks(language: str) -> list[str]:
    found = blocks(DEPLOY_PAGE.read_text(encoding="utf-8"))
    return [block.text for block in found if block.language == language]


def test_the_systemd_unit_reads_and_starts_a_server() -> None:
    from tessella.serving.server import _LATE_SECONDS
    from tessella.serving.settings import ServeSettings

    [text] = deploy_blocks("ini")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    assert unit.sections() == ["Unit", "Service", "Install"]
    service = unit["Service"]
    arguments = tessella_arguments(shlex.split(service["ExecStart"]))
    assert arguments is not None
    assert not command_faults(arguments, whole=True)
    # The server reads the key file that systemd hands over.
    name, _, _ = service["LoadCredential"].partition(":")
    assert f"${{CREDENTIALS_DIRECTORY}}/{name}" in arguments
    assert service.getboolean("DynamicUser")
    latest = ServeSettings().shutdown_timeout_seconds + _LATE_SECONDS
    assert float(service["TimeoutStopSec"]) > latest


class Unready(BaseHTTPRequestHandler):
    """A server that is not ready at the first look."""

    statuses: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        self.statuses.append(200 if self.statuses and self.path == "/readyz" else 503)
        self.send_response(self.statuses[-1])
        self.end_headers()

    def log_message(self, *given: object) -> None:
        pass


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_systemd_unit_waits_for_its_server_as_long_as_it_lives() -> None:
    [text] = deploy_blocks("ini")
    [command] = re.findall(r"^ExecStartPost=(.+)$", text, re.MULTILINE)
    with ThreadingHTTPServer(("127.0.0.1", 0), Unready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        assert command.count("127.0.0.1:8000") == 1
        command = command.replace("127.0.0.1:8000", address)

        def wait_for(pid: int) -> int:
            variables = {**os.environ, "MAINPID": str(pid)}
            return subprocess.run(shlex.split(command), env=variables, timeout=60).returncode

        assert wait_for(os.getpid()) == 0
        assert Unready.statuses == [503, 200]
        server.shutdown()
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert wait_for(ended.pid) != 0


def test_models_have_the_same_time_to_load_everywhere() -> None:
    [unit] = deploy_blocks("ini")
    [systemd] = re.findall(r"^TimeoutStartSec=(\d+)$", unit, re.MULTILINE)
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    [container] = re.findall(r"--start-period=(\d+)s", dockerfile)
    text = (REPOSITORY / "deploy" / "kubernetes" / "server.yaml").read_text(encoding="utf-8")
    [pod] = next(yaml.safe_load_all(text))["spec"]["template"]["spec"]["containers"]
    probe = pod["startupProbe"]
    assert int(systemd) == int(container) == probe["periodSeconds"] * probe["failureThreshold"]


def test_nginx_and_the_server_agree_on_limits() -> None:
    from tessella.serving.settings import ServeSettings

    site, upstream, location = deploy_blocks("nginx")
    for text in (site, upstream, location):
        lines = [line.split("#")[0].strip() for line in text.splitlines()]
        assert all(line[-1] in "{};" for line in lines if line), text
        assert text.count("{") == text.count("}")
    [size] = re.findall(r"client_max_body_size (\d+)m;", site)
    assert int(size) * 2**20 < ServeSettings().max_body_bytes
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", site)
    assert int(seconds) > ServeSettings().request_timeout_seconds
    # A request that waited long before its replica died was once answered with 502.
    [seconds] = re.findall(r"proxy_next_upstream_timeout (\d+)s;", location)
    assert int(seconds) == ServeSettings().request_timeout_seconds
    [caddy] = deploy_blocks("caddy")
    [seconds] = re.findall(r"response_header_timeout (\d+)s", caddy)
    assert int(seconds) > ServeSettings().request_timeout_seconds


def test_the_container_starts_a_server() -> None:
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    words = [json.loads(part) for part in re.findall(r"^(?:ENTRYPOINT|CMD) (.+)$", text, re.M)]
    arguments = tessella_arguments([word for part in words for word in part])
    assert arguments is not None
    assert not command_faults(arguments, whole=True)


@pytest.mark.parametrize("models", ["", "/runs/photos scenes"])
def test_compose_starts_a_server(models: str) -> None:
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    [entry] = re.findall(r"^ENTRYPOINT (.+)$", text, re.M)
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services) == {"server", "gpu"}
    for service in services.values():
        command, count = re.subn(
            r"\$\{TESSELLA_MODELS:-(.+)\}", lambda found: models or found[1], service["command"]
        )
        assert count == 1
        arguments = tessella_arguments([*json.loads(entry), *shlex.split(command)])
        assert arguments is not None
        assert not command_faults(arguments, whole=True)


@pytest.mark.skipif(os.name == "nt", reason="the command is for sh")
@pytest.mark.parametrize("host", [None, "anna-paint.hf.space"])
def test_the_space_starts_a_server(host: str | None) -> None:
    text = (REPOSITORY / "spaces" / "Dockerfile").read_text(encoding="utf-8")
    [command] = re.findall(r"^CMD exec (tessella (?:.*\\\n)*.*)$", text, re.M)
    [models] = re.findall(r'^ENV MODELS="(.+)"$', text, re.M)
    variables = {"MODELS": models, **({"SPACE_HOST": host} if host else {})}
    script = "tessella() { printf '%s\\n' tessella \"$@\"; }\n" + command
    done = subprocess.run(
        ["sh", "-c", script], env=variables, capture_output=True, text=True, check=True, timeout=60
    )
    arguments = tessella_arguments(done.stdout.splitlines())
    assert arguments is not None
    assert not command_faults(arguments, whole=True)
    assert arguments[1:3] == models.split()
    assert arguments[arguments.index("--allowed-host") + 1] == (host or "localhost")
    assert (f"https://{host}" in arguments) == (host is not None)
    page = (REPOSITORY / "spaces" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(page.split("---\n")[1])
    assert header["sdk"] == "docker"
    assert header["app_port"] == int(arguments[arguments.index("--port") + 1])
    assert len(header["short_description"]) <= 60  # or the hub refuses it
    assert f"\nEXPOSE {header['app_port']}\n" in text


def test_kubernetes_starts_a_server_that_others_reach() -> None:
    from tessella.serving.settings import ServeSettings

    path = REPOSITORY / "deploy" / "kubernetes" / "server.yaml"
    deployment = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    [entry] = re.findall(r"^ENTRYPOINT (.+)$", dockerfile, re.MULTILINE)
    arguments = tessella_arguments([*json.loads(entry), *container["args"]])
    assert arguments is not None
    assert not command_faults(arguments, whole=True)
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"
    name, _, value = arguments[arguments.index("--set") + 1].partition("=")
    assert name == "serve.max_queue"
    port = ServeSettings(max_queue=int(value)).port
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    # The key file is mounted where the option says.
    [keys] = [volume for volume in pod["volumes"] if volume["name"] == "keys"]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
    [item] = keys["secret"]["items"]
    assert mount["subPath"] == item["path"]  # or a new key reaches the hook, not the server
    assert arguments[arguments.index("--api-keys") + 1] == mount["mountPath"]


def test_alerts_are_about_metrics_that_exist() -> None:
    from tessella.serving.metrics import ServerMetrics

    metrics = ServerMetrics()
    # A metric with labels has no series before the first count.
    metrics.requests.labels("/", "200")
    metrics.pictures.labels("scenes")
    metrics.seconds.labels("request")
    known = set(re.findall(r"^\w+", metrics.render().decode(), re.MULTILINE))
    known |= {name.removesuffix("_count") for name in known}
    text = DEPLOY_PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"\btessella_\w+", text))
    assert len(named) >= 5
    assert named <= known


# --- links ----------------------------------------------------------------------------------


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures, those written in HTML included."""
    prose = re.sub(r"`[^`\n]*`", "", without_blocks(text))
    found = re.findall(r"\]\(<?([^()\s<>]+)>?(?:\s+\"[^\"]*\")?\)", prose)
    found += re.findall(r"<(?:img|a|source)\b[^>]*?\b(?:src|href|srcset)=\"([^\"]+)\"", prose)
    found += re.findall(r"^\[[^\]]+\]:\s+(\S+)", prose, re.MULTILINE)
    return found


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_blocks(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(f"{slug}-{number}" if number else slug)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def link_fault(page: Path, target: str) -> str:
    """Says why a link leads nowhere; "" when it leads somewhere or out of the repository."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return ""
    path_text, _, anchor = target.partition("#")
    path = (page.parent / path_text).resolve() if path_text else page
    if not path.exists():
        return f"{name_of(page)}: no such file: `{target}`"
    if not path.is_relative_to(REPOSITORY):
        return f"{name_of(page)}: outside of the repository: `{target}`"
    if not anchor or path.suffix != ".md":
        return ""
    known = anchors(path.read_text(encoding="utf-8"))
    return "" if anchor in known else f"{name_of(page)}: no such heading: `{target}`"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    faults = [fault for target in links(text) if (fault := link_fault(page, target))]
    assert not faults


def test_the_index_of_docs_names_every_page() -> None:
    index = DOCS / "README.md"
    targets = links(index.read_text(encoding="utf-8"))
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in targets}
    missing = [name_of(page) for page in DOCS.rglob("*.md") if page != index and page not in linked]
    assert not missing, "add them to docs/README.md"


def test_the_tour_stops_at_every_file() -> None:
    """A file that is moved or new is named there; one that is gone is not."""
    source = REPOSITORY / "src" / "tessella"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    named = set(re.findall(r"`([\w/]+\.py)`", (DOCS / "tour.md").read_text(encoding="utf-8")))

    def is_named(file: str) -> bool:
        return any(f"/{file}".endswith(f"/{name}") for name in named)

    gone = [name for name in named if not any(f"/{f}".endswith(f"/{name}") for f in files)]
    # Commands are named after themselves.
    missing = [f for f in files if not re.match(r"cli/|.*__\w+__\.py", f) and not is_named(f)]
    assert not gone
    assert not missing


def test_every_benchmark_is_in_their_readme() -> None:
    page = REPOSITORY / "benchmarks" / "README.md"
    named = set(re.findall(r"\]\((\w+\.py)\)", page.read_text(encoding="utf-8")))
    assert named == {path.name for path in page.parent.glob("*.py")}


def test_every_extra_of_a_page_is_there() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for extras in re.findall(r"pip install[^\n`]*?\[([a-z,]+)\]", text):
            assert set(extras.split(",")) <= project["optional-dependencies"].keys(), name_of(page)


def test_links_and_anchors_are_read() -> None:
    text = '# The data\'s way\n## A `b` c\n## A b c\n[x](a.md#b) ![y](p.png "t") `[no](no)`\n'
    assert links(text + '<img width="3" src="q.png">\n') == ["a.md#b", "p.png", "q.png"]
    assert anchors(text) == {"the-datas-way", "a-b-c", "a-b-c-1"}
    page = DOCS / "README.md"
    assert not link_fault(page, "https://example.org/x")
    assert not link_fault(page, "../Makefile")
    assert "no such file" in link_fault(page, "nowhere.md")
    assert "no such heading" in link_fault(page, "README.md#nowhere")


# --- the generated reference ----------------------------------------------------------------


def test_the_reference_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    status = load_build_reference().main(["--check"])
    assert status == 0, capsys.readouterr().err


class Depth(Settings):
    """How deep."""

    depth: int = Field(default=8, ge=1, le=64)
    """Number of blocks | layers."""


class Root(Settings):
    """A run."""

    part: Depth = Depth(depth=3)
    """A part of it."""


class Undocumented(Settings):
    """A section with a fault."""

    part: Depth = Depth()
    width: int = 4


def test_a_setting_shows_name_type_default_range_and_help() -> None:
    page = load_build_reference().settings_page(Root)
    assert (
        "| `part.depth` | whole number | `3` | ≥ 1, ≤ 64 | Number of blocks \\| layers. |" in page
    )


def test_the_servers_settings_are_the_last_section() -> None:
    page = load_build_reference().settings_page(Root, Depth)
    _, section = page.split("## serve\n")
    assert "How deep." in section
    assert "| `serve.depth` | whole number | `8` |" in section


def test_a_setting_without_a_docstring_is_refused() -> None:
    build_reference = load_build_reference()
    with pytest.raises(build_reference.UndocumentedError, match="without a docstring: `width`"):
        build_reference.settings_page(Undocumented)


def test_a_stale_page_is_named_with_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_reference = load_build_reference()
    page = tmp_path / "docs" / "reference" / "settings.md"
    monkeypatch.setattr(build_reference, "REPOSITORY", tmp_path)
    monkeypatch.setattr(build_reference, "pages", lambda: {page: "as the code says\n"})
    assert build_reference.main(["--check"]) == 1
    assert "Stale: docs/reference/settings.md. Run: make docs" in capsys.readouterr().err
    assert not page.exists()
    assert build_reference.main([]) == 0
    assert build_reference.main(["--check"]) == 0
    page.write_text("changed by hand\n", encoding="utf-8")
    assert build_reference.main(["--check"]) == 1


def test_the_command_lines_page_is_plain_and_complete() -> None:
    build_reference = load_build_reference()
    page = build_reference.cli_page(stand_in(), "paint")
    assert "## paint generate" in page
    assert "## paint doctor" in page
    assert "--seed" in page
    assert "\x1b" not in page
    assert page == build_reference.cli_page(stand_in(), "paint")
