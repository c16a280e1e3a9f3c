"""`tessella edit` and `tessella vary`: a picture in, pictures that keep a part of it out."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tessella.cli.painting import paint, painting_errors
from tessella.cli.pictures import read_picture

if TYPE_CHECKING:
    from PIL import Image

    from tessella.model.canvas import Canvas
    from tessella.model.pipeline import TextToImage

_OPPOSITE: dict[str, Literal["upper", "lower", "left", "right"]] = {
    "upper": "lower",
    "lower": "upper",
    "left": "right",
    "right": "left",
}

ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of any size.")]


def edit(
    context: typer.Context,
    image: ImageFile,
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="What the whole picture should show."),
    ],
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="MASK",
            help="What to repaint: the white of a picture as large as IMAGE, or a half: upper, "
            "lower, left or right.",
        ),
    ] = None,
    outpaint: Annotated[
        str | None,
        typer.Option(
            metavar="L,T,R,B",
            help="Instead of --mask: pixels to add at the left, top, right and bottom.",
        ),
    ] = None,
) -> None:
    """Repaint a part of a picture, or paint beyond its edges.

    The picture is cropped to its middle square and resized to the model's size; everything
    outside the mask then stays as it is, pixel for pixel.
    """
    if (mask is None) == (outpaint is None):
        raise typer.BadParameter("Give exactly one of the two.", param_hint="--mask, --outpaint")
    margins = _parse_margins(outpaint or "0,0,0,0")
    with painting_errors(context):
        from tessella.model.request import check_prompts

        check_prompts([prompt])
        picture = read_picture(image, "edit")
        mask_picture = None if mask is None else _read_mask(mask, picture)

        def plan(model: "TextToImage") -> "Canvas":
            if mask_picture is None:
                return model.plan_outpaint(picture, **margins)
            return model.plan_edit(picture, mask_picture)

        paint(
            context,
            [prompt],
            lambda model, seeds: [plan(model)] * len(seeds),
            name=prompt,
            inputs={"image": str(image), "mask": mask, "outpaint": outpaint},
        )


def vary(
    context: typer.Context,
    image: ImageFile,
    prompt: Annotated[
        str,
        typer.Option(metavar="PROMPT", help="What they should show.", show_default="no prompt"),
    ] = "",
    strength: Annotated[
        float,
        typer.Option(
            metavar="NUMBER",
            help="Fraction of the picture to repaint: above 0, at most 1.",
        ),
    ] = 0.5,
) -> None:
    """Paint variations of a picture.

    The picture is cropped to its middle square and resized to the model's size. Tiles drawn by
    the seed are repainted, the others keep their codes.
    """
    with painting_errors(context):
        picture = read_picture(image, "vary")
        paint(
            context,
            [prompt],
            lambda model, seeds: model.plan_variations(picture, seeds, strength=strength),
            name=prompt or image.stem,
            inputs={"image": str(image), "strength": strength},
        )


def _parse_margins(text: str) -> dict[str, int]:
    """Reads LEFT,TOP,RIGHT,BOTTOM.

    Raises:
        typer.BadParameter: it is written otherwise.
    """
    match = re.fullmatch(",".join([r"\s*([0-9]{1,6})\s*"] * 4), text)
    if match is None:
        raise typer.BadParameter(
            f"Write LEFT,TOP,RIGHT,BOTTOM in pixels, such as 0,0,64,0: `{text}`.",
            param_hint="--outpaint",
        )
    return dict(zip(("left", "top", "right", "bottom"), map(int, match.groups()), strict=True))


def _read_mask(mask: str, picture: "Image.Image") -> "Image.Image":
    """Reads what to repaint, or makes the half that a word names.

    Raises:
        DataError: it is neither such a word nor a readable picture.
    """
    from tessella.model.canvas import half_mask

    if mask in _OPPOSITE:
        return half_mask(picture.size, keep=_OPPOSITE[mask])
    return read_picture(Path(mask), "use the mask")
