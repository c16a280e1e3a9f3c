"""`tessella generate`, `edit` and `vary`: prompts or a picture in, pictures out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tessella.cli.command import get_group
from tessella.cli.options import MODELS_OWN, PromptsFile
from tessella.cli.painting import collect_prompts, paint
from tessella.cli.pictures import read_picture
from tessella.cli.reporting import Result

if TYPE_CHECKING:
    from PIL import Image

    from tessella.model.canvas import Canvas
    from tessella.model.pipeline import TextToImage

_Half = Literal["upper", "lower", "left", "right"]
_OPPOSITE: dict[str, _Half] = dict(upper="lower", lower="upper", left="right", right="left")

ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of any size.")]


@dataclass(frozen=True)
class GenerateOptions:
    """What to paint, and how large."""

    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT")] = None
    """What to paint."""
    prompts_file: PromptsFile = None
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", show_default=MODELS_OWN)] = (
        None
    )
    """In pixels. A larger picture than the model learned is painted window by window."""


@dataclass(frozen=True)
class EditOptions:
    """What to repaint."""

    image: ImageFile
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")]
    """What the whole picture should show."""
    mask: Annotated[str | None, typer.Option(metavar="MASK")] = None
    """What to repaint: the white area of a mask the size of IMAGE, or a half: upper, lower, left or
    right."""
    outpaint: Annotated[str | None, typer.Option(metavar="L,T,R,B")] = None
    """Instead of --mask: pixels to add at the left, top, right and bottom."""


@dataclass(frozen=True)
class VaryOptions:
    """What to vary, and how much."""

    image: ImageFile
    prompt: Annotated[str, typer.Option(metavar="PROMPT", show_default="no prompt")] = ""
    """What the variations should show."""
    strength: Annotated[float, typer.Option(metavar="NUMBER")] = 0.5
    """Fraction of the picture to repaint: above 0, at most 1."""


def generate(context: typer.Context) -> Result:
    """Paint pictures from prompts.

    Each prompt's first picture has the given seed, the next ones seed + 1, seed + 2, …; with
    --best-of N, seed + N, seed + 2 N, …
    """
    options = get_group(context, GenerateOptions)
    size_px = None if options.size is None else _parse_size(options.size)
    prompts = collect_prompts(options.prompts, options.prompts_file)
    return paint(
        context,
        prompts,
        lambda model, seeds: [model.canvases.new(size_px)] * len(seeds),
        name=prompts[0],
        inputs={"size": size_px},
    )


def edit(context: typer.Context) -> Result:
    """Repaint a part of a picture, or paint beyond its edges.

    The picture is cropped to its middle square and resized to the model's size; everything
    outside the mask then stays as it is, pixel for pixel.
    """
    options = get_group(context, EditOptions)
    if (options.mask is None) == (options.outpaint is None):
        raise typer.BadParameter("Give exactly one of the two.", param_hint="--mask, --outpaint")
    margins = {} if options.outpaint is None else _parse_margins(options.outpaint)
    from tessella.model.request import check_prompts

    [prompt] = check_prompts(options.prompt)
    picture = read_picture(options.image, "edit")
    mask = None if options.mask is None else _read_mask(options.mask, picture)

    def plan(model: "TextToImage", seeds: Sequence[int]) -> "list[Canvas]":
        if mask is None:
            canvas = model.canvases.outpaint(picture, **margins)
        else:
            canvas = model.canvases.edit(picture, mask)
        return [canvas] * len(seeds)

    inputs = {"image": str(options.image), "mask": options.mask, "outpaint": options.outpaint}
    return paint(context, [prompt], plan, name=prompt, inputs=inputs)


def vary(context: typer.Context) -> Result:
    """Paint variations of a picture.

    The picture is cropped to its middle square and resized to the model's size. Tiles drawn
    by --seed are repainted; the rest keep their codes.
    """
    options = get_group(context, VaryOptions)
    picture = read_picture(options.image, "vary")
    return paint(
        context,
        [options.prompt],
        lambda model, seeds: model.canvases.variations(picture, seeds, strength=options.strength),
        name=options.prompt or options.image.stem,
        inputs={"image": str(options.image), "strength": options.strength},
    )


def _parse_size(text: str) -> tuple[int, int]:
    """Reads WIDTHxHEIGHT; the model decides whether it can paint it."""
    width, height = _parse_pixels(text.lower(), "WIDTHxHEIGHT", "256x128", "--size")
    return width, height


def _parse_margins(text: str) -> dict[str, int]:
    """Reads LEFT,TOP,RIGHT,BOTTOM."""
    margins = _parse_pixels(text, "LEFT,TOP,RIGHT,BOTTOM", "0,0,64,0", "--outpaint")
    return dict(zip(("left", "top", "right", "bottom"), margins, strict=True))


def _parse_pixels(text: str, form: str, example: str, option: str) -> list[int]:
    """Reads as many numbers of pixels as the form has words, with the same signs between them.

    Raises:
        typer.BadParameter: it is written otherwise.
    """
    match = re.fullmatch(re.sub("[A-Z]+", r"\\s*([0-9]{1,6})\\s*", form), text)
    if match is None:
        raise typer.BadParameter(
            f"Write {form} in pixels, such as {example}: `{text}`.", param_hint=option
        )
    return [int(number) for number in match.groups()]


def _read_mask(mask: str, picture: "Image.Image") -> "Image.Image":
    """Reads what to repaint, or makes the half that a word names.

    Raises:
        DataError: it is neither such a word nor a readable picture.
    """
    from tessella.model.canvas import half_mask

    if mask in _OPPOSITE:
        return half_mask(picture.size, keep=_OPPOSITE[mask])
    return read_picture(Path(mask), "use the mask")
