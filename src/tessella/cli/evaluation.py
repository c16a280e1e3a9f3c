"""`tessella evaluate`: a model and images in, numbers with their protocol out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessella.cli.options import Config, Debug, Device, Force, Json, Seed, Set
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from tessella.data.cache import CaptionedImages
    from tessella.evaluation.features import FeatureExtractor
    from tessella.evaluation.generation import PaintingChecks
    from tessella.evaluation.model import ImagesEvaluation
    from tessella.evaluation.reconstruction import Metric
    from tessella.evaluation.squeezenet import SqueezeNet
    from tessella.images import Pixels

_SHEET_COLUMNS = 8
_SHEET_PAIRS = 32
_PMI_PICTURES = 32
_NO_TRAINING = (
    "It takes the training pictures: name them with --train-data, or give a run's folder as MODEL."
)


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
            help="What FID, KID, precision and recall compare: squeezenet-LAYER or "
            "resnet18-LAYER. May be repeated.",
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
    pictures: Annotated[
        int,
        typer.Option(
            "--pictures",
            metavar="NUMBER",
            help="Paint so many captions of DATA and measure the pictures; 0 paints none.",
            min=0,
        ),
    ] = 256,
    pmi_pictures: Annotated[
        int | None,
        typer.Option(
            "--pmi-pictures",
            metavar="NUMBER",
            help="Of so many pictures the model itself ranks 100 prompts; it takes a pass over "
            "each picture with each prompt.",
            min=0,
            show_default=str(_PMI_PICTURES),
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            metavar="FOLDER|NAME",
            help="A CLIP, loaded by transformers, also ranks 100 prompts for each picture.",
            show_default=False,
        ),
    ] = None,
    train_data: Annotated[
        list[str] | None,
        typer.Option(
            "--train-data",
            metavar="DATA",
            help="What the model learned from, to look for copies. May be repeated.",
            show_default="the run's",
        ),
    ] = None,
    max_training: Annotated[
        int,
        typer.Option(
            "--max-training",
            metavar="NUMBER",
            help="If there are more training pictures, copies are looked for among so many.",
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
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            metavar="FILE.png",
            help="Save painted pictures, and right of each the nearest training picture; the "
            "nearest pairs come first.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="FOLDER",
            help="Keep the checked images of DATA here, to use them again; those of --train-data "
            "in FOLDER-train.",
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
        from tessella.cli.measured_images import open_training, read_data, read_kept_out
        from tessella.evaluation.memorisation import make_pairs_sheet
        from tessella.evaluation.model import evaluate_images
        from tessella.evaluation.retrieval import Clip
        from tessella.files import write_json
        from tessella.images import save_png
        from tessella.model.find import find_tokenizer
        from tessella.model.folder import TrainedTokenizer
        from tessella.model.pipeline import TextToImage
        from tessella.text import TEXT_FILE
        from tessella.training.recipe import resolve_recipe

        _check_file(out, ".json", force)
        _check_file(sheet, ".png", force)
        _check_file(pairs, ".png", force)
        folder = find_tokenizer(model)
        console = create_console(as_json)
        loaded: TextToImage | TrainedTokenizer
        if (folder / TEXT_FILE).exists():
            loaded = TextToImage.load(folder, device)
        else:
            loaded = TrainedTokenizer.load(folder, device)
        paints = pictures > 0 and isinstance(loaded, TextToImage)
        if not paints:
            _check_unused(
                {
                    "--clip": clip,
                    "--pmi-pictures": pmi_pictures,
                    "--train-data": train_data,
                    "--pairs": pairs,
                }
            )
        judges = _load_judges(features or (), loaded.device)
        settings = resolve_recipe(None, config, set_ or ()).data.replace(
            image_size=loaded.config.image_size, validation_fraction=0.0
        )
        if data:
            images = read_data(data, settings, cache, max_images, seed)
        else:
            images = read_kept_out(Path(model).expanduser(), max_images, seed)
        console.print(f"Measuring on {images.description}.")
        with open_training(train_data, settings, cache, folder.parent) as training:
            checks = None
            if paints:
                num_scored = _PMI_PICTURES if pmi_pictures is None else pmi_pictures
                checks = judges.choose_checks(pictures, num_scored, training, max_training)
                if pairs:
                    _check_pairs(checks)
                if clip:
                    checks = replace(checks, clip=Clip(clip, loaded.device))
            with console.status("Looking at the pictures"):
                found = evaluate_images(
                    loaded,
                    images,
                    squeezenet=judges.squeezenet,
                    features=judges.features,
                    checks=checks,
                )
        left_out = judges.explain_left_out(found)
        result = {
            "model": model,
            "data": data or [],
            "images": len(images.pixels),
            "pictures": len(found.painted.pixels) if found.painted else 0,
            "metrics": {name: asdict(metric) for name, metric in found.metrics.items()},
            "left_out": left_out,
        }
        if out:
            write_json(out, result, what="the metrics")
        if sheet:
            save_png(sheet, _make_sheet(images.pixels, found.reconstructions))
        if pairs and found.painted and found.painted.pairs:
            save_png(pairs, make_pairs_sheet(found.painted.pairs))
        else:
            pairs = None  # no caption was short enough to be painted, as the table says
        if as_json:
            print_json(result)
        else:
            _show(found.metrics, left_out, console)
            for path in filter(None, (out, sheet, pairs)):
                console.print(f"Written: {path}")


@dataclass(frozen=True)
class _Judges:
    """The networks that compare pictures."""

    squeezenet: "SqueezeNet | None"
    judge: "FeatureExtractor | None"  # of SqueezeNet
    features: Sequence["FeatureExtractor"]
    names: Sequence[str]  # of the features, those that are missing too
    missing: str  # why there is no SqueezeNet

    def choose_checks(
        self,
        pictures: int,
        pmi_pictures: int,
        training: "CaptionedImages | None",
        max_training: int,
    ) -> "PaintingChecks":
        """Chooses what is measured on painted pictures."""
        from tessella.evaluation.generation import PaintingChecks

        return PaintingChecks(
            pictures=pictures,
            features=self.features,
            judge=self.judge,
            no_judge=self.missing,
            pmi_pictures=pmi_pictures,
            training=training,
            max_training=max_training,
            no_training=_NO_TRAINING,
        )

    def explain_left_out(self, found: "ImagesEvaluation") -> dict[str, str]:
        """Says of each number that is not there why it is not."""
        from tessella.evaluation.distributions import MIN_PICTURES

        too_few = f"It takes at least {MIN_PICTURES} images."
        wanted = {"reconstruction_perceptual_distance": self.missing}
        loaded = [extractor.name for extractor in self.features]
        for name in self.names:
            reason = too_few if name in loaded else self.missing
            wanted |= {f"reconstruction_{kind}_{name}": reason for kind in ("fid", "kid")}
            if found.painted:
                kinds = ("fid", "kid", "precision", "recall")
                wanted |= {f"painted_{kind}_{name}": reason for kind in kinds}
        left_out = {name: why for name, why in wanted.items() if name not in found.metrics}
        return left_out | dict(found.painted.left_out if found.painted else {})


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
        return _Judges(None, None, given, names or [DEFAULT_FEATURES], str(error))
    squeezenet = load_squeezenet().to(device)
    judge = create_extractor(device=device)
    given = given or [judge]
    return _Judges(squeezenet, judge, given, [extractor.name for extractor in given], "")


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


def _check_unused(options: Mapping[str, object]) -> None:
    """Refuses options by name, if given, that say how painted pictures are measured."""
    given = [f"`{name}`" for name, value in options.items() if value]
    if given:
        raise ConfigError(
            f"Nothing is painted, which these options are about: {', '.join(given)}. Give a model "
            "with a transformer and --pictures above 0, or leave them out."
        )


def _check_pairs(checks: "PaintingChecks") -> None:
    """Refuses to show pairs that there will not be, before the work."""
    reason = checks.explain_no_copies()
    if reason:
        raise ConfigError(f"There will be no pairs for --pairs. {reason}")


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
