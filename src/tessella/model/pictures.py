"""Pictures as Python gets them, and the one way to them from its options.

options, canvas ─ requests ─▶ `TextToImage.generate_images` ─ size ─▶ pictures, with their warnings
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from tessella.model.canvas import Canvas
from tessella.model.mask import Marking
from tessella.model.notebook import show_pictures
from tessella.model.notices import list_unknown, warn_settings, warn_unknown
from tessella.model.request import GenerationOptions, list_requests
from tessella.model.size import PictureSize

if TYPE_CHECKING:
    from tessella.model.pipeline import TextToImage


class Pictures(list[Image.Image]):
    """Painted pictures, in order, and what of the request had no effect.

    A notebook shows them side by side.

    Attributes:
        warnings: what had no effect, a sentence each.
        mask: how the mask of an edit was read, in words; None: there was none.
        labels: prompt and seed of each picture, which carries its own as `info["label"]`; empty
            where it was not painted.
    """

    def __init__(
        self,
        pictures: Iterable[Image.Image],
        warnings: Sequence[str] = (),
        marking: Marking | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__(pictures)
        self.warnings = list(warnings)
        self.mask = None if marking is None else str(marking)
        for picture, label in zip(self, labels, strict=False):
            picture.info["label"] = label

    @property
    def labels(self) -> list[str]:  # noqa: D102 - see the class
        return [str(picture.info.get("label", "")) for picture in self]

    def _repr_html_(self) -> str:
        return show_pictures(self, self.labels, self.warnings)


def paint_pictures(
    model: "TextToImage",
    prompts: Sequence[str],
    canvas: Canvas | Callable[[Sequence[int]], Sequence[Canvas]],
    options: GenerationOptions,
    *,
    size: PictureSize | None = None,
    marking: Marking | None = None,
) -> Pictures:
    """Paints each prompt on one canvas, or on those that are planned for its seeds.

    Args:
        model: paints.
        prompts: checked ones.
        canvas: what is known; or a plan that makes one canvas for each seed.
        options: see `GenerationOptions`.
        size: how large the pictures are asked for; None leaves them as they are painted.
        marking: what of a picture is repainted, to be told.

    Raises:
        GenerationError: see `GenerationOptions`.
        ConfigError: a setting is unknown or out of range.
    """
    changes: dict[str, Any] = dict(options)
    best_of, on_step = changes.pop("best_of", 1), changes.pop("on_step", None)
    count, seed = changes.pop("count", 1), changes.pop("seed", 0)
    negative_prompt = changes.pop("negative_prompt", "")
    references = model.encode_references(changes.pop("references", None) or ())
    settings = model.generation_settings(**changes)
    requests = list_requests(
        prompts,
        count=count,
        seed=seed,
        best_of=best_of,
        negative_prompt=negative_prompt,
        plan=canvas if callable(canvas) else lambda seeds: [canvas] * len(seeds),
        look_up=functools.partial(
            model.examples.find, count=settings.neighbors, references=references
        ),
    )
    generated = model.generate_images(requests, settings, best_of=best_of, on_step=on_step)
    asked = [name for name, value in changes.items() if value is not None]
    warnings = warn_unknown(list_unknown(model.words, requests))
    warnings += warn_settings(model.objective, settings, asked)
    painted = list(generated.pixels)
    if size is not None:
        warnings += size.list_warnings([size.choose_fit(pixels) for pixels in painted])
        painted = [size.fit(pixels) for pixels in painted]
    if marking is not None:
        warnings += marking.warnings
    labels = [f"{one.prompt} (seed {one.seed})" for one in requests]
    return Pictures([Image.fromarray(pixels) for pixels in painted], warnings, marking, labels)
