"""`tessella examples add|list|remove` and `tessella export`: what a model can look at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.command import Command, get_console, get_group, take
from tessella.cli.options import Data, Device, DryRun, Force
from tessella.cli.reporting import Result

if TYPE_CHECKING:
    from tessella.model.memory import ExampleFilter, MemoryChange

_MAX_SHOWN = 10
_WEIGHTS = "The weights are as before: what the model has learned stays."

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, a run's folder, the name of a bundled model, or hf:USER/NAME.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Write a copy with the change; the model stays as it is."),
]


@dataclass(frozen=True)
class FilterOptions:
    """Which examples."""

    name: Annotated[str | None, typer.Option(metavar="PATTERN")] = None
    """Pictures with this in their name, the path of the file in its source. * matches any
    characters, ? any one; case does not matter. Several filters must all match."""
    caption: Annotated[str | None, typer.Option(metavar="PATTERN")] = None
    """Pictures with this in a caption."""
    source: Annotated[str | None, typer.Option(metavar="PATTERN")] = None
    """Pictures that came from this folder or file, the first part of their name."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no filter."""
        return self.name is self.caption is self.source is None

    def read(self) -> "ExampleFilter":
        """Returns the filter."""
        from tessella.model.memory import ExampleFilter

        return ExampleFilter(self.name, self.caption, self.source)


app = typer.Typer(
    help="Show and change which pictures a model looks at.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.command(cls=Command)
def add(
    context: typer.Context,
    model: Model,
    data: Data,
    out: Out = None,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
) -> Result:
    """Add captioned pictures that a model can look at.

    It takes seconds, not a training; the model must have been trained with examples. Its weights
    are not changed: what they have learned stays. Pictures that are there already are not added
    again.
    """
    from rich.progress import Progress

    from tessella.model.find import find_model
    from tessella.model.memory import add_examples

    console = get_console(context)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=None)
        change = add_examples(
            find_model(model),
            data,
            out=out,
            device=device,
            force=force,
            dry_run=dry_run,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    values = _values(change, dry_run) | {
        "known": list(change.known),
        "skipped": [{"name": one.name, "reason": one.reason} for one in change.skipped],
    }
    return Result(values, _describe_added(change, dry_run))


@app.command("list", cls=take(FilterOptions))
def list_(context: typer.Context, model: Model) -> Result:
    """List the pictures that a model can look at.

    Each with its number, name and captions. What the weights have learned is not listed.
    """
    from tessella.model.find import find_model
    from tessella.model.memory import list_examples

    found = list(list_examples(find_model(model), get_group(context, FilterOptions).read()))
    rows = [
        {"index": number, "name": row.name, "captions": list(row.captions)} for number, row in found
    ]
    lines = [f"{number}  {row.name}  {' | '.join(row.captions)}" for number, row in found]
    return Result({"model": model, "examples": rows}, [*lines, f"{_count(len(found))}."])


@app.command(cls=take(FilterOptions))
def remove(
    context: typer.Context,
    model: Model,
    all_: Annotated[bool, typer.Option("--all", help="Remove all of them.")] = False,
    out: Out = None,
    force: Force = False,
    dry_run: DryRun = False,
) -> Result:
    """Remove pictures that a model can look at.

    Its weights are not changed: what they have learned from these pictures stays.
    """
    from tessella.model.find import find_model
    from tessella.model.memory import remove_examples

    options = get_group(context, FilterOptions)
    if all_ != options.is_empty:
        raise typer.BadParameter("Give --name, --caption or --source, or else --all.")
    which, folder = options.read(), find_model(model)
    change = remove_examples(folder, which, out=out, force=force, dry_run=dry_run)
    return Result(_values(change, dry_run), _describe_removed(change, dry_run))


Onnx = Annotated[
    bool,
    typer.Option(
        "--onnx",
        help="Write ONNX graphs, which paint the same pictures in programs without PyTorch.",
    ),
]
TokenizerAlone = Annotated[
    bool,
    typer.Option(
        "--tokenizer-only",
        help="Write the image tokenizer alone, in the layout of diffusers, as its VQModel where it "
        "is one.",
    ),
]


def export(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the copy, the ONNX graphs or the tokenizer go."),
    ] = None,
    without_examples: Annotated[
        bool,
        typer.Option(
            "--without-examples",
            help="Leave out the pictures that it can look at; it still paints, from its weights "
            "and from references.",
        ),
    ] = False,
    onnx: Onnx = False,
    web: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write a web page that paints in the browser, for any host of static files. "
            "Needs onnxruntime-web, of npm.",
        ),
    ] = None,
    tokenizer: TokenizerAlone = False,
    force: Force = False,
) -> Result:
    """Copy a model, or write it as ONNX graphs or a web page.

    The copy needs nothing else. The pictures that the model can look at go with it, unless
    --without-examples leaves them out; what the weights have learned from them stays.
    """
    from tessella.model.find import find_model

    if tokenizer:
        if out is None or web is not None or onnx or without_examples:
            raise typer.BadParameter("--tokenizer-only goes with --out FOLDER and --force alone.")
        return _export_tokenizer(model, out, force=force)
    target = out or web
    if target is None or (web is not None and (out is not None or onnx)):
        raise typer.BadParameter("Give --out FOLDER, with --onnx or without, or --web FOLDER.")
    folder = find_model(model)
    if web is not None:
        from tessella.model.web_export import export_web as write

        what = "The web page is"
    elif onnx:
        from tessella.model.onnx_export import export_onnx as write

        what = "The ONNX graphs are"
    else:
        from tessella.model.memory import export_model as write

        what = "The model is"
    count = write(folder, target, without_examples=without_examples, force=force)
    form = "web" if web else "onnx" if onnx else "model"
    values = {"model": model, "out": str(target), "form": form, "count": count}
    lines = [f"{what} in {target}, with {_count(count)}."]
    if count and form != "model":
        lines.append(describe_travelling(count))
    return Result(values, [*lines, _WEIGHTS] if without_examples else lines)


