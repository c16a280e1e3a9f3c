"""How fast both stages train in fp32 and in bf16, and whether `auto` chooses the faster.

Why: `precision = auto` chooses after a third of a second, by a few small layers. What counts is
the pace of real training: optimizer, average, losses and everything else that stays in fp32
included.

Theory: the bound is what bf16 makes of a large matrix product and a convolution alone: a step
that also does other things cannot gain more. On a CPU without instructions for bf16 it is far
below 1.

Output contract: a line a stage; the last line of stdout is the record, one JSON object. For each
stage `fp32_images_per_second`, `bf16_images_per_second` and `speedup`, bf16 over fp32, of rounds of
the real loop in turn. `bound` has the speedup of the product and the convolution, `choice` what
`auto` chooses here and why, and `choice_is_right` whether the other precision would not train
both stages, one after the other, clearly (a fifth) faster.

    python benchmarks/precision.py --rounds 5 --images 2048
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from harness import RESULTS, Spread, environment, measure_ratio, print_record, write_result
from tessella.training.loop import Stage, TrainingSettings, create_accelerator, train
from tessella.training.precision import Precision, autocast, choose_precision
from tessella.training.recipe import resolve_recipe
from training import create_stages

PRECISIONS: tuple[Precision, Precision] = ("fp32", "bf16")
CLEARLY = 1.2


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes:4000")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--images", type=int, default=2048, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of a CPU; torch's own number if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds, options.data = 32, 1, "scenes:200"
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = create_accelerator(options.device).device
    recipe = resolve_recipe(options.preset)
    choice = choose_precision("auto", device)
    print("auto:", choice)
    results: dict[str, object] = {"bound": measure_bound(device, options.quick)}
    seconds = dict.fromkeys(PRECISIONS, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        stages = create_stages(recipe, options.data, Path(folder), device)
        for name, (make, settings) in stages.items():
            stage_seconds = time_stage(make, settings, Path(folder) / name, options)
            paces = {p: [options.images / s for s in stage_seconds[p]] for p in PRECISIONS}
            speedups = [b / a for a, b in zip(paces["fp32"], paces["bf16"], strict=True)]
            spreads = {p: Spread.of(paces[p], 1) for p in PRECISIONS}
            rates = {f"{p}_images_per_second": spread for p, spread in spreads.items()}
            results[name] = {**rates, "speedup": Spread.of(speedups, 1)}
            print(name, results[name])
            for precision in PRECISIONS:
                seconds[precision] += options.images / spreads[precision].median
    other = PRECISIONS[choice.name == "fp32"]
    results["choice"] = {"name": choice.name, "why": choice.why}
    results["choice_is_right"] = seconds[choice.name] <= CLEARLY * seconds[other]
    config = {name: getattr(options, name) for name in ("data", "preset", "images", "rounds")}
    folder_for_results = None if options.quick else RESULTS
    where = environment(device)
    print_record(
        write_result("precision", results, config=config, where=where, folder=folder_for_results)
    )


def measure_bound(device: torch.device, quick: bool) -> dict[str, Spread]:
    """Measures how many times as fast large products and convolutions alone are in bf16."""
    size, batch = (128, 1) if quick else (1024, 8)
    left, right = (torch.rand(size, size, device=device) for _ in range(2))
    layer = nn.Conv2d(96, 96, 3, padding=1, bias=False, device=device)
    maps = torch.rand(batch, 96, 16, 16, device=device)
    works: dict[str, Callable[[], object]] = {
        "matrix_product": lambda: left @ right,
        "convolution": lambda: layer(maps),
    }

    def run(work: Callable[[], object], precision: Precision) -> None:
        with torch.no_grad(), autocast(device, precision):
            work()

    return {
        name: measure_ratio(
            lambda work=work: run(work, "bf16"),
            lambda work=work: run(work, "fp32"),
            repeats=3 if quick else 9,
            device=device,
        ).ratio
        for name, work in works.items()
    }


def time_stage(
    make: Callable[[], Stage[nn.Module]],
    settings: TrainingSettings,
    folder: Path,
    options: argparse.Namespace,
) -> dict[Precision, list[float]]:
    """Times rounds of training in each precision in turn; a first, short round warms up."""
    settings = settings.replace(images=options.images, evaluate_every_images=10 * options.images)
    seconds: dict[Precision, list[float]] = {precision: [] for precision in PRECISIONS}
    short = settings.replace(images=settings.batch_size)
    for precision in PRECISIONS:
        time_loop(make(), short, folder / f"{precision}-warm", precision, options)
    for number in range(options.rounds):
        for precision in PRECISIONS if number % 2 else PRECISIONS[::-1]:
            run = folder / f"{precision}-{number}"
            seconds[precision].append(time_loop(make(), settings, run, precision, options))
    return seconds


def time_loop(
    stage: Stage[nn.Module],
    settings: TrainingSettings,
    folder: Path,
    precision: Precision,
    options: argparse.Namespace,
) -> float:
    """Times the project's own loop, without the evaluation at its end."""
    ended: list[float] = []
    evaluate = stage.evaluate

    def stop_clock(average: nn.Module, device: torch.device, images_seen: int) -> object:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ended.append(time.perf_counter())
        return evaluate(average, device, images_seen)

    stage.evaluate = stop_clock  # type: ignore[method-assign,assignment]
    began = time.perf_counter()
    train(
        stage,
        settings,
        folder,
        seed=0,
        accelerator=create_accelerator(options.device),
        console=Console(quiet=True),
        fingerprint="",
        precision=precision,
    )
    return ended[0] - began


if __name__ == "__main__":
    main()
