r"""Which settings learn most in the same time on this machine.

Why: images seen flatter large batches and large networks; users pay in minutes. Every choice
gets the same seconds, and its learning rate falls to 0 at their end.

Theory: none; a measurement. One seed and one machine: differences of a few tenths of a dB or of
a few points of accuracy are noise.

Output contract: a line for each choice; the last line of stdout is the record, one JSON object:
images seen, parameters, and for the tokenizer PSNR, codes used and the fraction of validation
scenes that its reconstructions keep all-correct; for the transformer validation loss and accuracy.

    python benchmarks/equal_time.py tokenizer --seconds 60 \\
        --try default --try "batch 64: tokenizer_training.batch_size=64"
    python benchmarks/equal_time.py transformer --model runs/scenes/model --seconds 60 \\
        --try default --try "narrow: transformer.width=96 transformer.heads=3"
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from harness import RESULTS, environment, print_record, write_result
from tessella.data.cache import CaptionedImages
from tessella.data.prepare import PreparedData, prepare
from tessella.data.scenes import parse_caption
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.evaluation.scenes import compute_scene_accuracy
from tessella.model.find import find_model
from tessella.model.pipeline import TextToImage
from tessella.objectives import create_transformer
from tessella.text import TextTokenizer
from tessella.tokenizer import VQAutoencoder
from tessella.training.codes import prepare_codes
from tessella.training.loop import create_accelerator, measure_pace, train
from tessella.training.recipe import Recipe, resolve_recipe
from tessella.training.stage import Stage
from tessella.training.tokenizer_stage import TokenizerStage
from tessella.training.transformer_stage import TransformerStage

SCENES = 500
CPU = torch.device("cpu")


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("tokenizer", "transformer"))
    parser.add_argument("--data", default="scenes:20000")
    parser.add_argument("--model", help="model folder whose tokenizer makes the codes")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="equal-time", help="of the result files")
    parser.add_argument("--try", dest="choices", action="append", default=[], metavar="NAME: SETS")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.data = 5, "scenes:500"
    torch.set_num_threads(options.threads)
    results = {}
    for choice in options.choices or ["default"]:
        name, _, words = choice.partition(":")
        recipe = resolve_recipe(assignments=words.split())
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure_choice(recipe, Path(folder), options)
        print(name, results[name], flush=True)
    record = write_result(
        f"{options.name}-{options.stage}",
        results,
        config=vars(options),
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_choice(recipe: Recipe, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Trains one choice for the given seconds and measures what it has learned."""
    data = prepare([options.data], recipe.data, folder / "data")
    accelerator = create_accelerator("cpu")
    if options.stage == "tokenizer":
        settings: Any = recipe.tokenizer_training

        def make() -> Stage[Any]:
            return TokenizerStage(VQAutoencoder(recipe.tokenizer), settings, data.sides, CPU)
    else:
        settings = recipe.transformer_training
        model, codes = load_codes(recipe, data, folder, options.model)

        def make() -> Stage[Any]:
            torch.manual_seed(options.seed)
            fresh = create_transformer(
                recipe.objective, recipe.transformer, model.transformer.shape
            )
            return TransformerStage(
                model.with_parts(transformer=fresh), settings, data.sides, codes
            )

    pace = measure_pace(make(), settings, accelerator, seconds=min(5.0, options.seconds))
    images = int(options.seconds / pace.step_seconds) * settings.batch_size
    torch.manual_seed(options.seed)
    stage = make()
    average = train(
        stage,
        settings.replace(images=images, evaluate_every_images=10 * images),
        folder / "run",
        seed=options.seed,
        accelerator=accelerator,
        console=Console(quiet=True),
        fingerprint="",
    )
    learned = dict(stage.evaluate(average, CPU, 0).metrics)
    if options.stage == "tokenizer":
        learned["all_correct"] = reconstruct_scenes(average, data.validation)
    parameters = sum(p.numel() for p in average.parameters())
    return {"images": images, "parameters": parameters, **learned}


def load_codes(
    recipe: Recipe, data: PreparedData, folder: Path, model_folder: str | None
) -> tuple[TextToImage, Mapping[str, np.ndarray]]:
    """Encodes the data with the tokenizer of a model."""
    if model_folder is None:
        raise SystemExit("The transformer needs --model: the folder whose tokenizer makes codes.")
    trained = TextToImage.load(find_model(model_folder), "cpu")
    settings = trained.config.replace(
        transformer=recipe.transformer.model_dump(), objective=recipe.objective.model_dump()
    )
    text = TextTokenizer.train(data.train.all_captions(), recipe.text)
    model = TextToImage.create(settings, text).with_parts(tokenizer=trained.tokenizer)
    codes = {
        side: prepare_codes(images, model.tokenizer, folder / f"{side}.npy", device=CPU)
        for side, images in data.sides.items()
    }
    return model, codes


def reconstruct_scenes(tokenizer: VQAutoencoder, images: CaptionedImages) -> float:
    """Returns the fraction of held-out scenes whose reconstruction is all-correct."""
    count = min(SCENES, len(images))
    evaluation = evaluate_reconstructions(tokenizer, images.pixels(np.arange(count)))
    scenes = [parse_caption(images.captions(index)[0]) for index in range(count)]
    return compute_scene_accuracy(evaluation.pixels, scenes)


if __name__ == "__main__":
    main()
