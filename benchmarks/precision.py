"""How fast stages train, and models paint, in each precision, and what it costs in pictures.

Why: `precision = auto` chooses after a third of a second, by a few small layers, for training and
for painting. What counts is the pace of real training (optimizer, average, losses and everything
else that stays in fp32 included) and of whole pictures, decoder included; and whether the pictures
are as good.

Theory: the bound is what bf16 makes of a large matrix product and a convolution alone: a step
that also does other things cannot gain more. On a CPU without instructions for bf16 it is far
below 1. In int8 an 8-bit product reads a quarter of the memory of fp32's; without VNNI it takes
two instructions where fp32 takes one for a quarter of the numbers, so twice as fast is the bound.
Rounding weights to 1/127 and rows to 1/63 of their largest adds about 1.5 % of noise to a product.

Output contract: a line a measurement; the last line of stdout is the record, one JSON object. For
each stage `fp32_images_per_second`, `bf16_images_per_second` and `speedup`, bf16 over fp32, of
rounds of the real loop in turn. `bound` has the speedup of the product and the convolution,
`choice` what `auto` chooses here and why, and `choice_is_right` whether the other precision would
not train both stages, one after the other, clearly (a fifth) faster.
`painting` has, by width of an untrained transformer and by pictures painted together, how many
times as fast as fp32 each precision paints whole pictures; `layer` is what `auto` measures (where
that is below a third, whole pictures are not painted), and
`auto_is_right` whether no precision is clearly faster than the one that it alone would choose.
`pictures` has, for bundled models, `divergence` (KL of the predictions from fp32's, nats a code,
of pictures painted in fp32), `same_codes` (fraction of the codes that pictures of the same seeds
share with fp32's) and, for scenes, the all-correct share with its 95 % interval.

    python benchmarks/precision.py --part training --rounds 5 --images 2048
    python benchmarks/precision.py --part painting
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import nn

import tessella
from harness import RESULTS, Ratio, Spread, environment, measure_ratio, print_record, write_result
from scenes_accuracy import describe
from tessella.data.scenes import canonical_caption
from tessella.evaluation.model import measure_scenes
from tessella.evaluation.scenes import compute_scene_accuracy, sample_prompts
from tessella.model.find import find_model
from tessella.model.folder import read_captions
from tessella.model.painting_precision import compute_divergence, measure_layer_speedup
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest, enumerate_requests
from tessella.precision import CLEARLY, Precision
from tessella.training.loop import create_accelerator, train
from tessella.training.precision import PrecisionSetting, autocast, choose_precision
from tessella.training.recipe import resolve_recipe
from tessella.training.stage import Stage, TrainingSettings
from tessella.transformer import (
    Transformer,
    TransformerSettings,
    TransformerShape,
    has_int8,
    lower_precision,
)
from training import create_stages

PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
FULL_BATCH = 16
HOPELESS = 1 / 3


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
    parser.add_argument("--part", choices=["all", "training", "painting"], default="all")
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 768])
    parser.add_argument("--count", type=int, default=500, help="scenes of each kind")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds, options.data = 32, 1, "scenes:200"
        options.widths, options.count = [64], 4
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = create_accelerator(options.device).device
    results: dict[str, object] = {}
    if options.part != "painting":
        results |= measure_training(device, options)
    if options.part != "training":
        results["painting"] = measure_painting(options)
        results["pictures"] = measure_pictures(options)
    config = {
        name: getattr(options, name)
        for name in ("data", "preset", "images", "rounds", "part", "widths", "count")
    }
    folder_for_results = None if options.quick else RESULTS
    what = "precision" if options.part == "all" else f"precision-{options.part}"
    where = environment(device)
    print_record(write_result(what, results, config=config, where=where, folder=folder_for_results))


def measure_training(device: torch.device, options: argparse.Namespace) -> dict[str, object]:
    """Times both stages in both precisions, and compares what `auto` chooses."""
    recipe = resolve_recipe(options.preset)
    choice = choose_precision("auto", device)
    print("auto:", choice)
    results: dict[str, object] = {"bound": measure_bound(device, options.quick)}
    seconds: dict[Precision, float] = dict.fromkeys(PRECISIONS, 0.0)
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
    return results


def measure_painting(options: argparse.Namespace) -> dict[str, object]:
    """Times whole pictures of untrained transformers, behind the tokenizer of scenes."""
    base = tessella.load("scenes", "cpu", "fp32")
    results: dict[str, object] = {}
    for width in options.widths:
        size = TransformerSettings(width=width, depth=8 if width >= 256 else 4, heads=width // 64)
        model = base.with_parts(transformer=create_random(size, base.transformer.shape))
        weights = sum(parameter.numel() for parameter in model.transformer.parameters())
        rows = base.transformer.shape.num_positions // base.config.generation.steps
        layer: dict[str, float] = {}
        pictures: dict[str, Ratio] = {}
        for precision in lowered_precisions():
            lowered = lower_precision(model.transformer, precision)
            other = model.with_parts(transformer=lowered)
            for batch in (1, FULL_BATCH):
                name = f"{precision}_batch_{batch}"
                layer[name] = measure_layer_speedup(model.transformer, lowered, batch, rows)
                if layer[name] < HOPELESS:
                    continue  # whole pictures would take minutes
                scenes = sample_prompts(batch, seed=0)
                requests = enumerate_requests([canonical_caption(scene) for scene in scenes])
                pictures[name] = measure_ratio(
                    paint(other, requests),
                    paint(model, requests),
                    warmup=1,
                    repeats=1 if options.quick else 5,
                )
        slower = find_slower(layer)
        best = max(slower, key=lambda name: slower[name])
        chosen = best if slower[best] >= CLEARLY else "fp32"
        results[f"width_{width}"] = {
            "weights": weights,
            "layer": layer,
            "pictures": pictures,
            "chosen": chosen,
            "auto_is_right": is_right(chosen, pictures),
        }
        print(width, results[f"width_{width}"], flush=True)
    return results


def paint(model: TextToImage, requests: Sequence[ImageRequest]) -> Callable[[], object]:
    """Returns what paints them."""
    return lambda: model.generate_images(requests)


def is_right(chosen: str, pictures: Mapping[str, Ratio]) -> bool:
    """Returns whether no other precision paints both one picture and a batch clearly faster."""
    slower = {"fp32": 1.0} | find_slower({n: each.ratio.median for n, each in pictures.items()})
    return max(slower.values()) <= CLEARLY * slower[chosen]


def find_slower(speedups: Mapping[str, float]) -> dict[str, float]:
    """Finds, of one picture and a batch, how many times as fast the one is that gains less."""
    slower: dict[str, float] = {}
    for name, speedup in speedups.items():
        precision = name.partition("_")[0]
        slower[precision] = min(slower.get(precision, speedup), speedup)
    return slower


def create_random(settings: TransformerSettings, shape: TransformerShape) -> Transformer:
    """Creates an untrained transformer whose layers all count."""
    torch.manual_seed(0)
    transformer = Transformer(settings, shape).eval().requires_grad_(False)
    for matrix in transformer.hidden_matrices():
        nn.init.normal_(matrix, std=0.02)
    return transformer


def lowered_precisions() -> list[Precision]:
    """Lists the precisions besides fp32 that this machine paints in."""
    return ["bf16", "int8"] if has_int8() else ["bf16"]


def measure_pictures(options: argparse.Namespace) -> dict[str, object]:
    """Measures what each precision costs in pictures of the bundled models."""
    results: dict[str, object] = {}
    for name in ("scenes", "stickers"):
        model = tessella.load(name, "cpu", "fp32")
        scenes = sample_prompts(options.count, seed=1)
        prompts = [canonical_caption(scene) for scene in scenes]
        if name != "scenes":
            examples = read_captions(find_model(name)).examples  # type: ignore[union-attr]
            prompts = list(examples[: options.count])
        painted = model.generate_images(enumerate_requests(prompts))
        assert painted.codes is not None
        text = model.sampler.encode_text(prompts)
        for precision in lowered_precisions():
            lowered = lower_precision(model.transformer, precision)
            other = model.with_parts(transformer=lowered)
            parts = [
                (len(c), compute_divergence(model.objective, lowered, t, c))
                for t, c in zip(
                    text.split(FULL_BATCH), painted.codes.split(FULL_BATCH), strict=True
                )
            ]
            again = other.generate_images(enumerate_requests(prompts))
            assert again.codes is not None
            entry: dict[str, object] = {
                "divergence": sum(n * d for n, d in parts) / len(prompts),
                "same_codes": torch.eq(again.codes, painted.codes).float().mean().item(),
            }
            if name == "scenes":
                entry["seen"] = describe(compute_scene_accuracy(again.pixels, scenes), len(scenes))
                entry["held_out"] = measure_held_out(other, options.count)
            results[f"{name}_{precision}"] = entry
            print(name, precision, entry, flush=True)
        if name == "scenes":
            seen = compute_scene_accuracy(painted.pixels, scenes)
            entry = {"seen": describe(seen, len(scenes))}
            results["scenes_fp32"] = {**entry, "held_out": measure_held_out(model, options.count)}
            print(name, "fp32", results["scenes_fp32"], flush=True)
    return results


def measure_held_out(model: TextToImage, count: int) -> dict[str, float]:
    """Measures the all-correct share of scenes with pairs that are never trained on."""
    return describe(measure_scenes(model, count, held_out=True, seed=1)["all_correct"].value, count)


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
            functools.partial(run, work, "bf16"),
            functools.partial(run, work, "fp32"),
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
    precision: PrecisionSetting,
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
