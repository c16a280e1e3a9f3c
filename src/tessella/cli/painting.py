"""The one way from the command line to the sampler, of `generate`, `edit` and `vary`.

options, prompts ─ requests ─▶ `model.generate_images` ─▶ one sheet, or a folder of pictures
"""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli import options as shared
from tessella.cli.command import Command, JsonOptions, get_console, get_group
from tessella.cli.pictures import (
    PROMPTS_FILE,
    OutputTarget,
    choose_output,
    name_examples,
    read_references,
)
from tessella.cli.reporting import Result, create_console
from tessella.cli.settings_options import create_settings_group
from tessella.errors import GenerationError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from tessella.generation import GenerationSettings
    from tessella.images import Pixels
    from tessella.model.canvas import Canvas
    from tessella.model.mask import Marking
    from tessella.model.pipeline import TextToImage
    from tessella.model.request import ImageRequest
    from tessella.model.size import Fit, PictureSize
    from tessella.objectives import GenerationStep, OnStep


@dataclass(frozen=True)
class PaintingOptions:
    """The options of every command that paints, besides the settings of generation."""

    model: shared.Model = shared.DEFAULT_MODEL
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", show_default="a free name, after the prompt")
    ] = None
    """Where to write. NAME.png, .jpg, .webp or .avif: the picture, or one sheet of all of them; -
    is a PNG on the standard output. Anything else: a folder of 0000.png, 0001.png, … and
    prompts.jsonl."""
    count: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=10000)] = 1
    """Pictures per prompt."""
    seed: shared.Seed = 0
    best_of: shared.BestOf = 1
    negative_prompt: Annotated[str, typer.Option(metavar="TEXT", show_default=False)] = ""
    """A prompt to steer away from; needs a guidance scale above 1."""
    references: shared.References = None
    config: shared.Config = None
    set_: shared.Set = None
    device: shared.Device = "auto"
    precision: shared.Precision = "auto"
    force: shared.Force = False
    dry_run: shared.DryRun = False


def generation_options() -> Any:
    """Creates the group of the settings of generation."""
    from tessella.generation import GenerationSettings

    names = tuple(GenerationSettings.model_fields)
    return create_settings_group("generation", GenerationSettings, names, default=shared.MODELS_OWN)


class PaintingCommand(Command):
    """A command with all options of painting."""

    groups = (PaintingOptions, generation_options, *Command.groups)


@dataclass(frozen=True)
class PaintingPlan:
    """What a model is to paint on."""

    canvases: "Callable[[Sequence[int]], Sequence[Canvas]]"  # one for each seed
    size: "PictureSize | None" = None  # None: as it is painted
    marking: "Marking | None" = None  # what of a picture is repainted, to be told


