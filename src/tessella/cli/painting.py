"""What `generate`, `edit` and `vary` share: their options, and the way from asked to written."""

import contextlib
import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessella.cli.options import (
    DEFAULT_MODEL,
    BestOf,
    Config,
    Count,
    Debug,
    Device,
    DryRun,
    Force,
    GuidanceScale,
    GuidanceSchedule,
    Json,
    Model,
    NegativePrompt,
    Order,
    Out,
    Seed,
    Set,
    Steps,
    StepSchedule,
    Temperature,
    TopK,
    TopP,
)
from tessella.cli.pictures import AskedPicture, Place, choose_place
from tessella.cli.reporting import create_console, print_json
from tessella.cli.sections import read_section
from tessella.errors import GenerationError

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from tessella.images import Pixels
    from tessella.model.pipeline import TextToImage
    from tessella.objectives import GenerationStep

_BATCH = 16  # pictures that are painted between two moves of the progress bar
_MAX_NAMED = 5  # unknown words
_SAMPLING = (
    "steps",
    "guidance_scale",
    "guidance_schedule",
    "temperature",
    "top_k",
    "top_p",
    "order",
    "step_schedule",
)

_Call = Callable[..., list["Image.Image"]]


@dataclasses.dataclass(frozen=True)
class PaintingOptions:
    """The options of every command that paints, in the order of its help."""

    model: Model = DEFAULT_MODEL
    out: Out = None
    count: Count = 1
    seed: Seed = 0
    best_of: BestOf = 1
    negative_prompt: NegativePrompt = ""
    steps: Steps = None
    guidance_scale: GuidanceScale = None
    guidance_schedule: GuidanceSchedule = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    order: Order = None
    step_schedule: StepSchedule = None
    config: Config = None
    set_: Set = None
    device: Device = "auto"
    force: Force = False
    dry_run: DryRun = False
    as_json: Json = False
    debug: Debug = False

    def read_settings(self) -> dict[str, Any]:
        """Reads what differs from the model's own: of a file, of `--set`, of the options.

        Raises:
            ConfigError: the file is unreadable, or `--set` names another section.
        """
        given = {name: getattr(self, name) for name in _SAMPLING}
        changed = {name: value for name, value in given.items() if value is not None}
        said = read_section(
            "generation",
            self.config,
            self.set_ or (),
            what="Painting",
            example="generation.temperature=0.8",
        )
        return said | changed


