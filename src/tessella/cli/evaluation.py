"""`tessella evaluate`: a model and images in, numbers with their protocol out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli import options as shared
from tessella.cli.command import get_console, get_group
from tessella.cli.pictures import check_output_file
from tessella.cli.reporting import Result
from tessella.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.status import Status

    from tessella.evaluation.eval_images import EvalImages
    from tessella.evaluation.model import ImagesEvaluation
    from tessella.images import Pixels

_SHEET_COLUMNS = 8
_SHEET_PAIRS = 32
_PMI_PICTURES = 32
_LOG_SECONDS = 10.0  # between lines, as in training
_MISSING_TRAINING = (
    "It takes the training pictures: name them with --train-data, or give a run's folder as MODEL."
)


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure, and on which images."""

    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)]
    """A model folder, a run's folder (after fit-tokenizer too), the name of a bundled model, or
    hf:USER/NAME."""
    data: Annotated[list[str] | None, typer.Argument(metavar="DATA", show_default=False)] = None
    """Captioned images, as for fit; all of them count. A run's folder as MODEL brings its own:
    those that it kept out of training."""
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default="squeezenet-fire9, else efficientnet-head"),
    ] = None
    """What FID, KID, precision and recall compare: squeezenet-LAYER, efficientnet-LAYER or
    resnet18-LAYER. Can be repeated."""
    max_images: Annotated[int, typer.Option(metavar="NUMBER", min=1)] = 2000
    """If there are more, --seed draws this many."""
    pictures: Annotated[int, typer.Option(metavar="NUMBER", min=0)] = 256
    """Paint this many captions of DATA and measure the pictures; 0 paints none."""
    pmi_pictures: Annotated[
        int | None, typer.Option(metavar="NUMBER", min=0, show_default=str(_PMI_PICTURES))
    ] = None
    """For this many pictures the model itself ranks 100 prompts; slow: one pass per picture and
    prompt."""
    clip: Annotated[str | None, typer.Option(metavar="FOLDER|NAME")] = None
    """A CLIP, loaded by transformers, also ranks 100 prompts for each picture."""
    train_data: Annotated[
        list[str] | None, typer.Option(metavar="DATA", show_default="the run's")
    ] = None
    """What the model learned from, to look for copies. Can be repeated."""
    max_training: Annotated[int, typer.Option(metavar="NUMBER", min=1)] = 2000
    """If there are more training pictures, search this many for copies."""
    out: Annotated[Path | None, typer.Option(metavar="FILE.json")] = None
    """Save what --json prints."""
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png")] = None
    """Save pictures, and under each what the model keeps of it."""
    pairs: Annotated[Path | None, typer.Option(metavar="FILE.png")] = None
    """Save painted pictures, and each beside its nearest training picture, then beside the nearest
    of the examples that it looked at; the nearest pairs come first."""
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default="a temporary folder")
    ] = None
    """Keep the checked images of DATA here, to use them again; those of --train-data in
    FOLDER-train."""
    config: shared.Config = None
    set_: shared.Set = None
    device: shared.Device = "auto"
    seed: shared.Seed = 0
    force: shared.Force = False


def evaluate(context: typer.Context) -> Result:
    """Measure a model on images.

    Each number comes with its protocol: on which images, by which network, with which
    settings. A model that looks things up is measured with its memory and without it. Only the
    settings in section `data` are used.
    """
    request = get_group(context, EvaluationRequest)
    for path, suffix in ((request.out, ".json"), (request.sheet, ".png"), (request.pairs, ".png")):
        check_output_file(path, [suffix], force=request.force)
    images, evaluation = _measure(request, get_console(context))
    generation = evaluation.generation
    values = {
        "model": request.model,
        "data": request.data or [],
        "images": len(images.pixels),
        "pictures": len(generation.pixels) if generation else 0,
        "metrics": {name: asdict(metric) for name, metric in evaluation.metrics.items()},
        "left_out": evaluation.left_out,
        "nearest": generation.describe_pairs() if generation else {"protocol": "", "pairs": []},
    }
    files = _write(request, values, images, evaluation)
    return Result(values, _describe(values, files))


