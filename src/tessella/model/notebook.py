"""How a model and its pictures show themselves in a notebook: as HTML without links or scripts.

What others wrote, captions and prompts, is escaped; a sample sheet is decoded and drawn anew.
"""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tessella.errors import TessellaError
from tessella.images import encode_picture, read_image

if TYPE_CHECKING:
    from tessella.model.pipeline import TextToImage

_MAX_SHOWN = 64  # pictures
_MAX_SIDE_PX = 512  # of a picture
_LEAST_PX = 128  # a smaller one is enlarged
_SHEET_PX = 384  # longer side of a model's samples
_SHEET_QUALITY = 85  # of WebP: about 40 kB in the notebook's file
_MAX_PIXELS = 100_000_000  # of the sheet's file
_CAPTIONS = 4


def describe_model(model: "TextToImage") -> str:
    """Describes a model in one line: sizes, weights, examples."""
    size, shape = model.config.image_size, model.transformer.shape
    codes = "×".join(map(str, (*model.config.grid, shape.codes_per_position)))
    networks = (model.tokenizer, model.transformer)
    weights = sum(p.numel() for network in networks for p in network.parameters()) / 1e6
    text = f"{size}×{size} pixels, {codes} codes of {shape.codebook_size}, {weights:.1f} M weights"
    return f"{text}{f', {len(model.memory):,} examples' if model.memory else ''}"


def show_model(model: "TextToImage", samples: Path | None) -> str:
    """Shows a model: what it is, what it can be asked for, and its sample pictures, small.

    Args:
        model: any.
        samples: the sheet in its folder; left out if it is None or cannot be read.
    """
    parts = [f"<b>TextToImage</b>: {html.escape(describe_model(model))}"]
    if model.captions and model.captions.examples:
        asked = (f"<i>{html.escape(one)}</i>" for one in model.captions.examples[:_CAPTIONS])
        parts.append(f"Trained on captions such as {'; '.join(asked)}")
    try:
        if samples is not None:
            sheet = read_image(samples, max_pixels=_MAX_PIXELS)
            sheet.thumbnail((_SHEET_PX, _SHEET_PX))
            parts.append(_embed(sheet, "Sample pictures", sheet.width, kind="webp"))
    except TessellaError:
        pass  # whoever passes a model on may remove them
    return f"<div>{'<br>'.join(parts)}</div>"


def show_pictures(
    pictures: Sequence[Image.Image], labels: Sequence[str], warnings: Sequence[str]
) -> str:
    """Shows pictures side by side.

    Args:
        pictures: of any size; large ones are shown smaller.
        labels: what stands below each; empty where it is not known.
        warnings: what stands below all.
    """
    figures = []
    for number, (picture, label) in enumerate(zip(pictures[:_MAX_SHOWN], labels, strict=False)):
        if max(picture.size) > _MAX_SIDE_PX:
            picture = picture.copy()
            picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
        width = picture.width * max(1, -(-_LEAST_PX // picture.width))
        shown = _embed(picture, label or f"Picture {number + 1}", width)
        figures.append(
            '<figure style="display:inline-block;margin:4px;vertical-align:top;'
            f'max-width:{_MAX_SIDE_PX}px">{shown}<figcaption style="width:0;min-width:100%">'
            f"<small>{html.escape(label)}</small></figcaption></figure>"
        )
    more = len(pictures) - _MAX_SHOWN
    notes = [*([f"… and {more:,} more pictures"] if more > 0 else []), *warnings]
    below = "".join(f"<div><small>{html.escape(note)}</small></div>" for note in notes)
    return f"<div>{''.join(figures)}{below}</div>"


def _embed(picture: Image.Image, label: str, width: int, kind: str = "png") -> str:
    """Embeds a picture, shown `width` pixels wide."""
    encoded = encode_picture(np.asarray(picture.convert("RGB")), kind, _SHEET_QUALITY)
    content = base64.b64encode(encoded).decode("ascii")
    enlarged = "image-rendering:pixelated;" if width > picture.width else ""
    return (
        f'<img src="data:image/{kind};base64,{content}" alt="{html.escape(label)}" '
        f'style="{enlarged}width:{width}px;max-width:100%">'
    )
