"""`tessella push`: a model in, a repository on the Hugging Face hub out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli import options as shared
from tessella.cli.command import Command, get_console, get_group
from tessella.cli.examples import Model, describe_travelling
from tessella.cli.reporting import Result

if TYPE_CHECKING:
    from tessella.model.push import Push


@dataclass(frozen=True)
class PushOptions:
    """What is pushed, and how."""

    private: Annotated[bool, typer.Option("--private")] = False
    """Let nobody else see it; a repository that is there must be private already."""
    licence: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="that of the model's card")
    ] = None
    """Licence of model and pictures, e.g. cc-by-4.0; unknown pushes without one."""
    without_examples: Annotated[bool, typer.Option("--without-examples")] = False
    """Leave out the pictures that it can look at; it still paints, from its weights and from
    references."""
    device: shared.Device = "auto"
    dry_run: shared.DryRun = False


class PushCommand(Command):
    """`push` with its options."""

    groups = (PushOptions, *Command.groups)
    if_interrupted = "What was on the hub is unchanged; at most an empty repository was created."


def push(
    context: typer.Context,
    model: Model,
    repository: Annotated[
        str,
        typer.Argument(
            metavar="USER/NAME",
            help="A repository on the hub, created if necessary; USER/NAME@BRANCH for a branch.",
            show_default=False,
        ),
    ],
) -> Result:
    """Share a model on the Hugging Face hub.

    Everybody can then paint with --model hf:USER/NAME. The files of the model go there, with its
    card and pictures that it paints for eight captions. Log in first: `hf auth login`, or
    HF_TOKEN.
    """
    from tessella.errors import ConfigError
    from tessella.hub import import_client, parse_address
    from tessella.model.find import find_model
    from tessella.model.push import prepare_push
    from tessella.model.push import push as send

    options, console = get_group(context, PushOptions), get_console(context)
    address = parse_address(repository, ConfigError)
    import_client("`tessella push`", ConfigError)
    with prepare_push(
        find_model(model),
        address,
        licence=options.licence,
        without_examples=options.without_examples,
        device=options.device,
    ) as prepared:
        values = _values(prepared, options.dry_run)
        if options.dry_run:
            return Result(values, [*_describe(prepared), "Would push that; nothing was sent."])
        for line in _describe(prepared):
            console.print(line)
        pushed = send(prepared, private=options.private)
    pinned = f"{address.repository}@{pushed.commit}"
    lines = [
        f"Pushed to {pushed.page}{', which is new' if pushed.is_new else ''}.",
        f"Paint with it: tessella generate PROMPT --model {address}",
        f"This version, whatever comes later: --model hf:{pinned}",
    ]
    return Result(values | {"page": pushed.page, "commit": pushed.commit}, lines)


def _values(prepared: "Push", dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "repository": str(prepared.address),
        "licence": prepared.licence,
        "files": dict(prepared.sizes),
        "size_bytes": sum(prepared.sizes.values()),
        "left_out": list(prepared.left_out),
        "examples": prepared.examples,
    }


def _describe(prepared: "Push") -> Iterator[str]:
    width = max(map(len, prepared.sizes))
    for name, size_bytes in prepared.sizes.items():
        yield f"{name:{width}}  {size_bytes:>14,} bytes"
    total = sum(prepared.sizes.values()) / 1e6
    yield f"{len(prepared.sizes)} files, {total:.1f} MB. Licence: {prepared.licence}."
    if prepared.left_out:
        yield f"Left out, because they do not belong to a model: {', '.join(prepared.left_out)}."
    if prepared.examples:
        yield describe_travelling(prepared.examples)