def _measure(
    request: EvaluationRequest, console: "Console"
) -> tuple["EvalImages", "ImagesEvaluation"]:
    """Loads the model and the networks, reads the images, and measures."""
    from tessella.cli.measured_images import open_training, read_eval_images
    from tessella.evaluation.features import EvalNetworks
    from tessella.evaluation.generation import GenerationChecks
    from tessella.evaluation.lookup import ExampleLookup
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
    looks_up = isinstance(model, TextToImage) and ExampleLookup.create(model) is not None
    networks = EvalNetworks.load(request.features or (), model.device)
    settings = resolve_recipe(None, request.config, request.set_ or ()).data.replace(
        image_size=model.config.image_size, validation_fraction=0.0, named_splits=False
    )
    images = read_eval_images(request, settings)
    console.print(f"Measuring on {images.description}.")
    with open_training(request, settings, folder) as (training, training_name):
        checks = GenerationChecks(
            pictures=request.pictures,
            pmi_pictures=_PMI_PICTURES if request.pmi_pictures is None else request.pmi_pictures,
            training=training,
            training_name=training_name,
            missing_training=_MISSING_TRAINING,
            max_training=request.max_training,
            clip=Clip(request.clip, model.device) if request.clip else None,
        )
        if request.pairs and training is None and not looks_up:
            raise ConfigError(f"There will be no pairs for --pairs. {_MISSING_TRAINING}")
        with console.status("Looking at the pictures") as status:
            tell = _Progress(console, status)
            checked = checks if paints else None
            return images, evaluate_images(model, images, networks, checked, tell)


class _Progress:
    """Says how far it is: in the last line of a terminal, elsewhere in a line now and then."""

    def __init__(self, console: "Console", status: "Status") -> None:
        self._console, self._status = console, status
        self._what, self._said_at = "", 0.0

    def __call__(self, what: str, how_far: str) -> None:
        line = f"{what}: {how_far}" if how_far else what
        if self._console.is_terminal:
            self._status.update(line)
        elif what != self._what or time.monotonic() - self._said_at >= _LOG_SECONDS:
            self._console.print(f"{line}.")
            self._what, self._said_at = what, time.monotonic()


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


def _write(
    request: EvaluationRequest,
    values: Mapping[str, Any],
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
        write_json(request.out, values, what="the metrics")
    if request.sheet:
        save_png(request.sheet, _make_sheet(images.pixels, evaluation.reconstructions))
    if pairs:
        save_png(pairs, make_pairs_sheet(nearest))
    return [path for path in (request.out, request.sheet, pairs) if path]


def _make_sheet(originals: "Pixels", reconstructions: "Pixels") -> "Pixels":
    """Lays out rows of pictures, each above a row of their reconstructions."""
    from tessella.evaluation.reconstruction import compute_psnr
    from tessella.sheets import make_labelled_sheet

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


def _describe(values: Mapping[str, Any], files: Sequence[Path]) -> Iterator["RenderableType"]:
    from rich.table import Column, Table

    from tessella.evaluation.plain_words import describe_plainly

    values_by_name = {name: metric["value"] for name, metric in values["metrics"].items()}
    if words := list(describe_plainly(values_by_name)):
        yield "\n".join(words) + "\n"
    heads = (Column(head, no_wrap=True) for head in ("metric", "value"))
    table = Table(*heads, "protocol", box=None, pad_edge=False)
    for name, metric in values["metrics"].items():
        table.add_row(name, f"{metric['value']:.4g}", metric["protocol"])
    yield table
    left_out = values["left_out"]
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, why in left_out.items() if why == reason]
        yield f"\nLeft out: {', '.join(names)}. {reason}"
    for file in files:
        yield f"Written: {file}"
