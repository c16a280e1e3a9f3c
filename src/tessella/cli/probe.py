"""`tessella probe`: how far pictures are apart at every layer of ResNet-18."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.options import Debug, Force, Json, Seed
from tessella.cli.pictures import read_square
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from tessella.evaluation.probe import Distance, LayerDistances, Separation

    Separations = Mapping[Distance, Mapping[str, Separation]]

_TITLES = {"mse": "MSE", "cosine": "cosine distance"}


def probe(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Pictures of any size: the first is compared with each other one.",
            show_default=False,
        ),
    ],
    like: Annotated[
        list[Path] | None,
        typer.Option(
            "--like",
            metavar="IMAGE",
            help="A picture that shows the like of the first; may be repeated. All others then "
            "count as unlike.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Weights of ResNet-18: .pth, .safetensors, or .npz with folded batch norm.",
            show_default="TESSELLA_RESNET18, else a download",
        ),
    ] = None,
    size: Annotated[
        int,
        typer.Option(
            "--size",
            metavar="PIXELS",
            help="Each picture's middle square is brought to this size, at least the 32 pixels "
            "that are one place of layer4.",
            min=32,
            max=4096,
        ),
    ] = 128,
    seed: Seed = 0,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draws the distances: .png or .svg.", show_default=False
        ),
    ] = None,
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

        from tessella.evaluation.probe import draw_noise, measure_distances, plot_distances
        from tessella.images import to_float
        from tessella.tokenizer.perceptual import RESNET18, load_resnet18
        from tessella.tokenizer.weights import find_weights

        paths, is_like = _choose_pictures(images, like or [])
        if plot is not None:
            _check_plot(plot, force)
        squares = [read_square(path, size, "compare") for path in paths]
        if all(np.array_equal(squares[0], square) for square in squares[1:]):
            raise DataError(f"Every picture is the same as the first: `{paths[0]}`. Give others.")
        found = find_weights(replace(RESNET18, option="--weights FILE"), weights)
        image = to_float(np.stack([*squares, draw_noise(size, seed)]))
        layers = measure_distances(load_resnet18(found), image)
        separations = _separate(layers, is_like) if is_like else None
        names = _name(paths)
        if plot is not None:
            plot_distances(plot, layers, names, is_like)
        if as_json:
            settings = {"size": size, "seed": seed, "weights": found.name}
            print_json(_to_dict(paths, is_like, settings, layers, separations))
            return
        console = create_console(as_json)
        _show(console, names, is_like, layers, separations)
        if plot is not None:
            console.print(f"\nWritten: {plot}")


def _choose_pictures(
    images: Sequence[Path], like: Sequence[Path]
) -> tuple[list[Path], list[bool] | None]:
    """Lists all pictures, and whether each but the first is like it; None if that is not said.

    Raises:
        ConfigError: there is nothing to compare.
    """
    alike = {path.resolve() for path in like}
    given = {path.resolve() for path in images}
    if images[0].resolve() in alike:
        raise ConfigError(
            f"The first picture is compared with the like ones: `{images[0]}`. Name others with "
            "--like."
        )
    paths = [*images, *(path for path in like if path.resolve() not in given)]
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


def _check_plot(path: Path, force: bool) -> None:
    """Refuses a plot that would be of another format, or replace something unasked.

    Raises:
        ConfigError: its name does not suit, or is taken.
    """
    from tessella.evaluation.probe import PLOT_SUFFIXES

    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise ConfigError(f"A plot is written as PNG or SVG: `{path}`. End its name in .png.")
    if path.is_dir():
        raise ConfigError(f"A folder has the name of the plot: `{path}`. Choose another --plot.")
    if path.exists() and not force:
        raise ConfigError(
            f"There is a plot already: `{path}`. Choose another --plot, or replace it with --force."
        )


def _name(paths: Sequence[Path]) -> list[str]:
    """Names pictures by their file, or by the whole path where two files share a name."""
    names = [path.name for path in paths]
    return [str(p) if names.count(p.name) > 1 else p.name for p in paths]


def _separate(layers: Sequence["LayerDistances"], is_like: Sequence[bool]) -> "Separations":
    from tessella.evaluation.probe import DISTANCES, compute_separation

    return {
        distance: {
            layer.layer: compute_separation(layer.distances[distance], is_like) for layer in layers
        }
        for distance in DISTANCES
    }


def _to_dict(
    paths: Sequence[Path],
    is_like: Sequence[bool] | None,
    settings: Mapping[str, Any],
    layers: Sequence["LayerDistances"],
    separations: "Separations | None",
) -> dict[str, Any]:
    """Lays all numbers out for `--json`; distances are in the order of the pictures."""
    from tessella.evaluation.probe import DISTANCES, find_best

    def describe(layer: "LayerDistances", distance: "Distance") -> dict[str, Any]:
        *pictures, noise = layer.distances[distance]
        separation = asdict(separations[distance][layer.layer]) if separations else None
        return {"pictures": pictures, "noise": noise, "separation": separation}

    return {
        "first": str(paths[0]),
        "pictures": [
            {"file": str(path), "like": is_like[number] if is_like else None}
            for number, path in enumerate(paths[1:])
        ],
        **settings,
        "protocol": {
            "input": "middle square, Lanczos unless it has the size, ImageNet normalization",
            "mse": "mean squared difference of the raw features; of pixels in [-1, 1]",
            "cosine": "1 − cosine over channels, mean over places",
            "noise": "uniform, 8 bits",
            "separation": "mean distance to the unlike pictures / mean distance to the like",
        },
        "layers": [
            {"layer": layer.layer, "shape": list(layer.shape)}
            | {distance: describe(layer, distance) for distance in DISTANCES}
            for layer in layers
        ],
        "best": separations and {name: find_best(separations[name]) for name in DISTANCES},
    }


def _show(
    console: "Console",
    names: Sequence[str],
    is_like: Sequence[bool] | None,
    layers: Sequence["LayerDistances"],
    separations: "Separations | None",
) -> None:
    """Prints the pictures by number, a table a distance, and what separates best."""
    from rich.table import Table

    from tessella.evaluation.probe import DISTANCES, PIXELS, find_best

    console.print(f"{names[0]} against")
    for number, name in enumerate(names[1:], start=1):
        kind = "" if is_like is None else ("  like" if is_like[number - 1] else "  unlike")
        console.print(f"{number:>4}  {name}{kind}")
    for distance in DISTANCES:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(_TITLES[distance], min_width=len(_TITLES["cosine"]), no_wrap=True)
        heads = [*map(str, range(1, len(names))), "noise", *(["separation"] if is_like else [])]
        for head in heads:
            table.add_column(head, justify="right", min_width=max(6, len(head)), no_wrap=True)
        for layer in layers:
            cells = [f"{value:.3f}" for value in layer.distances[distance]]
            if separations:
                cells.append(f"{separations[distance][layer.layer].score:.2f}")
            table.add_row(layer.layer, *cells)
        console.print()
        console.print(table)
    if not separations:
        return
    console.print("\nSeparation: mean distance to the unlike pictures over that to the like.")
    for distance, by_layer in separations.items():
        best = find_best(by_layer)
        found = by_layer[best]
        console.print(
            f"Best by {_TITLES[distance]}: {best}, {found.score:.2f} (pixels: "
            f"{by_layer[PIXELS].score:.2f}). Noise there is number {found.noise_rank} of "
            f"{len(names)} by distance, {found.noise_over_unlike:.2f} times as far as the unlike."
        )
