"""Several processes against one: what they learn, how fast, and where the time goes.

Why: a run that is spread over more processes must learn the same, and be worth the machines.

Theory: a step of b images a process takes f + c·b seconds: c for the network's forward and backward
pass, f for what does not shrink with the batch, the optimizer, the average and small operations.
With R processes the gradients have to be added up as well, x seconds that backward does not hide.
And processes beside each other are slower than one by itself, m seconds, where they share caches,
memory, heat, or the two threads of a core. Measured are one process with the whole batch B, one
with B / R, R with B / R each that know nothing of each other, and R that train together:

    f + c·B = t(1, B)      f + c·B/R = t(1, B/R)
    f + c·B/R + m = t(apart)      f + c·B/R + m + x = t(R, B)

Strong efficiency is t(1, B) / (R · t(R, B)): the same batch, sooner. Weak efficiency is
t(1, B/R) / t(R, B): each process does what one did, so that R of them see R times the images. It is
the machine's, t(1, B/R) / t(apart), times the program's, t(apart) / t(R, B).
Every process has one thread; a machine that does something else meanwhile measures itself.

Output contract: a line a stage; the last line of stdout is the record, one JSON object. For each
stage `parameters`, the four step times (medians of steps, seconds), `fixed_seconds`,
`exchange_seconds`, the four efficiencies; with `--steps` also `loss_difference`,
the largest relative difference of the losses of R processes to those of one, step by step, in fp32
without dropout, and `rounding_difference`, the same for one process whose weights begin a rounding
apart (1e-7): training multiplies any difference, and nothing can come closer than that.

With `--sharding full` the several processes hold a part of the state each; `--memory` measures
what that saves, in two steps on one picture a process, computed again for the gradients:
`state_share`, the bytes of weights, average, gradients and optimizer in the first process over
those of one process that has all, and `peak_share`, the same of the most memory that the process
took beyond what it had before its network was made (counted by Linux, while glibc gives back what
is freed). A save and an evaluation are not in it: a save holds a copy of the part, an evaluation
the whole average. The weights move once, and Muon iterates twice instead of five times, which needs
as much memory at a time: with `large` five are most of a step's arithmetic.

    python benchmarks/ranks.py --preset small --seconds 60 --steps 500
    python benchmarks/ranks.py --preset large --sharding full --memory --seconds 0
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import socket
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import nn

from harness import RESULTS, environment, print_record, write_result
from tessella.training import checkpoint, launch, loop, optimizer, processes, reporting, shards
from tessella.training.loop import create_accelerator, measure_pace, train
from tessella.training.recipe import resolve_recipe
from tessella.training.stage import Evaluation
from training import create_stages

STAGES = ("tokenizer", "transformer")
_M_MMAP_THRESHOLD = -3  # malloc.h


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes:2000")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement; 0: none")
    parser.add_argument("--steps", type=int, default=0, help="whose losses are compared; 0: none")
    parser.add_argument("--sharding", default="none", choices=("none", "full"))
    parser.add_argument("--memory", action="store_true", help="measures it, with sharding=full")
    parser.add_argument("--set", nargs="*", default=[], help="settings: section.key=value")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.preset, options.data, options.seconds, options.steps = "tiny", "scenes:200", 1.0, 5
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun does; without it Accelerate sets all cores
    importlib.import_module("torch._dynamo")  # once: every optimizer does, and it takes seconds
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measure_stage(name, Path(folder), options) for name in options.stages}
    sharded = "" if options.sharding == "none" else "-sharded"
    what = f"-{options.preset}" if options.seconds or options.memory else "-losses"
    record = write_result(
        f"ranks{sharded}{what}",
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
        ranks = options.ranks
        alone = time_steps(name, folder, options, ranks, ranks, together=False)
        shared = time_steps(name, folder, options, ranks, 1)
        result |= {
            "one_process_seconds": whole,
            "one_part_seconds": part,
            "apart_seconds": alone,
            "all_processes_seconds": shared,
            "fixed_seconds": (ranks * part - whole) / (ranks - 1),
            "exchange_seconds": shared - alone,
            "strong_efficiency": whole / (ranks * shared),
            "weak_efficiency": part / shared,
            "machine_efficiency": part / alone,
            "program_efficiency": alone / shared,
        }
    if options.steps:
        one, several = (read_losses(name, folder, options, count) for count in (1, options.ranks))
        apart = read_losses(name, folder, options, 1, apart=1e-7)
        result["steps"] = len(one)
        result["loss_difference"] = find_difference(one, several)
        result["rounding_difference"] = find_difference(one, apart)
    if options.memory:
        whole_of_it, part_of_it = (
            measure_memory(name, folder, options, n) for n in (1, options.ranks)
        )
        for what in ("state", "peak"):
            result |= {f"one_{what}_bytes": whole_of_it[what], f"{what}_bytes": part_of_it[what]}
            result[f"{what}_share"] = part_of_it[what] / whole_of_it[what]
    print(name, result)
    return result


def measure_memory(
    name: str, folder: Path, options: argparse.Namespace, ranks: int
) -> dict[str, int]:
    """Returns the bytes of the first process's state, and the most that it took in two steps."""
    told = folder / "memory.json"

    def work() -> None:
        optimizer._NEWTON_SCHULZ_STEPS = 2
        # Each tensor is mapped by itself. glibc would keep gigabytes of them once they are freed.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 17)
        make, settings = make_stages(options, folder)[name]
        settings = settings.replace(
            batch_size=options.ranks, sharding=options.sharding, recompute=True
        )
        before = read_memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        stage = make()
        state = loop._TrainingState(stage, settings, Path(), create_accelerator("cpu"), "", "fp32")
        with contextlib.closing(state.load_batches(seed=0)) as batches:
            state.step(next(batches), seed=0)
            # Once more with the optimizer's state there; to move the weights would take no more.
            with mock.patch.object(state._optimizer, "step"):
                state.step(next(batches), seed=0)
        learning = [one for one in stage.network.parameters() if one.requires_grad]
        tensors = [*stage.network.parameters(), *state.average.parameters(), *learning]
        tensors += checkpoint.flatten_optimizer(state._optimizer).values()
        size = sum(shards.local(one).nbytes for one in tensors)
        if launch.is_first_process():
            told.write_text(json.dumps({"state": size, "peak": read_memory("VmHWM") - before}))

    fork(ranks, work)
    measured: dict[str, int] = json.loads(told.read_text())
    return measured


