r"""How many steps a picture needs: right pictures by number of steps.

Why: a step fills several positions at once, each without knowing what the others become. More steps
make fewer such blind choices, and take longer. The default should be the smallest number that loses
nothing that can be measured.

Theory: with as many steps as positions every code is chosen knowing all before it: the most that
the model can do, and the bound that fewer steps are compared with. `any_order` encodes and predicts
every position once however many steps it takes, so that steps cost only the smallness of their
pieces.

Output contract: a line a number of steps; the last line of stdout is the record, one JSON object.
For each measure and number of steps its share of right pictures, with a 95 % interval (Wilson's),
`less`, by how much it is below that of the most steps (prompt and seed by prompt and seed, with a
95 % interval by the normal distribution), and for all `seconds` a picture, in batches. `smallest`
is the smallest number of steps from which on no measure's `less` is surely above 0.

Scenes: `seen` and `held_out`, all-correct as a classifier reads it. With --heldout and --train, of
an emoji model: `subject` and `style`, as benchmarks/emoji_subjects.py classifies.

    python benchmarks/steps.py --model scenes
    python benchmarks/steps.py --model stickers --heldout heldout.tar --train a.tar b.tar
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

import tessella
from emoji_subjects import choose_gallery, load_extractor, read_kinds
from harness import RESULTS, environment, print_record, write_result
from scenes_accuracy import describe
from tessella.data.prepare import prepare
from tessella.data.scenes import canonical_caption
from tessella.data.settings import DataSettings
from tessella.evaluation.distributions import compute_distances
from tessella.evaluation.scenes import classify_scenes, sample_prompts
from tessella.images import Pixels
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests

Right = npt.NDArray[np.bool_]  # of each picture

SEED_STRIDE = 1_000_000


class Judge:
    """Prompts, and which of their pictures are right by one measure or several."""

    def __init__(
        self, prompts: Sequence[str], judge: Callable[[Pixels], Mapping[str, Right]]
    ) -> None:
        self.prompts, self.judge = prompts, judge


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder, run or bundled name")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--count", type=int, default=500, help="scenes of each kind")
    parser.add_argument("--seeds", type=int, default=2, help="pictures a prompt")
    parser.add_argument("--heldout", metavar="TAR", help="pairs of an emoji model")
    parser.add_argument("--train", nargs="+", metavar="TAR", help="what it learned from")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.count, options.seeds = [2, 8], 8, 1
    model = tessella.load(options.model, precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        if options.heldout:
            judges = [judge_emoji(model, options, Path(folder))]
        else:
            judges = [judge_scenes(options.count, held_out) for held_out in (False, True)]
        results = measure(model, judges, sorted(options.steps), options.seeds)
    record = write_result(
        f"steps-{Path(options.model).name}",
        results,
        config={
            "model": Path(options.model).name,
            "prompts": sum(len(one.prompts) for one in judges),
            "seeds": options.seeds,
            "generation": model.config.generation.model_dump(),
        },
        where=environment(model.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure(
    model: TextToImage, judges: Sequence[Judge], steps: Sequence[int], seeds: int
) -> dict[str, object]:
    """Paints every prompt with every number of steps, from the same seeds."""
    right: dict[int, dict[str, Right]] = {}
    seconds: dict[int, float] = {}
    for number in steps:
        began = time.perf_counter()
        painted = [paint(model, judge.prompts, number, seeds) for judge in judges]
        count = sum(map(len, painted))
        seconds[number] = (time.perf_counter() - began) / count
        right[number] = {}
        for judge, pixels in zip(judges, painted, strict=True):
            parts = [judge.judge(pixels[i::seeds]) for i in range(seeds)]
            for name in parts[0]:
                right[number][name] = np.concatenate([part[name] for part in parts])
        shares = {name: f"{each.mean():.3f}" for name, each in right[number].items()}
        print(number, "steps", shares, f"{seconds[number]:.3f} s a picture", flush=True)
    most = steps[-1]
    results: dict[str, object] = {}
    sure_losses: set[int] = set()
    for number in steps:
        entry: dict[str, object] = {"seconds": seconds[number]}
        for name, each in right[number].items():
            less = compare(right[most][name], each)
            entry[name] = {**describe(float(each.mean()), len(each)), "less": less}
            if less["low"] > 0:
                sure_losses.add(number)
        results[f"{number}_steps"] = entry
    results["smallest"] = find_smallest(steps, sure_losses)
    return results


def find_smallest(steps: Sequence[int], sure_losses: set[int]) -> int:
    """Finds the smallest number of steps that neither loses for sure, nor does a larger one."""
    return min(number for number in steps if all(number > loss for loss in sure_losses))


def paint(model: TextToImage, prompts: Sequence[str], steps: int, seeds: int) -> Pixels:
    """Paints each prompt `seeds` times, one after the other: (prompts · seeds, S, S, 3)."""
    requests = [
        replace(one, seed=one.seed + SEED_STRIDE * number)
        for one in enumerate_requests(prompts)
        for number in range(seeds)
    ]
    return model.generate_images(requests, model.generation_settings(steps=steps)).pixels


def compare(most: Right, fewer: Right) -> dict[str, float]:
    """Tells by how much fewer pictures are right, pair by pair, with its 95 % interval."""
    difference = most.astype(float) - fewer.astype(float)
    half = 1.96 * float(difference.std()) / len(difference) ** 0.5
    mean = float(difference.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def judge_scenes(count: int, held_out: bool) -> Judge:
    """Judges scenes: all-correct or not."""
    scenes = sample_prompts(count, seed=1, held_out=held_out)

    def judge(pixels: Pixels) -> dict[str, Right]:
        each = [scene.all_correct for scene in classify_scenes(pixels, scenes)]
        return {"held_out" if held_out else "seen": np.array(each, dtype=bool)}

    return Judge([canonical_caption(scene) for scene in scenes], judge)


def judge_emoji(model: TextToImage, options: argparse.Namespace, folder: Path) -> Judge:
    """Judges held-out pairs by the nearest real picture: its subject, its style."""
    settings = DataSettings(image_size=model.config.image_size, validation_fraction=0.0)
    held = prepare([options.heldout], settings, folder / "heldout").train
    training = prepare(options.train, settings, folder / "train").train
    heldout = choose_gallery(held, read_kinds([options.heldout]), None)
    subjects = {kind.subject for kind in heldout.kinds}
    seen = choose_gallery(training, read_kinds(options.train), subjects)
    kinds = [*heldout.kinds, *seen.kinds]
    extractor = load_extractor(None, model.device, options.quick)
    real = extractor.extract(np.concatenate([heldout.images.pixels, seen.images.pixels]))

    def judge(pixels: Pixels) -> dict[str, Right]:
        nearest = compute_distances(extractor.extract(pixels), real).argmin(1)
        found = [kinds[at] for at in nearest.tolist()]
        pairs = list(zip(heldout.kinds, found, strict=True))
        return {
            "subject": np.array([a.subject == b.subject for a, b in pairs]),
            "style": np.array([a.style == b.style for a, b in pairs]),
        }

    return Judge(heldout.images.captions, judge)


if __name__ == "__main__":
    main()