def paint(
    context: typer.Context,
    prompts: Sequence[str],
    make_plan: "Callable[[TextToImage], PaintingPlan]",
    *,
    name: str,
    inputs: Mapping[str, Any],
) -> Result:
    """Paints pictures, writes all of them or none, and reports it.

    Args:
        context: of a `PaintingCommand`.
        prompts: each gets `--count` pictures.
        make_plan: takes the model.
        name: a free file name is derived from it.
        inputs: what the command takes besides the shared options, to be written down.

    Raises:
        TessellaError: the request cannot be met; nothing is written.
    """
    from tessella.model.find import find_model
    from tessella.model.pipeline import TextToImage
    from tessella.model.provenance import describe_request

    options = get_group(context, PaintingOptions)
    target = _choose_target(context, options, name, len(prompts) * options.count)
    model = TextToImage.load(find_model(options.model), options.device, options.precision)
    changes = get_group(context, generation_options).read_changes(options.config, options.set_)
    settings = model.generation_settings(**changes)
    plan = make_plan(model)
    requests = _list_requests(options, model, prompts, plan, settings.neighbors)
    pictures = [describe_request(request) for request in requests]
    chosen = {
        "negative_prompt": options.negative_prompt,
        "best_of": options.best_of,
        "settings": settings.model_dump(mode="json"),
        "precision": asdict(model.precision),
    }
    details = {**inputs, **chosen}
    made_with = {"command": context.info_name, "model": options.model, **chosen}
    generate = functools.partial(model.generate_images, settings=settings, best_of=options.best_of)
    fits: list[Fit] = []
    started = time.monotonic()
    if options.dry_run:
        with contextlib.suppress(_FirstStepError):
            generate(requests[:1], on_step=_stop_after_first_step)
    else:
        together = max(1, model.sampler.batch_size // options.best_of)
        progress = _show_progress(get_console(context), len(requests))
        with target.open(pictures, made_with, details) as save, progress as (show, advance):
            for start in range(0, len(requests), together):
                # Not in a function of its own: a reader who follows a prompt has far to go already.
                painted = generate(requests[start : start + together], on_step=show).pixels
                save(_fit(painted, plan.size, fits))
                advance(len(painted))
    seconds = time.monotonic() - started
    warnings = _list_warnings(model, requests, settings, changes, plan, fits)
    return _report(options, target, pictures, details, seconds, plan, warnings)


def _choose_target(
    context: typer.Context, options: PaintingOptions, name: str, num_pictures: int
) -> OutputTarget:
    """Decides where pictures go.

    Raises:
        typer.BadParameter: what is said as JSON would go there too, or it is a terminal.
        ConfigError: as `choose_output`.
    """
    target = choose_output(options.out, name, num_pictures, force=options.force)
    if target.is_stdout and not options.dry_run:
        if get_group(context, JsonOptions).as_json:
            both = "--out -, --json"
            raise typer.BadParameter("Both go to the standard output.", param_hint=both)
        if typer.get_binary_stream("stdout").isatty():
            raise typer.BadParameter(
                "The picture would go to the terminal. Send it on: > NAME.png", param_hint="--out -"
            )
    return target


@contextlib.contextmanager
def _show_progress(
    console: "Console", num_pictures: int
) -> "Iterator[tuple[OnStep, Callable[[int], None]]]":
    """Shows on a terminal how far the painting is: told each step, and how many are finished."""
    progress = _create_progress(console)
    with progress:
        task = progress.add_task("", total=num_pictures, step="")

        def show(step: "GenerationStep") -> None:
            progress.update(task, step=f"step {step.step} of {step.steps}")

        yield show, lambda count: progress.advance(task, count)


def _list_requests(
    options: PaintingOptions,
    model: "TextToImage",
    prompts: Sequence[str],
    plan: PaintingPlan,
    num_neighbors: int | None,
) -> list["ImageRequest"]:
    from tessella.model.request import list_requests

    # Otherwise a prompt that is too long would be refused only when its batch is painted.
    model.text_tokenizer.check_lengths(prompts)
    references = read_references(options.references, model, num_neighbors)
    return list_requests(
        prompts,
        count=options.count,
        seed=options.seed,
        best_of=options.best_of,
        negative_prompt=options.negative_prompt,
        plan=plan.canvases,
        look_up=functools.partial(model.examples.find, count=num_neighbors, references=references),
    )


def _fit(
    painted: "Iterable[Pixels]", size: "PictureSize | None", fits: list["Fit"]
) -> "Iterator[Pixels]":
    """Gives pictures the size that was asked for, and notes how."""
    for pixels in painted:
        if size is not None:
            fits.append(size.choose_fit(pixels))
        yield pixels if size is None else size.fit(pixels)


class _FirstStepError(Exception):
    """Ends a dry run, which by then has refused everything that cannot be painted."""


def _stop_after_first_step(step: "GenerationStep") -> None:
    raise _FirstStepError


def _create_progress(console: "Console") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = "painting", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[step]}")
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _report(
    options: PaintingOptions,
    target: OutputTarget,
    pictures: Sequence[Mapping[str, Any]],
    details: Mapping[str, Any],
    seconds: float,
    plan: PaintingPlan,
    warnings: Sequence[str],
) -> Result:
    """Says what was painted, or would be."""
    files = target.list_files(len(pictures))
    pictures = [{"file": str(file), **one} for file, one in zip(files, pictures, strict=True)]
    counted = "1 picture" if len(pictures) == 1 else f"{len(pictures):,} pictures"
    size = plan.size
    at = ""
    if size is not None and size.painted != size.asked:
        painted, asked = ("x".join(map(str, one)) for one in (size.painted, size.asked))
        at = f" at {painted}, made {asked}"
    lines = [f"Painted {counted} in {seconds:.1f} s{at}: {target}"]
    if options.dry_run:
        settings = (f"{name} {value}" for name, value in details["settings"].items())
        lines = [f"Would paint {counted}{at}: {target}", ", ".join(settings)]
        lines += ["{file}  seed {seed}  {prompt}".format(**picture) for picture in pictures]
    values = {
        "dry_run": options.dry_run,
        "model": options.model,
        "out": str(target.path),
        **details,
        "painted_size": None if size is None else list(size.painted),
        "mask_read": None if plan.marking is None else plan.marking.describe(),
        "pictures": pictures,
        "warnings": list(warnings),
        "seconds": None if options.dry_run else round(seconds, 3),
    }
    lines += [f"{plan.marking}."] if plan.marking else []
    if target.is_stdout and not options.dry_run:
        console = create_console(stderr=True)
        for line in lines:
            console.print(line)
        return Result(values, [])
    return Result(values, [*lines, *_tell_examples(pictures, target, is_plan=options.dry_run)])


