"""How many scenes a model paints all-correct, as a classifier reads its pictures.

Why: a picture of a scene is right or wrong; neither a person nor another model has to judge it.
Scenes with a held-out combination, such as a (colour, shape) pair, which training never shows, test
whether the model composes.

Theory: the bound is the image tokenizer: a scene that it cannot reconstruct all-correct is not
painted all-correct either, except by luck. Real scenes score 100 %.

Output contract: the last line of stdout is the record, one JSON object. Each entry has the fraction
of all-correct pictures and its 95 % interval (Wilson), and `demands` the fraction of what prompts
demand that is met, by kind: numbers, colours, textures, relations, …; the first picture of each
canonical prompt counts, with the model's own settings; for `best_of` it is the best of that many
candidates by the model's own likelihood (PMI). Prompts come from another stream of random numbers
than any training scene.

    python benchmarks/scenes_accuracy.py --model scenes
    python benchmarks/scenes_accuracy.py --model runs/scenes2 --set scenes2
"""

import argparse
import math

import numpy as np
import torch

import tessella
from harness import RESULTS, environment, print_record, write_result
from tessella.data.scenes.sets import SCENE_SETS
from tessella.evaluation.model import measure_scenes
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.evaluation.scenes import compute_scene_accuracy, sample_prompts
from tessella.model.request import ImageRequest


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder, run or bundled name")
    parser.add_argument("--set", choices=SCENE_SETS, default="scenes", help="of scenes")
    parser.add_argument("--name", help="of the result files; by default SET-accuracy")
    parser.add_argument("--count", type=int, default=500, help="scenes of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of the scenes")
    parser.add_argument("--best-of", type=int, default=8, help="candidates; 1 leaves it out")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.count, options.best_of = 50, 2
    model = tessella.load(options.model)
    scene_set = SCENE_SETS[options.set]
    results: dict[str, dict[str, object]] = {}
    for kind, held_out in (("seen", False), ("held_out", True)):
        scenes = sample_prompts(options.count, options.seed, held_out, options.set)
        pixels = np.stack([scene_set.draw(scene, model.config.image_size) for scene in scenes])
        report = evaluate_reconstructions(model.tokenizer, pixels)
        reconstructed = compute_scene_accuracy(report.pixels, scenes, options.set)
        painted = measure_scenes(
            model, options.count, held_out=held_out, seed=options.seed, set_name=options.set
        )
        all_correct = painted.pop("all_correct").value
        results[kind] = {
            "painted": describe(all_correct, options.count),
            "demands": {demand: metric.value for demand, metric in painted.items()},
            "reconstructed": describe(reconstructed, options.count),
            "reconstruction_psnr": report.psnr,
        }
        if options.best_of > 1:
            requests = [
                ImageRequest(scene_set.caption(scene), number * options.best_of)
                for number, scene in enumerate(scenes)
            ]
            generated = model.generate_images(requests, best_of=options.best_of)
            best = compute_scene_accuracy(generated.pixels, scenes, options.set)
            results[kind]["best_of"] = describe(best, options.count)
        print(kind, results[kind])
    record = write_result(
        options.name or f"{options.set}-accuracy",
        results,
        config={
            "model": options.model,
            "set": options.set,
            "scenes": options.count,
            "seed": options.seed,
            "best_of": options.best_of,
            "generation": model.config.generation.model_dump(),
        },
        where=environment(model.device if model.device.type != "mps" else torch.device("cpu")),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def describe(fraction: float, count: int) -> dict[str, float]:
    """Gives a fraction its 95 % interval (Wilson's)."""
    z = 1.96
    middle = (fraction + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(fraction * (1 - fraction) / count + z * z / (4 * count * count))
    return {"share": fraction, "low": middle - half, "high": min(1.0, middle + half)}


if __name__ == "__main__":
    main()
