"""Painted pictures as OpenAI answers them: one JSON object, or a stream of events."""

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tessella.images import encode_picture
from tessella.model.mask import Marking
from tessella.model.notices import (
    list_unknown,
    warn_cut,
    warn_idle,
    warn_negative_prompt,
    warn_settings,
    warn_unknown,
)
from tessella.model.provenance import describe_examples
from tessella.model.request import ImageRequest
from tessella.model.size import PictureSize
from tessella.serving.image_job import PaintedPicture
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import ExampleBody, ImageBody

_MAX_UNKNOWN = 20  # words that an answer lists
_COMPATIBLE = "It is accepted so that programs need no change."
_HONOURED = {"quality": "auto", "moderation": "auto", "input_fidelity": "high"}
"""What is accepted only for compatibility, and the value that says what is done in any case."""


@dataclass(frozen=True)
class ImageAnswer:
    """How one request's pictures are sent."""

    served: ServedModel
    body: ImageBody
    asked_prompt: str
    prompt: str  # as the model reads it
    event_type: str  # image_generation or image_edit
    size: PictureSize
    marking: Marking | None = None  # what of a picture is repainted
    unused: Sequence[str] = ()  # in words: what of its pictures

    def encode(self, picture: PaintedPicture) -> bytes:
        """Writes a picture's file."""
        quality = self.body.output_compression
        # A partial one comes as it is painted: sixteen of the largest size would be 200 MB.
        is_partial = picture.partial_index is not None
        pixels = picture.pixels if is_partial else self.size.fit(picture.pixels)
        return encode_picture(pixels, self._format, 100 if quality is None else quality)

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
            **self._tell(pictures),
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
            event |= self._revised | self._tell([picture])
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
        return {"revised_prompt": self.prompt} if self.prompt != self.asked_prompt else {}

    def _tell(self, pictures: Sequence[PaintedPicture]) -> dict[str, Any]:
        """Tells what had no effect, how a mask was read, and which words are unknown."""
        unknown = list_unknown(self.served.words, [pictures[0].request])
        fits = [self.size.choose_fit(picture.pixels) for picture in pictures]
        warnings = [*warn_unknown(unknown), *self._warnings, *self.size.list_warnings(fits)]
        told: dict[str, Any] = {"warnings": warnings}
        if unknown:
            told["unknown_words"] = unknown[:_MAX_UNKNOWN]
        if self.marking is not None:
            told["mask"] = self.marking.describe()
        return told

    @property
    def _warnings(self) -> list[str]:
        """What of the request had no effect, whatever was painted."""
        body, model = self.body, self.served.model
        settings = model.generation_settings(**body.sampling())
        said = warn_cut("prompt", self.asked_prompt, self.prompt)
        if negative := (body.negative_prompt or "").strip():
            idle = warn_negative_prompt(model.objective, settings)
            read = model.text_tokenizer.shorten(negative)
            said += idle or warn_cut("negative prompt", negative, read)
        said += warn_settings(model.objective, settings, body.sampling())
        for name, reason in self._find_idle().items():
            said += warn_idle([name], reason)
        return [*said, *self.unused, *(self.marking.warnings if self.marking else ())]

    def _find_idle(self) -> dict[str, str]:
        """Finds fields that have no effect beside the others, each with its reason."""
        body, idle = self.body, dict[str, str]()
        for name in ("quality", "complexity", "style", "moderation", "input_fidelity"):
            if getattr(body, name, None) not in (None, _HONOURED.get(name)):
                idle[name] = _COMPATIBLE
        if (body.best_of or 1) > 1 and not self.prompt.strip():
            idle["best_of"] = "Candidates are chosen by the prompt, and there is none."
        if body.partial_images and not body.stream:
            idle["partial_images"] = "Only a stream has partial pictures."
        elif body.partial_images and not self.served.model.objective.has_steps:
            idle["partial_images"] = "The model paints a picture in one step."
        if body.output_compression is not None and self._format == "png":
            idle["output_compression"] = "A png loses nothing, whatever its quality."
        if body.response_format == "url" and body.stream:
            idle["response_format"] = "A stream sends pictures as base64."
        if self.marking is not None and getattr(body, "strength", None) is not None:
            idle["strength"] = "The mask says what is repainted."
        return idle

    def _describe(self, picture: PaintedPicture) -> dict[str, Any]:
        painted = "x".join(map(str, self.size.painted))
        asked = "x".join(map(str, self.size.asked))
        return {
            "background": "opaque",
            "output_format": self._format,
            "size": asked if picture.partial_index is None else painted,
            "painted_size": painted,
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