def _tell_examples(
    pictures: Sequence[Mapping[str, Any]], target: OutputTarget, *, is_plan: bool
) -> Iterator[str]:
    """Says what was looked at, or would be: all of it for one prompt or a plan, else where."""
    # Pictures of one prompt look at the same examples.
    found = {picture["prompt"]: name_examples(picture["examples"]) for picture in pictures}
    if not any(found.values()):
        return
    looked_at = "Would look at" if is_plan else "Looked at"
    if len(found) == 1:
        yield from (f"{looked_at}: {names}" for names in found.values())
    elif is_plan:
        yield from (f"{looked_at} for {p}: {names or 'nothing'}" for p, names in found.items())
    elif target.is_folder:
        yield f"{looked_at}: see `examples` in {target.path / PROMPTS_FILE}"
    else:
        yield f"{looked_at}: see `examples` in the sheet's own comment, or run with --json"


def _list_warnings(
    model: "TextToImage",
    requests: Sequence["ImageRequest"],
    settings: "GenerationSettings",
    changes: Collection[str],
    plan: PaintingPlan,
    fits: Sequence["Fit"],
) -> list[str]:
    """Lists what had no effect, and names it on stderr."""
    from tessella.model.notices import list_unknown, warn_settings, warn_unknown

    warnings = warn_unknown(list_unknown(model.words, requests))
    warnings += warn_settings(model.objective, settings, changes)
    warnings += plan.marking.warnings if plan.marking else []
    warnings += plan.size.list_warnings(fits) if plan.size else []
    console = create_console(stderr=True)
    for warning in warnings:
        console.print(f"Hint: {warning}")
    return warnings


def collect_prompts(prompts: Sequence[str] | None, file: Path | None) -> list[str]:
    """Lists the prompts of the command line, then those of a file: one per line, none blank.

    Raises:
        typer.BadParameter: there is neither a prompt nor a file.
        GenerationError: the file cannot be read, is not UTF-8, or holds no prompt; or a prompt is
            blank.
    """
    if not prompts and file is None:
        raise typer.BadParameter("Give at least one, or --prompts FILE.", param_hint="PROMPT")
    from tessella.model.request import check_prompts

    return check_prompts([*(prompts or ()), *(_read_prompts(file) if file else ())])


def _read_prompts(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GenerationError(f"Cannot read the prompts: `{path}`. {error.strerror}.") from None
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise GenerationError(
            f"The prompts are not UTF-8: `{path}`, line {line}. Save the file as UTF-8."
        ) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise GenerationError(f"The file holds no prompt: `{path}`. Write one per line.")
    return prompts
