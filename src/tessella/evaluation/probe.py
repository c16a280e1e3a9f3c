"""How far pictures are apart at every layer of a network: the founding report's figure.

The first picture is compared with all others, and with uniform noise. The features of the
network take the place of an image's pixels in two distances:

    mse      mean over channels and positions of the squared difference, features as they are
    cosine   1 − the cosine of two feature vectors (over channels), mean over positions

The layer `pixels` is the image itself, (3, H, W) in [-1, 1]: what a pixel loss compares. When
some pictures are named as like the first, a layer's separation says how well it suits a loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tessella.errors import DataError, needs_extra
from tessella.files import new_file
from tessella.images import Pixels
from tessella.tokenizer.pretrained import PretrainedFeatures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Distance = Literal["mse", "cosine"]
DISTANCES: tuple[Distance, ...] = ("mse", "cosine")
PIXELS = "pixels"
PLOT_SUFFIXES = (".png", ".svg")

# The lines of like pictures share a hue, those of unlike ones another: colour map, start, stop.
_HUES = {
    "": ("viridis", 0.0, 0.9),
    "like": ("Blues", 0.95, 0.5),
    "unlike": ("Oranges", 0.9, 0.4),
}


@dataclass(frozen=True)
class Separation:
    """How well one distance at one layer tells unlike pictures from like ones."""

    score: float  # mean distance to the unlike pictures / mean distance to the like ones
    noise_rank: int  # among all distances, 1 is the nearest
    noise_over_unlike: float  # distance to noise / mean distance to the unlike pictures


@dataclass(frozen=True)
class LayerDistances:
    """How far the others are from the first picture at one layer."""

    layer: str  # "pixels", or the network's own name
    shape: tuple[int, ...]  # of one picture's features
    distances: Mapping[Distance, tuple[float, ...]]  # to each of the others, in their order
    separations: Mapping[Distance, Separation]  # empty unless some pictures are named as like


def draw_noise(size: int, seed: int) -> Pixels:
    """Draws a picture of uniform noise, (size, size, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@torch.inference_mode()
def measure_distances(
    network: PretrainedFeatures, image: Tensor, is_like: Sequence[bool] | None = None
) -> list[LayerDistances]:
    """Compares the first image with each other one at every layer, the pixels first.

    Args:
        network: it sees one image at a time, so that memory does not grow with their number.
        image: (B, 3, H, W) in [-1, 1], B >= 2.
        is_like: whether each of the others, without the noise at the end, is like the first;
            adds separations.

    Raises:
        DataError: pictures that are to be told apart are not at any distance from the first.
    """
    first = _compute_layers(network, image[:1])
    values: dict[str, dict[Distance, list[float]]] = {
        layer: {"mse": [], "cosine": []} for layer in first
    }
    for other in image[1:].split(1):
        for layer, features in _compute_layers(network, other).items():
            values[layer]["mse"].append(compute_mse(first[layer], features))
            values[layer]["cosine"].append(compute_cosine_distance(first[layer], features))
    return [
        LayerDistances(
            layer,
            tuple(first[layer].shape[1:]),
            {distance: tuple(each) for distance, each in by_distance.items()},
            {
                distance: compute_separation(each, is_like)
                for distance, each in by_distance.items()
                if is_like is not None
            },
        )
        for layer, by_distance in values.items()
    ]


def _compute_layers(network: PretrainedFeatures, image: Tensor) -> dict[str, Tensor]:
    return {PIXELS: image, **network.features(image, network.available)}


def compute_mse(features: Tensor, other: Tensor) -> float:
    """Returns the mean squared difference of (1, C, h, w) or (1, C) features."""
    return float((features - other).square().mean())


def compute_cosine_distance(features: Tensor, other: Tensor) -> float:
    """Returns 1 − the cosine over channels, mean over positions; 0 is alike, 2 opposite.

    Computed as half the squared distance of the vectors at length 1, which is the same, and
    exactly 0 for equal ones. A vector of zeros keeps its length: it is 0 from another one, 1/2
    from any other vector.

    Args:
        features: (1, C, h, w) or (1, C).
        other: the same shape.
    """
    difference = functional.normalize(features, dim=1) - functional.normalize(other, dim=1)
    return float(difference.square().sum(dim=1).mean() / 2)


def compute_separation(distances: Sequence[float], is_like: Sequence[bool]) -> Separation:
    """Compares distances to like pictures, to unlike ones and to noise.

    Args:
        distances: to each picture; the last one is the noise's.
        is_like: whether each picture is like the first; some are and some are not.

    Raises:
        DataError: the mean distance to the like or to the unlike pictures is 0.
    """
    *pictures, noise = distances
    like, unlike = (
        fmean(value for value, each in zip(pictures, is_like, strict=True) if each is kind)
        for kind in (True, False)
    )
    if not like or not unlike:
        kind = "unlike" if like else "like"
        raise DataError(
            f"The mean distance from the first picture to the {kind} ones is `0`: nothing can be "
            "divided by it. Name pictures that are not copies of the first."
        )
    rank = 1 + sum(value < noise for value in pictures)
    return Separation(unlike / like, rank, noise / unlike)


def find_best(layers: Sequence[LayerDistances], distance: Distance) -> LayerDistances:
    """Returns the network's layer that separates best, the first of equals; never the pixels."""
    of_network = [layer for layer in layers if layer.layer != PIXELS]
    return max(of_network, key=lambda layer: layer.separations[distance].score)


def check_can_plot() -> None:
    """Refuses a plot where matplotlib is missing, before the work.

    Raises:
        ConfigError: says how to install it.
    """
    with needs_extra("plot", "A plot"):
        import matplotlib  # noqa: F401


def plot_distances(
    path: Path,
    layers: Sequence[LayerDistances],
    names: Sequence[str],
    is_like: Sequence[bool] | None,
) -> None:
    """Draws both distances over the layers, a line a picture, the noise dashed.

    Args:
        path: ends in `.png` or `.svg`.
        layers: from `measure_distances`, the noise as the last image.
        names: of the first picture and of the others, without the noise.
        is_like: whether each of the others is like the first; None if unknown.

    Raises:
        CheckpointError: the plot cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = max(5.2, 0.24 * len(names))  # a line of the legend a picture
    figure = Figure(figsize=(13, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    # Two dollars would begin and end a formula.
    names = [name.replace("$", r"\$") for name in names]
    figure.suptitle(f"Distance from {names[0]} at every layer")
    left, right = figure.subplots(1, 2)
    styles = _choose_styles(names[1:], is_like)
    _draw_panel(left, layers, "mse", styles)
    left.set_ylabel("MSE / mean MSE to the pictures at that layer (log scale)")
    _draw_panel(right, layers, "cosine", styles)
    right.set_ylabel("cosine distance: 1 − cosine, mean over places (log scale)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    with new_file(path, what="the plot") as temporary:
        figure.savefig(temporary, dpi=150)


def _choose_styles(names: Sequence[str], is_like: Sequence[bool] | None) -> list[dict[str, Any]]:
    """Chooses colour, marker and label of each line, the noise's last."""
    from matplotlib import colormaps

    kinds = [""] * len(names)
    if is_like is not None:
        kinds = ["like" if each else "unlike" for each in is_like]
    styles: list[dict[str, Any]] = []
    for index, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        colormap, start, stop = _HUES[kind]
        number, last = kinds[:index].count(kind), max(1, kinds.count(kind) - 1)
        styles.append(
            {
                "label": f"{index + 1}  {name}" + (f" ({kind})" if kind else ""),
                "color": colormaps[colormap](start + (stop - start) * number / last),
                "marker": "osD^vPX*"[number % 8],
                "zorder": 3 if kind == "like" else 2,
            }
        )
    return [*styles, {"label": "noise", "color": "gray", "linestyle": "dashed", "marker": "."}]


def _draw_panel(
    axes: "Axes",
    layers: Sequence[LayerDistances],
    distance: Distance,
    styles: Sequence[Mapping[str, Any]],
) -> None:
    """Draws the lines of one distance; MSE over its mean, as layers differ in scale."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = np.array([layer.distances[distance] for layer in layers])  # (layers, pictures + 1)
    if distance == "mse":
        values = values / values[:, :-1].mean(axis=1, keepdims=True)
    ticks = range(len(layers))
    for line, style in zip(values.T, styles, strict=True):
        axes.plot(ticks, line, markersize=5, linewidth=1.6, **style)
    axes.set_xticks(ticks, [layer.layer for layer in layers], rotation=45, ha="right")
    # Separation is a ratio: on a log scale the same height is the same ratio.
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