def _export_tokenizer(model: str, out: Path, *, force: bool) -> Result:
    from tessella.model.image_tokenizer import ImageTokenizer

    kind = ImageTokenizer.export(model, out, force=force)
    read_by = "diffusers and tessella read" if kind == "VQModel" else "tessella reads"
    values = {"model": model, "out": str(out), "form": "tokenizer", "class": kind, "count": 0}
    return Result(values, [f"The image tokenizer is in {out}, as {kind}, which {read_by}."])


def describe_travelling(count: int) -> str:
    """Says that some pictures leave with the model."""
    return (
        f"Of the pictures that it looks at, {count:,} travel along, as codes with captions and "
        "file names: whoever has the model can decode them. --without-examples leaves them out."
    )


def _values(change: "MemoryChange", dry_run: bool) -> dict[str, Any]:
    rows = [{"name": row.name, "captions": list(row.captions)} for row in change.examples]
    return {
        "dry_run": dry_run,
        "model": str(change.folder),
        "examples": rows,
        "count": change.count,
        "weights_changed": False,
    }


def _describe_added(change: "MemoryChange", dry_run: bool) -> Iterator[str]:
    added = _count(len(change.examples))
    yield f"Would add {added}." if dry_run else f"Added {added}."
    if change.known:
        yield f"Not added again, since they are there already: {_list(change.known)}"
    if change.skipped:
        reasons = [f"{one.name}: {one.reason.rstrip('.')}" for one in change.skipped]
        yield f"Skipped, since they cannot be used: {_list(reasons)}"
    yield from _describe_count(change, dry_run)


def _describe_removed(change: "MemoryChange", dry_run: bool) -> Iterator[str]:
    if not change.examples:
        yield "No example fits. `tessella examples list` shows them all."
    else:
        removed = _count(len(change.examples))
        names = _list([row.name for row in change.examples])
        yield f"{'Would take away' if dry_run else 'Took away'} {removed}: {names}"
    yield from _describe_count(change, dry_run)


def _describe_count(change: "MemoryChange", dry_run: bool) -> Iterator[str]:
    has = "would have" if dry_run else "has"
    yield f"The model in {change.folder} {has} {_count(change.count)}. {_WEIGHTS}"


def _list(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MAX_SHOWN:,} more" if len(texts) > _MAX_SHOWN else ""
    return f"{', '.join(texts[:_MAX_SHOWN])}{more}."


def _count(number: int) -> str:
    return "1 example" if number == 1 else f"{number:,} examples"
