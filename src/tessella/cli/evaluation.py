"""`tessella evaluate`: a model and images in, numbers with their protocol out."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.options import Config, Debug, Device, Force, Json, Seed, Set
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from tessella.data.cache import CaptionedImages
    from tessella.data.settings import DataSettings
    from tessella.evaluation.features import FeatureExtractor
    from tessella.evaluation.model import ChosenImages
    from tessella.evaluation.reconstruction import Metric
    from tessella.evaluation.squeezenet import SqueezeNet
    from tessella.images import Pixels

_SHEET_COLUMNS = 8
_SHEET_PAIRS = 32


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, a run's folder (after fit-tokenizer too), or the name of a "
            "bundled model.",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help="Captioned images, as for fit; all of them count. A run's folder as MODEL "
            "brings its own: those that it kept out of training.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--features",
            metavar="NAME",
            help="What FID and KID compare: squeezenet-LAYER or resnet18-LAYER. May be repeated.",
            show_default="squeezenet-fire9",
        ),
    ] = None,
    max_images: Annotated[
        int,
        typer.Option(
            "--max-images",
            metavar="NUMBER",
            help="If there are more, so many are drawn by --seed.",
            min=1,
        ),
    ] = 2000,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.json", help="Save what --json prints.", show_default=False
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            metavar="FILE.png",
            help="Save pictures, and under each what the model keeps of it.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="FOLDER",
            help="Keep the checked images of DATA here, to use them again.",
            show_default="a temporary folder",
        ),
    ] = None,
    config: Config = None,
    set_: Set = None,
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a model on images.

    Each number comes with its protocol: on which images, by which network, with which
    settings. Of the settings only the section data counts.
    """
    with told_errors(debug, if_interrupted="Nothing was written."):
        from tessella.bundled import find_tokenizer
        from tessella.evaluation.model import evaluate_images
        from tessella.files import write_json
        from tessella.images import save_png
        from tessella.pipeline import TEXT_FILE, TextToImage, TrainedTokenizer
        from tessella.training.recipe import resolve_recipe

        _check_file(out, ".json", force)
        _check_file(sheet, ".png", force)
        folder = find_tokenizer(model)
        console = create_console(as_json)
        loaded: TextToImage | TrainedTokenizer
        if (folder / TEXT_FILE).exists():
            loaded = TextToImage.load(folder, device)
        else:
            loaded = TrainedTokenizer.load(folder, device)
        judges = _load_judges(features or (), loaded.device)
        if data:
            settings = resolve_recipe(None, config, set_ or ()).data.replace(
                image_size=loaded.config.image_size, validation_fraction=0.0
            )
            images = _read_data(data, settings, cache, max_images, seed)
        else:
            images = _read_kept_out(Path(model).expanduser(), max_images, seed)
        console.print(f"Measuring on {images.description}.")
        found = evaluate_images(
            loaded, images, squeezenet=judges.squeezenet, features=judges.features
        )
        left_out = judges.explain_left_out(found.metrics)
        result = {
            "model": model,
            "data": data or [],
            "images": len(images.pixels),
            "metrics": {name: asdict(metric) for name, metric in found.metrics.items()},
            "left_out": left_out,
        }
        if out:
            write_json(out, result, what="the metrics")
        if sheet:
            save_png(sheet, _make_sheet(images.pixels, found.reconstructions))
        if as_json:
            print_json(result)
        else:
            _show(found.metrics, left_out, console)
            for path in filter(None, (out, sheet)):
                console.print(f"Written: {path}")


@dataclass(frozen=True)
class _Judges:
    """The networks that compare pictures."""

    squeezenet: "SqueezeNet | None"
    features: Sequence["FeatureExtractor"]
    names: Sequence[str]  # of the features, those that are missing too
    missing: str | None  # why there is no SqueezeNet

    def explain_left_out(self, metrics: Mapping[str, Any]) -> dict[str, str]:
        """Says of each number that is not there why it is not."""
        from tessella.evaluation.distributions import MIN_PICTURES

        distributions = [f"{kind}_{name}" for name in self.names for kind in ("fid", "kid")]
        wanted = [f"reconstruction_{name}" for name in ("perceptual_distance", *distributions)]
        too_few = f"It takes at least {MIN_PICTURES} images."
        loaded = [f"_{extractor.name}" for extractor in self.features]
        return {
            name: too_few if name.endswith(tuple(loaded)) else self.missing or too_few
            for name in wanted
            if name not in metrics
        }


