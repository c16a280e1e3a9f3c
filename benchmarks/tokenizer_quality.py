r"""What an image tokenizer keeps of pictures that it never saw, after a given number of minutes.

Why: PSNR on training pictures flatters. On a tar of held-out pictures (pairs of subject and style,
or a data set's official dev split) it says what a user's next picture will look like.

Theory: none; the bar is a published or a measured number at the same geometry.

Output contract: the last line of stdout is the record, one JSON object. For each try: images seen,
seconds of training (of the last call), parameters, PSNR and SSIM on the held-out pictures, codes
used of K by them, perplexity. The trained network stays in OUT as the last checkpoint of a stage;
the same command resumes.

    python benchmarks/tokenizer_quality.py --train a.tar b.tar --heldout c.tar --out runs/quality \
        --minutes 40 --try "8x8:" --try "16x16: tokenizer.widths=[96]"
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from harness import RESULTS, environment, print_record, write_result
from tessella.data.prepare import prepare
from tessella.evaluation.reconstruction import compute_ssim, evaluate_reconstructions
from tessella.images import save_png
from tessella.sheets import make_sheet
from tessella.tokenizer import VQAutoencoder
from tessella.training.loop import create_accelerator, measure_pace, train
from tessella.training.recipe import Recipe, resolve_recipe
from tessella.training.tokenizer_stage import TokenizerStage

SHEET_PICTURES = 16


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="+", default=["scenes:500"], metavar="DATA")
    parser.add_argument("--heldout", nargs="+", default=["scenes:64"], metavar="DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizer-quality"))
    parser.add_argument("--minutes", type=float, help="of training; or say --images")
    parser.add_argument("--images", type=int)
    parser.add_argument("--preset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="tokenizer-quality", help="of the result files")
    parser.add_argument("--try", dest="choices", action="append", default=[], metavar="NAME: SETS")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.images = 512
    torch.set_num_threads(options.threads)
    results = {}
    for choice in options.choices or ["default"]:
        name, _, words = choice.partition(":")
        recipe = resolve_recipe(options.preset, assignments=words.split())
        results[name] = measure_choice(recipe, options.out / name, options)
        print(name, results[name], flush=True)
    shown = {key: value for key, value in vars(options).items() if key != "out"}
    shown["train"] = [Path(source).name for source in options.train]
    shown["heldout"] = [Path(source).name for source in options.heldout]
    record = write_result(
        options.name,
        results,
        config=shown,
        where=environment("cuda" if torch.cuda.is_available() else "cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_choice(recipe: Recipe, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Trains one choice, or goes on with it, and measures it on what it never saw."""
    every = recipe.data.replace(validation_fraction=0.0)
    cache = folder.parent / f"data-{every.image_size}"
    data = {
        "train": prepare(options.train, every, cache / "train").train,
        "validation": prepare(options.heldout, every, cache / "heldout").train,
    }
    accelerator = create_accelerator("auto")
    settings = recipe.tokenizer_training

    def make() -> TokenizerStage:
        torch.manual_seed(options.seed)
        return TokenizerStage(
            VQAutoencoder(recipe.tokenizer), settings, data, accelerator.device, options.seed
        )

    images, plan = options.images, folder / "images.json"
    if images is None and plan.exists():
        images = json.loads(plan.read_text(encoding="utf-8"))
    elif images is None:
        pace = measure_pace(make(), settings, accelerator, seconds=20.0)
        images = int(60 * options.minutes / pace.step_seconds) * settings.batch_size
        folder.mkdir(parents=True, exist_ok=True)
        plan.write_text(json.dumps(images), encoding="utf-8")
    print(folder.name, images, "images", flush=True)
    began = time.monotonic()
    average = train(
        make(),
        settings.replace(images=images),
        folder,
        seed=options.seed,
        accelerator=accelerator,
        console=Console(quiet=True),
        fingerprint=json.dumps([images, recipe.model_dump(mode="json")]),
    )
    seconds = time.monotonic() - began
    pixels = data["validation"].pixels(np.arange(len(data["validation"])))
    measured = evaluate_reconstructions(average, pixels)
    shown = np.stack([pixels, measured.pixels], axis=1)[:SHEET_PICTURES]
    save_png(folder / "heldout.png", make_sheet(shown.reshape(-1, *pixels.shape[1:]), columns=8))
    return {
        "images": images,
        "train_seconds": seconds,
        "parameters": sum(p.numel() for p in average.parameters()),
        "heldout_images": len(pixels),
        "ssim": compute_ssim(measured.pixels, pixels),
        **measured.metrics(),
    }


if __name__ == "__main__":
    main()
