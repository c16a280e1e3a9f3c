"""Whether a run survives `kill -9` at any moment, and ends in the same weights.

Why: the founding report lost its only run because the machine crashed while it was saving.

Theory: every step is a function of the state and of (seed, rank, images seen), and a checkpoint
is either complete or absent. So a run that is killed any number of times ends, bit for bit, in the
same weights as one that was never killed.

Output contract: a line for each kill; the last line of stdout is the record, one JSON object:
`kills`, `kills_while_saving` (the dead process left a half-written checkpoint), `resumed` (how
often the same command continued without an error), `identical` (whether the weights are),
`left_behind` (temporary files after the end) and the hashes of the weights. Exit status 1 unless
all runs resumed, all weights are identical and nothing is left behind.

With `--small` the runs take a second ([fault_runs.py](fault_runs.py)), and each kill comes before
something that the process does to files, so that every moment between two of them is as likely.

    python benchmarks/kill_resume.py --kills 20
    python benchmarks/kill_resume.py --kills 100 --small
    python benchmarks/kill_resume.py --kills 20 --set retrieval.neighbors=2
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fault_errors import kill
from fault_injection import ANY, Injector
from fault_runs import (
    draw_data,
    fit_words,
    hash_model,
    list_files,
    list_passing,
    list_temporary,
    workplace,
)
from fault_runs import (
    run as run_small,
)
from harness import RESULTS, environment, print_record, write_result

WEIGHTS = ("model/tokenizer.safetensors", "model/transformer.safetensors")
_MOST_BEFORE_KILL = 120  # things done to files; a small run does some 400
EXAMPLES = ("model/examples.safetensors", "model/examples.jsonl")  # if it looks pictures up


def main() -> None:
    """Trains once undisturbed and once under kills; compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="many kills of runs of a second")
    parser.add_argument("--images", type=int, default=16_000, help="of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--set", action="append", default=[], help="a setting, name=value")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.images = 2, 4_000
    results = hunt_small(options) if options.small else hunt(options)
    record = write_result(
        "-".join(
            ["kill-resume", *(re.sub(r"[^a-z0-9]+", "-", word) for word in options.set)]
            + ["small"] * options.small
        ),
        results,
        config={"images": options.images, "seed": options.seed, "set": options.set},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)
    if not results["identical"] or results["left_behind"]:
        raise SystemExit(1)


def hunt(options: argparse.Namespace) -> dict[str, Any]:
    """Kills one run again and again."""
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        peaceful, hunted = Path(folder) / "peaceful", Path(folder) / "hunted"
        began = time.monotonic()
        finish(peaceful, options)
        duration = time.monotonic() - began
        print(f"uninterrupted: {duration:.0f} s", flush=True)
        kills = saving = 0
        while kills < options.kills:
            process = start(hunted, options)
            wait_for_progress(process, hunted)
            # Every other kill waits for a checkpoint that is being written.
            aimed = kills % 2 == 0
            time.sleep(moments.uniform(0.0, 1.0))
            while aimed and process.poll() is None and not half_written(hunted):
                time.sleep(0.0005)
            if process.poll() is not None:
                raise SystemExit(f"The run ended by itself: {process.returncode}; more --images.")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            saving += half_written(hunted)
            print(f"kill {kills}: {progress(hunted)}, half-written: {half_written(hunted)}")
        finish(hunted, options)
        left_behind = list_passing(hunted)
        hashes = {
            name: [
                hashlib.sha256((run / name).read_bytes()).hexdigest()[:16]
                for run in (peaceful, hunted)
            ]
            for name in (*WEIGHTS, *EXAMPLES)
            if name in WEIGHTS or (peaceful / name).exists()
        }
    return {
        "kills": kills,
        "kills_while_saving": saving,
        "resumed": kills,
        "identical": all(first == second for first, second in hashes.values()),
        "left_behind": left_behind,
        "hashes": hashes,
    }


def hunt_small(options: argparse.Namespace) -> dict[str, Any]:
    """Kills small runs until there were enough kills."""
    moments = random.Random(options.seed)
    kills = runs = saving = 0
    identical, left_behind = True, list[str]()
    with workplace() as place:
        data, peaceful = draw_data(place / "data", 12), place / "peaceful"
        run_small(fit_words(data, peaceful))
        expected = hash_model(peaceful / "model")
        while kills < options.kills:
            hunted = place / f"hunted-{runs}"
            while True:
                injector = Injector(hunted, ANY, moments.randint(1, _MOST_BEFORE_KILL), act=kill)
                ended = run_small(fit_words(data, hunted), injector.install)
                if ended.status != -signal.SIGKILL:
                    break
                kills += 1
                saving += bool(list_temporary(hunted))
            if ended.status:
                raise SystemExit(ended.err)
            runs += 1
            identical &= hash_model(hunted / "model") == expected
            left_behind += list_passing(hunted)
            left_behind += sorted(list_files(hunted) - list_files(peaceful))
            print(f"run {runs}: {kills} kills, identical: {identical}, left: {left_behind}")
            shutil.rmtree(hunted)
    return {
        "kills": kills,
        "kills_while_saving": saving,
        "runs": runs,
        "resumed": kills,
        "identical": identical,
        "left_behind": left_behind,
        "hashes": expected,
    }


def start(run: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Begins or resumes the run, in its own process group."""
    images = options.images
    settings = {
        "data.image_size": 32,
        "tokenizer.widths": "[16, 32]",
        "transformer.width": 32,
        "transformer.depth": 2,
        "transformer.dropout": 0.1,
        "tokenizer.quantizer.codebook_size": 64,
        "tokenizer.quantizer.revive_after_images": 256,
        "tokenizer_training.images": images,
        "transformer_training.images": images,
        "tokenizer_training.save_every_seconds": 0.5,
        "transformer_training.save_every_seconds": 0.5,
    }
    command = [sys.executable, "-m", "tessella", "fit", "scenes:500", "--out", str(run)]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    for word in options.set:
        command += ["--set", word]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=(run.parent / f"{run.name}.err").open("ab"),
        start_new_session=True,
    )


def finish(run: Path, options: argparse.Namespace) -> None:
    """Lets the run finish."""
    process = start(run, options)
    if process.wait() != 0:
        raise SystemExit((run.parent / f"{run.name}.err").read_text())


def wait_for_progress(process: subprocess.Popen[bytes], run: Path) -> None:
    """Waits until the run is further than when it was killed."""
    before = progress(run)
    while process.poll() is None and progress(run) == before:
        time.sleep(0.02)


def progress(run: Path) -> list[str]:
    """Names the newest checkpoint of each stage."""
    newest = []
    for stage in ("tokenizer", "transformer"):
        names = [path.name for path in (run / stage / "checkpoints").glob("checkpoint-*")]
        newest.append(f"{stage} {max(names, default='-')}")
    return newest


def half_written(run: Path) -> bool:
    """Whether there is a checkpoint under a temporary name."""
    return any(
        any(run.glob(f"{stage}/checkpoints/.tmp-*")) for stage in ("tokenizer", "transformer")
    )


if __name__ == "__main__":
    main()
