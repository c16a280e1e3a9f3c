"""What a request asks for, once all that it leaves open is decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tessella.images import encode_picture
from tessella.model.pipeline import TextToImage
from tessella.serving.worker import FinishedPicture, ImageJob, PartialPicture

_LONGEST = 4.0  # times as long as wide


@dataclass(frozen=True)
class Wanted:
    """Pictures, and how they are sent."""

    painting: ImageJob
    prompt: str  # as the model reads it
    seeds: Sequence[int]  # one a picture
    size: tuple[int, int]  # (width, height) in pixels of the pictures that are sent
    num_positions: int  # of the canvas of one picture
    output_format: str
    quality: int
    revised_prompt: str | None  # what was read of a prompt that is too long
    unknown_words: list[str]  # of the prompt: no caption had them
    event_type: str  # of a stream: image_generation or image_edit
    is_streamed: bool
    as_url: bool

    def find_size(self, painted: FinishedPicture | PartialPicture) -> tuple[int, int]:
        """Finds (width, height) of a picture as it is sent.

        A partial one comes as it is painted: sixteen of the largest size would be 200 MB.
        """
        if isinstance(painted, PartialPicture):
            return painted.pixels.shape[1], painted.pixels.shape[0]
        return self.size

    def write(self, painted: FinishedPicture | PartialPicture) -> bytes:
        """Writes a picture as it is sent."""
        size = self.find_size(painted)
        return encode_picture(painted.pixels, size, self.output_format, self.quality)

    def describe(self, size: tuple[int, int]) -> dict[str, Any]:
        """Says what a picture of (width, height) is like, as OpenAI says it."""
        return {
            "background": "opaque",
            "output_format": self.output_format,
            "size": f"{size[0]}x{size[1]}",
        }

    def count_usage(self, count: int) -> dict[str, Any]:
        """Counts the tokens read and the codes laid for some pictures."""
        text_tokenizer = self.painting.served.model.text_tokenizer
        text, laid = (
            text_tokenizer.count_tokens(self.prompt),
            count * self.num_positions,
        )
        return {
            "input_tokens": text,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": text},
            "output_tokens": laid,
            "total_tokens": text + laid,
        }


def find_canvas_size(model: TextToImage, size: tuple[int, int]) -> tuple[int, int]:
    """Finds the smallest canvas (width, height) that a model can lay of about a picture's shape.

    At most four times as long as the model's own size; of a longer picture the middle is taken.
    """
    own, factor = model.config.image_size, model.config.tokenizer.downsampling
    longest = min(_LONGEST, max(size) / min(size))
    side = max(own, round(own * longest / factor) * factor)
    return (side, own) if size[0] >= size[1] else (own, side)
