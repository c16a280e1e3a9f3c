"""Whether the distances between photos at ResNet-18's layers are the known ones.

Why: the founding report chose its loss by such distances. Everything that looks at features, the
perceptual loss and the metrics too, is wrong when they are: another normalization, a forgotten
ReLU, another order of the channels.

Theory: the same weights give the same features up to rounding. The expected values are raw mean
squared errors of beach_a against beach_b, houses_free and parrots_free, at 128×128 pixels with
ImageNet normalization, at the ends of conv1 (after batch norm and ReLU, before pooling), layer1,
layer2 and layer3. Their three decimals and 16-bit weights allow 10 %.

Output contract: the last line of stdout is the record, one JSON object: every measured value, the
expected ones, the worst relative difference, and whether it is within 10 %. `--quick` compares
drawn scenes with random weights: nothing is expected of them, and all but the first is null.

    python benchmarks/probe.py --pictures PROBE_FOLDER --weights RESNET18.npz
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harness import RESULTS, environment, print_record, write_result
from tessella.data.scenes import draw_scene
from tessella.evaluation.probe import measure_distances
from tessella.evaluation.scenes import sample_prompts
from tessella.files import write_tensors
from tessella.images import fit_square, save_png, to_float
from tessella.tokenizer.perceptual import ResNet18, load_resnet18

SIZE = 128
FIRST = "beach_a"
LAYERS = ("conv1", "layer1.1", "layer2.1", "layer3.1")
EXPECTED = {
    "beach_b": (0.044, 0.213, 0.092, 0.047),
    "houses_free": (0.111, 0.517, 0.197, 0.098),
    "parrots_free": (0.091, 0.409, 0.189, 0.102),
}
TOLERANCE = 0.10


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder with beach_a.png and the others")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of ResNet-18")
    parser.add_argument("--quick", action="store_true", help="draws its own; stores nothing")
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            options.pictures, options.weights = draw_inputs(Path(folder))
            measured = measure(options.pictures, options.weights)
        expected = worst = None
    elif options.pictures is None or options.weights is None:
        parser.error("--pictures and --weights are needed, or --quick")
    else:
        measured = measure(options.pictures, options.weights)
        expected = {name: dict(zip(LAYERS, EXPECTED[name], strict=True)) for name in EXPECTED}
        worst = max(
            abs(measured[name][layer] / value - 1)
            for name, by_layer in expected.items()
            for layer, value in by_layer.items()
        )
    record = write_result(
        "probe",
        {
            "mse": measured,
            "expected": expected,
            "worst_relative_difference": worst,
            "within_tolerance": None if worst is None else worst <= TOLERANCE,
        },
        config={"size": SIZE, "weights": options.weights.name, "tolerance": TOLERANCE},
        where=environment(),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure(pictures: Path, weights: Path) -> dict[str, dict[str, float]]:
    """Measures the MSE between the first picture and each other one, by name and layer."""
    pixels = []
    for name in (FIRST, *EXPECTED):
        with Image.open(pictures / f"{name}.png") as picture:
            pixels.append(fit_square(picture.convert("RGB"), SIZE))
    layers = measure_distances(load_resnet18(weights), to_float(np.stack(pixels)))
    by_layer = {layer.layer: layer.distances["mse"] for layer in layers}
    measured = {}
    for number, name in enumerate(EXPECTED):
        measured[name] = {layer: by_layer[layer][number] for layer in LAYERS}
        print(f"{name:<13}", "  ".join(f"{k} {v:.4f}" for k, v in measured[name].items()))
    return measured


def draw_inputs(folder: Path) -> tuple[Path, Path]:
    """Draws a scene for each picture, and a network with random weights."""
    names = [FIRST, *EXPECTED]
    for name, scene in zip(names, sample_prompts(len(names), seed=0), strict=True):
        save_png(folder / f"{name}.png", draw_scene(scene, SIZE))
    torch.manual_seed(0)
    weights = folder / "random.safetensors"
    write_tensors(weights, ResNet18().state_dict())
    return folder, weights


if __name__ == "__main__":
    main()
