"""Whether the clients that people have work with the server as they are.

Why: an API that is "compatible" is one that programs written for another server cannot tell from
it. Reading their documentation does not say so; their code does.

Theory: each client is installed in an environment of its own, in the version that the registry has
or the oldest that is still met, and makes every call that it documents for pictures against one
server of the bundled model `scenes`. Nothing of a client is changed, and nothing but the address
is set. A call works if its answer is what the client documents: so many pictures, of that size and
format, by `url` or `b64_json`, an error of the client's own kind.

Output contract: a line for each call that fails; the last line of stdout is the record, one JSON
object: by client its version, how many calls were tried and how many work, and the reasons of those
that do not. A client that cannot be installed says so and counts as failed. Exit status 1 unless
all calls work.

    python benchmarks/clients/run.py --venvs /tmp/venvs
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from checks import draw_disc, draw_mask, to_png  # noqa: E402  found beside this script

from harness import RESULTS, environment, print_record, write_result  # noqa: E402  as above
from http_clients import HOST, serving  # noqa: E402  as above


@dataclass(frozen=True)
class Client:
    """A client, what brings it, and the script that makes its calls."""

    script: str
    requirements: tuple[str, ...]  # as pip or npm takes them; the client's own comes first

    @property
    def is_node(self) -> bool:
        """Whether it is JavaScript."""
        return self.script.endswith(".mjs")

    @property
    def package(self) -> str:
        """The client's name on its registry."""
        return self.requirements[0].replace("@", "=").partition("=")[0].partition("<")[0]


CLIENTS = {
    "openai-python": Client("openai_python.py", ("openai", "pillow")),
    "openai-python-2": Client("openai_python.py", ("openai<3", "pillow")),
    "openai-python-1": Client("openai_python.py", ("openai<2", "pillow")),
    "openai-python-1.3": Client("openai_python.py", ("openai==1.3.9", "httpx<0.28", "pillow")),
    "openai-node": Client("openai_node.mjs", ("openai@latest",)),
    "openai-node-4": Client("openai_node.mjs", ("openai@4",)),
    "litellm": Client("litellm_client.py", ("litellm", "pillow")),
    "langchain": Client("langchain_client.py", ("langchain-community", "openai", "pillow")),
    "open-webui": Client("open_webui.py", ("aiohttp", "pillow")),
    "webuiapi": Client("webuiapi_client.py", ("webuiapi", "aiohttp")),
}
_SECONDS = 2400  # for one client


def main() -> None:
    """Installs, tries, stores and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "clients",
        nargs="*",
        help=f"of {', '.join(CLIENTS)}; all unless given; the stored results of the others stay",
    )
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "venvs")
    parser.add_argument("--quick", action="store_true", help="stores nothing")
    options = parser.parse_args()
    where = environment("cpu")
    stored = RESULTS / f"clients_{where.hardware}_{where.month.replace('-', '')}.json"
    results = {}
    if options.clients and stored.exists():
        results = json.loads(stored.read_text(encoding="utf-8"))["results"]
    with serving("scenes") as server, tempfile.TemporaryDirectory() as folder:
        pictures = [Path(folder) / "disc.png", Path(folder) / "mask.png"]
        for path, image in zip(pictures, (draw_disc(), draw_mask()), strict=True):
            path.write_bytes(to_png(image))
        for name in options.clients or CLIENTS:
            client, place = CLIENTS[name], options.venvs / name
            why = install(client, place)
            address = f"http://{HOST}:{server.port}/v1"
            found = {"failed": why} if why else try_client(client, place, address, pictures)
            results[name] = found
            print(name, json.dumps(found), flush=True)
    record = write_result(
        "clients",
        results,
        config={"model": "scenes", "address": "http://127.0.0.1:PORT/v1", "keys": "none"},
        where=where,
        folder=None if options.quick else RESULTS,
    )
    print_record(record)
    if any("failed" in found or found["work"] < found["calls"] for found in results.values()):
        raise SystemExit(1)


def install(client: Client, place: Path) -> str | None:
    """Makes an environment, unless it is there; returns why that failed, if it did."""
    if client.is_node:
        if shutil.which("node") is None:
            return "Node.js is not installed."
        if (place / "node_modules" / client.package).exists():
            return None
        place.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-fund", "--no-audit", *client.requirements]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        return done.stderr.strip()[-300:] if done.returncode else None
    if find_version(client, place):
        return None
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python")]
    command = [*pip, "install", "--quiet", "--disable-pip-version-check", *client.requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip()[-300:] if done.returncode else None


def find_version(client: Client, place: Path) -> str | None:
    """Reads which version is installed; None: none is."""
    if client.is_node:
        manifest = place / "node_modules" / client.package / "package.json"
        return str(json.loads(manifest.read_text())["version"])
    code = f"import importlib.metadata as m; print(m.version({client.package!r}))"
    python = place / "bin" / "python"
    if not python.exists():
        return None
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def try_client(client: Client, place: Path, address: str, pictures: list[Path]) -> dict:
    """Makes all calls of a client; each line of its script is one of them."""
    script = str(FOLDER / client.script)
    if client.is_node:
        command = ["node", script, address, str(place), *map(str, pictures)]
    else:
        command = [str(place / "bin" / "python"), script, address]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=place
    )
    lines = [json.loads(one) for one in done.stdout.splitlines() if one.startswith('{"call"')]
    failed = {one["call"]: one["why"] for one in lines if not one["works"]}
    found = {
        "version": find_version(client, place),
        "calls": len(lines),
        "work": len(lines) - len(failed),
    }
    if done.returncode:
        return found | {"failed": done.stderr.strip()[-300:]}
    return found | ({"reasons": failed} if failed else {})


if __name__ == "__main__":
    main()
