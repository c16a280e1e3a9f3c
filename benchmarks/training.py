"""How fast both stages train, against the same network on one repeated batch, and the bounds.

Why: data, average, log and checkpoints must not take the time that the network could learn in.

Theory: the bound is the bare step: forward, backward and optimizer on one batch that never
changes, with nothing around it. `share_of_bound` is the network's own arithmetic
(counted by torch's FLOP counter: forward and backward) over the seconds of the real step, against
the best matrix product and convolution of the same run.

Output contract: a line a stage; the last line of stdout is the record, one JSON object. For each
stage `images_per_second`, `share_of_bare_step` (medians of interleaved rounds of the real loop and
the bare one), `gflops_per_second` and its `share_of_bound` (convolutions for the tokenizer, matrix
products for the transformer).

    python benchmarks/training.py --rounds 5 --images 4096
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness import (
    RESULTS,
    Spread,
    convolution_bound,
    environment,
    matmul_bound,
    print_record,
    write_result,
)
from tessella.data.prepare import prepare
from tessella.model.pipeline import TextToImage
from tessella.objectives import create_transformer
from tessella.text import TextTokenizer
from tessella.tokenizer import ImageTokenizer
from tessella.training.loop import create_accelerator, train
from tessella.training.optimizer import MuonAdamW, group_parameters
from tessella.training.recipe import Recipe, resolve_recipe
from tessella.training.stage import Stage, TrainingSettings
from tessella.training.tokenizer_stage import TokenizerStage
from tessella.training.transformer_stage import TransformerStage


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="scenes:4000")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--images", type=int, default=4096, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds, options.data = 512, 2, "scenes:600"
    torch.set_num_threads(options.threads)
    recipe = resolve_recipe(options.preset)
    with tempfile.TemporaryDirectory() as folder:
        stages = create_stages(recipe, options.data, Path(folder), torch.device("cpu"))
        bounds = {"tokenizer": convolution_bound(), "transformer": matmul_bound()}
        results: dict[str, Any] = {"bound_gflops": bounds}
        for name, (make, settings) in stages.items():
            stage_results = measure_stage(make, settings, Path(folder) / name, options)
            rate = stage_results["gflops_per_second"]
            stage_results["share_of_bound"] = rate / bounds[name].median
            results[name] = stage_results
            print(name, stage_results)
    record = write_result(
        "training",
        results,
        config={"data": options.data, "preset": options.preset, "images": options.images},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def create_stages(
    recipe: Recipe, source: str, folder: Path, device: torch.device
) -> dict[str, tuple[Callable[[], Stage[Any]], TrainingSettings]]:
    """Creates what makes a fresh stage, and its settings; the transformer's codes are random."""
    data = prepare([source], recipe.data, folder / "data")
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
        tokenizer = ImageTokenizer(recipe.tokenizer)
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
    real, bare = [], []
    for index in range(options.rounds):
        real.append(time_loop(make(), settings, folder / str(index)))
        bare.append(time_bare(make(), settings))
    ratios = [theirs / ours for ours, theirs in zip(real, bare, strict=True)]
    flops = count_flops(make(), settings.batch_size)
    pace = Spread.of([options.images / seconds for seconds in real])
    return {
        "images_per_second": pace,
        "share_of_bare_step": Spread.of(ratios),
        "gflops_per_second": pace.median * flops / settings.batch_size / 1e9,
        "parameters": sum(p.numel() for p in make().network.parameters()),
    }


def time_loop(stage: Stage[Any], settings: TrainingSettings, folder: Path) -> float:
    """Times the project's own loop, without the evaluation at its end."""
    ended: list[float] = []
    evaluate = stage.evaluate

    def stop_clock(average: nn.Module, device: torch.device, images_seen: int) -> object:
        ended.append(time.perf_counter())
        return evaluate(average, device, images_seen)

    stage.evaluate = stop_clock  # type: ignore[method-assign,assignment]
    accelerator = create_accelerator("cpu")
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


def time_bare(stage: Stage[Any], settings: TrainingSettings) -> float:
    """Times forward, backward and optimizer on one batch, over and over."""
    loss_module = stage.loss_module.train()
    groups = group_parameters(stage.network, stage.hidden_matrices)
    optimizer = MuonAdamW(groups, settings.optimizer)
    batch = first_batch(stage, settings.batch_size)
    began = time.perf_counter()
    for _ in range(-(-settings.images // settings.batch_size)):
        loss_module(*batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


def first_batch(stage: Stage[Any], batch_size: int) -> tuple[torch.Tensor, ...]:
    """Loads the first images."""
    indices = np.arange(batch_size) % stage.num_images
    return stage.load_batch(indices, [np.random.default_rng(0)] * batch_size)


def count_flops(stage: Stage[Any], batch_size: int) -> int:
    """Counts the floating-point operations of forward and backward of one step."""
    batch = first_batch(stage, batch_size)
    with FlopCounterMode(display=False) as counter:
        stage.loss_module.train()(*batch).loss.backward()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
