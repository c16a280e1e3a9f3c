r"""Which reconstruction loss gives the best pictures: the founding report's open question.

Why: the report trained its image tokenizer on features of ResNet-18 alone, saw noise or noisy
shapes, and went back to pixel MSE. It named combinations of layers and a discriminator as future
work. Here is all of it with the same network, data, images seen and seeds.

Theory: none; a measurement. PSNR is what pixel MSE optimises, so it alone would favour it;
KID and the perceptual distance are taken on SqueezeNet, which no loss was trained on, and FID on
ResNet-18 features too, which the perceptual losses were trained on: a loss that merely pleases its
own network shows there.

Output contract: one line a cell (data, loss, seed); the last line of stdout is the record, one JSON
object: for each data set and loss the mean over the seeds and every seed's value of PSNR, SSIM,
perceptual distance, KID, FID, codes used, perplexity, training images/s. OUT/DATA/LOSS/SEED keeps
each trained tokenizer's checkpoints and result: the same command resumes.
OUT/DATA.png shows the same held-out pictures by every loss, originals first, a row a loss.

    python benchmarks/reconstruction_loss.py --images 12800 --seeds 0 1 --out runs/losses \
        --data clothing clothing.tar --data flickr8k train-0.tar train-1.tar \
        --heldout flickr8k dev.tar

Of a data set without held-out pictures of its own, a fifth is held out. ResNet-18 and SqueezeNet
are found as `tessella probe` and `tessella evaluate` find them (TESSELLA_RESNET18,
TESSELLA_SQUEEZENET).
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from harness import RESULTS, environment, print_record, write_result
from tessella.data.cache import CaptionedImages
from tessella.data.prepare import prepare
from tessella.evaluation.features import EvalNetworks, FeatureExtractor
from tessella.evaluation.metric import Metric
from tessella.evaluation.reconstruction import evaluate_reconstructions, measure_reconstructions
from tessella.images import save_png
from tessella.sheets import make_sheet
from tessella.tokenizer import VQAutoencoder
from tessella.tokenizer.perceptual import ResNet18
from tessella.training.loop import create_accelerator, train
from tessella.training.recipe import Recipe, resolve_recipe
from tessella.training.tokenizer_stage import TokenizerStage

LOSS = "tokenizer_training.loss"
ALL_LAYERS = "perceptual.layers={{conv1={0},layer1={0},layer2={0},layer3={0}}}"
# Squared differences of pixels are about a fiftieth of those of normalised features: with this
# weight both have a say (docs/log.md has twice and less than half of it).
BESIDE_PIXELS = ALL_LAYERS.format(0.05)
DISCRIMINATOR = (
    "adversarial.weight=0.2 adversarial.width=32 adversarial.layers=2 adversarial.augment=true "
    "adversarial.start_images={start} adversarial.warmup_images={warmup}"
)
LOSSES: Mapping[str, str] = {
    "pixel MSE": "mse=1",
    "L1": "mse=0 l1=1",
    # The report's attempts: its last layer is not in every file of weights, the third stage is.
    "last layer alone": "mse=0 perceptual.layers={layer3=1.0} perceptual.normalize=false",
    "second layer alone": "mse=0 perceptual.layers={layer2=1.0} perceptual.normalize=false",
    "combination": f"mse=0 {ALL_LAYERS.format(1.0)}",
    "combination + pixel": f"mse=1 {BESIDE_PIXELS}",
    "combination + pixel + discriminator": f"mse=1 {BESIDE_PIXELS} {DISCRIMINATOR}",
}
"""What each loss is, as settings of `tokenizer_training.loss`."""

SHOWN_PICTURES = 8


class RememberingExtractor:
    """Computes the features of the held-out pictures once for all losses."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        """Takes the extractor that is asked."""
        self._extractor = extractor
        self._known: dict[bytes, torch.Tensor] = {}
        self.name = extractor.name
        self.describe = extractor.describe

    def extract(self, pixels: np.ndarray) -> torch.Tensor:
        """Computes or remembers (B, F)."""
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._extractor.extract(pixels)
        return self._known[key]


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for what in ("--data", "--heldout"):
        parser.add_argument(what, action="append", nargs="+", default=[], metavar=("NAME", "DATA"))
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", nargs="*", default=[], help="settings for every loss")
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--heldout-images", type=int, default=1000, help="at most, evenly spaced")
    parser.add_argument("--losses", nargs="+", help="some of them, or NAME=SETTINGS of your own")
    parser.add_argument("--out", type=Path, default=Path("runs/reconstruction-loss"))
    parser.add_argument("--name", default="reconstruction-loss", help="of the result files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.images, options.seeds, options.data = 64, [0], [["scenes", "scenes:64"]]
        options.losses = ["pixel MSE", "combination + pixel + discriminator"]
        options.set = ["tokenizer.widths=[16,16]", *draw_weights(options.out)]
    torch.set_num_threads(options.threads)
    networks = load_networks(options)
    heldout = {name: sources for name, *sources in options.heldout}
    results = {
        name: measure_data(name, sources, heldout.get(name, []), networks, options)
        for name, *sources in options.data
    }
    record = write_result(
        options.name,
        results,
        config={
            "preset": options.preset,
            "set": options.set,
            "images": options.images,
            "seeds": options.seeds,
            "losses": choose_losses(options),
        },
        where=environment(options.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def choose_losses(options: argparse.Namespace) -> dict[str, str]:
    """Returns the settings of each loss that is asked for."""
    chosen = {}
    for asked in options.losses or LOSSES:
        name, _, own = asked.partition("=")
        words = own or LOSSES[name]
        schedule = {"start": options.images // 4, "warmup": options.images // 16}
        for key, value in schedule.items():
            words = words.replace(f"{{{key}}}", str(value))
        chosen[name] = words
    return chosen


def load_networks(options: argparse.Namespace) -> EvalNetworks:
    """Loads the networks that measure; quick runs have none."""
    if options.quick:
        return EvalNetworks()
    networks = EvalNetworks.load(("squeezenet-fire9", "resnet18-layer3"), options.device)
    features: dict[str, Any] = {
        name: RememberingExtractor(extractor)
        for name, extractor in networks.features.items()
        if extractor
    }
    return replace(networks, features=features)


def draw_weights(out: Path) -> list[str]:
    """Writes a ResNet-18 of random weights for a quick run, and returns the setting for it."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = out / "random-resnet18.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(ResNet18().state_dict(), path)
    return [f"{LOSS}.perceptual.weights={path}"]


