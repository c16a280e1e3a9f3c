"""How a mask is read: what of a picture to repaint, by one rule wherever the mask comes from.

    mask, or a picture with a hole ─ read_mask, read_hole ─▶ marking ─ fit ─▶ the model's square

A mask with any transparency is read by it, as OpenAI's API does: where it is less than half opaque,
the picture is repainted, and its colours mean nothing. An opaque mask is read by its brightness:
from half of white on, the picture is repainted. So soft edges end in their middle, and neither one
odd pixel nor the noise of compression changes how the rest is read.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tessella.errors import GenerationError
from tessella.images import find_alpha, to_rgb

Mask = npt.NDArray[np.bool_]
"""(H, W), True where a picture is repainted."""

MaskReading = Literal["transparency", "brightness", "own_transparency", "array"]

HALF = 128
"""Of 255: less opaque than this is a hole, and this bright is white."""

_OPAQUE = 250  # of 255: compression leaves less than full opacity where all of it was meant
_BLACK, _WHITE = 63, 192  # of 255: an opaque mask should have little in between
_MAX_BETWEEN = 0.25  # of its pixels; wide soft edges have a tenth

_WORDS = {
    "transparency": "by the mask's transparency",
    "brightness": "by the mask's white",
    "own_transparency": "by the picture's own transparency",
    "array": "by the array",
}


@dataclass(frozen=True, eq=False)
class Marking:
    """What of a picture to repaint, and how that was read."""

    marked: Mask  # (H, W)
    read_by: MaskReading
    between: float = 0.0  # fraction of an opaque mask that is neither black nor white
    brightest: int = 255  # of an opaque mask

    @property
    def warnings(self) -> list[str]:
        """What makes it unlikely that the mask was meant so."""
        if self.between <= _MAX_BETWEEN:
            return []
        return [
            f"{self.between:.0%} of the mask is neither black nor white. It has no transparency, "
            "so it was read by its brightness: from half of white on, the picture is repainted."
        ]

    def describe(self) -> dict[str, Any]:
        """Lists as plain values how it was read, and the fraction that is repainted."""
        return {"read_by": self.read_by, "repainted": round(float(self.marked.mean()), 4)}

    def __str__(self) -> str:
        """Says the same in words."""
        share = self.marked.mean()
        shown = f"{share:.0%}" if share >= 0.01 else "less than 1%"
        return f"Repainted, {_WORDS[self.read_by]}: {shown} of the picture"

    def fit(self, picture_size: tuple[int, int], size: int) -> "Marking":
        """Crops and resizes it as `fit_images` does its picture.

        Args:
            picture_size: (width, height) of its picture.
            size: side of the square in pixels.

        Returns:
            (size, size); a pixel is marked if the mask touches it.

        Raises:
            GenerationError: the mask has another size, or marks nothing.
        """
        height, width = self.marked.shape
        if (width, height) != picture_size:
            raise GenerationError(
                f"The mask must have the picture's size, {picture_size[0]}x{picture_size[1]}: "
                f"`{width}x{height}`. Draw it over the picture."
            )
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        cropped = self.marked[top : top + side, left : left + side].astype(np.float32)
        # A box filter gives the fraction of each pixel that is marked.
        fraction = Image.fromarray(cropped).resize((size, size), Image.Resampling.BOX)
        fitted: Mask = np.asarray(fraction) > 0
        if not fitted.any():
            raise GenerationError(self._explain_nothing())
        return replace(self, marked=fitted)

    def _explain_nothing(self) -> str:
        if self.marked.any():
            return (
                "The mask marks nothing in the picture's middle square, which is what the model "
                "sees. Mark what should be repainted there."
            )
        if self.read_by == "brightness":
            return (
                "The mask marks nothing: it has no transparency, so its white is repainted, and "
                f"its brightest pixel is `{self.brightest}` of 255. Make white (255) what should "
                "be repainted."
            )
        if self.read_by == "array":
            return "The mask marks nothing: it is False everywhere. Set what should be repainted."
        return (
            "The mask marks nothing: it has transparency, so what is less than half opaque is "
            "repainted, and nothing is. Make transparent what should be repainted."
        )


def read_mask(mask: Image.Image | Mask) -> Marking:
    """Reads a mask of any mode, or an array.

    Args:
        mask: a picture, or (H, W) bool, True where it is repainted.

    Raises:
        GenerationError: it is neither.
        DataError: a picture's values cannot be read as colours.
    """
    if isinstance(mask, Image.Image):
        return read_channels(to_rgb(mask), find_alpha(mask))
    marked = np.asarray(mask)
    if marked.ndim != 2 or marked.dtype != np.bool_:
        raise GenerationError(
            f"A mask must be a picture or a bool array (H, W): `{marked.shape} {marked.dtype}`."
        )
    return Marking(marked, "array")


def read_channels(colors: Image.Image, alpha: Image.Image | None) -> Marking:
    """Reads a mask that was decoded into RGB and, where it has transparency, its opacity."""
    if alpha is not None:
        opacity = np.asarray(alpha)
        if opacity.min() < _OPAQUE:
            return Marking(opacity < HALF, "transparency")
    # The brightest of red, green and blue: a mask may be painted in a colour.
    brightness = np.asarray(colors).max(-1)
    between = ((brightness > _BLACK) & (brightness < _WHITE)).mean()
    return Marking(brightness >= HALF, "brightness", float(between), int(brightness.max()))


def read_hole(alpha: Image.Image | None) -> Marking | None:
    """Reads the hole of a picture without a mask: where it is less than half opaque, if anywhere.

    Args:
        alpha: its opacity; None is wholly opaque.
    """
    marked = None if alpha is None else np.asarray(alpha) < HALF
    return None if marked is None or not marked.any() else Marking(marked, "own_transparency")


def half_mask(
    size: tuple[int, int], keep: Literal["upper", "lower", "left", "right"] = "upper"
) -> Image.Image:
    """Makes the mask that keeps one half of a picture and repaints the other.

    Args:
        size: (width, height) of the picture in pixels.
        keep: the half that stays.

    Returns:
        A mask for `TextToImage.edit`: white where it is repainted.

    Raises:
        GenerationError: there is no such half.
    """
    width, height = size
    halves = {
        "upper": (0, 0, width, height // 2),
        "lower": (0, height // 2, width, height),
        "left": (0, 0, width // 2, height),
        "right": (width // 2, 0, width, height),
    }
    if keep not in halves:
        raise GenerationError(
            f"There is no such half of a picture: `{keep}`. Choose {', '.join(halves)}."
        )
    mask = Image.new("L", size, 255)
    mask.paste(0, halves[keep])
    return mask
