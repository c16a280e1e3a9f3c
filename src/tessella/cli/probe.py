"""`tessella probe`: how far pictures are apart at every layer of ResNet-18."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.options import Debug, Force, Json, Seed
from tessella.cli.output_file import check_output_file
from tessella.cli.pictures import read_square
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from tessella.evaluation.probe import LayerDistances

_TITLES = {"mse": "MSE", "cosine": "cosine distance"}


_Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE",
        help="Pictures of any size: the first is compared with each other one.",
        show_default=False,
    ),
]
_Like = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="IMAGE",
        help="A picture that shows the like of the first; may be repeated. All others then "
        "count as unlike.",
    ),
]
_Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights of ResNet-18: .pth, .safetensors, or .npz with folded batch norm.",
        show_default="TESSELLA_RESNET18, else a download",
    ),
]
_Size = Annotated[
    int,
    typer.Option(
        metavar="PIXELS",
        help="Each picture's middle square is resized to this, at least the 32 pixels that are "
        "one position of layer4.",
        min=32,
        max=4096,
    ),
]
_Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draws the distances: .png or .svg.")
]


@dataclass(frozen=True)
class _Comparison:
    """The first picture beside the others, and what was measured."""

    paths: Sequence[Path]  # the first one first
    is_like: Sequence[bool] | None  # of the others; None if --like is not given
    layers: Sequence["LayerDistances"]

    @property
    def names(self) -> list[str]:
        """The pictures' file names, or whole paths where two files share a name."""
        names = [path.name for path in self.paths]
        return [str(p) if names.count(p.name) > 1 else p.name for p in self.paths]


def probe(
    images: _Images,
    like: _Like = None,
    weights: _Weights = None,
    size: _Size = 128,
    seed: Seed = 0,
    plot: _Plot = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare pictures at every layer of ResNet-18.

    Tells how far each one, and uniform noise, is from the first. With --like also how well
    each layer separates: mean distance to the unlike pictures over mean distance to the like.
    """
    with told_errors(debug, if_interrupted="Nothing was written."):
        import numpy as np

        from tessella.evaluation import probe as evaluation
        from tessella.images import to_float
        from tessella.tokenizer.perceptual import RESNET18, load_resnet18
        from tessella.tokenizer.weights import find_weights

        paths, is_like = _choose_pictures(images, like or [])
        check_output_file(plot, evaluation.PLOT_SUFFIXES, force=force)
        if plot is not None:
            evaluation.check_can_plot()
        squares = [read_square(path, size, "compare") for path in paths]
        if all(np.array_equal(squares[0], square) for square in squares[1:]):
            raise DataError(f"Every picture is the same as the first: `{paths[0]}`. Give others.")
        weights = find_weights(replace(RESNET18, option="--weights FILE"), weights)
        image = to_float(np.stack([*squares, evaluation.draw_noise(size, seed)]))
        layers = evaluation.measure_distances(load_resnet18(weights), image, is_like)
        comparison = _Comparison(paths, is_like, layers)
        if plot is not None:
            evaluation.plot_distances(plot, layers, comparison.names, is_like)
        if as_json:
            settings = {"size": size, "seed": seed, "weights": weights.name}
            print_json(_to_dict(comparison, settings))
            return
        console = create_console(as_json)
        _show(comparison, console)
        if plot is not None:
            console.print(f"\nWritten: {plot}")


def _choose_pictures(
    images: Sequence[Path], like: Sequence[Path]
) -> tuple[list[Path], list[bool] | None]:
    """Lists all pictures, and whether each but the first is like it; None without --like.

    Raises:
        ConfigError: there is nothing to compare.
    """
    alike = {path.resolve() for path in like}
    compared = {path.resolve() for path in images}
    if images[0].resolve() in alike:
        raise ConfigError(
            f"The first picture is compared with the like ones: `{images[0]}`. Name others with "
            "--like."
        )
    paths = [*images, *(path for path in like if path.resolve() not in compared)]
    if len(paths) < 2:
        raise ConfigError(f"One picture has nothing to compare with: `{paths[0]}`. Give two.")
    if not like:
        return paths, None
    is_like = [path.resolve() in alike for path in paths[1:]]
    if all(is_like):
        raise ConfigError(
            f"Every picture is named as like the first: `{len(is_like)}` of {len(is_like)}. Give "
            "others too that are unlike it."
        )
    return paths, is_like


def _to_dict(comparison: _Comparison, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Lays all numbers out for `--json`; distances are in the order of the pictures."""
    from tessella.evaluation.probe import DISTANCES, find_best

    first, *others = comparison.paths
    is_like: Sequence[bool | None] = comparison.is_like or [None] * len(others)
    layers = []
    for layer in comparison.layers:
        entry: dict[str, Any] = {"layer": layer.layer, "shape": list(layer.shape)}
        for distance in DISTANCES:
            *pictures, noise = layer.distances[distance]
            separation = layer.separations.get(distance)
            entry[distance] = {
                "pictures": pictures,
                "noise": noise,
                "separation": separation and asdict(separation),
            }
        layers.append(entry)
    best = None
    if comparison.is_like:
        best = {distance: find_best(comparison.layers, distance).layer for distance in DISTANCES}
    return {
        "first": str(first),
        "pictures": [
            {"file": str(path), "like": each} for path, each in zip(others, is_like, strict=True)
        ],
        **settings,
        "protocol": {
            "input": "middle square, Lanczos unless it has the size, ImageNet normalization",
            "mse": "mean squared difference of the raw features; of pixels in [-1, 1]",
            "cosine": "1 − cosine over channels, mean over places",
            "noise": "uniform, 8 bits",
            "separation": "mean distance to the unlike pictures / mean distance to the like",
        },
        "layers": layers,
        "best": best,
    }


def _show(comparison: _Comparison, console: "Console") -> None:
    """Prints the pictures by number, a table a distance, and what separates best."""
    from rich.table import Table

    from tessella.evaluation.probe import DISTANCES, PIXELS, find_best

    first, *others = comparison.names
    kinds = [""] * len(others)
    if comparison.is_like:
        kinds = ["  like" if each else "  unlike" for each in comparison.is_like]
    console.print(f"{first} against")
    for number, (name, kind) in enumerate(zip(others, kinds, strict=True), start=1):
        console.print(f"{number:>4}  {name}{kind}")
    for distance in DISTANCES:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(_TITLES[distance], min_width=len(_TITLES["cosine"]), no_wrap=True)
        heads = [*map(str, range(1, 1 + len(others))), "noise"]
        for head in [*heads, "separation"] if comparison.is_like else heads:
            table.add_column(head, justify="right", min_width=max(6, len(head)), no_wrap=True)
        for layer in comparison.layers:
            cells = [f"{value:.3f}" for value in layer.distances[distance]]
            if comparison.is_like:
                cells.append(f"{layer.separations[distance].score:.2f}")
            table.add_row(layer.layer, *cells)
        console.print()
        console.print(table)
    if not comparison.is_like:
        return
    console.print("\nSeparation: mean distance to the unlike pictures over that to the like.")
    [pixels] = [layer for layer in comparison.layers if layer.layer == PIXELS]
    for distance in DISTANCES:
        layer = find_best(comparison.layers, distance)
        best = layer.separations[distance]
        console.print(
            f"Best by {_TITLES[distance]}: {layer.layer}, {best.score:.2f} (pixels: "
            f"{pixels.separations[distance].score:.2f}). Noise there is number {best.noise_rank} "
            f"of {1 + len(others)} by distance, {best.noise_over_unlike:.2f} times as far as the "
            "unlike."
        )
