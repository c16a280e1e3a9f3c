"""How fast both stages train, against the same network on one repeated batch, and the bounds.

Why: data, average, log and checkpoints must not take the time that the network could learn in.

Theory: the bound is the bare step: forward, backward and optimizer on one batch that never
changes, with nothing around it. `share_of_bound` is the network's own arithmetic
(counted by torch's FLOP counter: forward and backward) over the seconds of the real step, against
the best matrix product and convolution of the same run: on CUDA, where steps are in bf16, the best
bf16 product, which makes it the MFU (model FLOPs utilization, arXiv:2204.02311).

Output contract: a line a stage; the last line of stdout is the record, one JSON object. For each
stage `images_per_second`, `share_of_bare_step` (medians of interleaved rounds of the real loop and
the bare one), `gflops_per_second` and its `share_of_bound` (convolutions for the tokenizer, matrix
products for the transformer), on CUDA `peak_mib`. With `--compile` each stage a second time,
compiled (`tokenizer_compiled`, `transformer_compiled`).

    python benchmarks/training.py --rounds 5 --images 4096
    python benchmarks/training.py --device cuda --compile --config configs/gpu/stickers.toml
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness import (
    RESULTS,
    Spread,
    environment,
    matmul_bound,
    print_record,
    training_bound,
    write_result,
)
from tessella.data.prepare import prepare
from tessella.model.pipeline import TextToImage
from tessella.objectives import create_transformer
from tessella.text import TextTokenizer
from tessella.tokenizer import VQAutoencoder
from tessella.training.loop import create_accelerator, train
from tessella.training.optimizer import MuonAdamW, group_parameters
from tessella.training.recipe import Recipe, resolve_recipe
from tessella.training.stage import Batch, Stage, TrainingSettings
from tessella.training.tokenizer_stage import TokenizerStage
from tessella.training.transformer_stage import TransformerStage


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes:4000")
    parser.add_argument("--preset", help="left out: that of --config, or tiny")
    parser.add_argument("--config", type=Path, help="a file of settings")
    parser.add_argument("--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="measures compiled stages too")
    parser.add_argument("--images", type=int, default=4096, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds = min(options.images, 512), min(options.rounds, 2)
        options.data = "scenes:600"
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    bounds = {"tokenizer": training_bound(device)}
    bounds["transformer"] = matmul_bound() if device.type == "cpu" else bounds["tokenizer"]
    results: dict[str, Any] = {"bound_gflops": bounds}
    for is_compiled in (False, True) if options.compile else (False,):
        compiled = f"compile={str(is_compiled).lower()}"
        settings = [f"{stage}_training.{compiled}" for stage in bounds]
        recipe = resolve_recipe(options.preset, options.config, [*options.set, *settings])
        with tempfile.TemporaryDirectory() as folder:
            stages = create_stages(recipe, options.data, Path(folder), device)
            for name, (make, training) in stages.items():
                measured = measure_stage(make, training, Path(folder) / name, options)
                measured["share_of_bound"] = measured["gflops_per_second"] / bounds[name].median
                results[f"{name}_compiled" if is_compiled else name] = measured
                print(name, measured, flush=True)
    record = write_result(
        f"training-{options.config.stem}" if options.config else "training",
        results,
        config={
            "data": options.data,
            "preset": options.preset,
            "config": options.config and options.config.name,
            "settings": options.set,
            "images": options.images,
        },
        where=environment(device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def create_stages(
    recipe: Recipe, source: str, folder: Path, device: torch.device
) -> dict[str, tuple[Callable[[], Stage[Any]], TrainingSettings]]:
    """Creates what makes a fresh stage, and its settings; the transformer's codes are random."""
    # What is drawn has no groups to split by.
    data = prepare([source], recipe.data.replace(split_by=None), folder / "data")
    text = TextTokenizer.train(data.train.all_captions(), recipe.text)
    model = TextToImage.create(recipe.describe_model(), text)
    num_codes, size, _ = model.tokenizer.codebook.shape
    codes = {
        side: np.random.default_rng(0)
        .integers(size, size=(1, len(images), num_codes, *model.config.grid))
        .astype(np.uint16)
        for side, images in data.sides.items()
    }

    def tokenizer_stage() -> Stage[Any]:
        tokenizer = VQAutoencoder(recipe.tokenizer)
        return TokenizerStage(tokenizer, recipe.tokenizer_training, data.sides, device)

    def transformer_stage() -> Stage[Any]:
        fresh = create_transformer(recipe.objective, recipe.transformer, model.transformer.shape)
        return TransformerStage(
            model.with_parts(transformer=fresh), recipe.transformer_training, data.sides, codes
        )

    return {
        "tokenizer": (tokenizer_stage, recipe.tokenizer_training),
        "transformer": (transformer_stage, recipe.transformer_training),
    }