def takes_painting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, after its own parameters, the options of every command that paints.

    Args:
        command: its last parameter, `options`, gets them as `PaintingOptions`.
    """
    fields = dataclasses.fields(PaintingOptions)
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
    shared = [
        inspect.Parameter(f.name, own[0].kind, default=f.default, annotation=f.type) for f in fields
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = PaintingOptions(**{field.name: given.pop(field.name) for field in fields})
        command(**given, options=options)

    # What typer reads a command's parameters from.
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
    return run


def paint_and_tell(
    prompts: Sequence[str],
    options: PaintingOptions,
    paint: _Call,
    *,
    name: str,
    asked_too: Mapping[str, Any],
) -> None:
    """Paints pictures, writes them all or none, and says so.

    Args:
        prompts: those that `options.count` pictures each are asked of.
        options: of the command line.
        paint: takes the model, some of the prompts and what `TextToImage.generate` takes by
            name from `count` on; gives their pictures, prompt after prompt.
        name: a free file name follows from it.
        asked_too: what else the pictures follow from, as plain values to be written down.

    Raises:
        TessellaError: a request that cannot be met, before anything is written.
    """
    from tessella.model.find import find_model
    from tessella.model.pipeline import TextToImage
    from tessella.model.request import list_requests

    requests = list_requests(
        prompts, count=options.count, seed=options.seed, best_of=options.best_of
    )
    asked = [AskedPicture(one.prompt, one.seed) for one in requests]
    place = choose_place(options.out, name, len(asked), force=options.force)

    folder = find_model(options.model)
    model = TextToImage.load(folder, options.device)
    changes = options.read_settings()
    how = {
        **asked_too,
        "negative_prompt": options.negative_prompt,
        "best_of": options.best_of,
        "settings": model.generation_settings(**changes).model_dump(mode="json"),
    }
    for start in range(0, len(prompts), _BATCH):  # refuses what is too long, before the work
        model.sampler.encode_text(prompts[start : start + _BATCH])
    call = functools.partial(
        paint,
        model,
        negative_prompt=options.negative_prompt,
        best_of=options.best_of,
        **changes,
    )

    began = time.monotonic()
    if options.dry_run:
        _begin(call, prompts, options)
    else:
        console = create_console(options.as_json)
        place.write(asked, _paint(call, prompts, options, console), how)
    seconds = time.monotonic() - began
    _hint_at_unknown_words(model, folder, prompts)
    _tell(place, asked, how, options, seconds)


def _tell(
    place: Place,
    asked: Sequence[AskedPicture],
    how: Mapping[str, Any],
    options: PaintingOptions,
    seconds: float,
) -> None:
    """Says what was painted, or would be."""
    if options.as_json:
        result = {
            "dry_run": options.dry_run,
            "model": options.model,
            "out": str(place.path),
            **how,
            "pictures": [
                {"file": str(file), **dataclasses.asdict(picture)}
                for file, picture in zip(place.files(len(asked)), asked, strict=True)
            ],
            "seconds": None if options.dry_run else round(seconds, 3),
        }
        print_json(result)
        return
    console = create_console(options.as_json)
    what = "1 picture" if len(asked) == 1 else f"{len(asked):,} pictures"
    if not options.dry_run:
        console.print(f"Painted {what} in {seconds:.1f} s: {place}")
        return
    console.print(f"Would paint {what}: {place}")
    console.print(", ".join(f"{name} {value}" for name, value in how["settings"].items()))
    for file, picture in zip(place.files(len(asked)), asked, strict=True):
        console.print(f"{file}  seed {picture.seed}  {picture.prompt}")


class _BegunError(Exception):
    """Ends a picture after its first step."""


def _begin(call: _Call, prompts: Sequence[str], options: PaintingOptions) -> None:
    """Paints the first step of the first picture, which refuses all that cannot be painted."""

    def stop(step: "GenerationStep") -> None:
        raise _BegunError

    with contextlib.suppress(_BegunError):
        call(prompts[:1], count=1, seed=options.seed, on_step=stop)


def _paint(
    call: _Call, prompts: Sequence[str], options: PaintingOptions, console: "Console"
) -> Iterator["Pixels"]:
    """Paints pictures as they are taken, and shows how far it is."""
    import numpy as np
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = "painting", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[step]}")
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=len(prompts) * options.count, step="")

        def show(step: "GenerationStep") -> None:
            progress.update(task, step=f"step {step.step} of {step.steps}")

        at_once = max(1, _BATCH // options.count)  # prompts
        for start in range(0, len(prompts), at_once):
            for first in range(0, options.count, _BATCH):
                images = call(
                    prompts[start : start + at_once],
                    count=min(_BATCH, options.count - first),
                    seed=options.seed + first * options.best_of,
                    on_step=show,
                )
                yield from map(np.asarray, images)
                progress.advance(task, len(images))


def _hint_at_unknown_words(model: "TextToImage", folder: Path, prompts: Sequence[str]) -> None:
    """Names on stderr the words that the model does not know."""
    from tessella.model.folder import read_captions
    from tessella.text.vocabulary import Vocabulary

    vocabulary = Vocabulary(model.text_tokenizer, read_captions(folder))
    unknown = [f"`{word}`" for word in vocabulary.find_unknown(" ".join(prompts))]
    if unknown:
        more = f" and {len(unknown) - _MAX_NAMED:,} more" if len(unknown) > _MAX_NAMED else ""
        create_console(as_json=True).print(
            f"Hint: not in the model's vocabulary: {', '.join(unknown[:_MAX_NAMED])}{more}. Its "
            "captions had these words rarely or never, so it may paint anything for them."
        )


def read_prompts(path: Path) -> list[str]:
    """Reads prompts, one a line, without the blank lines.

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
        raise GenerationError(f"The file holds no prompt: `{path}`. Write one a line.")
    return prompts