def read_memory(name: str) -> int:
    """Reads a number of bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def time_steps(
    name: str,
    folder: Path,
    options: argparse.Namespace,
    ranks: int,
    divisor: int,
    *,
    together: bool = True,
) -> float:
    """Returns the median seconds of a step on a part of the recipe's batch, in the slowest process.

    Several processes train one run, or, not `together`, one run each at the same time.
    """
    told = folder / "pace.jsonl"
    told.unlink(missing_ok=True)

    def work() -> None:
        stage, settings = create_stage(name, folder, options)
        settings = settings.replace(batch_size=settings.batch_size // divisor)
        pace = measure_pace(stage, settings, create_accelerator("cpu"), options.seconds, "fp32")
        if launch.is_first_process():
            with told.open("a") as file:
                print(pace.step_seconds, file=file)

    fork(ranks, work, together=together)
    return max(map(float, told.read_text().split()))


def find_difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """Returns the largest relative difference of losses, step by step."""
    return max(abs(other / loss - 1) for loss, other in zip(losses, others, strict=True))


def read_losses(
    name: str, folder: Path, options: argparse.Namespace, ranks: int, *, apart: float = 0.0
) -> list[float]:
    """Returns the loss of every step of a short run, whose weights may begin somewhat apart."""
    run = folder / f"{name}-{ranks}-{apart}"

    def work() -> None:
        stage, settings = create_stage(name, folder, options)
        for module in stage.loss_module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # each process draws its own
        with torch.no_grad():
            for parameter in stage.network.parameters():
                parameter.mul_(1 + apart * torch.randn_like(parameter))
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
    make, settings = make_stages(options, folder)[name]
    return make(), settings.replace(sharding=options.sharding)


def make_stages(options: argparse.Namespace, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Creates what makes the stages, with the same start in every process, and their settings."""
    torch.manual_seed(0)
    recipe = resolve_recipe(options.preset, None, options.set)
    return create_stages(recipe, options.data, folder, torch.device("cpu"))


def fork(ranks: int, work: Callable[[], object], *, together: bool = True) -> None:
    """Does some work in processes of one thread, which find each other if there are several.

    Not `together` they do not know of each other.
    """
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
            if ranks > 1 and together:
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