def measure_data(
    name: str,
    sources: list[str],
    heldout: list[str],
    networks: EvalNetworks,
    options: argparse.Namespace,
) -> dict[str, object]:
    """Trains and measures every loss with every seed on one data set."""
    base = resolve_recipe(options.preset, assignments=options.set)
    folder = options.out / name
    if heldout:
        every = base.data.replace(validation_fraction=0.0)
        data = {
            "train": prepare(sources, every, folder / "train").train,
            "validation": prepare(heldout, every, folder / "heldout").train,
        }
    else:
        split = base.data.replace(validation_fraction=0.2)
        data = dict(prepare(sources, split, folder / "data").sides)
    count = len(data["validation"])
    chosen = np.linspace(0, count - 1, min(count, options.heldout_images)).astype(int)
    pixels = data["validation"].pixels(chosen)
    shown = np.linspace(0, len(pixels) - 1, SHOWN_PICTURES).astype(int)
    rows, results = [pixels[shown]], {}
    for loss, words in choose_losses(options).items():
        settings = [f"{LOSS}.{word}" for word in words.split()]
        recipe = resolve_recipe(options.preset, assignments=[*options.set, *settings])
        cells = []
        for seed in options.seeds:
            cell = folder / loss.replace(" ", "-") / str(seed)
            network = train_cell(recipe, data, cell, seed, options)
            made = evaluate_reconstructions(network, pixels)
            if seed == options.seeds[0]:
                rows.append(made.pixels[shown])
            kept = cell / "result.json"
            if not kept.exists():
                measured = measure_reconstructions(pixels, made.pixels, networks)
                values = {
                    key: metric.value
                    for key, metric in measured.items()
                    if isinstance(metric, Metric)
                }
                values |= made.health.metrics()
                values["images_per_second"] = read_pace(cell)
                kept.write_text(json.dumps(values), encoding="utf-8")
            cells.append(json.loads(kept.read_text(encoding="utf-8")))
            print(name, loss, seed, cells[-1], flush=True)
        results[loss] = {
            key: {"mean": statistics.fmean(c[key] for c in cells), "seeds": [c[key] for c in cells]}
            for key in cells[0]
        }
    sheet = make_sheet(np.concatenate(rows), columns=SHOWN_PICTURES)
    save_png(options.out / f"{name}.png", sheet)
    return {"heldout_images": len(pixels), **results}


def train_cell(
    recipe: Recipe,
    data: Mapping[str, CaptionedImages],
    folder: Path,
    seed: int,
    options: argparse.Namespace,
) -> VQAutoencoder:
    """Trains one tokenizer, or finds it trained."""
    accelerator = create_accelerator(options.device)
    torch.manual_seed(seed)
    settings = recipe.tokenizer_training.replace(
        images=options.images, evaluate_every_images=max(1, options.images // 4)
    )
    stage = TokenizerStage(
        VQAutoencoder(recipe.tokenizer), settings, data, accelerator.device, seed
    )
    return train(
        stage,
        settings,
        folder,
        seed=seed,
        accelerator=accelerator,
        console=Console(quiet=True),
        fingerprint=json.dumps(recipe.model_dump(mode="json")),
    )


def read_pace(folder: Path) -> float:
    """Returns the median of the images/s that a training has logged."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    return statistics.median(float(m["images_per_second"]) for m in logged if m["kind"] == "train")


if __name__ == "__main__":
    main()
