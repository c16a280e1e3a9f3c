"""The captioned images that a model is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tessella.data.cache import CaptionedImages
from tessella.images import Pixels
from tessella.model.pipeline import TextToImage


@dataclass(frozen=True)
class EvalImages:
    """Captioned images that a model is measured on."""

    pixels: Pixels  # (B, S, S, 3)
    captions: Sequence[str]  # the first of each
    description: str  # which ones they are, for the protocol

    def select(self, indices: Sequence[int]) -> "EvalImages":
        """Returns some of them."""
        captions = [self.captions[index] for index in indices]
        return EvalImages(self.pixels[list(indices)], captions, self.description)

    def draw_readable(self, model: TextToImage, count: int) -> "EvalImages":
        """Draws up to `count` of them, then drops those whose caption is too long as a prompt."""
        drawn = draw_indices(len(self.captions), count).tolist()
        return self.select([index for index in drawn if can_read(model, self.captions[index])])


def read_images(images: CaptionedImages, indices: Sequence[int], description: str) -> EvalImages:
    """Reads some images with the first caption of each."""
    captions = [images.captions(index)[0] for index in indices]
    return EvalImages(images.pixels(np.asarray(indices)), captions, description)


def draw_indices(total: int, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Draws `count` of the indices below `total`, or all if there are fewer, in rising order."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def can_read(model: TextToImage, caption: str) -> bool:
    """Whether a caption is short enough to be a prompt. Counts its tokens; runs no network."""
    text_encoder = model.text_tokenizer
    return text_encoder.count_tokens(caption) <= text_encoder.max_tokens
