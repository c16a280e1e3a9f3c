"""The one way from the command line to the sampler, of `generate`, `edit` and `vary`.

options, prompts ─ requests ─▶ `model.generate_images` ─▶ one sheet, or a folder of pictures
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.option_groups import GroupedCommand, get_group
from tessella.cli.options import (
    DEFAULT_MODEL,
    MODELS_OWN,
    BestOf,
    Config,
    Debug,
    Device,
    DryRun,
    Force,
    Json,
    Model,
    Seed,
    Set,
)
from tessella.cli.pictures import OutputTarget, choose_output
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.cli.settings_options import create_settings_group, read_changes
from tessella.errors import GenerationError

if TYPE_CHECKING:
    from rich.progress import Progress

    from tessella.model.canvas import Canvas
    from tessella.model.pipeline import TextToImage
    from tessella.model.request import ImageRequest
    from tessella.objectives import GenerationStep

_MAX_NAMED = 5  # unknown words


@dataclasses.dataclass(frozen=True)
class PaintingOptions:
    """The options of every command that paints, besides the settings of generation."""

    model: Model = DEFAULT_MODEL
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where to write. NAME.png: the picture, or one sheet of all of them. Anything "
            "else: a folder of 0000.png, 0001.png, … and prompts.jsonl.",
            show_default="a free name, after the prompt",
        ),
    ] = None
    count: Annotated[
        int, typer.Option(metavar="NUMBER", help="Pictures per prompt.", min=1, max=10_000)
    ] = 1
    seed: Seed = 0
    best_of: BestOf = 1
    negative_prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="A prompt to steer away from; needs a guidance scale above 1.",
            show_default=False,
        ),
    ] = ""
    config: Config = None
    set_: Set = None
    device: Device = "auto"
    force: Force = False
    dry_run: DryRun = False
    as_json: Json = False
    debug: Debug = False


class PaintingCommand(GroupedCommand):
    """A command with all options of painting."""

    @property
    def groups(self) -> Sequence[type]:
        """Those that every painting command takes."""
        return PaintingOptions, _create_settings_group()


def _create_settings_group() -> type:
    from tessella.generation import GenerationSettings

    names = tuple(GenerationSettings.model_fields)
    return create_settings_group(GenerationSettings, names, default=MODELS_OWN)


def painting_errors(context: typer.Context) -> contextlib.AbstractContextManager[None]:
    """Turns an error in its block into one line on stderr and the exit status."""
    debug = get_group(context, PaintingOptions).debug
    return told_errors(debug, if_interrupted="Nothing was written.")


def paint(
    context: typer.Context,
    prompts: Sequence[str],
    plan: Callable[["TextToImage", Sequence[int]], Sequence["Canvas"]],
    *,
    name: str,
    inputs: Mapping[str, Any],
) -> None:
    """Paints pictures, writes all of them or none, and reports it.

    Args:
        context: of a `PaintingCommand`.
        prompts: each gets `--count` pictures.
        plan: takes the model and seeds, and returns one canvas for each seed.
        name: a free file name is derived from it.
        inputs: what the command takes besides the shared options, to be written down.

    Raises:
        TessellaError: the request cannot be met; nothing is written.
    """
    from tessella.model.find import find_model
    from tessella.model.pipeline import TextToImage

    options = get_group(context, PaintingOptions)
    target = choose_output(options.out, name, len(prompts) * options.count, force=options.force)
    folder = find_model(options.model)
    model = TextToImage.load(folder, options.device)
    settings = model.generation_settings(**_read_changes(context))
    requests = _list_requests(options, model, prompts, plan)
    details = {
        **inputs,
        "negative_prompt": options.negative_prompt,
        "best_of": options.best_of,
        "settings": settings.model_dump(mode="json"),
    }
    num_together = max(1, model.sampler.batch_size // options.best_of)
    started = time.monotonic()
    if options.dry_run:
        with contextlib.suppress(_FirstStepError):
            model.generate_images(
                requests[:1], settings, best_of=options.best_of, on_step=_stop_after_first_step
            )
    else:
        with target.open(requests, details) as save, _create_progress(options) as progress:
            task = progress.add_task("", total=len(requests), step="")

            def show(step: "GenerationStep") -> None:
                progress.update(task, step=f"step {step.step} of {step.steps}")

            for start in range(0, len(requests), num_together):
                batch = requests[start : start + num_together]
                images = model.generate_images(
                    batch, settings, best_of=options.best_of, on_step=show
                )
                save(images.pixels)
                progress.advance(task, len(batch))
    seconds = time.monotonic() - started
    _hint_at_unknown_words(model, folder, prompts)
    _report(options, target, requests, details, seconds)


def _read_changes(context: typer.Context) -> dict[str, Any]:
    options = get_group(context, PaintingOptions)
    return read_changes(
        "generation",
        options.config,
        options.set_,
        get_group(context, _create_settings_group()),
        activity="Painting",
        example="generation.temperature=0.8",
    )


def _list_requests(
    options: PaintingOptions,
    model: "TextToImage",
    prompts: Sequence[str],
    plan: Callable[["TextToImage", Sequence[int]], Sequence["Canvas"]],
) -> list["ImageRequest"]:
    """Lists the pictures to paint.

    Raises:
        GenerationError: a prompt is too long, which would show only at its batch; a seed is out of
            range; a canvas cannot be planned.
    """
    from tessella.model.request import list_requests

    model.text_tokenizer.check_lengths(prompts)
    return list_requests(
        prompts,
        count=options.count,
        seed=options.seed,
        best_of=options.best_of,
        negative_prompt=options.negative_prompt,
        plan=lambda seeds: plan(model, seeds),
    )


class _FirstStepError(Exception):
    """Ends a dry run, which by then has refused everything that cannot be painted."""


def _stop_after_first_step(step: "GenerationStep") -> None:
    raise _FirstStepError


def _create_progress(options: PaintingOptions) -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = create_console(options.as_json)
    columns = "painting", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[step]}")
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _report(
    options: PaintingOptions,
    target: OutputTarget,
    requests: Sequence["ImageRequest"],
    details: Mapping[str, Any],
    seconds: float,
) -> None:
    """Says what was painted, or would be."""
    files = target.list_files(len(requests))
    if options.as_json:
        result = {
            "dry_run": options.dry_run,
            "model": options.model,
            "out": str(target.path),
            **details,
            "pictures": [
                {"file": str(file), "prompt": request.prompt, "seed": request.seed}
                for file, request in zip(files, requests, strict=True)
            ],
            "seconds": None if options.dry_run else round(seconds, 3),
        }
        print_json(result)
        return
    console = create_console(options.as_json)
    pictures = "1 picture" if len(requests) == 1 else f"{len(requests):,} pictures"
    if not options.dry_run:
        console.print(f"Painted {pictures} in {seconds:.1f} s: {target}")
        return
    console.print(f"Would paint {pictures}: {target}")
    console.print(", ".join(f"{name} {value}" for name, value in details["settings"].items()))
    for file, request in zip(files, requests, strict=True):
        console.print(f"{file}  seed {request.seed}  {request.prompt}")


def _hint_at_unknown_words(model: "TextToImage", folder: Path, prompts: Sequence[str]) -> None:
    """Names on stderr the words that the model does not know."""
    from tessella.model.folder import read_captions
    from tessella.text.vocabulary import Vocabulary

    vocabulary = Vocabulary(model.text_tokenizer, read_captions(folder))
    unknown = [f"`{word}`" for word in vocabulary.find_unknown(" ".join(prompts))]
    if unknown:
        more = f" and {len(unknown) - _MAX_NAMED:,} more" if len(unknown) > _MAX_NAMED else ""
        create_console(as_json=True).print(
            f"Hint: not in the model's vocabulary: {', '.join(unknown[:_MAX_NAMED])}{more}. These "
            "words were rare or missing in its training captions, so expect anything for them."
        )


def read_prompts(path: Path) -> list[str]:
    """Reads prompts, one per line, without the blank lines.

    Raises:
        GenerationError: the file cannot be read, is not UTF-8, or holds no prompt.
    """
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
