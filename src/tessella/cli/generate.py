"""`tessella generate`, `edit` and `vary`: prompts or a picture in, pictures out."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tessella.cli.command import get_group
from tessella.cli.options import MODELS_OWN, PromptsFile
from tessella.cli.painting import PaintingPlan, collect_prompts, paint
from tessella.cli.pictures import read_picture, read_transparent
from tessella.cli.reporting import Result

if TYPE_CHECKING:
    from PIL import Image

    from tessella.model.mask import Marking
    from tessella.model.pipeline import TextToImage

_Half = Literal["upper", "lower", "left", "right"]
_OPPOSITE: dict[str, _Half] = dict(
    upper="lower", top="lower", lower="upper", bottom="upper", left="right", right="left"
)

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
    """Of each picture, in pixels. It is painted at the model's own size and resized; for another
    shape it is padded where its edges are of one colour, else cropped."""
    canvas: Annotated[
        str | None, typer.Option(metavar="WxH", show_default="the model's own picture")
    ] = None
    """Paint on a larger canvas, window by window: 2x1 is two of the model's own pictures wide,
    wide has the shape of --size. Suits scenery and textures better than one object."""


@dataclass(frozen=True)
class EditOptions:
    """What to repaint."""

    image: ImageFile
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")]
    """What the whole picture should show."""
    mask: Annotated[str | None, typer.Option(metavar="MASK")] = None
    """What to repaint: a picture the size of IMAGE, transparent there or, if it has no
    transparency, white; or a half: upper (or top), lower (or bottom), left or right. Left out, it
    is what IMAGE itself has transparent."""
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

    def plan(model: "TextToImage") -> PaintingPlan:
        size = model.canvases.plan_size(size_px, options.canvas)
        empty = model.canvases.new(size.painted)
        return PaintingPlan(lambda seeds: [empty] * len(seeds), size)

    inputs = {"size": size_px, "canvas": options.canvas}
    return paint(context, prompts, plan, name=prompts[0], inputs=inputs)


def edit(context: typer.Context) -> Result:
    """Repaint a part of a picture, or paint beyond its edges.

    The picture is cropped to its middle square and resized to the model's size; everything
    outside the mask then stays as it is, pixel for pixel.
    """
    options = get_group(context, EditOptions)
    if options.mask is not None and options.outpaint is not None:
        raise typer.BadParameter("Give one of the two.", param_hint="--mask, --outpaint")
    margins = {} if options.outpaint is None else _parse_margins(options.outpaint)
    from tessella.model.request import check_prompts

    [prompt] = check_prompts(options.prompt)
    picture, alpha = read_transparent(options.image, "edit")
    marking = None if margins else _read_marking(options.mask, picture, alpha)

    def plan(model: "TextToImage") -> PaintingPlan:
        if marking is None:
            canvas = model.canvases.outpaint(picture, **margins)
            return PaintingPlan(lambda seeds: [canvas] * len(seeds))
        fitted = marking.fit(picture.size, model.config.image_size)
        canvas = model.canvases.edit(picture, fitted)
        return PaintingPlan(lambda seeds: [canvas] * len(seeds), marking=fitted)

    inputs = {"image": str(options.image), "mask": options.mask, "outpaint": options.outpaint}
    return paint(context, [prompt], plan, name=prompt, inputs=inputs)


def vary(context: typer.Context) -> Result:
    """Paint variations of a picture.

    The picture is cropped to its middle square and resized to the model's size. Positions
    drawn by --seed are repainted; the rest keep their codes.
    """
    options = get_group(context, VaryOptions)
    picture = read_picture(options.image, "vary")

    def plan(model: "TextToImage") -> PaintingPlan:
        vary_picture = functools.partial(model.canvases.variations, picture)
        return PaintingPlan(functools.partial(vary_picture, strength=options.strength))

    return paint(
        context,
        [options.prompt],
        plan,
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


def _read_marking(
    mask: str | None, picture: "Image.Image", alpha: "Image.Image | None"
) -> "Marking":
    """Reads what to repaint: a mask, the half that a word names, or the picture's own hole.

    Raises:
        typer.BadParameter: there is no mask, and the picture has no hole.
        DataError: it is neither such a word nor a readable picture.
    """
    from tessella.model.mask import half_mask, read_channels, read_hole, read_mask

    if mask in _OPPOSITE:
        return read_mask(half_mask(picture.size, keep=_OPPOSITE[mask]))
    if mask is not None:
        return read_channels(*read_transparent(Path(mask), "use the mask"))
    hole = read_hole(alpha)
    if hole is None:
        raise typer.BadParameter(
            "Give one of the two: IMAGE has no transparency that says what to repaint.",
            param_hint="--mask, --outpaint",
        )
    return hole
