"""Serves a model and asks it for a picture over HTTP, with nothing but the standard library.

    pip install 'tessella[serve]'
    python examples/serve_and_ask.py scenes "a large red star on a navy background"

The API is OpenAI's: any of its clients works as well, with `base_url=ADDRESS/v1`.
"""

import argparse
import base64
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path


def ask(address: str, prompt: str, seed: int) -> bytes:
    """Asks for one picture; returns the contents of a PNG."""
    body = {"prompt": prompt, "seed": seed, "response_format": "b64_json"}
    request = urllib.request.Request(
        f"{address}/v1/images/generations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        [picture] = json.load(answer)["data"]
    return base64.b64decode(picture["b64_json"])


def main() -> None:
    """Starts the server, asks, saves the picture, and stops the server."""
    parser = argparse.ArgumentParser(description="Serves a model and asks it for a picture.")
    parser.add_argument("model", help="a model folder, a run or a bundled name")
    parser.add_argument("prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("served.png"))
    options = parser.parse_args()
    command = [sys.executable, "-m", "tessella", "serve", options.model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            found = re.search(r"https?://\S+", line)
            if found is None:
                sys.exit("The server did not start; it says why above.")
            options.out.write_bytes(ask(found.group(), options.prompt, options.seed))
        finally:
            server.terminate()
    print(f"{options.prompt}: {options.out}")


if __name__ == "__main__":
    main()
