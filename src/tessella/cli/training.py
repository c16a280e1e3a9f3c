"""`tessella fit`, `fit-tokenizer`, `fit-transformer`: captioned images in, a model out."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.options import Config, Data, Debug, Device, DryRun, Json, Preset, Seed, Set
from tessella.cli.reporting import create_console, print_json, to_toml, told_errors

if TYPE_CHECKING:
    from rich.console import Console

    from tessella.training.fit import FitRequest

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="RUN",
        help="The run's folder: checkpoints, metrics and, at the end, the model.",
        show_default=False,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        metavar="NUMBER",
        help="Choose how long both parts train, and unless --preset or --config says so their "
        "size, so that all is done in this time.",
        show_default="as the settings say",
    ),
]


def fit(
    data: Data,
    out: Out,
    minutes: Minutes = None,
    config: Config = None,
    set_: Set = None,
    preset: Preset = None,
    device: Device = "auto",
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model on DATA.

    Image tokenizer, transformer, evaluation; the model is then in RUN/model. The same command
    again goes on where it stopped. Ctrl-C saves first.
    """
    _run(
        dry_run,
        as_json,
        debug,
        stage="all",
        sources=data,
        out=out,
        minutes=minutes,
        config_file=config,
        assignments=set_ or (),
        preset=preset,
        device=device,
        seed=seed,
    )


def fit_tokenizer(
    data: Data,
    out: Out,
    config: Config = None,
    set_: Set = None,
    preset: Preset = None,
    device: Device = "auto",
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the image tokenizer alone.

    The first half of fit, in the same kind of folder.
    """
    _run(
        dry_run,
        as_json,
        debug,
        stage="tokenizer",
        sources=data,
        out=out,
        config_file=config,
        assignments=set_ or (),
        preset=preset,
        device=device,
        seed=seed,
    )


def fit_transformer(
    data: Data,
    out: Out,
    config: Config = None,
    set_: Set = None,
    preset: Preset = None,
    device: Device = "auto",
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the transformer alone.

    The second half of fit: RUN holds the image tokenizer that fit-tokenizer trained.
    """
    _run(
        dry_run,
        as_json,
        debug,
        stage="transformer",
        sources=data,
        out=out,
        config_file=config,
        assignments=set_ or (),
        preset=preset,
        device=device,
        seed=seed,
    )


def _run(dry_run: bool, as_json: bool, debug: bool, **asked: Any) -> None:
    """Trains what is asked, or says what would be trained.

    Args:
        dry_run: only say it.
        as_json: tell the result as JSON.
        debug: let errors through.
        **asked: the fields of `FitRequest`.
    """
    goes_on = "What was saved is kept; the same command goes on from there."
    with told_errors(debug, if_interrupted=goes_on):
        from tessella.model.folder import choose_device
        from tessella.training.fit import FitRequest

        request = FitRequest(**asked)
        choose_device(request.device)
        console = create_console(as_json)
        if dry_run:
            _describe(request, as_json, console)
        else:
            _train(request, as_json, console)


def _train(request: "FitRequest", as_json: bool, console: "Console") -> None:
    from tessella.training.fit import fit as train

    before = _list_checkpoints(request.out)
    folder = train(request, console)
    if before and _list_checkpoints(request.out) == before:
        console.print("Nothing was left to train: the run was finished already.")
    following = _next_command(request, folder)
    console.print(f"Next: {following}")
    if as_json:
        finished = request.stage != "tokenizer"
        result = {
            "run": str(request.out),
            "model": str(folder) if finished else None,
            "metrics": _read_metrics(folder) if finished else None,
            "next": following,
        }
        print_json(result)


def _describe(request: "FitRequest", as_json: bool, console: "Console") -> None:
    """Says what would be trained; as text it is a file that `--config` reads."""
    from tessella.data.sources import recognise_all
    from tessella.training.fit import resolve_run
    from tessella.training.loop import create_accelerator

    sources = [
        {"given": source.argument, "kind": source.kind, "images": source.count}
        for source in recognise_all(request.sources)
    ]
    recipe, is_new = resolve_run(request, create_accelerator(request.device))
    settings = recipe.model_dump(mode="json")
    is_measured = request.minutes is not None and is_new
    if as_json:
        result = {
            "dry_run": True,
            "run": str(request.out),
            "is_new": is_new,
            "sources": sources,
            "lengths_are_measured": is_measured,
            "recipe": settings,
        }
        print_json(result)
        return
    console.print(f"# {'Would begin' if is_new else 'Would go on with'} the run {request.out}")
    for source in sources:
        images = "" if source["images"] is None else f", {source['images']:,} images"
        console.print(f"# on {source['given']} ({source['kind']}{images})")
    if is_measured:
        console.print(
            f"# for {request.minutes:g} minutes: tokenizer_training.images and "
            "transformer_training.images follow from measuring when it begins"
        )
    console.print(to_toml(settings))


def _list_checkpoints(out: Path) -> list[str]:
    return sorted(str(path) for path in out.glob("*/checkpoints/*"))


def _next_command(request: "FitRequest", folder: Path) -> str:
    """Says what to type next."""
    if request.stage != "tokenizer":
        caption = _read_caption(request.out)
        return f"tessella generate {shlex.quote(caption)} --model {shlex.quote(str(folder))}"
    words = ["tessella", "fit-transformer", *request.sources, "--out", str(request.out)]
    if request.preset is not None:
        words += ["--preset", request.preset]
    if request.config_file is not None:
        words += ["--config", str(request.config_file)]
    for assignment in request.assignments:
        words += ["--set", assignment]
    if request.seed:
        words += ["--seed", str(request.seed)]
    if request.device != "auto":
        words += ["--device", request.device]
    return shlex.join(words)


def _read_caption(out: Path) -> str:
    """Returns a caption of the run's data, kept out of training if any is: a prompt to try."""
    from tessella.config import read_config
    from tessella.data.cache import SIDES, CaptionedImages, read_manifest
    from tessella.runs.record import DATA_FOLDER, RUN_FILE

    manifest = read_manifest(out / DATA_FOLDER) or {}
    size = read_config(out / RUN_FILE)["recipe"]["data"]["image_size"]
    for side in reversed(SIDES):
        if manifest and manifest["counts"][side]:
            fingerprint = manifest["fingerprints"][side]
            return CaptionedImages(out / DATA_FOLDER, side, size, fingerprint).captions(0)[0]
    return "a caption"


def _read_metrics(folder: Path) -> Any:
    from tessella.config import read_config
    from tessella.model.folder import METRICS_FILE

    return read_config(folder / METRICS_FILE)
