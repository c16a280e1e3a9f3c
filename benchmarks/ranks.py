"""Several processes against one: what they learn, how fast, and where the time goes.

Why: a run that is spread over more processes must learn the same, and be worth the machines.

Theory: a step of b images a process takes f + c·b seconds: c for the network's forward and backward
pass, f for what does not shrink with the batch, the optimizer, the average and small operations.
With R processes the gradients have to be added up as well, x seconds that backward does not hide.
Measured are one process with the whole batch B, one with B / R, and R with B / R each:

    f + c·B = t(1, B)      f + c·B/R = t(1, B/R)      f + c·B/R + x = t(R, B)

Strong efficiency is t(1, B) / (R · t(R, B)): the same batch, sooner. Weak efficiency is
t(1, B/R) / t(R, B): each process does what one did, so that R of them see R times the images.
Every process has one thread; a machine that does something else meanwhile measures itself.

Output contract: a line a stage; the last line of stdout is the record, one JSON object. For each
stage `parameters`, the three step times (medians of steps, seconds), `fixed_seconds`,
`exchange_seconds`, `strong_efficiency`, `weak_efficiency`; with `--steps` also `loss_difference`,
the largest relative difference of the losses of R processes to those of one, step by step, in fp32
without dropout.

    python benchmarks/ranks.py --preset small --seconds 60 --steps 500
"""

import argparse
import json
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from harness import RESULTS, environment, print_record, write_result
from tessella.training import launch, processes, reporting
from tessella.training.loop import create_accelerator, measure_pace, train
from tessella.training.recipe import resolve_recipe
from tessella.training.stage import Evaluation
from training import create_stages

STAGES = ("tokenizer", "transformer")


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes:2000")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement; 0: none")
    parser.add_argument("--steps", type=int, default=0, help="whose losses are compared; 0: none")
    parser.add_argument("--set", nargs="*", default=[], help="settings: section.key=value")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.preset, options.data, options.seconds, options.steps = "tiny", "scenes:200", 1.0, 5
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measure_stage(name, Path(folder), options) for name in options.stages}
    record = write_result(
        f"ranks-{options.preset}",
        results,
        config={name: value for name, value in vars(options).items() if name != "quick"},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_stage(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one stage in one process and in several."""
    result: dict[str, Any] = {}
    if options.seconds:
        whole, part = (
            time_steps(name, folder, options, 1, divisor) for divisor in (1, options.ranks)
        )
        shared = time_steps(name, folder, options, options.ranks, 1)
        ranks = options.ranks
        result |= {
            "one_process_seconds": whole,
            "one_part_seconds": part,
            "all_processes_seconds": shared,
            "fixed_seconds": (ranks * part - whole) / (ranks - 1),
            "exchange_seconds": shared - part,
            "strong_efficiency": whole / (ranks * shared),
            "weak_efficiency": part / shared,
        }
    if options.steps:
        one, several = (read_losses(name, folder, options, count) for count in (1, options.ranks))
        pairs = zip(one, several, strict=True)
        result["steps"] = len(one)
        result["loss_difference"] = max(abs(mine / theirs - 1) for theirs, mine in pairs)
    print(name, result)
    return result


def time_steps(
    name: str, folder: Path, options: argparse.Namespace, ranks: int, divisor: int
) -> float:
    """Returns the median seconds of a step on a part of the recipe's batch."""
    told = folder / "pace.json"

    def work() -> None:
        stage, settings = create_stage(name, folder, options)
        settings = settings.replace(batch_size=settings.batch_size // divisor)
        pace = measure_pace(stage, settings, create_accelerator("cpu"), options.seconds, "fp32")
        if launch.is_first_process():
            told.write_text(json.dumps(pace.step_seconds))

    fork(ranks, work)
    seconds: float = json.loads(told.read_text())
    return seconds


def read_losses(name: str, folder: Path, options: argparse.Namespace, ranks: int) -> list[float]:
    """Returns the loss of every step of a short run."""
    run = folder / f"{name}-{ranks}"

    def work() -> None:
        stage, settings = create_stage(name, folder, options)
        for module in stage.loss_module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # each process draws its own
        # A line for every step.
        reporting._LOG_SECONDS = processes._SECONDS_BETWEEN_QUESTIONS = 0.0
        images = options.steps * settings.batch_size
        settings = settings.replace(images=images, evaluate_every_images=10 * images)
        accelerator, console = create_accelerator("cpu"), Console(quiet=True)
        stage.evaluate = lambda *_: Evaluation({"psnr": 0.0}, {})
        train(
            stage,
            settings,
            run,
            seed=0,
            accelerator=accelerator,
            console=console,
            fingerprint="",
            precision="fp32",
        )

    fork(ranks, work)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def create_stage(name: str, folder: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    """Creates a stage with the same start in every process."""
    torch.manual_seed(0)
    recipe = resolve_recipe(options.preset, None, options.set)
    make, settings = create_stages(recipe, options.data, folder, torch.device("cpu"))[name]
    return make(), settings


def fork(ranks: int, work: Callable[[], object]) -> None:
    """Does some work in processes of one thread, which find each other if there are several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            if ranks > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ["WORLD_SIZE"] = str(ranks)
            work()
            launch.leave_peers()
            status = 0
        except BaseException:  # noqa: BLE001 - a child must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(status)
    ended = [os.waitpid(child, 0)[1] for child in children]
    if any(ended):
        raise SystemExit(f"A process ended with another status than 0: {ended}.")


if __name__ == "__main__":
    main()
