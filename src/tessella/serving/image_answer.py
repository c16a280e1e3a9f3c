"""Painted pictures as OpenAI answers them: one JSON object, or a stream of events."""

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tessella.images import encode_picture
from tessella.model.provenance import describe_examples, find_unexplained
from tessella.model.request import ImageRequest
from tessella.serving.image_job import PaintedPicture
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import ExampleBody, ImageBody

_MAX_UNKNOWN = 20  # words that an answer lists


@dataclass(frozen=True)
class ImageAnswer:
    """How one request's pictures are sent."""

    served: ServedModel
    body: ImageBody
    prompt: str  # as the model reads it
    is_shortened: bool  # the request's was longer
    event_type: str  # image_generation or image_edit

    def encode(self, picture: PaintedPicture) -> bytes:
        """Writes a picture's file."""
        quality = self.body.output_compression
        return encode_picture(
            picture.pixels, self._size(picture), self._format, 100 if quality is None else quality
        )

    def to_json(
        self, pictures: Sequence[PaintedPicture], store: Callable[[bytes, str], str]
    ) -> dict[str, Any]:
        """Describes all pictures.

        Args:
            pictures: finished ones, in order.
            store: keeps a file of a format and returns its URL.
        """
        data = []
        for picture in pictures:
            if self.body.response_format == "url":
                file = {"url": store(picture.content, self._format)}
            else:
                file = {"b64_json": encode_base64(picture.content)}
            seed = {"seed": picture.request.seed}
            data.append(file | seed | self._list_examples(picture) | self._revised)
        return {
            "created": int(time.time()),
            "data": data,
            "usage": self._count_usage(pictures),
            **self._describe(pictures[0]),
            **self._list_unknown(pictures[0]),
        }

    def to_event(self, picture: PaintedPicture) -> bytes:
        """Writes a server-sent event about one picture."""
        is_partial = picture.partial_index is not None
        name = f"{self.event_type}.{'partial_image' if is_partial else 'completed'}"
        event = self._describe(picture) | {
            "type": name,
            "b64_json": encode_base64(picture.content),
            "created_at": int(time.time()),
            "quality": "auto",
            "index": picture.index,
            "seed": picture.request.seed,
        }
        if is_partial:
            event["partial_image_index"] = picture.partial_index
        else:
            event |= {"usage": self._count_usage([picture]), **self._list_examples(picture)}
            event |= self._revised | self._list_unknown(picture)
        return write_event(name, event)

    @property
    def _format(self) -> str:
        return self.body.output_format or "png"

    def _list_examples(self, picture: PaintedPicture) -> dict[str, Any]:
        if not self.served.examples.most:
            return {}
        looked_at = list_examples(picture.request)
        return {"examples": [one.model_dump(exclude_none=True) for one in looked_at]}

    @property
    def _revised(self) -> dict[str, Any]:
        return {"revised_prompt": self.prompt} if self.is_shortened else {}

    def _list_unknown(self, picture: PaintedPicture) -> dict[str, Any]:
        """Lists words that neither training nor anything that was looked at explains."""
        unknown = self.served.words.find_unknown(self.prompt)
        words = find_unexplained(unknown, picture.request.examples or ())[:_MAX_UNKNOWN]
        return {"unknown_words": words} if words else {}

    def _size(self, picture: PaintedPicture) -> tuple[int, int]:
        """Finds (width, height) in pixels of a picture as it is sent.

        A partial one comes as it is painted: sixteen of the largest size would be 200 MB.
        """
        if picture.partial_index is not None:
            return picture.pixels.shape[1], picture.pixels.shape[0]
        side = self.served.model.config.image_size
        return self.body.pixel_size() or (side, side)

    def _describe(self, picture: PaintedPicture) -> dict[str, Any]:
        width, height = self._size(picture)
        return {
            "background": "opaque",
            "output_format": self._format,
            "size": f"{width}x{height}",
        }

    def _count_usage(self, pictures: Sequence[PaintedPicture]) -> dict[str, Any]:
        """Counts the tokens read and the codes sampled."""
        model = self.served.model
        text = model.text_tokenizer.count_tokens(self.prompt)
        side = model.config.tokenizer.downsampling
        positions = sum(picture.pixels[::side, ::side, 0].size for picture in pictures)
        codes = positions * model.config.tokenizer.quantizer.codes_per_position
        return {
            "input_tokens": text,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": text},
            "output_tokens": codes,
            "total_tokens": text + codes,
        }


def list_examples(request: ImageRequest) -> list[ExampleBody]:
    """Lists what a picture was painted beside, in order."""
    return [ExampleBody(**one) for one in describe_examples(request.examples or ())]


def write_event(name: str, event: dict[str, Any]) -> bytes:
    """Writes a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(event, allow_nan=False)}\n\n".encode("ascii")


def encode_base64(content: bytes) -> str:
    """Writes a file as text."""
    return base64.b64encode(content).decode("ascii")
