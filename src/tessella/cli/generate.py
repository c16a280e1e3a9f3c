"""`tessella generate`: prompts in, pictures out."""

import re
from typing import Annotated

import typer

from tessella.cli.options import MODELS_OWN, PromptsFile
from tessella.cli.painting import paint, painting_errors, read_prompts


def generate(
    context: typer.Context,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to paint."),
    ] = None,
    prompts_file: PromptsFile = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="In pixels. A larger picture than the model learned is painted window by window.",
            show_default=MODELS_OWN,
        ),
    ] = None,
) -> None:
    """Paint pictures from prompts.

    Each prompt's first picture has the given seed, the next ones seed + 1, seed + 2, …; with
    --best-of N, seed + N, seed + 2 N, …
    """
    if not prompts and prompts_file is None:
        raise typer.BadParameter("Give at least one, or --prompts FILE.", param_hint="PROMPT")
    size_px = None if size is None else _parse_size(size)
    with painting_errors(context):
        from tessella.model.request import check_prompts

        all_prompts = [*(prompts or ()), *(read_prompts(prompts_file) if prompts_file else ())]
        check_prompts(all_prompts)
        paint(
            context,
            all_prompts,
            lambda model, seeds: [model.plan_picture(size_px)] * len(seeds),
            name=all_prompts[0],
            inputs={"size": size_px},
        )


def _parse_size(text: str) -> tuple[int, int]:
    """Reads WIDTHxHEIGHT; the model decides whether it can paint it.

    Raises:
        typer.BadParameter: it is written otherwise.
    """
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text.strip().lower())
    if match is None:
        raise typer.BadParameter(
            f"Write WIDTHxHEIGHT in pixels, such as 256x128: `{text}`.", param_hint="--size"
        )
    return int(match[1]), int(match[2])
