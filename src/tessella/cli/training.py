"""`tessella fit`, `fit-tokenizer`, `fit-transformer`: captioned images in, a model out."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tessella.cli.command import Command, get_console, get_group
from tessella.cli.options import Config, Data, Device, DryRun, Preset, Seed, Set
from tessella.cli.reporting import Result, to_toml

if TYPE_CHECKING:
    from rich.console import Console

    from tessella.training.request import FitRequest


def _check_minutes(minutes: float | None) -> float | None:
    """Refuses minutes in which nothing can be done, before anything is imported.

    Raises:
        typer.BadParameter: they are not a number above 0.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise typer.BadParameter(
            f"Expected a number above 0: `{minutes:g}`. Leave it out to train as long as the "
            "settings say."
        )
    return minutes


@dataclass(frozen=True)
class RunOptions:
    """What to train on, and where."""

    data: Data
    out: Annotated[Path, typer.Option(metavar="RUN")]
    """The run's folder, for checkpoints, metrics and finally the model."""


@dataclass(frozen=True)
class FitOptions:
    """What to begin with, and how long to train."""

    from_: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", show_default="untrained weights")
    ] = None
    """Go on from a run, a model folder, a bundled model or hf:USER/NAME: its weights, sizes and
    words, and of a run all its settings. DATA may have other pictures."""

    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", show_default="one is trained")
    ] = None
    """Take the image tokenizer of a model as it is, or one that others have published (a folder of
    diffusers' VQModel, hf:USER/NAME), and train the transformer alone. Mind its licence."""

    minutes: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", show_default="as the settings say", callback=_check_minutes),
    ] = None
    """Finish within this time: chooses how long both parts train and, unless --preset, --config,
    --from or --tokenizer does, their size."""


@dataclass(frozen=True)
class TrainingOptions:
    """The other options of every command that trains."""

    config: Config = None
    set_: Set = None
    preset: Preset = None
    device: Device = "auto"
    seed: Seed = 0
    tracker: Annotated[list[str] | None, typer.Option(metavar="NAME")] = None
    """Log to a tracker too: tensorboard, wandb, trackio or mlflow. Can be repeated."""

    dry_run: DryRun = False


class TrainingCommand(Command):
    """A command with all options of training."""

    groups = (RunOptions, TrainingOptions, *Command.groups)
    if_interrupted = "What was saved, if anything, is kept; rerun the command to go on."


class FitCommand(TrainingCommand):
    """The command that trains both parts, and can choose how long."""

    groups = (RunOptions, FitOptions, TrainingOptions, *Command.groups)


def fit(context: typer.Context) -> Result | None:
    """Train a model on DATA.

    Trains the image tokenizer, then the transformer, and evaluates the model, which is then in
    RUN/model. Stop it any time with Ctrl-C; rerun the command to resume.
    """
    return _fit(context, "all", get_group(context, FitOptions))


def fit_tokenizer(context: typer.Context) -> Result | None:
    """Train only the image tokenizer.

    This is the first half of fit; fit-transformer with the same --out is the second.
    """
    return _fit(context, "tokenizer")


def fit_transformer(context: typer.Context) -> Result | None:
    """Train only the transformer.

    This is the second half of fit: --out names the run in which fit-tokenizer trained the image
    tokenizer.
    """
    return _fit(context, "transformer")


def _fit(
    context: typer.Context,
    stage: Literal["all", "tokenizer", "transformer"],
    fit_options: FitOptions | None = None,
) -> Result | None:
    """Trains a stage or both, or says what would be trained."""
    run, options = get_group(context, RunOptions), get_group(context, TrainingOptions)
    console = get_console(context)
    with console.status("Loading PyTorch; then the pictures are read and counted"):  # seconds
        from tessella.model.folder import choose_device
        from tessella.training.request import FitRequest

    whole = fit_options or FitOptions()
    request = FitRequest(
        sources=run.data,
        out=run.out,
        preset=options.preset,
        config_file=options.config,
        assignments=options.set_ or (),
        start_from=whole.from_,
        tokenizer=whole.tokenizer,
        minutes=whole.minutes,
        seed=options.seed,
        device=options.device,
        stage=stage,
        trackers=options.tracker or (),
    )
    choose_device(request.device)
    return _plan(request) if options.dry_run else _train(request, console)