def _load_judges(names: Sequence[str], device: "torch.device") -> _Judges:
    """Loads SqueezeNet if its weights are there, and the features that are asked for.

    Raises:
        ConfigError: features that are asked for are unknown, or their weights are missing.
        CheckpointError: a file of weights is damaged.
    """
    from tessella.evaluation.features import DEFAULT_FEATURES, create_extractor
    from tessella.evaluation.squeezenet import SQUEEZENET, load_squeezenet
    from tessella.tokenizer.weights import find_weights

    given = [create_extractor(name, device=device) for name in names]
    try:
        find_weights(SQUEEZENET)
    except ConfigError as error:
        return _Judges(None, given, names or [DEFAULT_FEATURES], str(error))
    if not names:
        given = [create_extractor(DEFAULT_FEATURES, device=device)]
    squeezenet = load_squeezenet().to(device)
    return _Judges(squeezenet, given, [extractor.name for extractor in given], None)


def _read_data(
    sources: Sequence[str],
    settings: "DataSettings",
    cache: Path | None,
    max_images: int,
    seed: int,
) -> "ChosenImages":
    """Reads images of DATA, through a cache that is kept if it has a place."""
    from tessella.data.prepare import prepare

    with _folder(cache) as folder:
        images = prepare(sources, settings, folder).train
        return _choose(images, ", ".join(Path(s).name for s in sources), max_images, seed)


@contextlib.contextmanager
def _folder(cache: Path | None) -> Iterator[Path]:
    """Gives the cache's folder, or a temporary one that is removed again."""
    if cache is not None:
        yield cache.expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="tessella-") as temporary:
        yield Path(temporary) / "data"


def _read_kept_out(run: Path, max_images: int, seed: int) -> "ChosenImages":
    """Reads the images that a run kept out of its training.

    Raises:
        DataError: it is no run, has lost its images, or kept none out.
    """
    from tessella.data.cache import CaptionedImages, read_manifest
    from tessella.training.fit import DATA_FOLDER, RUN_FILE

    if not (run / RUN_FILE).is_file():
        raise DataError(
            f"Only the folder of a run brings its own images: `{run}`. Name DATA after MODEL."
        )
    manifest = read_manifest(run / DATA_FOLDER)
    if manifest is None or not manifest["counts"]["validation"]:
        what = "kept no images out of training" if manifest else "has no images any more"
        raise DataError(f"The run {what}: `{run}`. Name DATA after MODEL.")
    images = CaptionedImages(
        run / DATA_FOLDER,
        "validation",
        manifest["identity"]["settings"]["image_size"],
        manifest["fingerprints"]["validation"],
    )
    return _choose(images, "what the run kept out", max_images, seed)


def _choose(images: "CaptionedImages", name: str, max_images: int, seed: int) -> "ChosenImages":
    """Reads all images, or as many as may be, drawn by the seed."""
    import numpy as np

    from tessella.evaluation.model import read_images

    total, count = len(images), min(len(images), max_images)
    drawn = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    which = f"all {total:,} images of {name}"
    if count < total:
        which = f"{count:,} of the {total:,} images of {name}, drawn with seed {seed}"
    return read_images(images, drawn.tolist(), which)


def _make_sheet(originals: "Pixels", reconstructions: "Pixels") -> "Pixels":
    """Lays out rows of pictures, each above a row of what was made of them."""
    from tessella.cli.pictures import make_labelled_sheet
    from tessella.evaluation.reconstruction import compute_psnr

    columns = min(_SHEET_COLUMNS, len(originals))
    count = min(_SHEET_PAIRS, len(originals)) // columns * columns
    pictures: list[Pixels] = []
    labels: list[str] = []
    for start in range(0, count, columns):
        row = slice(start, start + columns)
        pictures += [*originals[row], *reconstructions[row]]
        pairs = zip(reconstructions[row], originals[row], strict=True)
        labels += [""] * columns
        labels += [f"{compute_psnr(made[None], image[None]):.1f} dB" for made, image in pairs]
    return make_labelled_sheet(pictures, labels, columns)


def _check_file(path: Path | None, suffix: str, force: bool) -> None:
    """Refuses a file that is there already, or of another kind, before the work."""
    if path is None:
        return
    if path.suffix.lower() != suffix or path.is_dir():
        raise ConfigError(f"This is written to a file NAME{suffix}: `{path}`. Name such a file.")
    if path.exists() and not force:
        raise ConfigError(
            f"The file is there already: `{path}`. Choose another name, or replace it with --force."
        )


def _show(metrics: Mapping[str, "Metric"], left_out: Mapping[str, str], console: "Console") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", no_wrap=True)
    table.add_column("protocol")
    for name, metric in metrics.items():
        table.add_row(name, f"{metric.value:.4g}", metric.protocol)
    console.print(table)
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name, why in left_out.items() if why == reason)
        console.print(f"\nLeft out: {names}. {reason}")
