"""`tessella generate`: prompts in, pictures out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.options import MODELS_OWN, PromptsFile, parse_size
from tessella.cli.painting import (
    PaintingOptions,
    paint_and_tell,
    read_prompts,
    takes_painting_options,
)
from tessella.cli.reporting import told_errors

if TYPE_CHECKING:
    from PIL import Image

    from tessella.model.pipeline import TextToImage


@takes_painting_options
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to paint.", show_default=False),
    ] = None,
    prompts_file: PromptsFile = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="In pixels; larger pictures are painted by a window that slides over them.",
            show_default=MODELS_OWN,
        ),
    ] = None,
    *,
    options: PaintingOptions,
) -> None:
    """Paint pictures from prompts.

    Each prompt's first picture has the given seed, its next ones seed + 1, seed + 2, …; with
    --best-of N seed + N, seed + 2 N, …
    """
    if not prompts and prompts_file is None:
        raise typer.BadParameter("Give at least one, or --prompts FILE.", param_hint="PROMPT")
    pixels = None if size is None else parse_size(size)

    def paint(model: "TextToImage", wanted: Sequence[str], **how: Any) -> list["Image.Image"]:
        return model.generate(wanted, size=pixels, **how)

    with told_errors(options.debug, if_interrupted="Nothing was written."):
        from tessella.model.request import check_prompts

        wanted = [*(prompts or ()), *(read_prompts(prompts_file) if prompts_file else ())]
        check_prompts(wanted)
        paint_and_tell(wanted, options, paint, name=wanted[0], asked_too={"size": pixels})