def measure_stage(
    make: Callable[[], Stage[Any]],
    settings: TrainingSettings,
    folder: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Runs the real loop and the bare one in turn."""
    # The rounds are short: no evaluation falls into them, one log and one checkpoint do, at the
    # end; in a real run a checkpoint comes once a minute.
    settings = settings.replace(images=options.images, evaluate_every_images=10 * options.images)
    device = torch.device(options.device)
    real, bare = [], []
    if settings.compile:  # what is compiled is kept
        few = settings.replace(images=4 * settings.batch_size)
        time_loop(make(), few, folder / "warm", device)
        time_bare(make(), few, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for index in range(options.rounds):
        real.append(time_loop(make(), settings, folder / str(index), device))
        bare.append(time_bare(make(), settings, device))
    ratios = [theirs / ours for ours, theirs in zip(real, bare, strict=True)]
    flops = count_flops(make(), settings.batch_size, device)
    pace = Spread.of([options.images / seconds for seconds in real])
    peak = {}
    if device.type == "cuda":
        peak["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return {
        **peak,
        "images_per_second": pace,
        "share_of_bare_step": Spread.of(ratios),
        "gflops_per_second": pace.median * flops / settings.batch_size / 1e9,
        "parameters": sum(p.numel() for p in make().network.parameters()),
    }


def time_loop(
    stage: Stage[Any], settings: TrainingSettings, folder: Path, device: torch.device
) -> float:
    """Times the project's own loop, without the evaluation at its end."""
    ended: list[float] = []
    evaluate = stage.evaluate

    def stop_clock(average: nn.Module, device: torch.device, images_seen: int) -> object:
        wait_for(device)
        ended.append(time.perf_counter())
        return evaluate(average, device, images_seen)

    stage.evaluate = stop_clock  # type: ignore[method-assign,assignment]
    accelerator = create_accelerator(str(device))
    began = time.perf_counter()
    train(
        stage,
        settings,
        folder,
        seed=0,
        accelerator=accelerator,
        console=Console(quiet=True),
        fingerprint="",
    )
    return ended[0] - began


def time_bare(stage: Stage[Any], settings: TrainingSettings, device: torch.device) -> float:
    """Times forward, backward and optimizer on one batch, over and over."""
    loss_module = stage.loss_module.train().to(device)
    for module in stage.compiled:
        module.compile()
    groups = group_parameters(stage.network, stage.hidden_matrices)
    optimizer = MuonAdamW(groups, settings.optimizer)
    batch = first_batch(stage, settings.batch_size, device)
    wait_for(device)
    began = time.perf_counter()
    for _ in range(-(-settings.images // settings.batch_size)):
        # As the loop has it on an accelerator.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_module(*batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait_for(device)
    return time.perf_counter() - began


def first_batch(stage: Stage[Any], batch_size: int, device: torch.device) -> Batch:
    """Loads the first images."""
    indices = np.arange(batch_size) % stage.num_images
    batch: Batch = send_to_device(
        stage.load_batch(indices, [np.random.default_rng(0)] * batch_size), device
    )
    return batch


def count_flops(stage: Stage[Any], batch_size: int, device: torch.device) -> int:
    """Counts the floating-point operations of forward and backward of one step."""
    loss_module = stage.loss_module.train().to(device)
    batch = first_batch(stage, batch_size, device)
    with FlopCounterMode(display=False) as counter:
        loss_module(*batch).loss.backward()
    return int(counter.get_total_flops())


def wait_for(device: torch.device) -> None:
    """Waits for an accelerator's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
