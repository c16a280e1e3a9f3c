"""Makes the canvases of a model: of its grid, with the codes of a picture that is changed."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from tessella.images import Pixels
from tessella.model.canvas import Canvas, Mask, find_grid, fit_images, fit_mask
from tessella.model.codec import encode_pixels
from tessella.model.folder import ModelConfig
from tessella.tokenizer import ImageTokenizer


class CanvasMaker:
    """Makes canvases; `TextToImage`'s methods of the same purpose document the arguments.

    Args:
        config: of the model.
        tokenizer: encodes the pictures that are changed.
    """

    def __init__(self, config: ModelConfig, tokenizer: ImageTokenizer) -> None:
        self._config, self._tokenizer = config, tokenizer

    def new(self, size: tuple[int, int] | None = None) -> Canvas:
        """Returns an empty canvas, of the model's size unless another (width, height) is given.

        Raises:
            GenerationError: the size is wrong.
        """
        config, grid = self._config, self._config.grid
        if size is not None:
            grid = find_grid(size, config.tokenizer.downsampling, config.image_size)
        return Canvas.new(grid)

    def edit(self, image: Image.Image, mask: Image.Image | Mask) -> Canvas:
        """Returns the canvas of `TextToImage.edit`."""
        pixels, codes = self._encode_square(image)
        return Canvas.edit(pixels, codes, fit_mask(mask, image, self._config.image_size))

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
