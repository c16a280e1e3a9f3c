"""Makes the canvases of a model: of its grid, with the codes of a picture that is changed."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from tessella.errors import GenerationError
from tessella.images import Pixels, find_alpha
from tessella.model.canvas import Canvas, find_grid, fit_images
from tessella.model.codec import encode_pixels
from tessella.model.folder import ModelConfig
from tessella.model.mask import Marking, Mask, read_hole, read_mask
from tessella.model.size import CanvasShape, PictureSize, plan_size
from tessella.tokenizer import VQAutoencoder


class CanvasMaker:
    """Makes canvases; `TextToImage`'s methods of the same purpose document the arguments.

    Args:
        config: of the model.
        tokenizer: encodes the pictures that are changed.
    """

    def __init__(self, config: ModelConfig, tokenizer: VQAutoencoder) -> None:
        self._config, self._tokenizer = config, tokenizer

    def new(self, size: tuple[int, int] | None = None) -> Canvas:
        """Returns an empty canvas, the model's picture unless (width, height) in pixels is given.

        Raises:
            GenerationError: the size is wrong.
        """
        config, grid = self._config, self._config.grid
        if size is not None:
            grid = find_grid(size, config.tokenizer.downsampling, config.image_size)
        return Canvas.new(grid)

    def plan_size(
        self, size: tuple[int, int] | None = None, canvas: CanvasShape | None = None
    ) -> PictureSize:
        """Plans how large a picture of the asked size is painted; `plan_size` has the rule.

        Raises:
            GenerationError: the size or the canvas is wrong.
        """
        config = self._config
        side, factor = config.image_size, config.tokenizer.downsampling
        return plan_size(size, canvas, image_size=side, downsampling=factor)

    def mark(self, image: Image.Image, mask: Image.Image | Mask | None) -> Marking:
        """Reads what of a picture to repaint: its mask, or without one its own hole.

        Raises:
            GenerationError: the mask is none, or marks nothing, or there is neither.
        """
        marking = read_hole(find_alpha(image)) if mask is None else read_mask(mask)
        if marking is None:
            raise GenerationError(
                "There is no mask, and the picture has no transparency: nothing says what to "
                "repaint. Give a mask, or make transparent what should be repainted."
            )
        return marking.fit(image.size, self._config.image_size)

    def edit(self, image: Image.Image, marking: Marking) -> Canvas:
        """Returns the canvas of `TextToImage.edit`, by a marking of the model's size."""
        pixels, codes = self._encode_square(image)
        return Canvas.edit(pixels, codes, marking.marked)

    def outpaint(
        self, image: Image.Image, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0
    ) -> Canvas:
        """Returns the canvas of `TextToImage.outpaint`."""
        pixels, codes = self._encode_square(image)
        return Canvas.outpaint(pixels, codes, left=left, top=top, right=right, bottom=bottom)

    def variations(
        self, image: Image.Image, seeds: Sequence[int], *, strength: float = 0.5
    ) -> list[Canvas]:
        """Returns the canvases of `TextToImage.vary`, one a seed, which draws what is known.

        Raises:
            GenerationError: the strength is out of range.
        """
        return Canvas.variations(self._encode_square(image)[1], seeds, strength=strength)

    def _encode_square(self, image: Image.Image) -> tuple[Pixels, Tensor]:
        """Crops and encodes a picture: pixels (S, S, 3) and codes (M, h, w)."""
        pixels = fit_images([image], self._config.image_size)
        return pixels[0], encode_pixels(self._tokenizer, pixels)[0].cpu()
