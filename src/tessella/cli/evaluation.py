"""`tessella evaluate`: a model and images in, numbers with their protocol out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.options import Config, Debug, Device, Force, Json, Seed, Set
from tessella.cli.output_file import check_output_file
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from tessella.evaluation.eval_images import EvalImages
    from tessella.evaluation.model import ImagesEvaluation
    from tessella.images import Pixels

_SHEET_COLUMNS = 8
_SHEET_PAIRS = 32
_PMI_PICTURES = 32
_MISSING_TRAINING = (
    "It takes the training pictures: name them with --train-data, or give a run's folder as MODEL."
)


@dataclass(frozen=True)
class EvaluationRequest:
    """What is measured, and on which images, as the options say."""

    model: str
    data: Sequence[str]  # empty: the images that the run kept out
    features: Sequence[str]
    max_images: int
    pictures: int  # painted
    pmi_pictures: int | None
    clip: str | None
    train_data: Sequence[str]  # empty: the run's own
    max_training: int
    out: Path | None
    sheet: Path | None
    pairs: Path | None
    cache: Path | None  # None: a temporary folder
    config: Path | None
    assignments: Sequence[str]
    device: str
    seed: int


def _number(help_text: str, *, least: int = 0, show_default: bool | str = True) -> Any:
    return typer.Option(metavar="NUMBER", help=help_text, min=least, show_default=show_default)


_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, a run's folder (after fit-tokenizer too), or the name of a "
        "bundled model.",
        show_default=False,
    ),
]
_Data = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA",
        help="Captioned images, as for fit; all of them count. A run's folder as MODEL "
        "brings its own: those that it kept out of training.",
        show_default=False,
    ),
]
_Features = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="What FID, KID, precision and recall compare: squeezenet-LAYER or "
        "resnet18-LAYER. May be repeated.",
        show_default="squeezenet-fire9",
    ),
]
_MaxImages = Annotated[int, _number("If there are more, --seed draws this many.", least=1)]
_Pictures = Annotated[
    int, _number("Paint this many captions of DATA and measure the pictures; 0 paints none.")
]
_PmiPictures = Annotated[
    int | None,
    _number(
        "For this many pictures the model itself ranks 100 prompts; it takes a pass over each "
        "picture with each prompt.",
        show_default=str(_PMI_PICTURES),
    ),
]
_Clip = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|NAME",
        help="A CLIP, loaded by transformers, also ranks 100 prompts for each picture.",
    ),
]
_TrainData = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATA",
        help="What the model learned from, to look for copies. May be repeated.",
        show_default="the run's",
    ),
]
_MaxTraining = Annotated[
    int,
    _number("If there are more training pictures, copies are looked for among this many.", least=1),
]
_Out = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Save what --json prints.")]
_Sheet = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.png", help="Save pictures, and under each what the model keeps of it."
    ),
]
_Pairs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.png",
        help="Save painted pictures, and right of each the nearest training picture; the "
        "nearest pairs come first.",
    ),
]
_Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Keep the checked images of DATA here, to use them again; those of --train-data "
        "in FOLDER-train.",
        show_default="a temporary folder",
    ),
]


def evaluate(
    model: _Model,
    data: _Data = None,
    features: _Features = None,
    max_images: _MaxImages = 2000,
    pictures: _Pictures = 256,
    pmi_pictures: _PmiPictures = None,
    clip: _Clip = None,
    train_data: _TrainData = None,
    max_training: _MaxTraining = 2000,
    out: _Out = None,
    sheet: _Sheet = None,
    pairs: _Pairs = None,
    cache: _Cache = None,
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
    request = EvaluationRequest(
        model=model,
        data=data or [],
        features=features or [],
        max_images=max_images,
        pictures=pictures,
        pmi_pictures=pmi_pictures,
        clip=clip,
        train_data=train_data or [],
        max_training=max_training,
        out=out,
        sheet=sheet,
        pairs=pairs,
        cache=cache,
        config=config,
        assignments=set_ or [],
        device=device,
        seed=seed,
    )
    with told_errors(debug, if_interrupted="Nothing was written."):
        for path, suffix in ((out, ".json"), (sheet, ".png"), (pairs, ".png")):
            check_output_file(path, [suffix], force=force)
        console = create_console(as_json)
        images, evaluation = _measure(request, console)
        result = _to_dict(request, images, evaluation)
        files = _write(request, result, images, evaluation)
        if as_json:
            print_json(result)
        else:
            _show(evaluation, files, console)


def _measure(
    request: EvaluationRequest, console: "Console"
) -> tuple["EvalImages", "ImagesEvaluation"]:
    """Loads the model and the networks, reads the images, and measures."""
    from tessella.cli.measured_images import open_training, read_eval_images
    from tessella.evaluation.features import EvalNetworks
    from tessella.evaluation.generation import GenerationChecks
    from tessella.evaluation.model import evaluate_images
    from tessella.evaluation.retrieval import Clip
    from tessella.model.find import find_tokenizer
    from tessella.model.folder import TrainedTokenizer
    from tessella.model.pipeline import TextToImage
    from tessella.text import TEXT_FILE
    from tessella.training.recipe import resolve_recipe

    folder = find_tokenizer(request.model)
    has_transformer = (folder / TEXT_FILE).exists()
    model = (TextToImage if has_transformer else TrainedTokenizer).load(folder, request.device)
    paints = has_transformer and request.pictures > 0
    if not paints:
        _refuse_unused(request)
    networks = EvalNetworks.load(request.features, model.device)
    settings = resolve_recipe(None, request.config, request.assignments).data.replace(
        image_size=model.config.image_size, validation_fraction=0.0
    )
    images = read_eval_images(request, settings)
    console.print(f"Measuring on {images.description}.")
    with open_training(request, settings, folder.parent) as training:
        checks = GenerationChecks(
            pictures=request.pictures,
            pmi_pictures=_PMI_PICTURES if request.pmi_pictures is None else request.pmi_pictures,
            training=training,
            missing_training=_MISSING_TRAINING,
            max_training=request.max_training,
            clip=Clip(request.clip, model.device) if request.clip else None,
        )
        no_copies = checks.explain_missing_copies(networks)
        if request.pairs and no_copies:
            raise ConfigError(f"There will be no pairs for --pairs. {no_copies}")
        with console.status("Looking at the pictures"):
            return images, evaluate_images(model, images, networks, checks if paints else None)


def _refuse_unused(request: EvaluationRequest) -> None:
    """Refuses options about painted pictures, as none will be painted."""
    options = {
        "--clip": request.clip,
        "--pmi-pictures": request.pmi_pictures,
        "--train-data": request.train_data,
        "--pairs": request.pairs,
    }
    unused = [f"`{name}`" for name, value in options.items() if value]
    if unused:
        raise ConfigError(
            f"Nothing is painted, which these options are about: {', '.join(unused)}. Give a model "
            "with a transformer and --pictures above 0, or leave them out."
        )


def _to_dict(
    request: EvaluationRequest, images: "EvalImages", evaluation: "ImagesEvaluation"
) -> dict[str, Any]:
    """Lays all numbers out for `--json` and `--out`."""
    return {
        "model": request.model,
        "data": request.data,
        "images": len(images.pixels),
        "pictures": len(evaluation.generation.pixels) if evaluation.generation else 0,
        "metrics": {name: asdict(metric) for name, metric in evaluation.metrics.items()},
        "left_out": evaluation.left_out,
    }


def _write(
    request: EvaluationRequest,
    result: Mapping[str, Any],
    images: "EvalImages",
    evaluation: "ImagesEvaluation",
) -> list[Path]:
    """Writes the files that are named; returns those that were written."""
    from tessella.evaluation.memorisation import make_pairs_sheet
    from tessella.files import write_json
    from tessella.images import save_png

    # There are no pairs if no caption was short enough to be painted.
    nearest = evaluation.generation.pairs if evaluation.generation else ()
    pairs = request.pairs if nearest else None
    if request.out:
        write_json(request.out, result, what="the metrics")
    if request.sheet:
        save_png(request.sheet, _make_sheet(images.pixels, evaluation.reconstructions))
    if pairs:
        save_png(pairs, make_pairs_sheet(nearest))
    return [path for path in (request.out, request.sheet, pairs) if path]


def _make_sheet(originals: "Pixels", reconstructions: "Pixels") -> "Pixels":
    """Lays out rows of pictures, each above a row of their reconstructions."""
    from tessella.cli.pictures import make_labelled_sheet
    from tessella.evaluation.reconstruction import compute_psnr

    columns = min(_SHEET_COLUMNS, len(originals))
    count = min(_SHEET_PAIRS, len(originals)) // columns * columns
    pictures: list[Pixels] = []
    labels: list[str] = []
    for start in range(0, count, columns):
        sides = originals[start : start + columns], reconstructions[start : start + columns]
        pictures += [*sides[0], *sides[1]]
        psnr = [compute_psnr(b[None], a[None]) for a, b in zip(*sides, strict=True)]
        labels += [""] * columns + [f"{value:.1f} dB" for value in psnr]
    return make_labelled_sheet(pictures, labels, columns)


def _show(evaluation: "ImagesEvaluation", files: Sequence[Path], console: "Console") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in ("metric", "value", "protocol"):
        table.add_column(head, no_wrap=head != "protocol")
    for name, metric in evaluation.metrics.items():
        table.add_row(name, f"{metric.value:.4g}", metric.protocol)
    console.print(table)
    for reason in dict.fromkeys(evaluation.left_out.values()):
        names = [name for name, why in evaluation.left_out.items() if why == reason]
        console.print(f"\nLeft out: {', '.join(names)}. {reason}")
    for file in files:
        console.print(f"Written: {file}")