def _train(request: "FitRequest", console: "Console") -> Result | None:
    """Trains; returns None in all processes but the one that prints."""
    from tessella.config import read_config
    from tessella.model.folder import METRICS_FILE
    from tessella.training.fit import fit as train
    from tessella.training.interrupt import Interrupted
    from tessella.training.launch import is_first_process, leave_peers

    before = _list_checkpoints(request.out)
    try:
        folder = train(request, console)
    except Interrupted:
        leave_peers()  # all of them stop here
        raise
    is_first = is_first_process()
    leave_peers()
    if not is_first:
        return None
    if before and _list_checkpoints(request.out) == before:
        console.print("There was nothing left to train: the run was already finished.")
    next_command = _next_command(request, folder)
    has_model = request.stage != "tokenizer"
    values = {
        "run": str(request.out),
        "model": str(folder) if has_model else None,
        "metrics": read_config(folder / METRICS_FILE) if has_model else None,
        "next": next_command,
    }
    return Result(values, [f"Next: {next_command}"])


def _plan(request: "FitRequest") -> Result:
    """Says what would be trained; as text it is a file that `--config` reads."""
    from tessella.training.checks import check_request, check_run
    from tessella.training.loop import create_accelerator
    from tessella.training.request import resolve_run

    sources = [
        {
            "given": source.argument,
            "kind": source.kind,
            "images": source.count,
            "readings": source.origins,
            "notes": source.notes,
        }
        for source in check_request(request)
    ]
    run = resolve_run(request, create_accelerator(request.device))
    check_run(request, run)
    values = {
        "dry_run": True,
        "run": str(request.out),
        "is_new": run.is_new,
        "sources": sources,
        "lengths_are_measured": request.minutes is not None and run.is_new,
        "precision": {"name": run.precision.name, "why": run.precision.why},
        "recipe": run.recipe.model_dump(mode="json"),
    }
    return Result(values, _describe(values, request.minutes))


def _describe(plan: Mapping[str, Any], minutes: float | None) -> Iterator[str]:
    yield f"# Would {'start' if plan['is_new'] else 'resume'} the run {plan['run']}"
    for source in plan["sources"]:
        images = "" if source["images"] is None else f", {source['images']:,} images"
        yield f"# on {source['given']} ({source['kind']}{images})"
        yield from (f"#   {line}" for line in (*source["readings"], *source["notes"]))
    yield f"# in {plan['precision']['name']}: {plan['precision']['why']}"
    if plan["lengths_are_measured"]:
        yield (
            f"# for {minutes:g} minutes: tokenizer_training.images and "
            "transformer_training.images are measured when it starts"
        )
    yield to_toml(plan["recipe"])


def _list_checkpoints(out: Path) -> list[str]:
    return sorted(str(path) for path in out.glob("*/checkpoints/*"))


def _next_command(request: "FitRequest", folder: Path) -> str:
    """Says what to type next."""
    if request.stage != "tokenizer":
        return shlex.join(["tessella", "generate", _suggest_prompt(folder), "--model", str(folder)])
    options = [
        ("--out", request.out),
        ("--preset", request.preset),
        ("--config", request.config_file),
        *(("--set", assignment) for assignment in request.assignments),
        ("--seed", request.seed or None),
        ("--device", None if request.device == "auto" else request.device),
        *(("--tracker", name) for name in request.trackers),
    ]
    words = [word for name, value in options if value is not None for word in (name, str(value))]
    return shlex.join(["tessella", "fit-transformer", *request.sources, *words])


def _suggest_prompt(folder: Path) -> str:
    """Returns one of the captions that a model was trained on."""
    from tessella.model.folder import read_captions

    summary = read_captions(folder)
    return summary.examples[0] if summary and summary.examples else "a caption"
