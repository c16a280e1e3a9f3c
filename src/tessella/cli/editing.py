"""`tessella edit` and `tessella vary`: a picture in, pictures that keep a part of it out."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tessella.cli.painting import (
    PaintingOptions,
    paint_and_tell,
    takes_painting_options,
)
from tessella.cli.pictures import read_picture
from tessella.cli.reporting import told_errors

if TYPE_CHECKING:
    from PIL import Image

    from tessella.model.pipeline import TextToImage

# A half that is painted anew, and the one that is kept.
_KEPT: dict[str, Literal["upper", "lower", "left", "right"]] = {
    "upper": "lower",
    "lower": "upper",
    "left": "right",
    "right": "left",
}

Picture = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="A picture of any size.", show_default=False)
]


@takes_painting_options
def edit(
    image: Picture,
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="What the whole shall show.", show_default=False),
    ],
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="MASK",
            help="What is painted anew: the white of a picture as large as IMAGE, or upper, "
            "lower, left or right for a half.",
            show_default=False,
        ),
    ] = None,
    outpaint: Annotated[
        str | None,
        typer.Option(
            metavar="L,T,R,B",
            help="Instead of --mask: paint so many pixels more at the left, top, right and bottom.",
            show_default=False,
        ),
    ] = None,
    *,
    options: PaintingOptions,
) -> None:
    """Paint a part of a picture anew, or more around it.

    The picture is cropped to its middle square and resized to the model's size; of that, the
    rest stays as it is, pixel for pixel.
    """
    if (mask is None) == (outpaint is None):
        raise typer.BadParameter("Give exactly one of the two.", param_hint="--mask, --outpaint")
    left, top, right, bottom = _parse_margins(outpaint or "0,0,0,0")
    with told_errors(options.debug, if_interrupted="Nothing was written."):
        picture = read_picture(image, "edit")
        painted_anew = None if mask is None else _read_mask(mask, picture)

        def paint(model: "TextToImage", wanted: Sequence[str], **how: Any) -> list["Image.Image"]:
            if painted_anew is None:
                return model.outpaint(
                    picture, wanted[0], left=left, top=top, right=right, bottom=bottom, **how
                )
            return model.edit(picture, wanted[0], painted_anew, **how)

        asked_too = {"image": str(image), "mask": mask, "outpaint": outpaint}
        paint_and_tell([prompt], options, paint, name=prompt, asked_too=asked_too)


@takes_painting_options
def vary(
    image: Picture,
    prompt: Annotated[
        str,
        typer.Option(metavar="PROMPT", help="What they shall show.", show_default="no prompt"),
    ] = "",
    strength: Annotated[
        float,
        typer.Option(
            metavar="NUMBER",
            help="The share of the picture that is painted anew: above 0, at most 1.",
        ),
    ] = 0.5,
    *,
    options: PaintingOptions,
) -> None:
    """Paint variations of a picture.

    The picture is cropped to its middle square and resized to the model's size; places drawn by
    the seed are painted anew, the others keep their codes.
    """

    def paint(model: "TextToImage", wanted: Sequence[str], **how: Any) -> list["Image.Image"]:
        return model.vary(picture, wanted[0], strength=strength, **how)

    with told_errors(options.debug, if_interrupted="Nothing was written."):
        picture = read_picture(image, "vary")
        asked_too = {"image": str(image), "strength": strength}
        paint_and_tell([prompt], options, paint, name=prompt or image.stem, asked_too=asked_too)


def _parse_margins(text: str) -> tuple[int, int, int, int]:
    """Reads LEFT,TOP,RIGHT,BOTTOM.

    Raises:
        typer.BadParameter: it is written otherwise.
    """
    found = re.fullmatch(",".join([r"\s*([0-9]{1,6})\s*"] * 4), text)
    if found is None:
        what = f"Write LEFT,TOP,RIGHT,BOTTOM in pixels, such as 0,0,64,0: `{text}`."
        raise typer.BadParameter(what, param_hint="--outpaint")
    return int(found[1]), int(found[2]), int(found[3]), int(found[4])


def _read_mask(mask: str, picture: "Image.Image") -> "Image.Image":
    """Reads what is painted anew, or makes the half that a word names.

    Raises:
        DataError: it is neither a word nor a picture that can be read.
    """
    from tessella.model.canvas import half_mask

    if mask in _KEPT:
        return half_mask(picture.size, keep=_KEPT[mask])
    return read_picture(Path(mask), "use the mask")
